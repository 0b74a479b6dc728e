"""Preferences, demonstrations and prompts as people have them, read into the records of `data`.

    course schema            what `data.write_jsonl` writes
    HH transcripts           {"chosen": "\\n\\nHuman: … \\n\\nAssistant: …", "rejected": …}
    prompt/chosen/rejected   texts; also instruction (and input), question or input for prompt
    chat lists               chosen and rejected as {"role", "content"}, one or a list of them, as
                             UltraFeedback; or {"from", "value"}, as ShareGPT
    TL;DR comparisons        {"info", "summaries", "choice"}
    ranked lists             a prompt, K answers, and their ranks or scores
    PandaLM                  two responses and the votes of several annotators

Beside these a row may have a system prompt (system) and earlier turns (history). A row that cannot
teach anything is left out, and `Loaded.dropped` says why and how often; columns that nobody read
are in `Loaded.unused`. A row that does not fit its file's format is an error with its place.
"""

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_edu.data import (
    CUE,
    SPEAKERS,
    TURN,
    Demonstration,
    Prompt,
    Ranking,
    is_encodable,
    to_demonstration,
    to_messages,
    to_prompt,
    to_ranking,
    to_text,
    trimmed,
)
from rlhf_edu.files import text_lines
from rlhf_edu.real.rows import kind_of, read_rows
from rlhf_edu.tokens import encode_answer, encode_prompt

Row = dict[str, Any]
Messages = list[dict[str, str]]


class Drop(Exception):
    """A row that is left out; the message is the reason, as counted."""


@dataclass
class Loaded:
    """Records of a file or data set.

    Attributes:
        records: rankings, demonstrations or texts of prompts, in the order of the rows.
        source, format: where they are from, and how they were written.
        rows: how many there were.
        dropped: why rows were left out, and how many for each reason.
        unused: names of columns that are filled, but were not read in any row.
        control: what looks like the control tokens of some template, and in how many records; a
            chat template takes them for letters.
    """

    records: list[Any]
    source: str
    format: str
    rows: int
    dropped: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    control: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.rows} rows of {self.format}, {len(self.records)} used"]
        if self.dropped:
            parts.append(f"left out: {_counted(self.dropped)}")
        if self.unused:
            parts.append(f"columns not used: {' '.join(', '.join(self.unused).split())}")
        if self.control:
            parts.append(f"look: control tokens, read as letters: {_counted(self.control)}")
        return f"{self.source}: {'; '.join(parts)}"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.most_common())


# --- values --------------------------------------------------------------------------------------


def _text(value: Any, what: str) -> str:
    """A text, `trimmed`.

    Raises:
        Drop: it is no text (a number, a missing value, half a letter), or empty.
    """
    if not isinstance(value, str):
        raise Drop(f"{what} is no text")
    if not value.strip():
        raise Drop(f"empty {what}")
    if not is_encodable(value):
        raise Drop(f"{what} with half a surrogate pair")
    return trimmed(value)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _number(value: Any) -> float | None:
    """A number, also one written as text; None if it is missing: null, NaN or an empty text."""
    if _blank(value):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"a rank or score must be a number, not {_short(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"a rank or score must be a number, not {_short(value)}")
    return None if value != value else value


