"""Files, folders and hub data sets as rows, one after the other; what rows mean is in `formats`.

Only as much is read as is asked for, so that a huge file costs what `--limit` says. Text files are
UTF-8, with or without its mark, or UTF-16 with it. Whatever cannot be read is a ValueError of one
line that names the file.
"""

import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_edu.files import LONGEST, _first_line, one_line_errors, text_lines

Rows = Iterator[tuple[str, Any]]


def read_rows(source: str | Path) -> Rows:
    """Yield where a row is, for messages, and the row.

    Args:
        source: a file; a folder that `datasets` saved, or of files that belong together, read in
            the order of their names; or a hub id. Of several splits `train` is read, or the one
            that is named: "FOLDER:test", "owner/name:test".

    Raises:
        FileNotFoundError: there is no such file or folder, and the hub was not chosen.
        ValueError: a file is of an unknown kind, damaged, or no text; or there is no such split.
    """
    folder, _, split = str(source).rpartition(":")
    path = Path(source)
    if path.is_file():
        return _file_rows(path)
    if path.is_dir():
        return _folder_rows(path, "")
    if folder and Path(folder).is_dir():
        return _folder_rows(Path(folder), split)
    return _hub_rows(str(source))


# --- text ----------------------------------------------------------------------------------------


def _plain_rows(path: Path) -> Rows:
    for number, line in text_lines(path):
        if line.strip():
            yield f"{path}, line {number}", {"prompt": line.rstrip("\r\n")}


# --- JSON ----------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Rows:
    """Rows of JSON lines, or of one JSON value, which may take many lines."""
    lines = ((number, line) for number, line in text_lines(path) if line.strip())
    start, first = next(lines, (0, "[]"))
    second = next(lines, None)
    if second and _is_whole(first):
        for number, line in chain([(start, first), second], lines):
            yield f"{path}, line {number}", _chat_row(_parsed(line, path, number))
        return
    text = _joined(chain([(start, first)], [second] if second else [], lines), path)
    value = _parsed(text, path, start)
    for i, row in enumerate(_rows_of(value), 1):
        place = f"line {start}" if row is value else f"row {i}"
        yield f"{path}, {place}", _chat_row(row)


def _is_whole(line: str) -> bool:
    """Whether a line is for itself, right or wrong; else a JSON value goes on in the next one."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos < len(line.rstrip())
    except (ValueError, RecursionError):
        pass
    return True


def _joined(lines: Iterable[tuple[int, str]], path: Path) -> str:
    parts, size = [], 0
    for _, line in lines:
        parts.append(line)
        size += len(line)
        if size > LONGEST:
            raise ValueError(
                f"{path}: one JSON value of more than {LONGEST:,} letters; give one row on a line"
            )
    return "".join(parts)


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        number, what = number + error.lineno - 1, f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested deeply
        what = str(error)
    raise ValueError(
        f"{path}, line {number}: no JSON ({what}); give one JSON object on a line"
    ) from None


def _rows_of(value: Any) -> list[Any]:
    """The rows of a file that is one JSON value: a list, {"data": a list}, columns, or one row."""
    if isinstance(value, dict):
        columns = list(value.values())
        if isinstance(value.get("data"), list):
            value = value["data"]
        elif columns and all(_is_numbered(column) for column in columns):  # as pandas writes them
            return [{name: value[name].get(i) for name in value} for i in columns[0]]
        elif len(columns) > 1 and all(_is_column(column, columns[0]) for column in columns):
            return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return value if isinstance(value, list) and not is_chat(value) else [value]


def _is_numbered(column: Any) -> bool:
    return isinstance(column, dict) and bool(column) and all(key.isdigit() for key in column)


def _is_column(column: Any, first: Any) -> bool:
    """Whether a value is a column as long as the first one, and not the messages of one row."""
    return isinstance(column, list) and not is_chat(column) and len(column) == len(first)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and part.keys() & {"role", "from"} for part in value)
    )


def _chat_row(value: Any) -> Any:
    return {"messages": value} if is_chat(value) else value


# --- tables --------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Rows:
    """Every cell is a text: a reader that guesses takes "NA" for missing and "4" for a number."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader((line for _, line in text_lines(path)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"{path}, line 1: two columns have the same name; rename one")
        end = reader.line_num
        for cells in reader:
            where, end = f"{path}, line {end + 1}", reader.line_num
            if len(cells) == len(header):
                yield where, {n: _cell(n, c, where) for n, c in zip(header, cells, strict=True)}
            elif cells:
                raise ValueError(f"{where}: {len(cells)} cells for {len(header)} columns")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no CSV ({error})") from None


