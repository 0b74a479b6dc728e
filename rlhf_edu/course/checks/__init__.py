"""Checks for the exercises: they run a student's function, and name the mistake if they know it.

A check prints one line and never raises. Three outcomes:

    · not attempted yet        the stub still returns ...
    ✗ …                          what is wrong, by name if it is a known mistake
    ✓ …                          right, and what to take along

Every check is `check(student, right, cases, mistakes, success)`: small inputs, the right function
(the package's own, so that a passed check means "equal to rlhf_edu"), and functions that are wrong
in a way we have seen before. The checks of chapter 05 are in `rlhf_edu.course.checks.ch05`, and so
on.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Case = dict[str, Any]


@dataclass(frozen=True)
class Mistake:
    """A wrong function with the arguments of the right one, and what to say to its author."""

    wrong: Callable[..., Any]
    says: str


@dataclass(frozen=True)
class Result:
    """How a check ended: `status` is "passed", "wrong", "error" or "not attempted"."""

    status: str
    message: str

    def _ipython_display_(self) -> None:
        """Show nothing at the end of a cell: the message has been printed already."""


def check(
    student: Callable[..., Any],
    right: Callable[..., Any],
    cases: Sequence[Case],
    mistakes: Sequence[Mistake],
    success: str,
    gradient: str | None = None,
) -> Result:
    """Compare the student's function with the right one; print one line and return the result.

    Args:
        student: called with the cases' values, in order, by position: names are free.
        right: what it should compute.
        cases: named inputs. The mistakes must differ from `right` in at least one of them.
        mistakes: looked through in order; the first that explains every answer is named.
        success: what a student who has it right reads.
        gradient: name of an input whose gradient counts instead of the value, for losses: the
            right gradient is all that training needs, and constants are free.
    """
    result = _judge(student, right, cases, mistakes, success, gradient)
    marks = {"passed": "✓", "not attempted": "·"}
    print(f"{marks.get(result.status, '✗')} {result.message}")
    return result


def _judge(
    student: Callable[..., Any],
    right: Callable[..., Any],
    cases: Sequence[Case],
    mistakes: Sequence[Mistake],
    success: str,
    gradient: str | None,
) -> Result:
    given = []
    for case in cases:
        try:
            answer = _run(student, case, gradient)
        except _Complaint as complaint:
            return Result("wrong", str(complaint))
        except Exception as error:  # a student's code may raise anything
            return Result("error", f"your function stopped with {_named(error)} ({_short(case)})")
        if answer is ...:
            return Result("not attempted", "not attempted yet: replace the ... and run the cell")
        if answer is None:
            return Result("wrong", "your function returns nothing: is there a `return`?")
        given.append(answer)
    wanted = [_run(right, case, gradient) for case in cases]
    if all(_same(a, b) for a, b in zip(given, wanted, strict=True)):
        return Result("passed", success)
    for mistake in mistakes:
        if _explains(mistake.wrong, cases, given, gradient):
            return Result("wrong", mistake.says)
    return Result("wrong", _difference(cases, given, wanted, gradient))


class _Complaint(Exception):
    """Something to tell the student that is no crash of theirs."""


def _run(function: Callable[..., Any], case: Case, gradient: str | None) -> Any:
    """The function's value on copies of the inputs, or the gradient with respect to one."""
    inputs = copy.deepcopy(case)
    if gradient is not None:
        inputs[gradient].requires_grad_(True)
    answer = function(*inputs.values())
    for name, value in inputs.items():
        if isinstance(value, Tensor) and not torch.equal(value.detach(), case[name]):
            raise _Complaint(f"your function changes its input `{name}`: make a new tensor instead")
    if gradient is None or answer is ... or answer is None:
        return answer
    if not isinstance(answer, Tensor) or answer.numel() != 1:
        raise _Complaint("a loss is one number: take a mean at the end")
    if not answer.requires_grad:
        raise _Complaint(
            f"no gradient reaches `{gradient}`: nothing will be learned. "
            "Is there a detach(), item() or no_grad() in the way?"
        )
    answer.backward()
    slope = inputs[gradient].grad
    return torch.zeros_like(inputs[gradient]) if slope is None else slope


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


def _side_by_side(a: Any, b: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Both answers, flat; a row of n numbers counts as n results if the other has n numbers."""
    ours, theirs = _flat(a), _flat(b)
    if _is_row_of(ours, theirs):
        return list(ours[0]), theirs
    if _is_row_of(theirs, ours):
        return ours, list(theirs[0])
    return ours, theirs


def _is_row_of(row: list[Tensor], results: list[Tensor]) -> bool:
    """Whether the first is one tensor (n,), the second n single numbers, and n more than 1."""
    single = len(results) > 1 and all(x.dim() == 0 for x in results)
    return single and len(row) == 1 and row[0].shape == (len(results),)


def _same(a: Any, b: Any) -> bool:
    try:
        ours, theirs = _side_by_side(a, b)
    except (TypeError, ValueError, RuntimeError):
        return False
    return len(ours) == len(theirs) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-6)
        for x, y in zip(ours, theirs, strict=True)
    )


def _explains(
    wrong: Callable[..., Any], cases: Sequence[Case], given: list[Any], gradient: str | None
) -> bool:
    try:
        return all(
            _same(_run(wrong, case, gradient), answer)
            for case, answer in zip(cases, given, strict=True)
        )
    except Exception:  # a mistake that cannot be made on these inputs explains nothing
        return False


def _difference(
    cases: Sequence[Case], given: list[Any], wanted: list[Any], gradient: str | None
) -> str:
    """What is wrong with an answer that matches no known mistake, at the first case that fails."""
    case, mine, theirs = next(
        row for row in zip(cases, given, wanted, strict=True) if not _same(row[1], row[2])
    )
    try:
        ours, right = _side_by_side(mine, theirs)
    except (TypeError, ValueError, RuntimeError):
        return f"your function returns a {type(mine).__name__}; a tensor of numbers is wanted"
    if len(ours) != len(right):
        return f"your function returns {len(ours)} result(s); {len(right)} wanted"
    for i, (x, y) in enumerate(zip(ours, right, strict=True), 1):
        if x.shape != y.shape:
            return f"your result has shape {tuple(x.shape)}; {tuple(y.shape)} is wanted"
        if not bool(x.isfinite().all()):
            return "your result holds NaN or infinity: look for a log of 0 or a division by 0"
        if torch.allclose(x, y, rtol=1e-4, atol=1e-6):
            continue
        if torch.allclose(x, -y, rtol=1e-4, atol=1e-6):
            return "right but for the sign: it is minus what is wanted"
        factor = _factor(x, y)
        if factor is not None:
            times = f"{factor:.3g}" if abs(factor - 1) > 0.005 else f"{factor:.6g}"
            return f"right but for a factor: yours is {times} times what is wanted"
        which = "your result" if len(right) == 1 else f"number {i} of your results"
        what = "the gradient of your loss" if gradient else which
        return f"not yet: {what} is {_short(x)}, wanted {_short(y)} ({_short(case)})"
    return "not yet"


def _factor(x: Tensor, y: Tensor) -> float | None:
    """The c with x = c y, if there is one."""
    square = (y * y).sum().item()
    factor = (x * y).sum().item() / square if square > 0 else math.nan
    fits = factor != 0 and torch.allclose(x, factor * y, rtol=1e-4, atol=1e-6)
    return factor if fits and y.numel() > 1 else None


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


def _named(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def numbers(*values: Any) -> Tensor:
    """A float64 tensor, for the cases."""
    return torch.tensor(values, dtype=torch.float64)