def _list(value: Any, what: str) -> list[Any]:
    """A list, also one written as JSON in a text, as in a CSV file."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {_short(value)}")
    return value


def _object(value: Any, what: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, not {_short(value)}")
    return value


def _short(value: Any) -> str:
    return ascii(value)[:40]


def _first(row: Row, keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if key in row), None)


# --- conversations -------------------------------------------------------------------------------

PROMPT_KEYS, CHATS = ("prompt", "instruction", "question", "input"), ("messages", "conversations")
ROLE_OF = {"human": "user", "gpt": "assistant"} | {role: role for role in SPEAKERS}
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def _messages(value: Any, what: str) -> Messages:
    """Messages of a list of them, or of one alone; an empty system message is none."""
    if isinstance(value, dict):
        value = [value]
    found = [_message(_object(one, f"a message of {what}")) for one in _list(value, what)]
    return [message for message in found if message["content"]]


def _message(message: Row) -> dict[str, str]:
    role = message["from"] if "from" in message else message["role"]
    content = message["value"] if "value" in message else message["content"]
    if not isinstance(role, str) or role not in ROLE_OF:
        raise Drop(f"with a turn of {_short(role)}")
    if message.get("tool_calls"):
        raise Drop("with the call of a tool")
    if isinstance(content, list):
        content = _of_parts(content)
    if role == "system" and _blank(content):
        return {"role": role, "content": ""}
    return {"role": ROLE_OF[role], "content": _text(content, "message")}


def _of_parts(parts: list[Any]) -> str:
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Drop("a message that is not text alone")
    return "".join(texts)


def _asked(row: Row) -> Messages:
    """The messages in the column of the prompt; none if there is no such column."""
    key = next((key for key in PROMPT_KEYS if key in row), None)
    if key is None:
        return []
    if isinstance(row[key], list | dict):
        turns = _messages(row[key], key)
    else:
        turns = _transcript_turns(row[key])
    if turns and key != "input" and not _blank(row.get("input")):
        turns[-1]["content"] += f"\n\n{_text(row['input'], 'input')}"
    return turns


def _transcript_turns(value: Any) -> Messages:
    """The turns of a transcript; a text that is none is one turn of the user.

    A transcript begins with an empty line and its first speaker. People strip the empty line; what
    begins with a speaker, and has a turn of the assistant further down, is one all the same.
    """
    text = _text(value, "prompt")
    opened = f"\n\n{text}"
    if TURN.match(opened) and (CUE in text or value.lstrip(" \r").startswith("\n")):
        return to_messages(opened)
    return [{"role": "user", "content": text}]


def _context(row: Row) -> Messages:
    """What the columns system and history say before the prompt."""
    system, turns = _first(row, ("system", "system_prompt")), []
    if not _blank(system):
        turns.append({"role": "system", "content": _text(system, "system prompt")})
    for pair in _list(row.get("history") or [], "history"):
        if len(_list(pair, "a turn in history")) != 2:
            raise ValueError(f"a turn in history must be question and answer, not {_short(pair)}")
        for role, said in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": _text(said, "message")})
    return turns


def _prompt(row: Row, turns: Messages) -> str:
    """The text of a prompt of these turns, after what the row's other columns say before them."""
    if any(row.get(key) for key in MEDIA):
        raise Drop("with an image, sound or video")
    before = _context(row)
    if before and before[:1] == turns[:1]:
        turns = turns[1:]
    turns = before + turns
    if not turns:
        raise Drop("empty prompt")
    if turns[-1]["role"] != "user":
        raise Drop("prompt does not end with a turn of the user")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise Drop("with a system message in the middle")
    if not all(turn["content"] for turn in turns):
        raise Drop("empty message")
    try:
        return to_text(turns)
    except ValueError as error:
        raise Drop(str(error)) from None


def _prompt_of(row: Row) -> str:
    return _prompt(row, _asked(row))


def _answered(row: Row, key: str) -> tuple[str, str]:
    """Prompt and answer of a list of messages; the prompt, or its beginning, may stand apart."""
    messages = _messages(row[key], key)
    if not messages or messages[-1]["role"] != "assistant":
        raise Drop(f"{key} has no answer")
    *before, answer = messages
    given = _asked(row)
    if not before and not given and key not in CHATS:
        chat = _first(row, CHATS)
        given = [] if chat is None else _messages(chat, "messages")
    return _prompt(row, _joined(given, before, key)), answer["content"]


def _joined(given: Messages, before: Messages, key: str) -> Messages:
    """The turns of a prompt that stands partly apart, partly before the answer, or in both."""
    width = len(given)
    if any(before[i : i + width] == given for i in range(len(before))):
        return before
    if not given or not before or given[-len(before) :] == before:
        return given or before
    if given[-1]["role"] == before[0]["role"]:
        raise Drop(f"prompt and {key} do not meet")
    return given + before


