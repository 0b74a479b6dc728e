"""Checks of chapter 00: start here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers
from rlhf_edu.tinyweb.judge import gold_score


def check_gold(student: Callable[..., Any]) -> Result:
    """student(helpful, truthful, harmless, form) -> gold score of one answer."""

    names = ("helpful", "truthful", "harmless", "form")
    cases: list[Case] = [
        dict(zip(names, parts, strict=True))
        for parts in (
            (1.0, 1.0, 1.0, 1.0),  # a plain right answer
            (0.0, 0.0, 1.0, 1.0),  # a false one
            (0.6, 0.5, 0.0, 0.66),
            (0.15, 0.75, 1.0, 0.32),
        )
    ]
    return check(
        student,
        gold_score,
        cases,
        [
            Mistake(
                lambda h, t, a, f: 4 * h + 3 * t + 2 * a + f,
                "you reward the last three: silence would earn points for saying nothing false. "
                "Charge for what is missing, 1 - truthful and so on",
            ),
            Mistake(
                lambda h, t, a, f: 4 * h - 3 * t - 2 * a - f,
                "you charge for truth: the penalty is for what is missing, 1 - truthful and so on",
            ),
            Mistake(
                lambda h, t, a, f: 4 * h + 3 * (1 - t) + 2 * (1 - a) + (1 - f),
                "the sign of the penalties: what is missing costs points",
            ),
            Mistake(
                lambda h, t, a, f: h - (1 - t) - (1 - a) - (1 - f),
                "the weights are missing: helpful 4, truthful 3, harmless 2, form 1",
            ),
            Mistake(
                lambda h, t, a, f: gold_score(h, t, 1.0, f),
                "rudeness costs nothing: subtract 2 (1 - harmless)",
            ),
            Mistake(
                lambda h, t, a, f: gold_score(h, t, a, 1.0),
                "form costs nothing: subtract 1 - form",
            ),
            Mistake(
                lambda h, t, a, f: gold_score(h, 1.0, a, f),
                "a false answer costs nothing: subtract 3 (1 - truthful)",
            ),
            Mistake(
                lambda h, t, a, f: 4 * h - 2 * (1 - t) - 3 * (1 - a) - (1 - f),
                "two weights have changed places: 3 for truthful, 2 for harmless",
            ),
        ],
        "right: 4 points at best, -6 at worst; only helping earns any",
    )


def check_win_rate(student: Callable[..., Any]) -> Result:
    """student(ours (N,), theirs (N,)) -> how often ours is better, a tie counting one half."""

    def right(ours: Tensor, theirs: Tensor) -> Tensor:
        return ((ours > theirs).double() + 0.5 * (ours == theirs).double()).mean()

    def wins(ours: Tensor, theirs: Tensor) -> Tensor:
        return (ours > theirs).double()

    def without_ties(ours: Tensor, theirs: Tensor) -> Tensor:
        return wins(ours, theirs).sum() / (ours != theirs).sum()

    def unpaired(ours: Tensor, theirs: Tensor) -> Tensor:
        return right(ours[:, None], theirs[None, :])

    cases: list[Case] = [
        {"ours": numbers(4, 4, 0.6, -3, 2), "theirs": numbers(4, -1, 0.6, 0.6, -1)},
        {"ours": numbers(-1, 4, 2.4), "theirs": numbers(-1, 4, 4)},
        {"ours": numbers(1, 2, 3, 3), "theirs": numbers(1, 1, 4, 1)},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda o, t: wins(o, t).mean(),
                "ties count nothing: a model against itself would win 0 % of the time. Add one "
                "half for each",
            ),
            Mistake(
                lambda o, t: (o >= t).double().mean(),
                "ties count as wins: a model against itself would win 100 % of the time. Count "
                "one half for each",
            ),
            Mistake(
                without_ties,
                "you leave the ties out: two models that nearly always agree would look far apart",
            ),
            Mistake(
                lambda o, t: 1 - right(o, t),
                "the wrong way round: that is how often theirs is better",
            ),
            Mistake(
                lambda o, t: (o - t).mean(),
                "that is the mean difference: a win is a win, by however much",
            ),
            Mistake(
                unpaired,
                "you compare answers to different prompts: pair them, each prompt with itself",
            ),
            Mistake(
                lambda o, t: len(o) * right(o, t),
                "that is the number of wins: divide by the number of prompts",
            ),
        ],
        "right: a model against itself wins one half, and the two sides add up to 1",
    )


def check_kl(student: Callable[..., Any]) -> Result:
    """student(p (V,), q (V,)) -> KL(p || q) in nats."""

    def right(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum()

    cases: list[Case] = [
        {"p": numbers(0.7, 0.2, 0.1), "q": numbers(0.2, 0.3, 0.5)},
        {"p": numbers(0.9, 0.1), "q": numbers(0.5, 0.5)},
        {"p": numbers(0.1, 0.2, 0.3, 0.4), "q": numbers(0.1, 0.2, 0.3, 0.4)},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda p, q: right(q, p),
                "that is KL(q || p): the average is taken under the first one, p",
            ),
            Mistake(
                lambda p, q: (p / q).log().sum(),
                "the weight p is missing: a token that is never given tells nothing apart",
            ),
            Mistake(
                lambda p, q: (p / q).log().mean(),
                "a plain mean: weigh each token by how often p gives it",
            ),
            Mistake(
                lambda p, q: right(p, q) / torch.tensor(2.0).log(),
                "these are bits: take the natural logarithm for nats",
            ),
            Mistake(
                lambda p, q: -(p * q.log()).sum(),
                "that is the cross-entropy: subtract the entropy of p, so that p against itself is "
                "0",
            ),
            Mistake(
                lambda p, q: (p - q).abs().sum() / 2,
                "that is the total variation distance: KL averages the log of the ratio p / q",
            ),
            Mistake(
                lambda p, q: (p * (p / q)).sum(),
                "the logarithm is missing: average log(p / q)",
            ),
            Mistake(
                lambda p, q: -right(p, q),
                "the sign: log(p / q), not log(q / p); a KL is never negative",
            ),
            Mistake(
                lambda p, q: p * (p / q).log(),
                "these are the terms, one for each token: add them up",
            ),
        ],
        "right: 0 for equal distributions, never negative, and another number the other way round",
    )
