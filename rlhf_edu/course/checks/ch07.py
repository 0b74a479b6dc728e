"""Checks of chapter 07: over-optimisation."""

import math

import torch
from torch import Tensor

from rlhf_edu.course.checks import Check, numbers
from rlhf_edu.experiments import best_of_n


def _with_replacement(scores: Tensor, n: int) -> Tensor:
    place = scores.argsort().argsort().double() + 1
    return (place / len(scores)) ** n - ((place - 1) / len(scores)) ** n


def _first_n(scores: Tensor, n: int) -> Tensor:
    weights = torch.zeros(len(scores), dtype=torch.float64)
    weights[scores[:n].argmax()] = 1.0
    return weights


def _chances(counts: Tensor, n: int) -> Tensor:
    return numbers(*[math.comb(int(b), n - 1) for b in counts]) / math.comb(len(counts), n)


def best_of_n_weights(scores: Tensor, n: int) -> Tensor:
    """student(scores (N,), n) -> weights (N,): how likely each is the best of n of the N.

    The n are drawn without replacement; no two scores are equal.
    """
    return best_of_n.best_of_n_weights(scores, n)


check_best_of_n_weights = Check(
    best_of_n_weights,
    cases=[
        {"scores": numbers(0.3, 2.0, -1.0, 0.9), "n": 2},
        {"scores": numbers(-2.0, 0.5, 1.5, 0.1, 3.0), "n": 3},
    ],
    mistakes={
        "that is the worst of n: count how many scores lie *below*, not above": lambda s, n: (
            best_of_n_weights(-s, n)
        ),
        "you draw with replacement, (i / N)^n - ((i - 1) / N)^n: one sample could be drawn twice. "
        "Without: C(i - 1, n - 1) / C(N, n)": _with_replacement,
        "you take the best of the first n: one draw, with all its noise. "
        "Average over all ways to choose n of the N": _first_n,
        "the weights are right, but stand in order of the scores: "
        "give each back to its own sample": lambda s, n: best_of_n_weights(s, n).sort().values,
        "you count the sample itself among those below it: with place i from 1, "
        "there are i - 1 below": lambda s, n: _chances(s.argsort().argsort() + 1, n),
        "argsort says which sample stands at each place, not at which place a sample stands: "
        "count the lower scores instead": lambda s, n: _chances(s.argsort(), n),
        "the best of all N always wins: "
        "with n of them drawn it is often not among them": lambda s, n: (s == s.max()).double(),
        "all weigh the same: that is the best of 1": lambda s, n: torch.full(
            (len(s),), 1 / len(s), dtype=torch.float64
        ),
    },
    success="right: they add up to 1, and the highest score has n / N of it",
)


def best_of_n_law(p: Tensor, s: Tensor, n: int) -> Tensor:
    """student(probs (A,), scores (A,), n) -> law (A,) of the best of n, of independent samples.

    The answers may tie; of equals the first one drawn wins.
    """
    upto = (p * (s[None, :] <= s[:, None])).sum(1)
    tied = (p * (s[None, :] == s[:, None])).sum(1)
    return (upto**n - (upto - tied) ** n) * p / tied


def _no_share(p: Tensor, s: Tensor, n: int) -> Tensor:
    upto = (p * (s[None, :] <= s[:, None])).sum(1)
    return upto**n - (upto - p) ** n


def _double(p: Tensor, s: Tensor, n: int) -> Tensor:
    upto = (p * (s[None, :] <= s[:, None])).sum(1)
    below = (p * (s[None, :] < s[:, None])).sum(1)
    return upto**n - below**n


def _some_order(p: Tensor, s: Tensor, n: int) -> Tensor:
    order = s.argsort(stable=True)
    upto = p[order].cumsum(0)
    law = torch.empty_like(p)
    law[order] = upto**n - (upto - p[order]) ** n
    return law


