"""Students' copies, hints, progress and grades: what happens to notebooks that come back."""

import csv
import json
from pathlib import Path

import pytest

from rlhf_edu.course import copies, editions, examine, exercises, grading
from rlhf_edu.course.exercises import Exercise, exercise, hint, solution

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [pytest.param(path, id=path.stem[:2]) for path in editions.find()]
GAE = exercise("05.3")


def edition(path: Path, root: str = "..") -> editions.NotebookNode:
    return copies.student_edition(editions.read(path), path.name[:2], root)


def answered(one: Exercise) -> str:
    """The solution, under the name that the student's function has."""
    name = [row[4:].split("(")[0] for row in one.solution.splitlines() if row[:4] == "def "][-1]
    return one.solution.replace(name, one.function)


# --- a student's copy --------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS)
def test_a_copy_has_no_output_and_no_solution(path: Path) -> None:
    copy = edition(path)
    text = "\n".join(cell.source for cell in copy.cells)
    assert not [cell for cell in copy.cells if cell.get("outputs")]
    for one in exercises.exercises(path.name[:2]):
        assert one.solution not in text and one.stub in text
        assert f'# hint("{one.place}")\n# solution("{one.place}")' in text
    for cell in copy.cells:
        bound = examine.names(cell.source)[0] if cell.cell_type == "code" else set()
        assert cell.source.startswith("from rlhf_edu.course") or not bound & {"hint", "solution"}


@pytest.mark.parametrize("path", CHAPTERS)
def test_helpers_and_figures_are_folded_and_exercises_are_not(path: Path) -> None:
    for cell in (cell for cell in edition(path).cells if cell.cell_type == "code"):
        tags = cell.metadata.get("tags", [])
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert hidden or "figure" not in tags
        assert not hidden or not {"exercise", "help"} & set(tags)


@pytest.mark.parametrize("path", CHAPTERS)
def test_links_lead_somewhere(path: Path) -> None:
    copy = edition(path)
    text = "\n".join(cell.source for cell in copy.cells if cell.cell_type == "markdown")
    places = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(places) > 8
    for place in places:
        if place.startswith("../"):
            assert (ROOT / "my" / place).resolve().is_file(), place
        else:
            assert (ROOT / "notebooks" / place).is_file() or "arxiv.org/abs/" in place, place
    assert text.count("arXiv") == text.count("[arXiv")


def test_what_becomes_a_link() -> None:
    first = "00_start_here.ipynb"
    assert (
        copies.linked("see chapters 00 and\n00") == f"see chapters [00]({first}) and\n[00]({first})"
    )
    assert copies.linked("**00 · Start here** begins") == f"[**00 · Start here**]({first}) begins"
    assert (
        copies.linked("arXiv\n1707.06347.")
        == "[arXiv 1707.06347](https://arxiv.org/abs/1707.06347)."
    )
    assert (
        copies.linked("`rlhf_edu/ppo.py`", "../..") == "[`rlhf_edu/ppo.py`](../../rlhf_edu/ppo.py)"
    )
    for plain in (
        "chapter 77",
        "`chapter 00`",
        r"$\text{chapter 00}$",
        "[chapter 00](x)",
        "**16**",
    ):
        assert copies.linked(plain) == plain


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one chapter."""
    for module in (copies, editions):
        monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    source = ROOT / "notebooks" / "05_policy_gradients_to_ppo.ipynb"
    (tmp_path / "notebooks" / source.name).write_bytes(source.read_bytes())
    return tmp_path


def test_a_copy_is_made_once_and_never_written_again(checkout: Path, capsys) -> None:
    copies.copies()
    (mine,) = (checkout / "my").iterdir()
    assert capsys.readouterr().out == f"my/{mine.name} is your copy\n"
    work = editions.read(mine)
    work.cells[4].source = "my work"
    editions.write(mine, work)
    before = mine.read_bytes()
    copies.copies()
    assert capsys.readouterr().out == "" and mine.read_bytes() == before

    (source,) = (checkout / "notebooks").iterdir()
    changed = editions.read(source)
    changed.cells[0].source += " More."
    editions.write(source, changed)
    copies.copies()
    assert "stays as it is; there is a newer edition" in capsys.readouterr().out
    assert mine.read_bytes() == before
    mine.write_text("no notebook any longer", encoding="utf-8")
    copies.copies()
    assert capsys.readouterr().out == "" and mine.read_text() == "no notebook any longer"


def test_git_does_not_see_the_copies() -> None:
    assert "/my/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


# --- hints and solutions -----------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS)
def test_every_exercise_has_a_hint_and_a_solution(path: Path) -> None:
    found = exercises.exercises(path.name[:2])
    assert [one.number for one in found] == [str(n + 1) for n in range(len(found))]
    assert len(found) >= 4 and sum(bool(one.check) for one in found) >= len(found) - 1
    for one in found:
        assert len(hint(one.place).data) > 20 and one.solution in solution(one.place).data
        assert not one.check or callable(examine.check_of(one))


def test_an_exercise_is_found_by_place_and_by_name() -> None:
    assert exercise("05.3") == exercise("gae") == exercise("my_gae")
    with pytest.raises(ValueError, match="which exercise is 'win_rate'.*00.3 or 10.1"):
        hint("win_rate")
    for wrong in ("", "5", "05.77"):
        with pytest.raises(ValueError, match="such as 05.3, chapter and number"):
            solution(wrong)