def _cell(name: str, text: str, where: str) -> Any:
    """The text, or the messages that are written in it as JSON."""
    if not text.lstrip().startswith("[{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{where}: {name} holds a list written as text, but no JSON; save it as JSON or Parquet"
        ) from None


def _parquet_rows(path: Path) -> Rows:
    from pyarrow import parquet

    with _whole(path), parquet.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=256)
        for i, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
            yield f"{path}, row {i}", row


def _arrow_rows(path: Path) -> Rows:
    from datasets import Dataset

    with _whole(path):
        saved = Dataset.from_file(str(path))
    yield from _saved_rows(path, saved)


def _saved_rows(path: Path, saved: Any) -> Rows:
    """Rows of a `datasets.Dataset`, which lies on the disk as memory does."""
    with _whole(path):
        saved.data.validate(full=True)  # or a byte that flipped ends the process
        yield from _numbered(path, saved)


def _numbered(source: Any, rows: Iterable[Any]) -> Rows:
    return ((f"{source}, row {i}", row) for i, row in enumerate(rows, 1))


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Name the file where the libraries that read tables say what they cannot do, in many ways."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read; is it a whole file? ({_first_line(error)})"
        ) from None


# --- files and folders ---------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".txt": _plain_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}


def kind_of(path: Path) -> str:
    """How the name of a file ends, without ".gz"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_rows(path: Path) -> Rows:
    if kind_of(path) not in READERS:
        raise ValueError(
            f"{path} is of an unknown kind; give .json, .jsonl, .csv, .txt (all also as .gz) or "
            ".parquet"
        )
    return READERS[kind_of(path)](path)


def _folder_rows(folder: Path, split: str) -> Rows:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets

        with _whole(folder):
            saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, dict):
            saved = _split(saved, split, folder)
        return _saved_rows(folder, saved)
    return chain.from_iterable(map(_file_rows, _shards(folder, split)))


def _shards(folder: Path, split: str) -> list[Path]:
    """The files of a folder that hold the rows of a split, in the order of their names."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if kind_of(path) in READERS.keys() - {".txt"}
        and not re.match(r"\.|dataset_infos?\.json", path.name)
    ]
    kinds = sorted(set(map(kind_of, files)))
    if len(kinds) != 1:
        found = f"files of several kinds, {', '.join(kinds)}" if kinds else "no data"
        raise ValueError(f"{folder} holds {found}; give a file, or a folder of .jsonl or .parquet")
    splits: dict[str, list[Path]] = {}
    for path in files:  # of "train-00000-of-00002.parquet": train
        splits.setdefault(re.split(r"[-_.]?\d|\.", path.name)[0], []).append(path)
    if split or re.search("train|test|valid|eval|dev", " ".join(splits)):
        return _split(splits, split, folder)
    return files


def _split(splits: Mapping[str, Any], split: str, folder: Path) -> Any:
    if len(splits) == 1 and not split:
        return next(iter(splits.values()))
    try:
        return splits[split or "train"]
    except KeyError:
        names = ", ".join(sorted(splits))
        raise ValueError(
            f"{folder} has the splits {names}; name one, as in {folder}:{min(splits)}"
        ) from None


# --- the hub -------------------------------------------------------------------------------------


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
