"""Checks of exercises: right answers written in two ways pass, known mistakes are named.

The answers to the exercises of chapter 05 are in `answers_ch05.py`: RIGHT maps the name of a check
to at least two right answers, WRONG lists (check, wrong answer, words of the message). A second
kind of wrong answer is made here, from the right one: `spoilt`.
"""

import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_edu.course import checks as exercises
from rlhf_edu.course.checks import Check

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
    assert sum(row[0] == name for row in ANSWERS[chapter].WRONG) >= 2
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
def test_each_mistake_has_a_message_of_its_own(chapter: str, name: str, capsys) -> None:
    """It differs from the right answer and from the mistakes that are looked for before it."""
    check = getattr(CHAPTERS[chapter], name)
    assert len(check.mistakes) >= 3
    for says, wrong in check.mistakes.items():
        assert check(wrong).message == says


# --- wrong answers made of right ones ----------------------------------------------------------

# Inputs that may change places: they are multiplied, or compared.
MAY_CHANGE_PLACES = {
    "check_option_probabilities": ["logprobs and mask"],
    "check_answer_rate": ["weights and fits"],
    "check_lora_size": ["inputs and outputs", "matrices and rank"],
    "check_answer_mask": ["response and eos"],
    "check_days": [
        "gpus and peak_teraflops",
        "gpus and utilisation",
        "peak_teraflops and utilisation",
    ],
    "check_merge": ["B and alpha"],
    "check_four_networks": ["policy and reward"],
}