check_best_of_n_law = Check(
    best_of_n_law,
    cases=[
        {"probs": numbers(0.5, 0.3, 0.2), "scores": numbers(0.0, 1.0, 2.0), "n": 3},
        {"probs": numbers(0.1, 0.4, 0.2, 0.3), "scores": numbers(1.0, 0.0, 1.0, -1.0), "n": 2},
        {"probs": numbers(0.25, 0.6, 0.15), "scores": numbers(2.0, 1.0, 2.0), "n": 4},
    ],
    mistakes={
        "answers that tie share one chance: split F^n - (F below)^n in proportion "
        "to their probabilities, or the law adds up to more than 1": _double,
        "below a tied answer stand only the strictly worse ones, not its equals: "
        "take F^n - (F strictly below)^n for the whole tie, then split it": _no_share,
        "the chance of the tie times p: its share of the tie is p / (sum of p over the tie), "
        "so that an answer without equals keeps all of it": lambda p, s, n: _double(p, s, n) * p,
        "you split a tie evenly; the likelier of two equals "
        "is drawn first more often, so split in proportion "
        "to probability": lambda p, s, n: _double(p, s, n) / (s[None, :] == s[:, None]).sum(1),
        "you break ties by place: one of the equals always wins. "
        "The first one drawn wins, so split the tie in proportion to probability": _some_order,
        "that is the worst of n: F counts the answers "
        "that score *no more* than this one": lambda p, s, n: best_of_n_law(p, -s, n),
        "that is a sharper model, p^n: it likes what is frequent; "
        "best of n likes what scores high": lambda p, s, n: p**n / (p**n).sum(),
        "that is the optimum of RL with a price of KL, p exp(r / beta); best of n looks at the "
        "order of the scores alone": lambda p, s, n: p * (n * s).exp() / (p * (n * s).exp()).sum(),
        "F^n is the chance that the best scores *no more* than this answer; subtract the "
        "chance that it scores less": lambda p, s, n: (p * (s[None, :] <= s[:, None])).sum(1) ** n,
    },
    success="right: adds up to 1, and nothing but the order of the scores matters",
)


def _solve(features: Tensor, gain: Tensor) -> Tensor:
    return torch.linalg.lstsq(features, gain[:, None]).solution[:, 0]


def gao_fit(d: Tensor, gain: Tensor) -> Tensor:
    """student(d (M,), gain (M,)) -> (alpha, beta) of gain = d (alpha - beta d), least squares."""
    return _solve(torch.stack([d, -d * d], 1), gain)


def _quotient(d: Tensor, gain: Tensor) -> Tensor:
    return _solve(torch.stack([torch.ones_like(d), -d], 1), gain / d)


def _intercept(d: Tensor, gain: Tensor) -> Tensor:
    return _solve(torch.stack([d, -d * d, torch.ones_like(d)], 1), gain)[:2]


check_gao_fit = Check(
    gao_fit,
    cases=[
        {"d": numbers(0.4, 0.8, 1.1, 1.5), "gain": numbers(0.5, 0.6, 0.45, 0.1)},
        {"d": numbers(0.5, 1.0, 2.0, 3.0, 4.0), "gain": numbers(0.9, 1.2, 2.1, 1.4, -0.2)},
    ],
    mistakes={
        "the sign of beta: the law is d (alpha - beta d), "
        "so what stands before d^2 is -beta": lambda d, g: gao_fit(d, g) * numbers(1.0, -1.0),
        "the two numbers are in the wrong order: (alpha, beta)": lambda d, g: gao_fit(d, g).flip(0),
        "you fit gain / d by a line: the same law, but points near the start, "
        "where d is small, get nearly all the weight": _quotient,
        "you fit a constant as well: the law goes through the origin, "
        "as no KL means no gain": _intercept,
        "d is the root of the KL already: no second root": lambda d, g: gao_fit(d.sqrt(), g),
        "the law is in d, the root of the KL, not in the KL itself": lambda d, g: gao_fit(d * d, g),
        "that is the law for RL, d (alpha - beta log d); here it is best of n": lambda d, g: _solve(
            torch.stack([d, -d * d.log()], 1), g
        ),
    },
    success="right: two features and no constant, so that a straight least-squares solver does it",
)


def gao_peak(alpha: float, beta: float) -> Tensor:
    """student(alpha, beta) -> (d where the best-of-n law peaks, d where the RL law peaks)."""
    return numbers(alpha / (2 * beta), math.exp(alpha / beta - 1))


check_gao_peak = Check(
    gao_peak,
    cases=[{"alpha": 1.2, "beta": 0.5}, {"alpha": 0.6, "beta": 0.4}],
    mistakes={
        "there the gain is back at 0: at the peak the *slope* is 0, "
        "so differentiate": lambda a, b: numbers(a / b, math.exp(a / b)),
        "the RL law: the derivative of d log d is log d + 1, "
        "so alpha - beta log d - beta is 0": lambda a, b: numbers(a / (2 * b), math.exp(a / b)),
        "the best-of-n law: the derivative of d^2 is 2 d": lambda a, b: numbers(
            a / b, math.exp(a / b - 1)
        ),
        "a / 2 * b is a b / 2 in Python: put brackets around 2 * b": lambda a, b: numbers(
            a / 2 * b, math.exp(a / b - 1)
        ),
        "the two are in the wrong order: best of n first": lambda a, b: gao_peak(a, b).flip(0),
        "these are the gains at the peaks; wanted is where they are, d": lambda a, b: numbers(
            a * a / (4 * b), b * math.exp(a / b - 1)
        ),
        "that is the KL at the peak; wanted is d, its root": lambda a, b: gao_peak(a, b) ** 2,
    },
    success="right: alpha / (2 beta) for best of n, exp(alpha / beta - 1) for RL",
)
