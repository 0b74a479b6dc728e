"""Checks of chapter 00: start here."""

import torch
from torch import Tensor

from rlhf_edu.course.checks import Check, numbers
from rlhf_edu.tinyweb.judge import gold_score

_NAMES = ("helpful", "truthful", "harmless", "form")


def gold(helpful: float, truthful: float, harmless: float, form: float) -> float:
    """student(helpful, truthful, harmless, form) -> gold score of one answer."""
    return gold_score(helpful, truthful, harmless, form)


check_gold = Check(
    gold,
    cases=[
        dict(zip(_NAMES, parts, strict=True))
        for parts in (
            (1.0, 1.0, 1.0, 1.0),  # an answer that lacks nothing
            (0.0, 0.0, 1.0, 1.0),  # a false one
            (0.6, 0.5, 0.0, 0.66),
            (0.15, 0.75, 1.0, 0.32),
        )
    ],
    mistakes={
        "you reward the last three: silence would earn points for saying nothing false. Charge "
        "for what is missing, 1 - truthful and so on": lambda h, t, a, f: 4 * h + 3 * t + 2 * a + f,
        "you charge for truth: the penalty is for what is missing, "
        "1 - truthful and so on": lambda h, t, a, f: 4 * h - 3 * t - 2 * a - f,
        "the sign of the penalties: what is missing costs points": lambda h, t, a, f: (
            4 * h + 3 * (1 - t) + 2 * (1 - a) + (1 - f)
        ),
        "the weights are missing: helpful 4, truthful 3, harmless 2, form 1": lambda h, t, a, f: (
            h - (1 - t) - (1 - a) - (1 - f)
        ),
        "rudeness costs nothing: subtract 2 (1 - harmless)": lambda h, t, a, f: gold_score(
            h, t, 1.0, f
        ),
        "form costs nothing: subtract 1 - form": lambda h, t, a, f: gold_score(h, t, a, 1.0),
        "a false answer costs nothing: subtract 3 (1 - truthful)": lambda h, t, a, f: gold_score(
            h, 1.0, a, f
        ),
        "two weights have changed places: 3 for truthful, 2 for harmless": lambda h, t, a, f: (
            4 * h - 2 * (1 - t) - 3 * (1 - a) - (1 - f)
        ),
    },
    success="right: 4 points at best, -6 at worst; only helping earns any",
)


def win_rate(ours: Tensor, theirs: Tensor) -> Tensor:
    """student(ours (N,), theirs (N,)) -> how often ours is better, a tie counting one half."""
    return ((ours > theirs).double() + 0.5 * (ours == theirs).double()).mean()


def _wins(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours > theirs).double()


def _without_ties(ours: Tensor, theirs: Tensor) -> Tensor:
    return _wins(ours, theirs).sum() / (ours != theirs).sum()


def _unpaired(ours: Tensor, theirs: Tensor) -> Tensor:
    return win_rate(ours[:, None], theirs[None, :])


check_win_rate = Check(
    win_rate,
    cases=[
        {"ours": numbers(4, 4, 0.6, -3, 2), "theirs": numbers(4, -1, 0.6, 0.6, -1)},
        {"ours": numbers(-1, 4, 2.4), "theirs": numbers(-1, 4, 4)},
        {"ours": numbers(1, 2, 3, 3), "theirs": numbers(1, 1, 4, 1)},
    ],
    mistakes={
        "ties count nothing: a model against itself would win 0 % of the time. "
        "Add one half for each": lambda o, t: _wins(o, t).mean(),
        "ties count as wins: a model against itself would win 100 % of the time. "
        "Count one half for each": lambda o, t: (o >= t).double().mean(),
        "you leave the ties out: two models that "
        "nearly always agree would look far apart": _without_ties,
        "the wrong way round: that is how often theirs is better": lambda o, t: 1 - win_rate(o, t),
        "that is the mean difference: a win is a win, by however much": lambda o, t: (o - t).mean(),
        "you compare answers to different prompts: pair them, each prompt with itself": _unpaired,
        "that is the number of wins: divide by the number of prompts": lambda o, t: (
            len(o) * win_rate(o, t)
        ),
    },
    success="right: a model against itself wins one half, and the two sides add up to 1",
)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """student(p (V,), q (V,)) -> KL(p || q) in nats."""
    return (p * (p / q).log()).sum()


check_kl = Check(
    kl,
    cases=[
        {"p": numbers(0.7, 0.2, 0.1), "q": numbers(0.2, 0.3, 0.5)},
        {"p": numbers(0.9, 0.1), "q": numbers(0.5, 0.5)},
        {"p": numbers(0.1, 0.2, 0.3, 0.4), "q": numbers(0.1, 0.2, 0.3, 0.4)},
    ],
    mistakes={
        "that is KL(q || p): the average is taken under the first one, p": lambda p, q: kl(q, p),
        "the weight p is missing: a token that is never given tells nothing apart": lambda p, q: (
            (p / q).log().sum()
        ),
        "a plain mean: weigh each token by how often p gives it": lambda p, q: (p / q).log().mean(),
        "these are bits: take the natural logarithm for nats": lambda p, q: (
            kl(p, q) / torch.tensor(2.0).log()
        ),
        "that is the cross-entropy: subtract the entropy of p, "
        "so that p against itself is 0": lambda p, q: -(p * q.log()).sum(),
        "that is the total variation distance: "
        "KL averages the log of the ratio p / q": lambda p, q: (p - q).abs().sum() / 2,
        "the logarithm is missing: average log(p / q)": lambda p, q: (p * (p / q)).sum(),
        "the sign: log(p / q), not log(q / p); a KL is never negative": lambda p, q: -kl(p, q),
        "these are the terms, one for each token: add them up": lambda p, q: p * (p / q).log(),
    },
    success=(
        "right: 0 for equal distributions, never negative, and another number the other way round"
    ),
)
