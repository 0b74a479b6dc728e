"""Checks for the exercises: they run a student's function, and name the mistake if they know it.

A check prints one line and never raises. Three outcomes:

    · not attempted yet        the stub still returns ...
    ✗ …                          what is wrong, by name if it is a known mistake
    ✓ …                          right, and what to take along

Every check is a table, `Check(right, cases, mistakes, success)`: the right function (the package's
own, so that a passed check means "equal to rlhf_edu"), small inputs, and functions that are wrong
in a way we have seen before, each under the sentence that its author reads. The checks of chapter
05 are in `rlhf_edu.course.checks.ch05`, and so on.
"""

import copy
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Case = dict[str, Any]
_NOT_ATTEMPTED = "not attempted yet: replace the ... and run the cell"


@dataclass(frozen=True)
class Result:
    """How a check ended: `status` is "passed", "wrong", "error" or "not attempted"."""

    status: str
    message: str

    def _ipython_display_(self) -> None:
        """Show nothing at the end of a cell: the message has been printed already."""


@dataclass(frozen=True)
class Answer:
    """What a function said to one case: its results, and the gradient by each input that learns.

    All are float64. No gradients: the value is not one number of torch, or nothing leads back
    from it.
    """

    value: list[Tensor]
    gradients: list[Tensor] | None = None


@dataclass(repr=False)
class Check:
    """An exercise: call it with a student's function; it prints one line, returns the Result.

    Attributes:
        right: what the student should compute. Its docstring is the check's, and gives the
            arguments; they are passed by position, so that names are free.
        cases: named inputs. Every mistake differs from `right` in at least one of them.
        mistakes: a wrong function under what to say to its author. They are looked through in
            order; the first that explains every answer is named.
        success: what a student who has it right reads.
        learns: for a loss, the names of all inputs that its gradient must reach.
        value: False for a loss whose gradient alone counts: it is all that training needs, and
            constants are free.
    """

    right: Callable[..., Any]
    cases: Sequence[Case]
    mistakes: Mapping[str, Callable[..., Any]]
    success: str
    learns: tuple[str, ...] = ()
    value: bool = True

    def __post_init__(self) -> None:
        self.__doc__ = self.right.__doc__

    def __call__(self, student: Callable[..., Any]) -> Result:
        result = self.verdict(student)
        marks = {"passed": "✓", "not attempted": "·"}
        print(f"{marks.get(result.status, '✗')} {result.message}")
        return result

    def verdict(self, student: Callable[..., Any]) -> Result:
        """How a call ends, without a word printed."""
        given = self.ask(student)
        return given if isinstance(given, Result) else self.judge(given)

    def ask(self, student: Callable[..., Any]) -> list[Answer] | Result:
        """The function's answer to every case; or a Result, when there is nothing to judge."""
        given = []
        for case in self.cases:
            try:
                given.append(_run(student, case, self.learns))
            except _Complaint as complaint:
                return complaint.result
            except Exception as error:  # a student's code may raise anything
                return _stopped(student, error, case)
        return given

    def judge(self, given: list[Answer]) -> Result:
        """What the check says to these answers, one for each case."""
        wanted = [_run(self.right, case, self.learns) for case in self.cases]
        wrong = self._wrong_values(given, wanted) if self.value else None
        if not wrong and self.learns:
            wrong = self._wrong_gradients(given, wanted)
        return Result("wrong", wrong) if wrong else Result("passed", self.success)

    def _wrong_values(self, given: list[Answer], wanted: list[Answer]) -> str | None:
        ours, right = [a.value for a in given], [a.value for a in wanted]
        if _all_same(ours, right):
            return None
        return self._named(ours, lambda a: a.value) or _difference(self.cases, ours, right)

    def _wrong_gradients(self, given: list[Answer], wanted: list[Answer]) -> str | None:
        if any(answer.gradients is None for answer in given):
            return _why_no_gradient(given, self.learns)
        ours, right = [a.gradients for a in given], [a.gradients for a in wanted]
        if _all_same(ours, right):
            return None
        # Where the value counts it is right by now, and so none of the mistakes.
        if not self.value and (says := self._named(ours, lambda a: a.gradients)):
            return says
        cut = [name for i, name in enumerate(self.learns) if not any(x[i].any() for x in ours)]
        if cut:
            return _no_gradient(cut)
        but = "the value is right, but " if self.value else ""
        labels = [f"{but}the gradient of your loss by `{name}`" for name in self.learns]
        return _difference(self.cases, ours, right, labels)

    def _named(self, given: list[Any], look: Callable[[Answer], Any]) -> str | None:
        """What the table says to the author of these answers, if it knows the mistake."""
        for says, wrong in self.mistakes.items():
            try:
                if _all_same([look(_run(wrong, x, self.learns)) for x in self.cases], given):
                    return says
            except Exception:  # a mistake that cannot be made on these inputs explains nothing
                continue
        return None


