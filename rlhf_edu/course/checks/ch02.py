"""Checks of chapter 02: misalignment."""

import torch
from torch import Tensor

from rlhf_edu.course.checks import Check, numbers
from rlhf_edu.tinyweb.judge import gold_score


def margin(p: float, n: int) -> float:
    """student(p, n) -> half of the width of the 95 % interval of a share."""
    return 1.96 * (p * (1 - p) / n) ** 0.5


check_margin = Check(
    margin,
    cases=[{"p": 0.5, "n": 200}, {"p": 0.1, "n": 1000}, {"p": 0.8, "n": 20}],
    mistakes={
        "that is the standard error: the 95 % interval "
        "reaches 1.96 of them to either side": lambda p, n: (p * (1 - p) / n) ** 0.5,
        "n is missing: this is the spread of one answer, not of the mean of n": lambda p, n: (
            1.96 * (p * (1 - p)) ** 0.5
        ),
        "the root is missing: this is a variance": lambda p, n: 1.96 * p * (1 - p) / n,
        "n stands outside of the root: errors shrink with the root of n, "
        "so four times the samples halve them": lambda p, n: 1.96 * (p * (1 - p)) ** 0.5 / n,
        "that is the whole width; half of it is what stands behind the plus-minus": lambda p, n: (
            2 * margin(p, n)
        ),
        "a share near 1 is as certain as one near 0: the variance is p (1 - p)": lambda p, n: (
            1.96 * (p / n) ** 0.5
        ),
    },
    success="right: 200 answers are known to 7 points, 20 to 22",
)


def answer_rate(weights: Tensor, fits: Tensor, answers: Tensor) -> Tensor:
    """student(weights (K,), fits (K,), answers (K,)) -> P(answer | prompt) by Bayes."""
    page = weights * fits
    return (page / page.sum() * answers).sum()


check_answer_rate = Check(
    answer_rate,
    cases=[
        {
            "weights": numbers(8.0, 14.0, 10.0),
            "fits": numbers(1.0, 0.1, 0.05),
            "answers": numbers(0.0, 0.1, 0.9),
        },
        {"weights": numbers(1.0, 3.0), "fits": numbers(0.2, 0.4), "answers": numbers(0.5, 0.8)},
    ],
    mistakes={
        "the fits are missing: that is the answer rate of all pages, "
        "whatever the prompt": lambda w, f, a: (w * a).sum() / w.sum(),
        "the weights are missing: rare kinds of pages count like frequent ones": lambda w, f, a: (
            (f * a).sum() / f.sum()
        ),
        "not normalised: divide by the sum of weight times fit over all kinds": lambda w, f, a: (
            w * f * a
        ).sum(),
        "normalised before the fits came in: this is the chance of prompt *and* answer; "
        "divide by the chance of the prompt": lambda w, f, a: (w / w.sum() * f * a).sum(),
        "a plain mean of the answer rates, as if all kinds were equally likely": lambda w, f, a: (
            a.mean()
        ),
        "only the likeliest kind counts; a language model mixes all of them": lambda w, f, a: a[
            (w * f).argmax()
        ],
        "that is the chance of the prompt, the denominator of Bayes' rule": lambda w, f, a: (
            (w * f).sum() / w.sum()
        ),
    },
    success="right: this is what a perfect model of the web would do, however large",
)


_NAMES = ("helpful", "truthful", "harmless", "format")


def gold(helpful: float, truthful: float, harmless: float, format: float) -> float:
    """student(helpful, truthful, harmless, format) -> the gold score."""
    return gold_score(helpful, truthful, harmless, format)


check_gold = Check(
    gold,
    cases=[
        dict(zip(_NAMES, parts, strict=True))
        for parts in (
            (1.0, 1.0, 1.0, 1.0),
            (0.15, 0.9, 1.0, 1.0),
            (0.3, 0.5, 0.0, 0.66),
            (0.0, 0.0, 1.0, 0.4),
        )
    ],
    mistakes={
        "virtues are paid here in place of faults that are fined: "
        "6 points too many for everybody. The order of answers is the same, "
        "the zero is not": lambda h, t, m, f: 4 * h + 3 * t + 2 * m + f,
        "truth, harmlessness and form are fined; what is fined is that they are missing, "
        "1 - truthful and so on": lambda h, t, m, f: 4 * h - 3 * t - 2 * m - f,
        "the signs: faults are paid here": lambda h, t, m, f: (
            4 * h + 3 * (1 - t) + 2 * (1 - m) + (1 - f)
        ),
        "the form is missing": lambda h, t, m, f: 4 * h - 3 * (1 - t) - 2 * (1 - m),
        "all parts weigh the same; the weights are 4, 3, 2 and 1": lambda h, t, m, f: (
            h - (1 - t) - (1 - m) - (1 - f)
        ),
        "the weights of truth and harmlessness are exchanged": lambda h, t, m, f: (
            4 * h - 2 * (1 - t) - 3 * (1 - m) - (1 - f)
        ),
    },
    success="right: equal to the judge's, and a decision like any other",
)


def pooled_reward(a: Tensor, b: Tensor, s: float) -> Tensor:
    """student(a (N,), b (N,), s) -> differences (N,) that one reward model learns of two groups."""
    return torch.logit(s * a.sigmoid() + (1 - s) * b.sigmoid())


check_pooled_reward = Check(
    pooled_reward,
    cases=[
        {"a": numbers(3.0, 1.0, -0.5), "b": numbers(-3.0, 2.0, -2.0), "s": 0.5},
        {"a": numbers(2.0, -1.0, 0.3), "b": numbers(-0.5, 1.5, 1.0), "s": 0.8},
    ],
    mistakes={
        "the mean of the two worths: but the model sees votes, not worths. Average "
        "the probabilities of a vote, then turn sigma round": lambda a, b, s: s * a + (1 - s) * b,
        "that is the share of votes; the reward difference z has sigma(z) "
        "equal to it": lambda a, b, s: s * a.sigmoid() + (1 - s) * b.sigmoid(),
        "the groups are exchanged: s is the share of A": lambda a, b, s: pooled_reward(b, a, s),
        "s has no effect: the larger group has more votes": lambda a, b, s: pooled_reward(
            a, b, 0.5
        ),
        "the majority alone; the others vote too": lambda a, b, s: a if s >= 0.5 else b,
        "a logarithm alone: sigma is turned round by log(p / (1 - p))": lambda a, b, s: (
            s * a.sigmoid() + (1 - s) * b.sigmoid()
        ).log(),
    },
    success="right: a vote is a vote, however strongly it is felt",
)
