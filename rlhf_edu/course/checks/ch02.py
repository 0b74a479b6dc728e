"""Checks of chapter 02: misalignment."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers
from rlhf_edu.tinyweb.judge import gold_score


def check_margin(student: Callable[..., Any]) -> Result:
    """student(p, n) -> half of the width of the 95 % interval of a share."""

    def right(p: float, n: int) -> float:
        return 1.96 * (p * (1 - p) / n) ** 0.5

    return check(
        student,
        right,
        [{"p": 0.5, "n": 200}, {"p": 0.1, "n": 1000}, {"p": 0.8, "n": 20}],
        [
            Mistake(
                lambda p, n: (p * (1 - p) / n) ** 0.5,
                "that is the standard error: the 95 % interval reaches 1.96 of them to either side",
            ),
            Mistake(
                lambda p, n: 1.96 * (p * (1 - p)) ** 0.5,
                "n is missing: this is the spread of one answer, not of the mean of n",
            ),
            Mistake(
                lambda p, n: 1.96 * p * (1 - p) / n,
                "the root is missing: this is a variance",
            ),
            Mistake(
                lambda p, n: 1.96 * (p * (1 - p)) ** 0.5 / n,
                "n stands outside of the root: errors shrink with the root of n, so four times the "
                "samples halve them",
            ),
            Mistake(
                lambda p, n: 2 * right(p, n),
                "that is the whole width; half of it is what stands behind the plus-minus",
            ),
            Mistake(
                lambda p, n: 1.96 * (p / n) ** 0.5,
                "a share near 1 is as certain as one near 0: the variance is p (1 - p)",
            ),
        ],
        "right: 200 answers are known to 7 points, 20 to 22",
    )


def check_answer_rate(student: Callable[..., Any]) -> Result:
    """student(weights (K,), fits (K,), answers (K,)) -> P(answer | prompt) by Bayes."""

    def right(weights: Tensor, fits: Tensor, answers: Tensor) -> Tensor:
        page = weights * fits
        return (page / page.sum() * answers).sum()

    cases: list[Case] = [
        {
            "weights": numbers(8.0, 14.0, 10.0),
            "fits": numbers(1.0, 0.1, 0.05),
            "answers": numbers(0.0, 0.1, 0.9),
        },
        {
            "weights": numbers(1.0, 3.0),
            "fits": numbers(0.2, 0.4),
            "answers": numbers(0.5, 0.8),
        },
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda w, f, a: (w * a).sum() / w.sum(),
                "the fits are missing: that is the answer rate of all pages, whatever the prompt",
            ),
            Mistake(
                lambda w, f, a: (f * a).sum() / f.sum(),
                "the weights are missing: rare kinds of pages count like frequent ones",
            ),
            Mistake(
                lambda w, f, a: (w * f * a).sum(),
                "not normalised: divide by the sum of weight times fit over all kinds",
            ),
            Mistake(
                lambda w, f, a: (w / w.sum() * f * a).sum(),
                "normalised before the fits came in: this is the chance of prompt *and* answer; "
                "divide by the chance of the prompt",
            ),
            Mistake(
                lambda w, f, a: a.mean(),
                "a plain mean of the answer rates, as if all kinds were equally likely",
            ),
            Mistake(
                lambda w, f, a: a[(w * f).argmax()],
                "only the likeliest kind counts; a language model mixes all of them",
            ),
            Mistake(
                lambda w, f, a: (w * f).sum() / w.sum(),
                "that is the chance of the prompt, the denominator of Bayes' rule",
            ),
        ],
        "right: this is what a perfect model of the web would do, however large",
    )


def check_gold(student: Callable[..., Any]) -> Result:
    """student(helpful, truthful, harmless, format) -> the gold score."""

    names = ("helpful", "truthful", "harmless", "format")
    cases: list[Case] = [
        dict(zip(names, parts, strict=True))
        for parts in (
            (1.0, 1.0, 1.0, 1.0),
            (0.15, 0.9, 1.0, 1.0),
            (0.3, 0.5, 0.0, 0.66),
            (0.0, 0.0, 1.0, 0.4),
        )
    ]
    return check(
        student,
        gold_score,
        cases,
        [
            Mistake(
                lambda h, t, m, f: 4 * h + 3 * t + 2 * m + f,
                "virtues are paid here in place of faults that are fined: 6 points too many for "
                "everybody. The order of answers is the same, the zero is not",
            ),
            Mistake(
                lambda h, t, m, f: 4 * h - 3 * t - 2 * m - f,
                "truth, harmlessness and form are fined; what is fined is that they are missing, "
                "1 - truthful and so on",
            ),
            Mistake(
                lambda h, t, m, f: 4 * h + 3 * (1 - t) + 2 * (1 - m) + (1 - f),
                "the signs: faults are paid here",
            ),
            Mistake(
                lambda h, t, m, f: 4 * h - 3 * (1 - t) - 2 * (1 - m),
                "the form is missing",
            ),
            Mistake(
                lambda h, t, m, f: h - (1 - t) - (1 - m) - (1 - f),
                "all parts weigh the same; the weights are 4, 3, 2 and 1",
            ),
            Mistake(
                lambda h, t, m, f: 4 * h - 2 * (1 - t) - 3 * (1 - m) - (1 - f),
                "the weights of truth and harmlessness are exchanged",
            ),
        ],
        "right: equal to the judge's, and a decision like any other",
    )


def check_pooled_reward(student: Callable[..., Any]) -> Result:
    """student(a (N,), b (N,), s) -> differences (N,) that one reward model learns of two groups."""

    def right(a: Tensor, b: Tensor, s: float) -> Tensor:
        return torch.logit(s * a.sigmoid() + (1 - s) * b.sigmoid())

    cases: list[Case] = [
        {"a": numbers(3.0, 1.0, -0.5), "b": numbers(-3.0, 2.0, -2.0), "s": 0.5},
        {"a": numbers(2.0, -1.0, 0.3), "b": numbers(-0.5, 1.5, 1.0), "s": 0.8},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda a, b, s: s * a + (1 - s) * b,
                "the mean of the two worths: but the model sees votes, not worths. Average the "
                "probabilities of a vote, then turn sigma round",
            ),
            Mistake(
                lambda a, b, s: s * a.sigmoid() + (1 - s) * b.sigmoid(),
                "that is the share of votes; the reward difference z has sigma(z) equal to it",
            ),
            Mistake(
                lambda a, b, s: right(b, a, s),
                "the groups are exchanged: s is the share of A",
            ),
            Mistake(
                lambda a, b, s: right(a, b, 0.5),
                "s has no effect: the larger group has more votes",
            ),
            Mistake(
                lambda a, b, s: a if s >= 0.5 else b,
                "the majority alone; the others vote too",
            ),
            Mistake(
                lambda a, b, s: (s * a.sigmoid() + (1 - s) * b.sigmoid()).log(),
                "a logarithm alone: sigma is turned round by log(p / (1 - p))",
            ),
        ],
        "right: a vote is a vote, however strongly it is felt",
    )
