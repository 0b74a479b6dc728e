"""Preferences, demonstrations and prompts as people have them, read into the records of `data`.

    course schema            what `data.write_jsonl` writes
    HH transcripts           {"chosen": "\\n\\nHuman: … \\n\\nAssistant: …", "rejected": …}
    prompt/chosen/rejected   texts; also instruction (and input) in the place of prompt
    chat lists               chosen and rejected as lists of {"role", "content"}, as UltraFeedback
    TL;DR comparisons        {"info", "summaries", "choice"}
    ranked lists             a prompt, K answers, and their ranks or scores
    PandaLM                  two responses and the votes of several annotators

A row that cannot teach anything is left out, and `Loaded.dropped` says why and how often. A row
that does not fit its file's format is an error with its place.
"""

import contextlib
import gzip
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_edu.data import (
    CUE,
    Demonstration,
    Prompt,
    Ranking,
    to_demonstration,
    to_messages,
    to_prompt,
    to_ranking,
    to_text,
)
from rlhf_edu.tokens import encode_answer, encode_prompt

Row = dict[str, Any]


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
    """

    records: list[Any]
    source: str
    format: str
    rows: int
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {why}" for why, count in self.dropped.most_common())
        left_out = f"; left out: {reasons}" if reasons else ""
        used = f"{len(self.records)} used{left_out}"
        return f"{self.source}: {self.rows} rows of {self.format}, {used}"


# --- what the formats say ------------------------------------------------------------------------


def _text(value: Any, what: str) -> str:
    """A text without space around it.

    Raises:
        Drop: it is no text (a number, a missing value), or empty.
    """
    if not isinstance(value, str):
        raise Drop(f"{what} is no text")
    if not value.strip():
        raise Drop(f"empty {what}")
    return value.strip()


def _prompt(row: Row) -> str:
    """The prompt of a row with a prompt, or an instruction and perhaps an input to it."""
    given = next(row[key] for key in ("prompt", "instruction", "question") if key in row)
    if isinstance(given, list):
        return _conversation(given)
    extra = row.get("input")
    added = f"\n\n{extra.strip()}" if isinstance(extra, str) and extra.strip() else ""
    return _text(given, "prompt") + added


def _conversation(messages: Any) -> str:
    """The text of a prompt of messages."""
    if not messages:
        raise Drop("empty prompt")
    turns = [{"role": m["role"], "content": _text(m["content"], "message")} for m in messages]
    try:
        return to_text(turns)
    except ValueError as error:
        raise Drop(str(error)) from None


def _pair(prompt: str, chosen: Any, rejected: Any) -> Ranking:
    answers = _text(chosen, "answer"), _text(rejected, "answer")
    return _ranking(prompt, answers, (1, 2))


def _ranking(prompt: str, answers: Sequence[str], ranks: Sequence[int]) -> Ranking:
    if len(set(answers)) == 1:
        raise Drop("identical answers")
    if len(set(ranks)) == 1:
        raise Drop("tied")
    return Ranking(Prompt("", "", "", prompt), answers, [True] * len(answers), ranks)


def _transcript(text: Any) -> tuple[str, str]:
    """Prompt and answer of a transcript: the answer is what the assistant says last."""
    before, cue, answer = _text(text, "transcript").rpartition(CUE)
    if not cue:
        raise ValueError(
            'a transcript must have a turn that begins with an empty line and "Assistant:"'
        )
    return _conversation(to_messages("\n\n" + before.strip())), answer


def _from_transcripts(row: Row) -> Ranking:
    (prompt, chosen), (other, rejected) = (_transcript(row[key]) for key in ("chosen", "rejected"))
    if prompt != other:
        raise Drop("prompts differ")
    return _pair(prompt, chosen, rejected)


def _from_pair(row: Row) -> Ranking:
    return _pair(_prompt(row), row["chosen"], row["rejected"])


def _answered(row: Row, key: str) -> tuple[str, str]:
    """Prompt and answer of a list of messages; the prompt may stand apart."""
    messages = row[key]
    if not messages or messages[-1]["role"] != "assistant":
        raise Drop(f"{key} has no answer")
    before = messages[:-1]
    if not before:
        return _prompt(row), messages[-1]["content"]
    return _conversation(before), messages[-1]["content"]


def _from_chats(row: Row) -> Ranking:
    (prompt, chosen), (other, rejected) = (_answered(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise Drop("prompts differ")
    scores = row.get("score_chosen"), row.get("score_rejected")
    if scores[0] is not None and scores[0] == scores[1]:
        raise Drop("tied")
    return _pair(prompt, chosen, rejected)


def _tldr_prompt(row: Row) -> str:
    info = row["info"]
    if info.get("article"):
        return f"{_text(info['article'], 'prompt')}\n\nTL;DR:"
    head = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}"
    return f"{head}\n\nPOST: {_text(info.get('post'), 'prompt')}\n\nTL;DR:"


def _from_tldr(row: Row) -> Ranking:
    texts = [_text(summary["text"], "answer") for summary in row["summaries"]]
    if row["choice"] not in range(len(texts)):
        raise ValueError(f"choice must be the number of a summary, not {row['choice']!r}")
    ranks = [1 if i == row["choice"] else 2 for i in range(len(texts))]
    return _ranking(_tldr_prompt(row), texts, ranks)


ANSWERS = ("answers", "responses", "completions", "candidates")
RANKS, SCORES = ("ranks", "rank", "ranking"), ("scores", "score", "overall_score", "rating")


def _first(row: Row, keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if key in row), None)


def _from_list(row: Row) -> Ranking:
    answers = _first(row, ANSWERS)
    ranks, scores = _first(row, RANKS), _first(row, SCORES)
    if answers and isinstance(answers[0], dict):  # each with a rank or score of its own
        ranks, scores = ([_first(a, keys) for a in answers] for keys in (RANKS, SCORES))
        ranks = None if None in ranks else ranks
        answers = [_first(answer, ("text", "response", "answer", "content")) for answer in answers]
    if ranks is None:
        if not scores or None in scores:
            raise Drop("without ranks or scores")
        ranks = _ranks(scores)
    if len(ranks) != len(answers):
        raise ValueError(f"there are {len(answers)} answers, but {len(ranks)} ranks or scores")
    return _ranking(_prompt(row), [_text(a, "answer") for a in answers], ranks)


def _ranks(scores: Sequence[float]) -> list[int]:
    """Ranks from 1, the highest score; equal scores share one."""
    order = sorted({float(score) for score in scores}, reverse=True)
    return [order.index(float(score)) + 1 for score in scores]


def _from_votes(row: Row) -> Ranking:
    """Two responses; every annotator votes for 1, 2 or, with 0, for neither."""
    answers = [_text(row[key], "answer") for key in ("response1", "response2")]
    votes = Counter(row[key] for key in row if key.startswith("annotator"))
    if not votes or not votes.keys() <= {0, 1, 2}:
        raise ValueError(f"votes must be 0, 1 or 2, not {sorted(votes)}")
    return _ranking(_prompt(row), answers, _ranks([votes[1], votes[2]]))


@dataclass(frozen=True)
class Format:
    """A way to write rows: its name, how to know one, and how to read one."""

    name: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], Any]


def _has(*keys: str, **kinds: type) -> Callable[[Row], bool]:
    """Whether a row has some keys, and others with values of a kind."""
    return lambda row: (
        row.keys() >= {*keys, *kinds}
        and all(isinstance(row[key], kind) for key, kind in kinds.items())
    )


def _has_prompt(row: Row) -> bool:
    return any(key in row for key in ("prompt", "instruction", "question"))


RANKINGS = [
    Format("the course schema", _has("prompt_id", "answers", "ended", "ranks"), to_ranking),
    Format("TL;DR comparisons", _has("info", "summaries", "choice"), _from_tldr),
    Format("chat lists", _has(chosen=list, rejected=list), _from_chats),
    Format(
        "prompt/chosen/rejected",
        lambda row: _has_prompt(row) and _has("chosen", "rejected")(row),
        _from_pair,
    ),
    Format("HH transcripts", _has("chosen", "rejected"), _from_transcripts),
    Format("PandaLM", _has("instruction", "response1", "response2"), _from_votes),
    Format(
        "ranked lists",
        lambda row: _has_prompt(row) and _first(row, ANSWERS) is not None,
        _from_list,
    ),
]


def _from_completion(row: Row) -> Demonstration:
    answer = _first(row, ("completion", "response", "answer", "output"))
    if isinstance(answer, list):  # messages
        answer = answer[-1]["content"] if answer else ""
    return _demonstration(_prompt(row), answer)


def _from_messages(row: Row) -> Demonstration:
    return _demonstration(*_answered(row, "messages"))


def _from_best(row: Row) -> Demonstration:
    """The best answer of a ranking."""
    ranking = _format_of(row, RANKINGS).read(row)
    best = ranking.ranks.index(min(ranking.ranks))
    return _demonstration(ranking.prompt.text, ranking.answers[best])


def _demonstration(prompt: str, answer: Any) -> Demonstration:
    return Demonstration(Prompt("", "", "", prompt), _text(answer, "answer"))


def _format_of(row: Row, formats: Sequence[Format]) -> Format | None:
    return next((one for one in formats if one.fits(row)), None)


DEMONSTRATIONS = [
    Format("the course schema", _has("prompt_id", "prompt", "answer", "labeler"), to_demonstration),
    Format(
        "prompts and answers",
        lambda row: (
            _has_prompt(row)
            and any(key in row for key in ("completion", "response", "answer", "output"))
        ),
        _from_completion,
    ),
    Format("chats", lambda row: "chosen" not in row and _has(messages=list)(row), _from_messages),
    *[Format(f"{one.name}, their best answers", one.fits, _from_best) for one in RANKINGS],
]


PROMPTS = [
    Format(
        "the course schema",
        _has("prompt_id", "customer", "prompt"),
        lambda row: to_prompt(row).text,
    ),
    Format("prompts", _has_prompt, _prompt),
    Format("TL;DR comparisons", _has("info"), _tldr_prompt),
    Format("HH transcripts", _has(chosen=str), lambda row: _transcript(row["chosen"])[0]),
    Format("chat lists", _has(chosen=list), lambda row: _answered(row, "chosen")[0]),
    Format("chats", _has(messages=list), lambda row: _answered(row, "messages")[0]),
]


# --- loading -------------------------------------------------------------------------------------


def load_rankings(source: str | Path, limit: int | None = None) -> Loaded:
    """Load rankings from a file, a data set on disk, or, in the hub tier, from the hub.

    Args:
        source: a .json, .jsonl, .csv or .parquet file, also compressed with gzip where it is JSON;
            a folder that `datasets` saved; or a hub id such as "owner/name" or "owner/name:split".
        limit: read so many rows at most; None: all.

    Raises:
        FileNotFoundError: there is no such file, or it is a hub id and the hub was not chosen.
        ValueError: a row does not fit; the message names source and line or row, and what to do.
    """
    return _load(source, RANKINGS, limit)


def load_demonstrations(source: str | Path, limit: int | None = None) -> Loaded:
    """Load demonstrations; of rankings, the best answers. See `load_rankings`."""
    return _load(source, DEMONSTRATIONS, limit)


def load_prompts(source: str | Path, limit: int | None = None) -> Loaded:
    """Load texts of prompts, each once, from records of any kind. See `load_rankings`."""
    loaded = _load(source, PROMPTS, limit)
    unique = list(dict.fromkeys(loaded.records))
    if len(unique) < len(loaded.records):
        loaded.dropped["seen before"] += len(loaded.records) - len(unique)
    loaded.records = unique
    return loaded


def load_pages(source: str | Path) -> list[str]:
    """Load pages of text: parted by empty lines in a .txt file, else the `text` of every row."""
    if Path(source).is_file() and Path(source).suffix == ".txt":
        pages = re.split(r"\n\s*\n", Path(source).read_text(encoding="utf-8"))
        return [page.strip() for page in pages if page.strip()]
    return _load(source, [Format("pages", _has(text=str), lambda row: row["text"])], None).records


def leave_out_long(
    loaded: Loaded, tokenizer: PreTrainedTokenizerBase, max_prompt: int, max_answer: int
) -> None:
    """Leave out, in place, records with too many tokens in their prompt or in an answer.

    Raises:
        ValueError: none is left.
    """
    kept = []
    for record in loaded.records:
        prompt, answers = _texts(record)
        if len(encode_prompt(tokenizer, prompt, sys.maxsize)) > max_prompt:
            loaded.dropped["prompt too long"] += 1
        elif any(len(encode_answer(tokenizer, answer)) > max_answer for answer in answers):
            loaded.dropped["answer too long"] += 1
        else:
            kept.append(record)
    loaded.records = kept
    if not kept:
        raise ValueError(
            f"{loaded}: nothing is left; raise --max-prompt-tokens ({max_prompt}) or "
            f"--max-answer-tokens ({max_answer})"
        )


def _texts(record: str | Demonstration | Ranking) -> tuple[str, Sequence[str]]:
    """The prompt of a record, and all answers to it."""
    if isinstance(record, str):
        return record, []
    answers = record.answers if isinstance(record, Ranking) else [record.answer]
    return record.prompt.text, answers


def _load(source: str | Path, formats: Sequence[Format], limit: int | None) -> Loaded:
    found: Format | None = None
    records, dropped, rows = [], Counter(), 0
    for where, row in read_rows(source):
        if limit is not None and rows >= limit:
            break
        rows += 1
        try:
            _require_object(row)
            found = found or _known(row, formats)
            records.append(_named(_read_row(row, found), f"{Path(source).name}-{rows}"))
        except Drop as reason:
            dropped[str(reason)] += 1
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"the key {error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{where}: {what}") from None
    if not records:
        reasons = ", ".join(f"{count} {why}" for why, count in dropped.items()) or "it has no rows"
        raise ValueError(f"{source}: nothing is left to learn from ({reasons}); give another file")
    return Loaded(records, str(source), found.name, rows, dropped)


def _require_object(row: Any) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, not {ascii(row)[:40]}")


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


# --- rows ----------------------------------------------------------------------------------------


def read_rows(source: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield where a row is, for messages, and the row; see `load_rankings` for what can be read.

    Raises:
        FileNotFoundError: there is no such file or folder, and the hub was not chosen.
        ValueError: the file is of an unknown kind, or a line is no JSON.
    """
    path = Path(source)
    name = path.name.removesuffix(".gz")
    if path.is_file() and name.endswith((".json", ".jsonl", ".ndjson")):
        yield from _json_rows(path)
    elif path.is_file() and name.endswith(".txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
        yield from ((f"{path}, line {i}", {"prompt": line}) for i, line in numbered)
    elif path.exists():
        yield from _dataset_rows(path)
    else:
        yield from _hub_rows(str(source))


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            content = file.read().decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); is it a whole file, in UTF-8?"
        ) from None
    if content.lstrip().startswith("["):
        rows = enumerate(_parsed(content, str(path)), 1)
        yield from ((f"{path}, row {i}", row) for i, row in rows)
        return
    for i, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {i}", _parsed(line, f"{path}, line {i}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON ({error}); give one JSON object on a line") from None


