"""The map of concepts: every row names a heading that is there, and every chapter has its rows."""

import functools
import re
from pathlib import Path

import pytest

from rlhf_edu.course import editions

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
MAP = "COVERAGE.md"
HOW = {"exact", "live", "stored", "told"}
NOT_HERE = ("–", "not here")
LINK = re.compile(r"\[(\d\d) · ([^\]]+)\]\(([^)]+)\)")


def tables() -> list[list[tuple[str, str, str]]]:
    """The rows (concept, where, how) of each theme."""
    found = []
    for theme in (FOLDER / MAP).read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = [line for line in theme.splitlines() if line.startswith("|")][2:]
        rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
        odd = [row for row in rows if len(row) != 3 or not all(row)]
        assert rows and not odd, f"{MAP}, {theme.splitlines()[0]}: no rows, or odd ones: {odd}"
        found.append(rows)
    return found


ROWS = [row for rows in tables() for row in rows]
TAUGHT = [row for row in ROWS if row[1:] != NOT_HERE]


@functools.cache
def headings(name: str) -> list[str]:
    """The headings of a notebook below its title, in order."""
    assert (FOLDER / name).is_file(), f"{MAP} links to {name}, which is not in notebooks/"
    cells = editions.read(FOLDER / name).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return [h.strip() for text in texts for h in re.findall(r"^##+ (.+)$", text, re.MULTILINE)]


def place(row: tuple[str, str, str]) -> tuple[str, int]:
    """Chapter, and which of its headings, a row points to."""
    concept, where, _ = row
    link = LINK.fullmatch(where)
    assert link, f"{concept}: not of the form [06 · heading](file), nor – and not here: {where}"
    chapter, heading, name = link.groups()
    assert name.startswith(f"{chapter}_"), f"{concept}: {name} is not chapter {chapter}"
    assert heading in headings(name), f"{concept}: {name} has no heading “{heading}”"
    return chapter, headings(name).index(heading)


@pytest.mark.parametrize("row", TAUGHT, ids=[row[0] for row in TAUGHT])
def test_a_concept_is_taught_where_the_map_says(row: tuple[str, str, str]) -> None:
    place(row)
    assert row[2] in HOW, f"{row[0]}: how is “{row[2]}”, not one of {sorted(HOW)}"


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (FOLDER / MAP).read_text(encoding="utf-8"))
    dead = sorted({name for name in links if not (FOLDER / name).is_file()})
    assert not dead, f"{MAP} links to {dead}"


def test_the_map_has_every_chapter() -> None:
    chapters = {path.name[:2] for path in FOLDER.glob("[0-9][0-9]_*.ipynb")}
    missing = chapters - {place(row)[0] for row in TAUGHT}
    assert len(chapters) == 13 and not missing, f"no concept of chapters {sorted(missing)}"


def test_no_concept_is_there_twice() -> None:
    names = [row[0].lower() for row in ROWS]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"more than one row for {twice}"


def test_themes_follow_the_order_of_the_course() -> None:
    for rows in tables():
        here = [row for row in rows if row[1:] != NOT_HERE]
        assert rows[: len(here)] == here, f"what is not here comes last, below “{here[0][0]}”"
        late = [b[0] for a, b in zip(here, here[1:], strict=False) if place(b) < place(a)]
        assert not late, f"these come earlier in the course than the row above: {late}"
