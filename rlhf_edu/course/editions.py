"""Notebooks as files: find, run and store them.

    python -m rlhf_edu notebooks execute  [05 …]    run top to bottom, keep the outputs

The committed notebook is the source of every edition: the student's (`copies`), the lecture
(`slides`) and the book (`site`). Running it again gives the same bytes, so that a change in a diff
is a change in the notebook.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from rlhf_edu import data_folder
from rlhf_edu.files import write_text

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_SECONDS, NOTEBOOK_SECONDS = 600, 1200


def checkout() -> Path:
    """The folder that holds `notebooks/`."""
    return data_folder().parent


def find(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks whose file names begin with one of `names` ("05"); none given: all.

    Raises:
        FileNotFoundError: a name fits no notebook.
    """
    every = sorted((checkout() / "notebooks").glob("*.ipynb"))
    found = []
    for name in names:
        fits = [path for path in every if path.name.startswith(Path(name).name)]
        if not fits:
            raise FileNotFoundError(f"no notebook called {name}; there are: {_listed(every)}")
        found += fits
    return found if names else every


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(path.stem for path in paths) or "none"


def read(path: Path) -> NotebookNode:
    """Read a notebook file."""
    return nbformat.read(path, as_version=4)


def tags_of(cell: NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def kind(cell: NotebookNode) -> str:
    """Its place in the lecture: slide, subslide, fragment, notes, skip, or - for none."""
    return cell.metadata.get("slideshow", {}).get("slide_type", "-")


def is_folded(cell: NotebookNode) -> bool:
    """Whether a code cell is a helper or only draws, and readers need not see its code."""
    tags = tags_of(cell)
    return "figure" in tags or kind(cell) == "skip" and "exercise" not in tags


def write(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook file; a crash half-way leaves the old one as it was."""
    write_text(path, nbformat.writes(notebook, version=4).rstrip("\n") + "\n")


# --- execute -----------------------------------------------------------------------------------


def execute(names: Sequence[str] = ()) -> None:
    """Run notebooks from top to bottom in a fresh kernel and store what they show.

    Raises:
        RuntimeError: a cell failed or took too long; that notebook's file has not changed.
    """
    for path in find(names):
        start = time.perf_counter()
        write(path, run_notebook(read(path), path))
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s")


def run_notebook(notebook: NotebookNode, path: Path) -> NotebookNode:
    """Return the notebook with fresh outputs, normalised; errors as `execute`."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellExecutionError

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a warning of the debugger
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        # Beside the cells' limit one for all: a kernel has been seen to hang while idle.
        asyncio.run(asyncio.wait_for(client.async_execute(), NOTEBOOK_SECONDS))
    except CellExecutionError as error:
        raise RuntimeError(f"{path.stem}: a cell failed\n{error}") from None
    except (asyncio.TimeoutError, TimeoutError, CellControlSignal) as error:
        raise RuntimeError(f"{path.stem}: took too long ({error})") from None
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Drop, in place, what differs from run to run: widget ids and state, versions, times."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python")
    )
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _normal_outputs(cell.outputs, count)
    return notebook


def _normal_outputs(outputs: list[Any], count: int) -> list[Any]:
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if "data" in output:
            output.data.pop(WIDGET_VIEW, None)
            if "text/plain" not in output.data:
                continue  # it says nothing: a style for the page
        if output.output_type == "execute_result":
            output.execution_count = count
        kept.append(output)
    return kept
