"""The three kinds of records of the course, and their files: one JSON object on a line.

Prompt         what a customer asked, and the task behind it (for the judge, not for the model)
Demonstration  a prompt and the answer that a labeler wrote to it: data of step 1, SFT
Ranking        a prompt and K answers that a labeler ranked: data of step 2 (reward model) and DPO

The JSON is flat and every record has the same keys, so that `datasets.load_dataset("json", …)`
opens the files too.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf_edu.files import text_lines, write_text

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Task:
    """What a prompt asks for, in the terms of the world: the part that no model may see.

    Taught in chapter 00.

    Attributes:
        kind: the kind of task, such as "attribute" or "list".
        subject: whom or what it is about.
        attribute: which property of the subject.
        targets: the right words, or what the answer has to contain.
        count: how many things are asked for; 0 if it does not matter.
        source: the text that came with the prompt.
        constraint: an extra demand on the form of the answer.
    """

    kind: str
    subject: str = ""
    attribute: str = ""
    targets: tuple[str, ...] = ()
    count: int = 0
    source: str = ""
    constraint: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))


@dataclass(frozen=True)
class Prompt:
    """One request of one customer. `text` is all that a model gets to see of it.

    Taught in chapter 00.

    Raises:
        ValueError: one of the texts is none.
    """

    prompt_id: str
    customer: str
    use_case: str
    text: str
    task: Task = field(default_factory=lambda: Task(kind=""))

    def __post_init__(self) -> None:
        for name in ("prompt_id", "customer", "use_case", "text"):
            _checked(getattr(self, name), "prompt" if name == "text" else name, str)


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer that a labeler wrote to it. Taught in chapter 03.

    Raises:
        ValueError: answer or labeler is no text.
    """

    prompt: Prompt
    answer: str
    labeler: str = ""

    def __post_init__(self) -> None:
        for name in ("answer", "labeler"):
            _checked(getattr(self, name), name, str)


MAX_RANK = 2**31 - 1  # what every tensor of whole numbers can hold


@dataclass(frozen=True)
class Ranking:
    """K answers to one prompt, ranked by one labeler. Taught in chapter 04.

    Attributes:
        answers: K texts.
        ended: K flags; False for an answer that was cut off before its end-of-text.
        ranks: K whole numbers from 1, the best; equal ranks are ties.
        labeler: who ranked them.
        sources: K names, of the models or people that the answers came from; may be empty.

    Raises:
        ValueError: there is no answer, the lists differ in length, a value is of the wrong kind,
            or a rank is out of range.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    ended: tuple[bool, ...]
    ranks: tuple[int, ...]
    labeler: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = {"answers": str, "ended": bool, "ranks": int, "sources": str}
        for name, kind in kinds.items():
            object.__setattr__(self, name, _many(getattr(self, name), name, kind))
        _checked(self.labeler, "labeler", str)
        where, k = f"ranking of prompt {self.prompt.prompt_id!r}", len(self.answers)
        if not k or len(self.ended) != k or len(self.ranks) != k:
            raise ValueError(f"{where}: give answers, ended and ranks, equally long, at least one")
        if self.sources and len(self.sources) != k:
            raise ValueError(f"{where}: give one source per answer, or none")
        if min(self.ranks) < 1:
            raise ValueError(f"{where}: ranks start at 1, the best, not at {min(self.ranks)}")
        if max(self.ranks) > MAX_RANK:
            raise ValueError(f"{where}: ranks end at {MAX_RANK}; give the order alone, from 1")


Entry = TypeVar("Entry", Prompt, Demonstration, Ranking)


# --- records as flat JSON objects ------------------------------------------------------------


def _prompt_keys(prompt: Prompt) -> dict[str, Any]:
    keys = {"prompt_id": prompt.prompt_id, "customer": prompt.customer}
    task = asdict(prompt.task) | {"targets": list(prompt.task.targets)}
    return keys | {"use_case": prompt.use_case, "prompt": prompt.text, "task": task}


def to_json(record: Prompt | Demonstration | Ranking) -> dict[str, Any]:
    """Return the record as a flat dictionary, always with the same keys for the same class."""
    if isinstance(record, Prompt):
        return _prompt_keys(record)
    keys = {name: value for name, value in vars(record).items() if name != "prompt"}
    lists = {name: list(value) for name, value in keys.items() if isinstance(value, tuple)}
    return _prompt_keys(record.prompt) | keys | lists


def _many(values: Any, key: str, kind: type) -> tuple[Any, ...]:
    """The values of a key, which must be a list of one kind."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{key} must be a list, not {_short(values)}")
    return tuple(_checked(value, f"{key}[{i}]", kind) for i, value in enumerate(values))


def _checked(value: Any, key: str, kind: type) -> Any:
    """The value, which must be of a kind: a text, a whole number or a truth value."""
    if type(value) is not kind:
        words = {str: "a text", int: "a whole number", bool: "true or false"}[kind]
        raise ValueError(f"{key} must be {words}, not {_short(value)}")
    if kind is str and not is_encodable(value):
        raise ValueError(f"{key} holds half a surrogate pair, which no tokenizer can read")
    return value