class _Complaint(Exception):
    """Something to tell the student that is no crash of theirs."""

    def __init__(self, message: str, status: str = "wrong") -> None:
        self.result = Result(status, message)


def _run(function: Callable[..., Any], case: Case, learns: Sequence[str]) -> Answer:
    """The function's results on copies of the inputs, and gradients; or a _Complaint."""
    inputs = copy.deepcopy(case)
    learners = [inputs[name].requires_grad_(True) for name in learns]
    value = function(*inputs.values())
    for name, x in inputs.items():
        if isinstance(x, Tensor) and not torch.equal(x.detach(), case[name]):
            raise _Complaint(f"your function changes its input `{name}`: make a new tensor instead")
    if value is ...:
        raise _Complaint(_NOT_ATTEMPTED, "not attempted")
    if value is None:
        raise _Complaint("your function returns nothing: is there a `return`?")
    try:
        flat = _flat(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        kind = type(value).__name__
        says = f"your function returns a {kind}; a tensor of numbers is wanted"
        raise _Complaint(says) from None
    if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad and learns):
        return Answer(flat)
    found = torch.autograd.grad(value.sum(), learners, allow_unused=True, materialize_grads=True)
    return Answer(flat, [gradient.double() for gradient in found])


def _why_no_gradient(given: list[Answer], learns: Sequence[str]) -> str:
    single = all(sum(x.numel() for x in answer.value) == 1 for answer in given)
    return _no_gradient(learns) if single else "a loss is one number: take a mean at the end"


def _no_gradient(names: Sequence[str]) -> str:
    listed = " and ".join(f"`{name}`" for name in names)
    return (
        f"no gradient reaches {listed}: nothing is learned there. "
        "Is there a detach(), item(), float() or no_grad() in the way?"
    )


def _flat(value: Any) -> list[Tensor]:
    """A number, tensor, array, or (nested) sequence of them, as a flat list of float64 tensors.

    A tuple is several results; a list of numbers is one, a row.
    """
    if isinstance(value, tuple) or (
        isinstance(value, list) and any(isinstance(v, (Tensor, np.ndarray, tuple)) for v in value)
    ):
        return [tensor for part in value for tensor in _flat(part)]
    if isinstance(value, Tensor):
        return [value.detach().double()]
    return [torch.as_tensor(value, dtype=torch.float64)]


