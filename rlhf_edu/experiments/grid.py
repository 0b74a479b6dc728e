"""Experiments over many seeds: one file per group of findings, each a grid of cells.

A cell is one run, and its fields say which: `{"kind": "ppo", "setting": 0.05, "seed": 0}`. Its
result is kept beside them as soon as it is there, in `data/results/<name>.json`, so a grid can be
interrupted and goes on where it stopped; a finished grid only prints.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rlhf_edu import data_folder
from rlhf_edu.engine.devices import versions
from rlhf_edu.files import write_text
from rlhf_edu.intervals import Estimate, over_seeds

Fields = dict[str, Any]
Cells = Mapping[str, Mapping[str, Any]]
Measure = Callable[..., dict[str, Any]]  # from the fields of a cell to what was found


@dataclass(frozen=True)
class Finding:
    """A claim of a paper, and what became of it here.

    Attributes:
        name: such as "F38".
        claim: in a few words.
        paper: its number there, with the source.
        criterion: when we call it reproduced; never loosened after a run.
        judge: from the cells of an experiment to our number and a verdict; None: no experiment
            judges it yet.
        chapter: which shows it once, where none judges it; empty: none does.
    """

    name: str
    claim: str
    paper: str
    criterion: str
    judge: Callable[[Cells], tuple[str, str]] | None = None
    chapter: str = ""


# --- cells ---------------------------------------------------------------------------------------


def row_name(kind: str, setting: Any = None) -> str:
    """What a row of a table is called, such as "ppo 0.05"."""
    return kind if setting is None else f"{kind} {setting}"


def cell_name(kind: str = "", setting: Any = None, **more: Any) -> str:
    """The key of a cell in its file, such as "ppo 0.05 seed 0" or "seed 1, world 0"."""
    rest = ", ".join(f"{name} {value}" for name, value in more.items())
    return " ".join(filter(None, [row_name(kind, setting), rest]))


def rows(kinds: Mapping[str, Sequence[Any]]) -> list[tuple[str, Any]]:
    """Every kind of run in each of its settings; a kind without settings comes once, with None."""
    return [(kind, setting) for kind, settings in kinds.items() for setting in settings or [None]]


def by_seed(kinds: Mapping[str, Sequence[Any]], seeds: int) -> list[Fields]:
    """The fields of a grid: all `rows` of these kinds, for every seed."""
    return [
        {"kind": kind, "setting": setting, "seed": seed}
        for seed in range(seeds)
        for kind, setting in rows(kinds)
    ]


def each_seed(cells: Cells, kind: str, setting: Any = None) -> list[Mapping[str, Any]]:
    """The cells of one row, a seed each: `each_seed(cells, "ppo", 0.05)`, or by its name."""
    wanted = row_name(kind, setting)
    return [
        cell
        for cell in cells.values()
        if row_name(cell.get("kind", ""), cell.get("setting")) == wanted
    ]


def over(cells: Sequence[Mapping[str, Any]], key: str) -> Estimate:
    """One number of some cells, over their seeds."""
    return over_seeds([cell[key] for cell in cells])


def less(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str
) -> Estimate:
    """One number of ours less that of theirs, by seed."""
    return over_seeds([a[key] - b[key] for a, b in zip(ours, theirs, strict=True)])


def verdict(yes: bool, no: bool) -> str:
    """In a word: whether the numbers say so, or say the opposite."""
    if yes:
        return "reproduced"
    return "not reproduced" if no else "inconclusive"


def above(estimate: Estimate, limit: float = 0.0) -> str:
    """The verdict on "more than the limit": it takes the whole interval to decide."""
    return verdict(estimate.low > limit, estimate.high < limit)


# --- running -------------------------------------------------------------------------------------


def run_experiment(
    name: str, measure: Measure, grid: Iterable[Fields], seeds: int, device: str
) -> Cells:
    """`run_grid` for `python -m rlhf_edu experiment NAME`; `measure` also takes the device."""
    there = "" if device == "cpu" else f" --device {device}"
    command = f"python -m rlhf_edu experiment {name} --seeds {seeds}{there}"
    return run_grid(name, command, partial(measure, device=device), grid)


def run_grid(
    name: str, command: str, measure: Measure, grid: Iterable[Fields], folder: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Run the cells that have no result yet; return fields and results of all of them, by key.

    Args:
        name: of the file in `data/results/`.
        command: what the reader types to get the same.
        measure: takes the fields of a cell and returns what goes into the file.
        grid: the fields of every cell.
        folder: another one than `data/results`.
    """
    path = (folder or data_folder(create=True) / "results") / f"{name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}
    cells = {cell_name(**fields): fields for fields in grid}
    # A cell that failed is tried again.
    todo = [key for key in cells if "failed" in stored["cells"].get(key, {"failed": ""})]
    stored["planned"] = list(cells)
    for key in tqdm(todo, desc=name, disable=not todo):
        start = time.perf_counter()
        result = measure(**cells[key])
        minutes = (time.perf_counter() - start) / 60
        stored["cells"][key] = cells[key] | result | {"minutes": minutes}
        stored |= {"command": command, "versions": versions()}
        write_text(path, json.dumps(stored, indent=1) + "\n")
    return {key: stored["cells"][key] for key in cells}
