"""The exercises of all chapters, as the notebooks have them; hints and solutions on demand.

    from rlhf_edu.course import hint, solution

    hint("05.3")        # or hint("gae"), after the function my_gae
    solution("05.3")

The notebooks are their only source, so a copy of a chapter needs to bring nothing along.
"""

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbformat import NotebookNode

from rlhf_edu.course import editions

if TYPE_CHECKING:
    from IPython.display import Markdown

HEAD = re.compile(r"\*\*Exercise (\d+) · \w+ · \d+ minutes\*\* — \*(.+?)[.:*]", re.DOTALL)
HINT = re.compile(r"<details><summary>Hint</summary>\n(.*?)</details>", re.DOTALL)
IMPORT = re.compile(r"^(?:import|from) .+$", re.MULTILINE)
CHECKED = re.compile(r"^(check_\w+)\((my_\w+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """An exercise: where it stands, what is asked for, and what helps.

    Attributes:
        chapter, number: "05" and "3"; `place` is both, "05.3".
        title: what it is about, in a few words.
        stub, hint, solution: sources of its cells.
        check, function: names of what checks it and of what the student writes; empty for an
            experiment, which has no single right answer.
    """

    chapter: str
    number: str
    title: str
    stub: str
    hint: str
    solution: str
    check: str = ""
    function: str = ""

    @property
    def place(self) -> str:
        """Chapter and number."""
        return f"{self.chapter}.{self.number}"


@functools.cache
def exercises(chapter: str = "") -> tuple[Exercise, ...]:
    """The exercises of a chapter such as "05", or of all of them, in their order.

    Raises:
        FileNotFoundError: there is no such chapter.
    """
    paths = editions.find([f"{chapter}_"] if chapter else [])
    return tuple(e for path in paths for e in _of(editions.read(path), path.name[:2]))


def _of(notebook: NotebookNode, chapter: str) -> list[Exercise]:
    found, text, stub, imports = [], "", "", []
    for cell in notebook.cells:
        tags = editions.tags_of(cell)
        if cell.cell_type == "markdown" and HEAD.search(cell.source):
            text = cell.source
        elif "exercise" in tags:
            stub = cell.source
        elif "solution" in tags:
            number, title = HEAD.search(text).groups()
            hints = "\n".join(HINT.findall(text)).strip()
            (check, function), *_ = [*CHECKED.findall(stub), ("", "")]
            title = " ".join(title.split())
            # What an earlier solution has imported, the student has not.
            lacks = [x for x in imports if re.search(rf"\b{x.split()[-1]}\b", cell.source)]
            lacks = [x for x in lacks if x not in cell.source]
            imports += IMPORT.findall(cell.source)
            cell.source = "\n".join([*lacks, *["\n"] * bool(lacks), cell.source])
            found.append(
                Exercise(chapter, number, title, stub, hints, cell.source, check, function)
            )
    return found


def exercise(name: str) -> Exercise:
    """The exercise called "05.3", or "gae" after its function.

    Raises:
        ValueError: none is called so, or several are.
    """
    fits = [e for e in exercises() if name in (e.place, e.function, e.function[3:]) and name]
    if len(fits) != 1:
        which = " or ".join(e.place for e in fits) or "such as 05.3, chapter and number"
        raise ValueError(f"which exercise is {name!r}? Give its place: {which}")
    return fits[0]


def hint(name: str) -> "Markdown":
    """The hint to an exercise, such as `hint("05.3")`; errors as `exercise`."""
    from IPython.display import Markdown

    return Markdown(exercise(name).hint)


def solution(name: str) -> "Markdown":
    """One right answer to an exercise, as code to read; errors as `exercise`."""
    from IPython.display import Markdown

    return Markdown(f"```python\n{exercise(name).solution}\n```")