# --- rankings ------------------------------------------------------------------------------------


def _pair(row: Row, prompt: str, chosen: Any, rejected: Any) -> Ranking:
    names = ("score_{}", "{}_score", "{}-rating", "{}_rating")
    won, lost = (
        _number(_first(row, [name.format(key) for name in names])) for key in ("chosen", "rejected")
    )
    if None not in (won, lost) and won <= lost:
        raise Drop("tied" if won == lost else "chosen with the lower score")
    return _ranking(prompt, (chosen, rejected), (1, 2))


def _ranking(prompt: str, answers: Sequence[Any], order: Sequence[float]) -> Ranking:
    """A ranking of answers by numbers of any kind, the best of which is the lowest."""
    answers = [_text(answer, "answer") for answer in answers]
    if len(answers) < 2:
        raise Drop("fewer than two answers")
    if len(set(answers)) == 1:
        raise Drop("identical answers")
    if len(set(order)) == 1:
        raise Drop("tied")
    rank = {number: place for place, number in enumerate(sorted(set(order)), 1)}
    ranks = [rank[number] for number in order]
    return Ranking(Prompt("", "", "", prompt), answers, [True] * len(answers), ranks)


def _transcript(row: Row, key: str) -> tuple[str, str]:
    """Prompt and answer of a transcript: the answer is what the assistant says last."""
    if isinstance(row[key], list | dict):
        raise ValueError(
            f"{key} must be a text, or chosen and rejected both messages, not {_short(row[key])}"
        )
    before, cue, answer = f"\n\n{_text(row[key], 'transcript')}".rpartition(CUE)
    if not cue:
        raise ValueError(
            'a transcript must have a turn that begins with an empty line and "Assistant:"'
        )
    if TURN.search(answer):
        raise Drop("transcript has no answer at its end")
    return _prompt(row, _transcript_turns(before)), answer.removeprefix(" ")


