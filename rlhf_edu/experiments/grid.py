"""Experiments over many seeds: one file per group of findings, each a grid of cells.

A cell is one run. Its result is kept as soon as it is there, in `data/results/<name>.json`, so a
grid can be interrupted and goes on where it stopped; a finished grid only prints.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rlhf_edu import data_folder
from rlhf_edu.experiments.ladder import versions
from rlhf_edu.files import write_text
from rlhf_edu.intervals import Estimate, over_seeds

Cell = Callable[[], dict[str, Any]]
Cells = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """A claim of a paper, and what became of it here.

    Attributes:
        name: such as "F38".
        claim: in a few words.
        paper: its number there, with the source.
        judge: from the cells of an experiment to our number and a verdict.
    """

    name: str
    claim: str
    paper: str
    judge: Callable[[Cells], tuple[str, str]]


def each_seed(cells: Cells, kind: str) -> list[dict[str, Any]]:
    """The cells whose keys are `kind seed 0`, `kind seed 1`, …, in the grid's order."""
    return [cell for key, cell in cells.items() if key.startswith(f"{kind} seed")]


def less(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], key: str) -> Estimate:
    """One number of ours less that of theirs, by seed."""
    return over_seeds([a[key] - b[key] for a, b in zip(ours, theirs, strict=True)])


def above(estimate: Estimate, limit: float = 0.0) -> str:
    """The verdict on "more than the limit": it takes the whole interval to decide."""
    if estimate.low > limit:
        return "reproduced"
    return "not reproduced" if estimate.high < limit else "inconclusive"


def run_grid(
    name: str, command: str, cells: dict[str, Cell], folder: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Run the cells that have no result yet; return the results of all of them, by key.

    Args:
        name: of the file in `data/results/`.
        command: what the reader types to get the same.
        cells: key -> a function without arguments that returns what goes into the file.
        folder: another one than `data/results`.
    """
    path = (folder or data_folder(create=True) / "results") / f"{name}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}
    todo = [key for key in cells if key not in stored["cells"]]
    stored["planned"] = list(cells)
    for key in tqdm(todo, desc=name, disable=not todo):
        start = time.perf_counter()
        result = cells[key]()
        stored["cells"][key] = result | {"minutes": (time.perf_counter() - start) / 60}
        stored |= {"command": command, "versions": versions()}
        write_text(path, json.dumps(stored, indent=1) + "\n")
    return {key: stored["cells"][key] for key in cells}