def is_encodable(text: str) -> bool:
    """Whether a text can be written: JSON can hold halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    return ascii(value)[:40]


def _to_task(row: Any) -> Task:
    if not isinstance(row, dict):
        raise ValueError(f"task must be an object, not {_short(row)}")
    unknown = sorted(row.keys() - vars(Task(kind="")).keys())
    if unknown:
        raise ValueError(f"task has a key that no task has, {_short(unknown[0])}")
    kinds = {name: type(value) for name, value in vars(Task(kind="")).items()}
    given = {"kind": _checked(row["kind"], "kind", str)}
    for name in row.keys() - {"kind"}:
        check = _many if kinds[name] is tuple else _checked
        given[name] = check(row[name], name, str if kinds[name] is tuple else kinds[name])
    return Task(**given)


def to_prompt(row: dict[str, Any]) -> Prompt:
    """Return the prompt of a flat dictionary such as `to_json` makes; errors as in `to_ranking`."""
    if not isinstance(row, dict):
        raise ValueError(f"a line must be a JSON object, not {_short(row)}")
    texts = [row[name] for name in ("prompt_id", "customer", "use_case", "prompt")]
    return Prompt(*texts, task=_to_task(row["task"]))


def to_demonstration(row: dict[str, Any]) -> Demonstration:
    """Return the demonstration of a flat dictionary; errors as in `to_ranking`."""
    return Demonstration(to_prompt(row), row["answer"], row["labeler"])


def to_ranking(row: dict[str, Any]) -> Ranking:
    """Return the ranking of a flat dictionary such as `to_json` makes.

    Raises:
        KeyError: a key is missing.
        ValueError: a value is of the wrong kind.
    """
    names = ("answers", "ended", "ranks", "labeler", "sources")
    return Ranking(to_prompt(row), *(row[name] for name in names))


# --- conversations as texts --------------------------------------------------------------------

# A prompt is one text, also where a conversation came before it. It is written down then as
# Anthropic's transcripts are, and ends where the assistant is about to answer.
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
ROLES = {speaker: role for role, speaker in SPEAKERS.items()}
TURN = re.compile(rf"\n\n({'|'.join(ROLES)}):")
CUE = "\n\nAssistant:"


def to_text(messages: Sequence[dict[str, str]]) -> str:
    """Return messages up to the answer as the text of a prompt; one user's alone is that text.

    Raises:
        ValueError: a message has an unknown role, or holds what separates turns.
    """
    for message in messages:
        if message["role"] not in SPEAKERS:
            known = ", ".join(SPEAKERS)
            raise ValueError(f"the role of a message must be {known}, not {message['role']!r}")
        if TURN.search(message["content"]):
            raise ValueError("a message holds what separates turns: an empty line and Human:")
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    turns = [f"\n\n{SPEAKERS[m['role']]}: {m['content']}" for m in messages]
    return "".join(turns) + CUE


def trimmed(text: str) -> str:
    """Return a text without empty lines around it, space at its end, and the one before its start.

    More than one space, or a tab, at the start is the indentation of code, and stays.
    """
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text.replace("\r\n", "\n")).rstrip()
    return text[1:] if re.match(r" \S", text) else text


def to_messages(text: str) -> list[dict[str, str]]:
    """Return the messages in the text of a prompt: `to_text` backwards.

    What is no transcript is one message of the user. Turns of one speaker in a row become one.
    """
    if not TURN.match(text):
        return [{"role": "user", "content": text}]
    parts = TURN.split(text.removesuffix(CUE))
    messages: list[dict[str, str]] = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        said = trimmed(said.removeprefix(" "))  # the one that `to_text` writes
        if messages and messages[-1]["role"] == ROLES[speaker]:
            messages[-1]["content"] += "\n\n" + said
        else:
            messages.append({"role": ROLES[speaker], "content": said})
    return messages


# --- files -----------------------------------------------------------------------------------


def _read(path: str | Path, parse: Callable[[dict[str, Any]], Entry]) -> list[Entry]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; `python -m rlhf_edu build` makes data")
    records = []
    for number, line in text_lines(Path(path)):
        if not line.strip():
            continue
        try:
            records.append(parse(json.loads(line)))
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: add the missing key {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number}: nested too deeply") from None
    if not records:
        raise ValueError(f"{path} is empty; give a file of records, one JSON object on a line")
    return records


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a file of prompts. Files of demonstrations or rankings work too: prompts alone.

    Taught in chapter 03.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no records; or a line is no JSON object, lacks a key, or has a value
            of the wrong kind, and then the message has file and line.
    """
    return _read(path, to_prompt)


def read_demonstrations(path: str | Path) -> list[Demonstration]:
    """Read a file of demonstrations; errors as in `read_prompts`. Taught in chapter 03."""
    return _read(path, to_demonstration)


def read_rankings(path: str | Path) -> list[Ranking]:
    """Read a file of rankings; errors as in `read_prompts`. Taught in chapter 04."""
    return _read(path, to_ranking)


def write_jsonl(path: str | Path, records: Iterable[Prompt | Demonstration | Ranking]) -> None:
    """Write records, one JSON object on a line, in the order given; all or nothing."""
    lines = (json.dumps(to_json(record), ensure_ascii=False) + "\n" for record in records)
    write_text(path, "".join(lines))
