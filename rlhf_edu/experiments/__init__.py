"""Experiments over many seeds: one file per group of findings, each a grid of cells.

A cell is one run. Its result is kept as soon as it is there, in `data/results/<name>.json`, so a
grid can be interrupted and goes on where it stopped; a finished grid only prints.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from rlhf_edu import __version__, data_folder
from rlhf_edu.data import write_text

Cell = Callable[[], dict[str, Any]]


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
    for key in tqdm(todo, desc=name, disable=not todo):
        start = time.perf_counter()
        result = cells[key]()
        stored["cells"][key] = result | {"minutes": (time.perf_counter() - start) / 60}
        stored |= {"command": command, "versions": versions()}
        write_text(path, json.dumps(stored, indent=1) + "\n")
    return {key: stored["cells"][key] for key in cells}


def versions() -> dict[str, str]:
    """What a result depends on besides its seed."""
    return {
        "rlhf_edu": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
