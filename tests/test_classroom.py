"""Students' copies, hints, progress and grades: what happens to notebooks that come back."""

import csv
import json
import os
from pathlib import Path

import pytest

from rlhf_edu.course import copies, editions, examine, exercises, grading
from rlhf_edu.course.checks import Result
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


# --- grades ------------------------------------------------------------------------------------

RIGHT = answered(GAE)
HOSTILE = {
    "an_end": ("import os\ndef my_gae(*x):\n    os._exit(0)", "ended before there was an answer"),
    "exit": (
        "import sys\ndef my_gae(*x):\n    sys.exit()",
        "your function stopped with SystemExit",
    ),
    "memory": ("import torch\ndef my_gae(*x):\n    return torch.ones(10**10)", "memory"),
    "fork": ("import os\ndef my_gae(*x):\n    while True: os.fork()", "needs no os.fork"),
    "kill": ("import os\ndef my_gae(*x):\n    os.kill(os.getppid(), 9)", "needs no os.kill"),
    "shell": ("import os\ndef my_gae(*x):\n    os.system('true')", "needs no os.system"),
    "net": (
        "import socket\ndef my_gae(*x):\n    socket.create_connection(('127.0.0.1', 9))",
        "needs no socket.",
    ),
    "write": (
        "def my_gae(*x):\n    open(__import__('sys').prefix + '/x', 'w')",
        "own folder alone",
    ),
    "remove": (
        "import os\ndef my_gae(*x):\n    os.remove(torch.__file__)\nimport torch",
        "own folder",
    ),
    "above": ("x = 1 / 0\ndef my_gae(*inputs):\n    return x", "what stands above your function"),
    "syntax": ("def my_gae(r, v, g, lam):\n    return r +", "SyntaxError"),
    "own_line": ("def my_gae(r, v, g, lam):\n    return adv", "in line 2: `return adv`"),
    "its_folder": (
        # It is gone when the function is asked for a second case.
        "import os\ndef my_gae(*x):\n    os.rmdir(os.getcwd()); return x[0]",
        "stopped with FileNotFoundError",
    ),
    "prints": (
        "def my_gae(r, v, g, lam):\n    print('x' * 10**8); return r",
        "not yet: your result",
    ),
    "every_line": (
        "import os\ndef my_gae(*x):\n    for f in range(256):\n        try: os.write(f, b'{}')\n"
        "        except OSError: pass\n    os._exit(0)",
        "",
    ),
    "forged": (
        "import rlhf_edu.course.checks as c\ndef my_gae(r, *x):\n"
        "    c.Check.ask = c.Check.judge = lambda *a: c.Result('passed', 'right')\n    return r",
        "not yet: your result",
    ),
    "forged_answer": (
        "import gc, json, os\nfrom multiprocessing.connection import Connection\n"
        "def my_gae(*x):\n    (pipe,) = [o for o in gc.get_objects() if type(o) is Connection]\n"
        "    pipe.send_bytes(json.dumps({'answers': []}).encode()); os._exit(0)",
        "what came back is no answer",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_function_does_there_is_a_verdict(name: str) -> None:
    source, words = HOSTILE[name]
    result = examine.examine([source], GAE)
    assert result.status in ("wrong", "error") and words in result.message, result.message


def test_a_loop_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "SECONDS", 1)
    begun = (  # a message of 16 bytes begins, and never ends
        "import os\ndef my_gae(*x):\n    for f in range(3, 256):\n        try: "
        "os.write(f, b'\\0\\0\\0\\x10')\n        except OSError: pass\n    while True: pass"
    )
    for source in ("def my_gae(*x):\n    while True: pass", begun):
        result = examine.examine([source], GAE)
        assert result.status == "error" and "a loop without an end" in result.message


def test_a_function_brings_what_it_needs_and_nothing_else() -> None:
    cells = [
        "import torch\nfrom rlhf_edu import losses",
        "%matplotlib inline\n!true\n1 / 0",  # a training that would take hours
        "this is no python",
        "def row(x):\n    return x[None]",
        "def my_gae(r, v, g, lam):\n    return whole(row(r), row(v), g, lam)[0][0]\n\n"
        "def whole(r, v, g, lam):\n    return losses.gae(r, v, torch.ones_like(r), g, lam)",
        "def row(x):\n    raise ValueError('comes later')",
    ]
    assert examine.examine(cells, GAE).status == "passed"
    assert examine.examine([RIGHT, GAE.stub.replace("my_gae", "spare")], GAE).status == "passed"
    assert examine.examine([GAE.stub], GAE).status == "not attempted"
    assert examine.examine([GAE.stub + "\n"], GAE).status == "not attempted"
    assert examine.examine(["x = 3"], GAE).status == "not attempted"


def test_names_are_found_inside_functions() -> None:
    source = "import a.b as c\nx = 1\ndef f(p):\n    y = [F(z) for z in p]\n    return x + y"
    assert examine.names(source) == ({"c", "x", "f"}, {"F", "x"})


@pytest.fixture
def course_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A course with one checked exercise, so that a class is graded in seconds."""
    monkeypatch.setattr(
        grading, "exercises", lambda chapter="05": (GAE,) if chapter == "05" else ()
    )


def returned(path: Path, *cells: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"cell_type": "code", "source": cell} for cell in cells]
    path.write_text(json.dumps({"cells": rows}), encoding="utf-8")


@pytest.mark.usefixtures("course_of_one")
def test_a_class_is_graded_however_its_files_lie(tmp_path: Path, capsys) -> None:
    stem = "05_policy_gradients_to_ppo"
    returned(tmp_path / "anna" / f"{stem}.ipynb", RIGHT)
    returned(
        tmp_path / "ben_05.ipynb", RIGHT.replace("return advantages", "return advantages + values")
    )
    returned(tmp_path / f"{stem}_cleo.ipynb", "def my_gae(*x):\n    return '=1+1'")
    returned(tmp_path / "=dora-05.ipynb", GAE.stub)
    (tmp_path / "emil_05.ipynb").write_bytes(b"\xff\xfe no notebook")
    (tmp_path / "fritz_05.ipynb").write_text("[" * 100_000)
    (tmp_path / "notes.ipynb").write_text("{}")
    (tmp_path / "gone_05.ipynb").symlink_to("nowhere")
    returned(tmp_path / "anna" / ".ipynb_checkpoints" / f"{stem}-checkpoint.ipynb", GAE.stub)
    text = grading.grade(tmp_path)
    assert "notes.ipynb: not a notebook; left out" in capsys.readouterr().out

    with open(tmp_path / "grades.csv", encoding="utf-8", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert {name: row["grade"] for name, row in rows.items()} == {
        "anna": "right",
        "ben": "named mistake",
        "cleo": "refused",
        "'=dora": "not attempted",
        "emil": "unreadable",
        "fritz": "unreadable",
    }
    assert rows["anna"]["message"].startswith("right: ") and rows["anna"]["exercise"] == "05.3"
    assert text.startswith("6 students, 1 exercises: 17% right, 17% named mistake, 17% refused")
    assert "1 × 05.3 gae: these are the returns" in text
    page = (tmp_path / "class.html").read_text(encoding="utf-8")
    assert '<img alt="6 students' in page and "these are the returns" in page
    assert (tmp_path / "class.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_notebooks_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no notebook of this course is in it"):
        grading.grade(tmp_path)
    with pytest.raises(FileNotFoundError, match="`make lab` makes your copies"):
        grading.progress(tmp_path)


@pytest.mark.usefixtures("course_of_one")
def test_progress_says_what_is_solved_and_what_comes_next(tmp_path: Path) -> None:
    mine = tmp_path / "my" / "05_policy_gradients_to_ppo.ipynb"
    returned(mine, RIGHT.replace("return advantages", "return advantages + values"))
    text = grading.progress(mine.parent)
    assert "05  ░      0 of 1  policy gradients to ppo" in text
    assert "Next: 05.3, GAE (my/05_policy_gradients_to_ppo.ipynb)\n  these are the returns" in text
    returned(mine, RIGHT)
    text = grading.progress(mine.parent)
    assert "05  █      1 of 1" in text and "Next" not in text


def test_everybody_has_a_name(tmp_path: Path) -> None:
    stem = "05_policy_gradients_to_ppo"
    names = {f"{stem}.ipynb": tmp_path.name, f"{stem} (1).ipynb": "(1)", "anna_05.ipynb": "anna"}
    names |= {"hw/anna/x.ipynb": "hw/anna", "2005_05.ipynb": "2005", "s05_05.ipynb": "s05"}
    names |= {"anna05.ipynb": "anna"}
    for name, student in names.items():
        assert grading.student_of(tmp_path / name, tmp_path, "05") == student
    assert grading.chapter_of(Path("anna_05.ipynb")) == "05"
    assert (
        grading.chapter_of(Path("x.ipynb"), ["from rlhf_edu.course.checks.ch07 import y"]) == "07"
    )
    assert grading.chapter_of(Path("2077.ipynb")) == grading.chapter_of(Path("99.ipynb")) == ""


slow = pytest.mark.skipif("RLHF_EDU_SLOW" not in os.environ, reason="minutes: RLHF_EDU_SLOW=1")


@slow
@pytest.mark.parametrize(
    "one", [e for e in exercises.exercises() if e.check], ids=lambda e: e.place
)
def test_every_solution_is_graded_right(one: Exercise) -> None:
    (path,) = editions.find([f"{one.chapter}_"])
    cells = [cell.source for cell in edition(path).cells if cell.cell_type == "code"]
    cells = [f"{cell}\n{answered(one)}" if cell == one.stub else cell for cell in cells]
    assert examine.examine(cells, one) == Result("passed", examine.check_of(one).success)
