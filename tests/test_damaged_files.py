"""Good files of every format, damaged at random: rows come out, or one line that names the file."""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from test_formats import ROWS, chat, pair

from rlhf_edu import data
from rlhf_edu.real import formats

FILES = int(os.environ.get("RLHF_EDU_FILES", "150"))
EXAMPLES = [
    *ROWS.values(),
    pair(system="Be kind.", history=[["Who?", "I."]], score_chosen=3, score_rejected=1.5),
    {"messages": chat("Who?", "I.", "Why?", "So."), "label": True},
    {"prompt": chat("Who?"), "completion": chat("Who?", "I.")[1:]},
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
    {"instruction": "Who?", "completions": [{"response": "I.", "rating": 2}, {"response": "Ey."}]},
    {"instruction": "Spell it.", "input": "freind", "output": "friend", "text": "A page."},
]
ODD = [
    *(None, True, False, 0, -1, 1.5, 10**30, 10**400, float("nan"), float("inf")),
    *("", " ", "1", "x", "\ud800", "\u2028", "\x00", "[{", "[1, 2]", "a" * 5000),
    *("\n\nHuman: a\n\nAssistant: b", chat("a"), [{"role": "user", "content": None}]),
    *([], [[]], {}, [None], [{}], {"role": "user"}, [[[[[[1]]]]]]),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    inner = [value[key] for key in keys if isinstance(value[key], (dict, list))]
    return found + [place for one in inner for place in places(one)]


def odd_rows(rng: random.Random) -> list[Any]:
    """A few rows of one format, in some of which a value is missing, odd, or a neighbour's."""
    example = json.dumps(rng.choice(EXAMPLES))
    rows = [json.loads(example) for _ in range(rng.randint(1, 4))]
    for row in rng.sample(rows, rng.randint(0, len(rows))):
        container, key = rng.choice(places(row))
        container[key] = rng.choice([*ODD, rng.choice(list(ROWS.values()))])
        if rng.random() < 0.2 and isinstance(container, dict):
            del container[key]
    return rows


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_document(rows: list[Any]) -> bytes:
    wrapped = {"data": rows} if len(rows) % 2 else rows
    return json.dumps(wrapped, indent=1).encode()


def as_text(rows: list[Any]) -> bytes:
    encoding = "utf-16" if len(rows) == 1 else "utf-8-sig"
    return "\n".join(map(str, rows)).encode(encoding, "surrogatepass")


def as_csv(rows: list[Any]) -> bytes:
    text = io.StringIO()
    keys = sorted({key for row in rows for key in row})
    writer = csv.DictWriter(text, keys)
    writer.writeheader()
    for row in rows:
        cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
        writer.writerow(cells)
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
        return as_parquet([pair()])  # no table can hold such rows
    return file.getvalue()


def as_arrow(rows: list[Any]) -> bytes:
    table, file = parquet.read_table(io.BytesIO(as_parquet(rows))), io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    ".jsonl": as_lines,
    ".json": as_document,
    ".txt": as_text,
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".arrow": as_arrow,
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content; or with a few other bytes, cut off, or with a piece of it twice or missing."""
    whole = bytearray(content)
    a, b = sorted(rng.randrange(len(whole) + 1) for _ in range(2))
    kind = rng.choice(["whole"] * 5 + ["flip"] * 3 + ["cut", "twice", "hole"])
    if kind == "flip":
        for _ in range(rng.randint(1, 4)):
            whole[rng.randrange(len(whole))] = rng.randrange(256)
    elif kind != "whole":
        pieces = {"cut": whole[:a], "twice": whole[:b] + whole[a:], "hole": whole[:a] + whole[b:]}
        whole = pieces[kind]
    return bytes(whole)


LOADERS = [formats.load_rankings, formats.load_demonstrations, formats.load_prompts]


def test_any_file_is_read_or_refused_by_name(tmp_path: Path) -> None:
    rng, read = random.Random(0), 0
    for number in range(FILES):
        kind = rng.choice(list(WRITERS))
        content = WRITERS[kind](odd_rows(rng))
        path = tmp_path / f"file{kind}"
        if kind not in (".parquet", ".arrow") and rng.random() < 0.3:
            path, content = path.with_name(f"{path.name}.gz"), gzip.compress(content)
        path.write_bytes(damaged(content, rng))
        try:
            loaded = rng.choice(LOADERS)(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error) and "\n" not in str(error), (number, str(error))
        except Exception as error:
            pytest.fail(f"file {number}, {path.name}: {type(error).__name__}: {error}")
        else:
            read += 1
            assert loaded.records and "\n" not in str(loaded)
            written = [r if isinstance(r, str) else data.to_json(r) for r in loaded.records]
            json.dumps(written, ensure_ascii=False).encode()
        path.unlink()
    assert FILES / 5 < read < FILES * 0.8