def changed(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The result, or each of several ones, changed."""
    if isinstance(value, tuple):
        return tuple(changed(part, change) for part in value)
    return change(value if torch.is_tensor(value) else torch.tensor(value).double())


def turned(x: torch.Tensor) -> torch.Tensor:
    """A matrix transposed, a row backwards; a number has no other side, so its inverse."""
    if x.dim() == 2:
        return x.T
    return x.flip(0) if x.dim() == 1 else 1 / (x + 2)


def wrong_at(place: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(x: torch.Tensor) -> torch.Tensor:
        numbers = x.flatten().tolist()
        numbers[place] += 1 + abs(numbers[place]) / 10
        return torch.tensor(numbers).double().reshape(x.shape)

    return change


def constants(values: list[Any]) -> list[Any]:
    """What somebody might write in the place of an input: a case's value, 0, 1, one between."""
    if not isinstance(values[0], (int, float)):
        return values[:1]
    between = [(a + b) / 2 for a, b in itertools.pairwise(sorted(set(values)))]
    return [*values, 0, 1, *(between if isinstance(values[0], float) else [])]


def spoilt(check: Check) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Right answers with one thing wrong: (what, function)."""

    def after(change: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
        return lambda *inputs: changed(check.right(*inputs), change)

    def before(place: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda *xs: check.right(*(change(x) if i == place else x for i, x in enumerate(xs)))

    def exchanged(i: int, j: int) -> Callable[..., Any]:
        order = {i: j, j: i}
        return lambda *xs: check.right(*(xs[order.get(k, k)] for k in range(len(xs))))

    names, first = list(check.cases[0]), list(check.cases[0].values())
    yield "minus", after(lambda x: -x)
    yield "half", after(lambda x: x / 2)
    yield "its negation", after(lambda x: 1 - x)
    if not check.learns:
        yield "turned round", after(turned)
    if check.value:
        yield "first number wrong", after(wrong_at(0))
        yield "last number wrong", after(wrong_at(-1))
    if check.learns:
        yield "detached", after(lambda x: x.detach())
        yield "a float", after(lambda x: x.item())
        yield "in numpy", after(lambda x: x.detach().numpy())
    sizes = {n for x in first if torch.is_tensor(x) for n in (*x.shape, x.numel())} - {1}
    for size in sorted(sizes):
        yield f"times {size}", after(lambda x, size=size: x * size)
        yield f"by {size}", after(lambda x, size=size: x / size)
    for place, name in enumerate(names):
        if name in check.learns:
            yield f"{name} detached", before(place, lambda x: x.detach())
        for value in constants([case[name] for case in check.cases]):
            yield f"{name} is {value}", before(place, lambda x, value=value: value)
        if torch.is_tensor(first[place]):
            yield f"{name} is 0", before(place, torch.zeros_like)
            yield f"{name} is 1", before(place, torch.ones_like)
    for i, j in itertools.combinations(range(len(names)), 2):
        yield f"{names[i]} and {names[j]} exchanged", exchanged(i, j)


@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors")
@pytest.mark.parametrize(("chapter", "name"), CHECKS)
def test_no_spoilt_answer_is_right(chapter: str, name: str, capsys) -> None:
    check = dataclasses.replace(getattr(CHAPTERS[chapter], name), mistakes={})
    accepted = {what for what, answer in spoilt(check) if check(answer).status == "passed"}
    assert accepted == {f"{pair} exchanged" for pair in MAY_CHANGE_PLACES.get(name, [])}


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
        (lambda x, y: x / 0, "wrong", "your result holds NaN or infinity"),
        (lambda x, y: print, "wrong", "returns a builtin"),
        (lambda x, y: x @ torch.ones(3), "error", "stopped with RuntimeError"),
    ],
)
def test_core_says_what_is_wrong(student, status: str, words: str) -> None:
    mistakes = {"three times": lambda x, y: 3 * x, "cannot be": lambda x: x}
    result = Check(twice, CASES, mistakes, "good")(student)
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
    mistakes = {"the other way round": lambda x: (x + 1, x)}
    result = Check(lambda x: (x, float(x) + 1), cases, mistakes, "good")(student)
    assert result.status == status and words in result.message, result.message


def test_core_does_not_hand_out_the_same_tensors_twice() -> None:
    seen = []
    Check(twice, CASES * 2, {}, "good")(lambda x, y: seen.append(x) or 2 * x)
    assert seen[0] is not seen[1] and seen[0] is not CASES[0]["x"]


def two(x):
    return x, 3 * x


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (lambda x: (-x, -3 * x), "but for the sign: it is minus what is wanted"),
        (lambda x: (-x, 3 * x), "number 1 of your results is -4, wanted 4"),
        (lambda x: (x, -3 * x), "number 2 of your results is -12, wanted 12"),
        (lambda x: (x / 2, 1.5 * x), "yours is 0.5 times what is wanted"),
        (lambda x: (x * x, 3 * x * x), "yours is 4 times what is wanted (x = 4)"),
        (lambda x: (x / 2, 3 * x), "number 1 of your results is 2, wanted 4"),
    ],
)
def test_sign_and_factor_are_those_of_all_results(student, words: str) -> None:
    cases = [{"x": torch.tensor(4.0)}, {"x": torch.tensor(5.0)}]
    assert Check(two, cases, {}, "good")(student).message.endswith((words, words + " (x = 4)"))


def test_of_a_large_result_the_first_wrong_place_is_shown() -> None:
    def student(x):
        x = x.clone()
        x[1, 3] = 7
        return x

    check = Check(lambda x: x, [{"x": torch.zeros(3, 5)}], {}, "good")
    assert "your result is 7 at [1, 3], wanted 0 (x = a tensor (3, 5))" in check(student).message


def test_the_line_that_raised_is_the_student_s_own() -> None:
    def student(x, y):
        ratio = x * y
        return torch.dot(ratio, ratio[:1])

    message = Check(twice, CASES, {}, "good")(student).message
    line = student.__code__.co_firstlineno + 2
    assert f", in line {line}: `return torch.dot(ratio, ratio[:1])` (x = [1, 2]" in message


def gap(up, down):
    return ((up - down) ** 2).mean()


@pytest.mark.parametrize(
    ("student", "value", "words"),
    [
        (lambda up, down: gap(up, down), True, "good"),
        (lambda up, down: gap(up, down) + 1, False, "good"),
        (lambda up, down: gap(up, down) + 1, True, "your result is 3.5, wanted 2.5"),
        (lambda up, down: 3 * gap(up, down), True, "three times"),
        (lambda up, down: 3 * gap(up, down).item(), True, "three times"),
        (lambda up, down: 3 * gap(up, down) + 1, False, "three times"),
        (lambda up, down: gap(up, down).item(), True, "no gradient reaches `up` and `down`"),
        (lambda up, down: gap(up, down).item(), False, "no gradient reaches `up` and `down`"),
        (lambda up, down: gap(up, down.detach()), True, "no gradient reaches `down`"),
        (lambda up, down: gap(up, down.detach()), False, "no gradient reaches `down`"),
        (lambda up, down: (up - down) ** 2, False, "one number"),
        (lambda up, down: [1.0, 2.0], False, "one number"),
        (lambda up, down: "a word", False, "returns a str"),
        (lambda up, down: float(np.mean((up.numpy() - 1) ** 2)), True, "numpy forgets"),
        (lambda up, down: gap(up.add_(1), down), False, "changes its input"),
        (lambda up, down: gap(up, down) + (up * 0).sqrt().mean(), False, "gradient of your loss h"),
        (
            lambda up, down: gap(up, down) + up.mean() - up.mean().detach(),
            True,
            "the value is right, but the gradient of your loss by `up` is [1.5, 2.5], wanted",
        ),
    ],
)
def test_a_loss_has_to_teach_all_of_its_inputs(student, value: bool, words: str) -> None:
    cases = [{"up": torch.tensor([1.0, 2.0]), "down": torch.tensor([0.0, 0.0])}]
    mistakes = {"three times": lambda up, down: 3 * gap(up, down)}
    check = Check(gap, cases, mistakes, "good", learns=("up", "down"), value=value)
    assert words in check(student).message
