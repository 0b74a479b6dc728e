"""Checks of chapter 10: evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu.course import cost
from rlhf_edu.course.checks import Check, numbers


def _wins(ours: Tensor, theirs: Tensor, tie: float = 0.5) -> Tensor:
    return (ours > theirs).double() + tie * (ours == theirs).double()


def _interval(won: Tensor) -> tuple[Tensor, Tensor]:
    return won.mean(), 1.96 * won.std() / len(won) ** 0.5


def win_rate_interval(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """student(ours (N,), theirs (N,)) -> (win rate, half of the width of its 95 % interval)."""
    return _interval(_wins(ours, theirs))


def _by_coins(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    p = _wins(ours, theirs).mean()
    return p, 1.96 * (p * (1 - p) / len(ours)) ** 0.5


def _without_ties(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    return _interval(_wins(ours, theirs)[ours != theirs])


def _ends(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    rate, half = win_rate_interval(ours, theirs)
    return rate - half, rate + half


def _scaled(factor: Callable[[int], float]) -> Callable[..., Any]:
    def wrong(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        rate, half = win_rate_interval(ours, theirs)
        return rate, half * factor(len(ours))

    return wrong


check_win_rate_interval = Check(
    win_rate_interval,
    cases=[
        {
            "ours": numbers(4.0, 2.0, 4.0, -1.0, 4.0, 3.0, 0.6, 4.0),
            "theirs": numbers(4.0, 2.5, 1.0, -3.0, 4.0, 2.0, 0.6, 1.5),
        },
        {"ours": numbers(1.0, 2.0, 3.0, 0.0, 5.0), "theirs": numbers(1.0, 3.0, 4.0, -1.0, 6.0)},
    ],
    mistakes={
        "ties count as lost; they are half a win for each": lambda a, b: _interval(
            _wins(a, b, 0.0)
        ),
        "ties count as won; they are half a win for each": lambda a, b: _interval(_wins(a, b, 1.0)),
        "ties are dropped: they are prompts too, and count one half": _without_ties,
        "p (1 - p) is the variance of a coin; with ties the N numbers 1, 0.5 and 0 spread less: "
        "take their own standard deviation": _by_coins,
        "that is how often theirs wins": lambda a, b: _interval(_wins(b, a)),
        "that is one standard error; the 95 % interval reaches 1.96 of them to each side": _scaled(
            lambda n: 1 / 1.96
        ),
        "the spread of single prompts; the mean of N spreads less, by the root of N": _scaled(
            lambda n: n**0.5
        ),
        "that is the whole width; half of it is wanted": _scaled(lambda n: 2.0),
        "the standard deviation divides by N; from a sample it is N - 1, "
        "as torch's `.std()` does": _scaled(lambda n: ((n - 1) / n) ** 0.5),
        "these are the two ends of the interval: "
        "return its middle, the win rate, and half of its width": _ends,
    },
    success="right: 1, 0.5 or 0 for each prompt, their mean, and how well N of them know it",
)


def _expected(ratings: Tensor, base: float = 10.0, scale: float = 400.0) -> Tensor:
    ahead = ratings[:, None] - ratings[None, :]
    return 1 / (1 + base ** (-ahead / scale))


def elo_update(ratings: Tensor, wins: Tensor, k: float) -> Tensor:
    """student(ratings (M,), wins (M, M), k) -> ratings (M,) after one round of Elo updates.

    `wins[i, j]` counts how often i has beaten j. Each player gains k points for every win more
    than its rating had expected.
    """
    games = wins + wins.T
    return ratings + k * (wins - games * _expected(ratings)).sum(1)


def _with_chances(chances: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def wrong(ratings: Tensor, wins: Tensor, k: float) -> Tensor:
        return ratings + k * (wins - (wins + wins.T) * chances(ratings)).sum(1)

    return wrong


check_elo_update = Check(
    elo_update,
    cases=[
        {
            "ratings": numbers(0.0, 100.0, -50.0),
            "wins": numbers([0, 6, 9], [4, 0, 5], [1, 5, 0]),
            "k": 4.0,
        },
        {"ratings": numbers(0.0, 300.0), "wins": numbers([0, 2.5], [7.5, 0]), "k": 10.0},
    ],
    mistakes={
        "you expect half of all games; what is expected depends on the two ratings": _with_chances(
            lambda r: torch.full((len(r), len(r)), 0.5, dtype=r.dtype)
        ),
        "the expectation is the wrong way round: "
        "the higher rating should win more often": _with_chances(lambda r: _expected(r).T),
        "e in place of 10: Elo's scale is 10 to the power of points / 400": _with_chances(
            lambda r: _expected(r, base=torch.e)
        ),
        "the points are not divided by 400": _with_chances(lambda r: _expected(r, scale=1.0)),
        "you add all wins; subtract those that the ratings expected": lambda r, w, k: (
            r + k * w.sum(1)
        ),
        "the sign: who wins more than expected gains points": lambda r, w, k: (
            2 * r - elo_update(r, w, k)
        ),
        "that is the change alone; add it to the ratings": lambda r, w, k: elo_update(r, w, k) - r,
        "the expectation is of one game: multiply it by the number of games of each pair, "
        "wins and losses": lambda r, w, k: r + k * (w - _expected(r)).sum(1),
    },
    success=(
        "right: more wins than expected, more points; where all is as expected, Elo stands still"
    ),
)


def days(petaflop_s_days: float, gpus: int, peak_teraflops: float, utilisation: float) -> float:
    """student(petaflop_s_days, gpus, peak_teraflops, utilisation) -> days."""
    return cost.days(petaflop_s_days, gpus, peak_teraflops, utilisation)


check_days = Check(
    days,
    cases=[
        {"petaflop_s_days": 3640.0, "gpus": 8, "peak_teraflops": 312.0, "utilisation": 0.4},
        {"petaflop_s_days": 60.0, "gpus": 64, "peak_teraflops": 100.0, "utilisation": 0.25},
    ],
    mistakes={
        "utilisation has no effect: a GPU does only that share of its peak": lambda w, n, p, u: (
            w * 1000 / (n * p)
        ),
        "you multiply by the utilisation: "
        "who uses less of the peak takes longer": lambda w, n, p, u: w * 1000 * u / (n * p),
        "peta and tera: a petaflop is 1,000 teraflops": lambda w, n, p, u: w / (n * p * u),
        "peta and tera the wrong way round: one petaflop/s is 1,000 teraflop/s, "
        "so the work is multiplied by 1,000": lambda w, n, p, u: w / 1000 / (n * p * u),
        "the number of GPUs has no effect: those are GPU-days": lambda w, n, p, u: (
            w * 1000 / (p * u)
        ),
        "those are hours; the work is given in petaflop/s-DAYS already": lambda w, n, p, u: (
            w * 1000 * 24 / (n * p * u)
        ),
        "those are seconds; the work is given in petaflop/s-DAYS already": lambda w, n, p, u: (
            days(w, n, p, u) * 86_400
        ),
        "upside down: more work takes more days": lambda w, n, p, u: n * p * u / 1000 / w,
    },
    success="right: the work, divided by what the GPUs really do in a second",
)


def reliability(scores: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """student(scores (P, n), limit) -> (share of prompts with a success, share with n of them).

    A success is a sample that scores at least `limit`.
    """
    good = scores >= limit
    return good.any(1).double().mean(), good.all(1).double().mean()


def _by_mean(scores: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    share = (scores.mean(1) >= limit).double().mean()
    return share, share


_SCORES = numbers(
    [4.0, 4.0, 3.0, 4.0],
    [4.0, -3.0, 4.0, 4.0],
    [0.6, -3.0, 1.0, 0.0],
    [3.0, 3.5, 4.0, 3.0],
    [-1.0, 3.0, 0.0, 0.0],
    [4.0, 4.0, 4.0, 4.0],
)


check_reliability = Check(
    reliability,
    cases=[{"scores": _SCORES, "limit": 3.0}, {"scores": _SCORES[1:], "limit": 4.0}],
    mistakes={
        "the other way round: first those with one success or more, "
        "then those where all are": lambda s, x: reliability(s, x)[::-1],
        "the first is the share of samples; count prompts that have at least "
        "one success": lambda s, x: ((s >= x).double().mean(), (s >= x).all(1).double().mean()),
        "more than the limit; at least the limit is wanted": lambda s, x: reliability(s, x + 1e-9),
        "you compare the mean of a prompt with the limit: "
        "a mean hides the worst sample, which is what this is about": _by_mean,
        "the wrong axis: samples of one prompt stand in a row": lambda s, x: reliability(s.T, x),
        "those are counts; divide by the number of prompts": lambda s, x: tuple(
            share * len(s) for share in reliability(s, x)
        ),
    },
    success="right: what it can do, and what it does every time",
)
