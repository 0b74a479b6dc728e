"""Checks of exercises: right answers written in two ways pass, known mistakes are named.

The answers to the exercises of chapter 05 are in `answers_ch05.py`: RIGHT maps the name of a check
to at least two right answers, WRONG lists (check, wrong answer, words of the message).
"""

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_edu.course import checks as exercises
from rlhf_edu.course.checks import Mistake, check

FILES = sorted(Path(exercises.__file__).parent.glob("ch*.py"))
CHAPTERS = {
    file.stem: importlib.import_module(f"rlhf_edu.course.checks.{file.stem}") for file in FILES
}
ANSWERS = {name: importlib.import_module(f"answers_{name}") for name in CHAPTERS}
CHECKS = [(c, name) for c, m in CHAPTERS.items() for name in vars(m) if name.startswith("check_")]
RIGHT = [(c, n, answer) for c, n in CHECKS for answer in ANSWERS[c].RIGHT[n]]
WRONG = [(c, *row) for c in CHAPTERS for row in ANSWERS[c].WRONG]


# --- every exercise ----------------------------------------------------------------------------


@pytest.mark.parametrize(("chapter", "name", "answer"), RIGHT)
def test_right_answers_pass(chapter: str, name: str, answer, capsys) -> None:
    result = getattr(CHAPTERS[chapter], name)(answer)
    assert result.status == "passed", result.message
    assert capsys.readouterr().out == f"✓ {result.message}\n"


@pytest.mark.parametrize(("chapter", "name", "answer", "words"), WRONG)
def test_known_mistakes_are_named(chapter: str, name: str, answer, words: str, capsys) -> None:
    result = getattr(CHAPTERS[chapter], name)(answer)
    assert result.status == "wrong" and words in result.message, result.message
    assert capsys.readouterr().out.startswith("✗ ")


@pytest.mark.parametrize(("chapter", "name"), CHECKS)
def test_every_check_is_tested_and_survives_anything(chapter: str, name: str, capsys) -> None:
    run = getattr(CHAPTERS[chapter], name)
    assert len(ANSWERS[chapter].RIGHT[name]) >= 2
    assert sum(row[0] == name for row in ANSWERS[chapter].WRONG) >= 3
    assert run(lambda *inputs: ...).status == "not attempted"
    assert capsys.readouterr().out == "· not attempted yet: replace the ... and run the cell\n"
    assert run(lambda *inputs: None).status == "wrong"
    assert run(lambda *inputs: 1 / 0).status == "error"
    assert run(lambda *inputs: "a word").status == "wrong"
    assert run(lambda *inputs: torch.tensor(float("nan"))).status == "wrong"
    assert run(lambda: 1).status == "error"
    printed = capsys.readouterr().out
    assert printed.count("\n") == 5 and printed.count("✗") == 5
    assert len(inspect.getdoc(run)) > 20


@pytest.mark.parametrize(("chapter", "name"), CHECKS)
def test_each_mistake_has_a_message_of_its_own(chapter: str, name: str, monkeypatch) -> None:
    """It differs from the right answer and from the mistakes that are looked for before it."""
    found: dict = {}

    def catch(student, right, cases, mistakes, success, gradient=None):
        found.update(right=right, cases=cases, mistakes=mistakes, gradient=gradient)

    monkeypatch.setattr(CHAPTERS[chapter], "check", catch)
    getattr(CHAPTERS[chapter], name)(None)
    assert len(found["mistakes"]) >= 3
    for mistake in found["mistakes"]:
        arguments = (found["right"], found["cases"], found["mistakes"], "", found["gradient"])
        assert check(mistake.wrong, *arguments).message == mistake.says


# --- the core ----------------------------------------------------------------------------------

CASES = [{"x": torch.tensor([1.0, 2.0]), "y": 3.0}]


def twice(x, y):
    return 2 * x


@pytest.mark.parametrize(
    ("student", "status", "words"),
    [
        (lambda x, y: [2.0, 4.0], "passed", "good"),
        (lambda x, y: np.array([2.0, 4.0]), "passed", "good"),
        (lambda x, y: 3 * x, "wrong", "three times"),
        (lambda x, y: -2 * x, "wrong", "but for the sign"),
        (lambda x, y: 5 * x, "wrong", "yours is 2.5 times"),
        (lambda x, y: (2 * x)[None], "wrong", "shape (1, 2); (2,) is wanted"),
        (lambda x, y: (2 * x, x), "wrong", "2 result(s); 1 wanted"),
        (lambda x, y: x + 7, "wrong", "is [8, 9], wanted [2, 4] (x = [1, 2], y = 3)"),
        (lambda x, y: x.mul_(2), "wrong", "changes its input `x`"),
        (lambda x, y: x / 0, "wrong", "NaN or infinity"),
        (lambda x, y: print, "wrong", "returns a builtin"),
        (lambda x, y: x @ torch.ones(3), "error", "stopped with RuntimeError"),
    ],
)
def test_core_says_what_is_wrong(student, status: str, words: str) -> None:
    mistakes = [Mistake(lambda x, y: 3 * x, "three times"), Mistake(lambda x: x, "cannot be")]
    result = check(student, twice, CASES, mistakes, "good")
    assert result.status == status and words in result.message, result.message


@pytest.mark.parametrize(
    ("student", "status", "words"),
    [
        (lambda x: (4.0, 5.0), "passed", "good"),
        (lambda x: (torch.tensor(4.0), 5), "passed", "good"),
        (lambda x: [4.0, 5.0], "passed", "good"),
        (lambda x: torch.tensor([4.0, 5.0]), "passed", "good"),
        (lambda x: (4.0, 6.0), "wrong", "number 2 of your results is 6, wanted 5"),
        (lambda x: (5.0, 4.0), "wrong", "the other way round"),
        (lambda x: 4.0, "wrong", "1 result(s); 2 wanted"),
        (lambda x: (4.0, torch.tensor([5.0])), "wrong", "shape (1,); () is wanted"),
    ],
)
def test_core_takes_two_numbers_as_two_results(student, status: str, words: str) -> None:
    cases = [{"x": torch.tensor(4.0)}]
    mistakes = [Mistake(lambda x: (x + 1, x), "the other way round")]
    result = check(student, lambda x: (x, float(x) + 1), cases, mistakes, "good")
    assert result.status == status and words in result.message, result.message


def test_core_does_not_hand_out_the_same_tensors_twice() -> None:
    seen = []
    check(lambda x, y: seen.append(x) or 2 * x, twice, CASES * 2, [], "good")
    assert seen[0] is not seen[1] and seen[0] is not CASES[0]["x"]