def _from_transcripts(row: Row) -> Ranking:
    (prompt, chosen), (other, rejected) = (_transcript(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise Drop("prompts differ")
    return _pair(row, prompt, chosen, rejected)


def _from_pair(row: Row) -> Ranking:
    prompt, answers = _prompt_of(row), (row["chosen"], row["rejected"])
    if not all(isinstance(answer, str) and TURN.match(answer) for answer in answers):
        return _pair(row, prompt, *answers)
    ranking = _from_transcripts(row)
    if ranking.prompt.text != prompt:
        raise Drop("prompt and chosen do not meet")
    return ranking


def _from_chats(row: Row) -> Ranking:
    (prompt, chosen), (other, rejected) = (_answered(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise Drop("prompts differ")
    return _pair(row, prompt, chosen, rejected)


def _tldr_prompt(row: Row) -> str:
    info = _object(row["info"], "info")
    if info.get("article"):
        return f"{_text(info['article'], 'prompt')}\n\nTL;DR:"
    subreddit, title = (_text(info.get(key), key) for key in ("subreddit", "title"))
    head = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}"
    return f"{head}\n\nPOST: {_text(info.get('post'), 'prompt')}\n\nTL;DR:"


def _from_tldr(row: Row) -> Ranking:
    summaries = _list(row["summaries"], "summaries")
    texts = [_object(summary, "a summary")["text"] for summary in summaries]
    if row["choice"] not in range(len(texts)):
        raise ValueError(f"choice must be the number of a summary, not {_short(row['choice'])}")
    order = [1 if i == row["choice"] else 2 for i in range(len(texts))]
    return _ranking(_tldr_prompt(row), texts, order)


CANDIDATES = ("answers", "responses", "completions", "candidates")
RANKS, SCORES = ("ranks", "rank", "ranking"), ("scores", "score", "overall_score", "rating")


def _from_list(row: Row) -> Ranking:
    answers = _list(_first(row, CANDIDATES), "the answers")
    ranks, scores = (_first(row, keys) for keys in (RANKS, SCORES))
    if answers and isinstance(answers[0], dict):  # each with a rank or score of its own
        answers = [_object(answer, "each answer") for answer in answers]
        ranks, scores = ([_first(a, keys) for a in answers] for keys in (RANKS, SCORES))
        answers = [_first(answer, ("text", "response", "answer", "content")) for answer in answers]
    order = _numbers(ranks) or [-score for score in _numbers(scores)]
    if not order:
        raise Drop("without ranks or scores")
    if len(order) != len(answers):
        raise ValueError(f"there are {len(answers)} answers, but {len(order)} ranks or scores")
    return _ranking(_prompt_of(row), answers, order)


def _numbers(values: Any) -> list[float]:
    """The ranks or scores, all of them; an empty list if one is missing."""
    numbers = [] if values is None else [_number(v) for v in _list(values, "ranks or scores")]
    return [] if None in numbers else numbers


def _from_votes(row: Row) -> Ranking:
    """Two responses; every annotator votes for 1, 2 or, with 0, for neither."""
    votes = Counter(_number(row[key]) for key in row if key.startswith("annotator"))
    if not votes or not votes.keys() <= {0, 1, 2}:
        raise ValueError(f"votes must be 0, 1 or 2, not {_short(list(votes))}")
    return _ranking(_prompt_of(row), (row["response1"], row["response2"]), (-votes[1], -votes[2]))


# --- formats -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A way to write rows: its name, how to know one, and how to read one."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], Any]


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: row.keys() >= {*keys}


def _has_chats(*keys: str) -> Callable[[Row], bool]:
    """Whether a row has messages in all of these columns."""
    return lambda row: all(isinstance(row.get(key), list | dict) for key in keys)


def _has_prompt(row: Row) -> bool:
    return any(key in row for key in PROMPT_KEYS)


RANKING_FORMATS = [
    Format("the course schema", _has("prompt_id", "answers", "ended", "ranks"), to_ranking),
    Format("TL;DR comparisons", _has("info", "summaries", "choice"), _from_tldr),
    Format("chat lists", _has_chats("chosen", "rejected"), _from_chats),
    Format(
        "prompt/chosen/rejected",
        lambda row: _has_prompt(row) and _has("chosen", "rejected")(row),
        _from_pair,
    ),
    Format("HH transcripts", _has("chosen", "rejected"), _from_transcripts),
    Format("PandaLM", _has("instruction", "response1", "response2"), _from_votes),
    Format(
        "ranked lists",
        lambda row: _has_prompt(row) and _first(row, CANDIDATES) is not None,
        _from_list,
    ),
]
COMPLETIONS = ("completion", "response", "answer", "output")


def _from_completion(row: Row) -> Demonstration:
    key = next(key for key in COMPLETIONS if key in row)
    if isinstance(row[key], list | dict):
        return _demonstration(row, *_answered(row, key))
    return _demonstration(row, _prompt_of(row), row[key])


def _from_messages(row: Row) -> Demonstration:
    return _demonstration(row, *_answered(row, next(key for key in CHATS if key in row)))


def _from_best(row: Row) -> Demonstration:
    """The best answer of a ranking."""
    ranking = _format_of(row, RANKING_FORMATS).read(row)
    best = ranking.ranks.index(min(ranking.ranks))
    return Demonstration(Prompt("", "", "", ranking.prompt.text), ranking.answers[best])


def _demonstration(row: Row, prompt: str, answer: Any) -> Demonstration:
    if str(row.get("label")).lower() == "false":  # as in data for KTO
        raise Drop("labelled false")
    return Demonstration(Prompt("", "", "", prompt), _text(answer, "answer"))


def _format_of(row: Row, formats: Sequence[Format]) -> Format | None:
    return next((one for one in formats if one.fits(row)), None)


def _is_chat(row: Row) -> bool:
    return any(_has_chats(key)(row) for key in CHATS)


DEMONSTRATION_FORMATS = [
    Format("the course schema", _has("prompt_id", "prompt", "answer", "labeler"), to_demonstration),
    Format(
        "prompts and answers",
        lambda row: _has_prompt(row) and any(key in row for key in COMPLETIONS),
        _from_completion,
    ),
    Format("chats", lambda row: "chosen" not in row and _is_chat(row), _from_messages),
    *[Format(f"{one.name}, their best answers", one.fits, _from_best) for one in RANKING_FORMATS],
]


def _prompt_of_chat(row: Row) -> str:
    keys = ("chosen", *COMPLETIONS, *CHATS)
    return _answered(row, next(key for key in keys if _has_chats(key)(row)))[0]


PROMPTS = [
    Format(
        "the course schema",
        _has("prompt_id", "customer", "prompt"),
        lambda row: to_prompt(row).text,
    ),
    Format("TL;DR comparisons", _has("info"), _tldr_prompt),
    Format(
        "chats",
        lambda row: any(_has_chats(key)(row) for key in ("chosen", *COMPLETIONS)) or _is_chat(row),
        _prompt_of_chat,
    ),
    Format("prompts", _has_prompt, _prompt_of),
    Format("HH transcripts", _has("chosen"), lambda row: _transcript(row, "chosen")[0]),
]
# Whoever wants prompts alone knows that he leaves these aside.
BESIDE_PROMPTS = {
    *("chosen", "rejected", "label", "summaries", "choice", "response1", "response2"),
    *("score_chosen", "score_rejected", "annotator1", "annotator2", "annotator3"),
    *(*COMPLETIONS, *CANDIDATES, *RANKS, *SCORES, *Demonstration.__annotations__),
    *Ranking.__annotations__,
}


# --- loading -------------------------------------------------------------------------------------


def load_rankings(source: str | Path, limit: int | None = None) -> Loaded:
    """Load rankings from a file, a data set on disk, or, in the hub tier, from the hub.

    Args:
        source: a .json, .jsonl, .csv, .txt (a prompt on a line) or .parquet file, all but the last
            also as .gz; a folder of such files, or one that `datasets` saved; or a hub id. Of
            several splits `train`, or the one that is named: "FOLDER:test", "owner/name:test".
        limit: read so many rows at most; None: all. The others cost nothing.

    Raises:
        FileNotFoundError: there is no such file, or it is a hub id and the hub was not chosen.
        ValueError: a file cannot be read, or a row does not fit; the message names file and line
            or row, and what to do.
    """
    return _load(source, RANKING_FORMATS, limit)


def load_demonstrations(source: str | Path, limit: int | None = None) -> Loaded:
    """Load demonstrations; of rankings, the best answers. See `load_rankings`."""
    return _load(source, DEMONSTRATION_FORMATS, limit)


def load_prompts(source: str | Path, limit: int | None = None) -> Loaded:
    """Load texts of prompts, each once, from records of any kind. See `load_rankings`."""
    loaded = _load(source, PROMPTS, limit, BESIDE_PROMPTS)
    unique = list(dict.fromkeys(loaded.records))
    if len(unique) < len(loaded.records):
        loaded.dropped["seen before"] += len(loaded.records) - len(unique)
    loaded.records = unique
    return loaded


def load_pages(source: str | Path) -> list[str]:
    """Load pages of text: parted by empty lines in a .txt file, else the `text` of every row."""
    path = Path(source)
    if path.is_file() and kind_of(path) == ".txt":
        pages = re.split(r"\n\s*\n", "".join(line for _, line in text_lines(path)))
        return [page.strip() for page in pages if page.strip()]
    pages = Format("pages", _has("text"), lambda row: _text(row["text"], "page"))
    return _load(source, [pages], None).records


# No text has more letters than this for each of its tokens. What has is too long, and millions of
# letters need not be tokenised to know it.
LETTERS_A_TOKEN = 128


def leave_out_long(
    loaded: Loaded, tokenizer: PreTrainedTokenizerBase, max_prompt: int, max_answer: int
) -> None:
    """Leave out, in place, records with too many tokens in their prompt or in an answer.

    Raises:
        ValueError: none is left.
    """

    def prompt_ids(text: str) -> list[int]:
        return encode_prompt(tokenizer, text, sys.maxsize)

    def answer_ids(text: str) -> list[int]:
        return encode_answer(tokenizer, text)

    kept = []
    for record in loaded.records:
        prompt, answers = _texts(record)
        if _is_long(prompt, max_prompt, prompt_ids):
            loaded.dropped["prompt too long"] += 1
        elif any(_is_long(answer, max_answer, answer_ids) for answer in answers):
            loaded.dropped["answer too long"] += 1
        else:
            kept.append(record)
    loaded.records = kept
    if not kept:
        raise ValueError(
            f"{loaded}: nothing is left; raise --max-prompt-tokens ({max_prompt}) or "
            f"--max-answer-tokens ({max_answer})"
        )


def _is_long(text: str, limit: int, encode: Callable[[str], list[int]]) -> bool:
    return len(text) > limit * LETTERS_A_TOKEN or len(encode(text)) > limit


def _texts(record: str | Demonstration | Ranking) -> tuple[str, Sequence[str]]:
    """The prompt of a record, and all answers to it."""
    if isinstance(record, str):
        return record, []
    answers = record.answers if isinstance(record, Ranking) else [record.answer]
    return record.prompt.text, answers


class _Watched(dict):
    """A row that notes which of its columns are read."""

    def __init__(self, row: Row, read: set[str]) -> None:
        super().__init__(row)
        self.read = read

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


# Of the templates of common models: <|im_end|>, <start_of_turn>, [INST], </s>, <image>.
CONTROL = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|\[/?INST\]|</?s>|<image>"
)


def _load(
    source: str | Path, formats: Sequence[Format], limit: int | None, beside: Set[str] = frozenset()
) -> Loaded:
    """Read rows; columns in `beside` need not be used."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be 1 or more, not {limit}")
    loaded, found = Loaded([], str(source), "no format", 0), None
    columns, read = set(), set()
    for where, row in islice(read_rows(source), limit):
        loaded.rows += 1
        try:
            _require_object(row)
            found = found or _known(row, formats)
            columns.update(key for key, value in row.items() if value not in (None, "", [], {}))
            record = _read_row(_Watched(row, read), found)
            loaded.records.append(_named(record, f"{Path(source).name}-{loaded.rows}"))
            loaded.control.update(_control_tokens(record))
        except Drop as reason:
            loaded.dropped[str(reason)] += 1
        except KeyError as error:
            raise ValueError(f"{where}: the key {error} is missing") from None
        except (AttributeError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {error}") from None
    if not loaded.records:
        reasons = _counted(loaded.dropped) or "it has no rows"
        raise ValueError(f"{source}: nothing is left to learn from ({reasons}); give another file")
    loaded.format, loaded.unused = found.name, sorted(columns - read - beside)
    return loaded


def _control_tokens(record: str | Demonstration | Ranking) -> set[str]:
    prompt, answers = _texts(record)
    return {token for text in (prompt, *answers) for token in CONTROL.findall(text)}


def _require_object(row: Any) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, not {_short(row)}")


def _known(row: Row, formats: Sequence[Format]) -> Format:
    found = _format_of(row, formats)
    if found is None:
        raise ValueError(
            f"columns {_columns(row)} are none that can be read here; rename them, for example to "
            "prompt, chosen and rejected (rankings) or prompt and answer (demonstrations)"
        )
    return found


def _columns(row: Row) -> str:
    return ascii(", ".join(map(str, row)))[:120]


def _read_row(row: Row, form: Format) -> Any:
    if not form.fits(row):
        raise ValueError(
            f"columns {_columns(row)} do not fit {form.name}, as the rows before do; put rows of "
            "different kinds into files of their own"
        )
    return form.read(row)


def _named(record: Any, name: str) -> Any:
    """The record, with an id for its prompt if it has none."""
    if isinstance(record, str) or record.prompt.prompt_id:
        return record
    object.__setattr__(record.prompt, "prompt_id", name)  # it is new, and nobody else's
    return record
