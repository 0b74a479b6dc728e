"""The student's edition: chapters without solutions and outputs, to work in.

    python -m rlhf_edu notebooks copies             my/: made once, and never written again
    python -m rlhf_edu notebooks handouts [05 …]    build/handouts: the same, to give away

`my/` is a student's own: Git ignores it, so an update of the course meets no changed file.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from rlhf_edu.course.editions import checkout, find, is_folded, read, tags_of, write

NAME = "rlhf_edu"  # of what we note in a notebook's metadata
HELP = """# Stuck? Take away a #, and run the cell.
# hint("{0}")
# solution("{0}")"""
# Code, formulas, tags and links: nothing in them becomes a link.
CLOSED = re.compile(
    r"(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<[^>]*>|\[[^\]]*\]\([^)]*\))", re.DOTALL
)
CHAPTERS = re.compile(r"\b[Cc]hapters?\s+\d\d(?:(?:,|,? and| to| or)\s+\d\d)*\b")
BOLD = re.compile(r"\*\*(\d\d)( · [^*]+)?\*\*")
PAPER = re.compile(r"arXiv\s+(\d{4}\.\d{4,5})")
FILE = re.compile(r"`((?:rlhf_edu|data|tests|notebooks)/[\w/.-]+)`")


def my_folder() -> Path:
    """Where a student's copies are."""
    return checkout() / "my"


def copies() -> None:
    """Copy every chapter to `my/` that is not there yet; say which of them have a newer edition."""
    for path in find():
        copy = student_edition(read(path), path.name[:2])
        target = my_folder() / path.name
        name = target.relative_to(checkout()).as_posix()
        if not target.exists():
            write(target, copy)
            print(f"{name} is your copy")
        elif _edition(target) not in ("", copy.metadata[NAME].edition):
            print(f"{name} stays as it is; there is a newer edition: rename yours to get it too")


def handouts(names: Sequence[str] = ()) -> None:
    """Write the student's edition of chapters to build/handouts."""
    for path in find(names):
        target = checkout() / "build" / "handouts" / path.name
        write(target, student_edition(read(path), path.name[:2], root="../.."))
        print(target.relative_to(checkout()).as_posix())


def _edition(path: Path) -> str:
    """Which edition a copy was made from; "" if it does not say, or is no notebook any longer."""
    try:
        return str(read(path).metadata[NAME].edition)
    except Exception:  # it is the student's file, and may hold anything
        return ""


def student_edition(notebook: NotebookNode, chapter: str, root: str = "..") -> NotebookNode:
    """Return the notebook, changed in place, as a student gets it.

    Without outputs and solutions, with helpers and figures folded, and with links.

    Args:
        chapter: such as "05".
        root: the way from the copy to the course's folder.
    """
    cells, number = [], 0
    for cell in notebook.cells:
        tags = tags_of(cell)
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, root)
        else:
            cell.outputs, cell.execution_count = [], None
        if "solution" in tags:
            number += 1
            cell.source = HELP.format(f"{chapter}.{number}")
            cell.metadata = NotebookNode(tags=["help"])
        elif cell.cell_type == "code" and is_folded(cell):
            cell.metadata.jupyter = NotebookNode(source_hidden=True)
        # An answer behind a click stays; what speaks of a solution in the next cell does not.
        if "answer" not in tags or cell.source.startswith("<details>"):
            cells.append(cell)
    notebook.cells = cells
    # Not before the course is there, where a cell installs it.
    first = next(c for c in cells if c.cell_type == "code" and "install" not in tags_of(c))
    first.source = f"from rlhf_edu.course import hint, solution\n{first.source}"
    digest = hashlib.sha256(nbformat.writes(notebook, version=4).encode()).hexdigest()
    notebook.metadata[NAME] = NotebookNode(edition=digest[:12])
    return notebook


# --- links -------------------------------------------------------------------------------------


def linked(text: str, root: str = "..") -> str:
    """Markdown in which chapters, papers and source files have become links.

    Args:
        root: the way to the course's folder; chapters are beside the text.
    """
    parts = CLOSED.split(text)  # open and closed parts in turns
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = FILE.sub(lambda found: _file_link(found, root), part)
        else:
            parts[i] = _words_linked(part)
    return "".join(parts)


def _words_linked(text: str) -> str:
    text = BOLD.sub(lambda found: _chapter_link(found[1], found[0]), text)
    text = CHAPTERS.sub(lambda found: re.sub(r"\d\d", _number_linked, found[0]), text)
    return PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _number_linked(found: re.Match[str]) -> str:
    return _chapter_link(found[0], found[0])


def _chapter_link(chapter: str, words: str) -> str:
    for path in checkout().glob(f"notebooks/{chapter}_*.ipynb"):
        return f"[{words}]({path.name})"
    return words


def _file_link(found: re.Match[str], root: str) -> str:
    there = (checkout() / found[1]).is_file()  # JupyterLab opens no folder by a link
    return f"[{found[0]}]({root}/{found[1]})" if there else found[0]