def _dataset_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of Parquet and CSV files, and of folders that `datasets` saved."""
    import datasets

    kinds = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
    if path.is_file() and path.suffix not in kinds:
        raise ValueError(
            f"{path} is of an unknown kind; give .json, .jsonl, .csv or .parquet (JSON also as .gz)"
        )
    # Read once and not again: the copy that `datasets` makes need not stay.
    with tempfile.TemporaryDirectory() as cache, one_line_errors(str(path)):
        if path.is_dir():
            rows = datasets.load_from_disk(str(path))
        else:
            files = {"train": str(path)}
            rows = datasets.load_dataset(kinds[path.suffix], data_files=files, cache_dir=cache)
            rows = rows["train"]
        rows = rows.to_list()
    yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows, 1))


def hub_chosen() -> bool:
    """Whether the reader lets this process reach the Hugging Face hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("0", "false", "no", "off")


def require_hub(name: str, what: str) -> None:
    """Raise FileNotFoundError unless the hub tier was chosen.

    Args:
        name: what is not on this machine.
        what: such as "model" or "data set", for the message.
    """
    if not hub_chosen():
        raise FileNotFoundError(
            f"there is no {what} {name} on this machine; check the path, or, if it is an id on the "
            "Hugging Face hub, choose that tier: --hub, or HF_HUB_OFFLINE=0 in the environment"
        )


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    require_hub(name, "file or data set")
    import datasets

    repository, _, split = name.partition(":")
    with one_line_errors(name):
        rows = datasets.load_dataset(repository, split=split or "train")
    yield from ((f"{name}, row {i}", row) for i, row in enumerate(rows, 1))


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn what libraries say at length of a model or data set into one line with advice."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} was not found ({_first_line(error)}); check the name"
        ) from None
    except Exception as error:
        said = f"{type(error).__name__} {error} {type(error.__cause__).__name__}".lower()
        if "gated" in said or "401" in said or "403" in said:
            advice = "it is gated: accept its terms on its page, then run `hf auth login`"
        elif "not a valid model identifier" in said or "404" in said or "notfound" in said:
            advice = "there is no such id on the hub, or it is private: check the spelling"
        else:
            advice = "check the name, the files and, for a hub id, the connection"
        raise ValueError(f"{name} cannot be loaded; {advice} ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]