def _side_by_side(ours: list[Tensor], theirs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Both answers; n results stacked in one tensor (n, ...) are n results again."""
    if _stacked(ours, theirs):
        return list(ours[0]), theirs
    if _stacked(theirs, ours):
        return ours, list(theirs[0])
    return ours, theirs


def _stacked(one: list[Tensor], several: list[Tensor]) -> bool:
    """Whether the first is a single tensor that could be the second ones, stacked."""
    shape = (len(several), *several[0].shape) if several else ()
    return len(one) == 1 < len(several) and one[0].shape == shape


def _close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-6)


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    ours, theirs = _side_by_side(a, b)
    return len(ours) == len(theirs) and all(map(_close, ours, theirs))


def _all_same(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    return all(map(_same, ours, theirs))


def _difference(
    cases: Sequence[Case], given: list[Any], wanted: list[Any], labels: Sequence[str] = ()
) -> str:
    """What is wrong with answers that match no known mistake, at the first case that fails.

    Labels: what each result is, if it is not simply the first, second, … of the student's.
    """
    first = next(i for i in range(len(cases)) if not _same(given[i], wanted[i]))
    rows = [_side_by_side(a, b) for a, b in zip(given, wanted, strict=True)]
    ours, right = rows[first]
    if len(ours) != len(right):
        return f"your function returns {len(ours)} result(s); {len(right)} wanted"
    for x, y in zip(ours, right, strict=True):
        if x.shape != y.shape:
            return f"your result has shape {tuple(x.shape)}; {tuple(y.shape)} is wanted"
        if not bool(x.isfinite().all()):
            whose = "the gradient of your loss" if labels else "your result"
            return f"{whose} holds NaN or infinity: look for a log of 0 or a division by 0"
    if multiple := _multiple(rows):
        return multiple
    if multiple := _multiple([rows[first]]):
        return f"{multiple} ({_short(cases[first])})"
    i = next(i for i in range(len(ours)) if not _close(ours[i], right[i]))
    several = [f"number {i + 1} of your results" for i in range(len(ours))]
    what = (labels or (several if len(ours) > 1 else ["your result"]))[i]
    return f"not yet: {what} is {_at_first(ours[i], right[i])} ({_short(cases[first])})"


def _multiple(rows: Sequence[tuple[list[Tensor], list[Tensor]]]) -> str | None:
    """What to say if all numbers of all answers are c times what is wanted, for one c."""
    ours, theirs = (torch.cat([x.flatten() for row in rows for x in row[i]]) for i in range(2))
    if ours.shape != theirs.shape or not theirs.any():
        return None
    factor = ((ours @ theirs) / (theirs @ theirs)).item()
    if factor == 0 or not math.isfinite(factor) or not _close(ours, factor * theirs):
        return None
    if math.isclose(factor, -1, rel_tol=1e-4):
        return "right but for the sign: it is minus what is wanted"
    if theirs.numel() == 1:
        return None
    times = f"{factor:.3g}" if abs(factor - 1) > 0.005 else f"{factor:.6g}"
    return f"right but for a factor: yours is {times} times what is wanted"


def _at_first(x: Tensor, y: Tensor) -> str:
    """Both results; of large ones the place where they differ first, and what stands there."""
    if x.numel() <= 12:
        return f"{_short(x)}, wanted {_short(y)}"
    place = tuple((~torch.isclose(x, y, rtol=1e-4, atol=1e-6)).nonzero()[0].tolist())
    return f"{_short(x[place])} at {list(place)}, wanted {_short(y[place])}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_short(v)}" for name, v in value.items())
    if isinstance(value, Tensor):
        value = value.detach().double()
        value = value.tolist() if value.numel() <= 12 else f"a tensor {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    return str(value)


def _stopped(student: Callable[..., Any], error: Exception, case: Case) -> Result:
    """The exception, the line of the student's own code that raised it, and the inputs."""
    reason = (str(error).splitlines() or [""])[0]
    if "Can't call numpy()" in reason:
        says = "numpy forgets the gradient, and a loss needs it: compute with torch all the way"
        return Result("wrong", says)
    if "leaf Variable" in reason:
        return Result("wrong", "your function changes its input: make a new tensor instead")
    file = getattr(getattr(student, "__code__", None), "co_filename", None)
    own = [x for x in traceback.extract_tb(error.__traceback__) if x.filename == file and x.line]
    where = f", in line {own[-1].lineno}: `{own[-1].line}`" if own else ""
    says = f"your function stopped with {type(error).__name__}: {reason}{where} ({_short(case)})"
    return Result("error", says)


def numbers(*values: Any) -> Tensor:
    """A float64 tensor, for the cases."""
    return torch.tensor(values, dtype=torch.float64)
