"""Checks of chapter 10: evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu.course.checks import Mistake, Result, check, numbers
from rlhf_edu.course.cost import days


def check_win_rate_interval(student: Callable[..., Any]) -> Result:
    """student(ours (N,), theirs (N,)) -> (win rate, half of the width of its 95 % interval)."""

    def wins(ours: Tensor, theirs: Tensor, tie: float = 0.5) -> Tensor:
        return (ours > theirs).double() + tie * (ours == theirs).double()

    def interval(won: Tensor) -> tuple[Tensor, Tensor]:
        return won.mean(), 1.96 * won.std() / len(won) ** 0.5

    def right(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        return interval(wins(ours, theirs))

    def by_coins(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        p = wins(ours, theirs).mean()
        return p, 1.96 * (p * (1 - p) / len(ours)) ** 0.5

    def without_ties(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        return interval(wins(ours, theirs)[ours != theirs])

    def scaled(factor: Callable[[int], float]) -> Callable[..., Any]:
        def wrong(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
            rate, half = right(ours, theirs)
            return rate, half * factor(len(ours))

        return wrong

    cases = [
        {
            "ours": numbers(4.0, 2.0, 4.0, -1.0, 4.0, 3.0, 0.6, 4.0),
            "theirs": numbers(4.0, 2.5, 1.0, -3.0, 4.0, 2.0, 0.6, 1.5),
        },
        {"ours": numbers(1.0, 2.0, 3.0, 0.0, 5.0), "theirs": numbers(1.0, 3.0, 4.0, -1.0, 6.0)},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda a, b: interval(wins(a, b, 0.0)),
                "ties count as lost; they are half a win for each",
            ),
            Mistake(
                lambda a, b: interval(wins(a, b, 1.0)),
                "ties count as won; they are half a win for each",
            ),
            Mistake(
                without_ties,
                "ties are dropped: they are prompts too, and count one half",
            ),
            Mistake(
                by_coins,
                "p (1 - p) is the variance of a coin; with ties the N numbers 1, 0.5 and 0 spread "
                "less: take their own standard deviation",
            ),
            Mistake(
                lambda a, b: interval(wins(b, a)),
                "that is how often theirs wins",
            ),
            Mistake(
                scaled(lambda n: 1 / 1.96),
                "that is one standard error; the 95 % interval reaches 1.96 of them to each side",
            ),
            Mistake(
                scaled(lambda n: n**0.5),
                "the spread of single prompts; the mean of N spreads less, by the root of N",
            ),
            Mistake(
                scaled(lambda n: 2.0),
                "that is the whole width; half of it is wanted",
            ),
            Mistake(
                scaled(lambda n: ((n - 1) / n) ** 0.5),
                "the standard deviation divides by N; from a sample it is N - 1, as torch's "
                "`.std()` does",
            ),
        ],
        "right: 1, 0.5 or 0 for each prompt, their mean, and how well N of them know it",
    )


def check_elo_update(student: Callable[..., Any]) -> Result:
    """student(ratings (M,), wins (M, M), k) -> ratings (M,) after one round of Elo updates.

    `wins[i, j]` counts how often i has beaten j. Each player gains k points for every win more
    than its rating had expected.
    """

    def expected(ratings: Tensor, base: float = 10.0, scale: float = 400.0) -> Tensor:
        ahead = ratings[:, None] - ratings[None, :]
        return 1 / (1 + base ** (-ahead / scale))

    def right(ratings: Tensor, wins: Tensor, k: float) -> Tensor:
        games = wins + wins.T
        return ratings + k * (wins - games * expected(ratings)).sum(1)

    def with_chances(chances: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def wrong(ratings: Tensor, wins: Tensor, k: float) -> Tensor:
            return ratings + k * (wins - (wins + wins.T) * chances(ratings)).sum(1)

        return wrong

    cases = [
        {
            "ratings": numbers(0.0, 100.0, -50.0),
            "wins": numbers([0, 6, 9], [4, 0, 5], [1, 5, 0]),
            "k": 4.0,
        },
        {"ratings": numbers(0.0, 300.0), "wins": numbers([0, 2.5], [7.5, 0]), "k": 10.0},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                with_chances(lambda r: torch.full((len(r), len(r)), 0.5, dtype=r.dtype)),
                "you expect half of all games; what is expected depends on the two ratings",
            ),
            Mistake(
                with_chances(lambda r: expected(r).T),
                "the expectation is the wrong way round: the higher rating should win more often",
            ),
            Mistake(
                with_chances(lambda r: expected(r, base=torch.e)),
                "e in place of 10: Elo's scale is 10 to the power of points / 400",
            ),
            Mistake(
                with_chances(lambda r: expected(r, scale=1.0)),
                "the points are not divided by 400",
            ),
            Mistake(
                lambda r, w, k: r + k * w.sum(1),
                "you add all wins; subtract those that the ratings expected",
            ),
            Mistake(
                lambda r, w, k: 2 * r - right(r, w, k),
                "the sign: who wins more than expected gains points",
            ),
            Mistake(
                lambda r, w, k: right(r, w, k) - r,
                "that is the change alone; add it to the ratings",
            ),
            Mistake(
                lambda r, w, k: r + k * (w - expected(r)).sum(1),
                "the expectation is of one game: multiply it by the number of games of each pair, "
                "wins and losses",
            ),
        ],
        "right: more wins than expected, more points; where all is as expected, Elo stands still",
    )


def check_days(student: Callable[..., Any]) -> Result:
    """student(petaflop_s_days, gpus, peak_teraflops, utilisation) -> days."""

    cases = [
        {"petaflop_s_days": 3640.0, "gpus": 8, "peak_teraflops": 312.0, "utilisation": 0.4},
        {"petaflop_s_days": 60.0, "gpus": 64, "peak_teraflops": 100.0, "utilisation": 0.25},
    ]
    return check(
        student,
        days,
        cases,
        [
            Mistake(
                lambda w, n, p, u: w * 1000 / (n * p),
                "utilisation has no effect: a GPU does only that share of its peak",
            ),
            Mistake(
                lambda w, n, p, u: w * 1000 * u / (n * p),
                "you multiply by the utilisation: who uses less of the peak takes longer",
            ),
            Mistake(
                lambda w, n, p, u: w / (n * p * u),
                "peta and tera: a petaflop is 1,000 teraflops",
            ),
            Mistake(
                lambda w, n, p, u: w / 1000 / (n * p * u),
                "peta and tera the wrong way round: one petaflop/s is 1,000 teraflop/s, so the "
                "work is multiplied by 1,000",
            ),
            Mistake(
                lambda w, n, p, u: w * 1000 / (p * u),
                "the number of GPUs has no effect: those are GPU-days",
            ),
            Mistake(
                lambda w, n, p, u: w * 1000 * 24 / (n * p * u),
                "those are hours; the work is given in petaflop/s-DAYS already",
            ),
            Mistake(
                lambda w, n, p, u: days(w, n, p, u) * 86_400,
                "those are seconds; the work is given in petaflop/s-DAYS already",
            ),
            Mistake(
                lambda w, n, p, u: n * p * u / 1000 / w,
                "upside down: more work takes more days",
            ),
        ],
        "right: the work, divided by what the GPUs really do in a second",
    )


def check_reliability(student: Callable[..., Any]) -> Result:
    """student(scores (P, n), limit) -> (share of prompts with a success, share with n of them).

    A success is a sample that scores at least `limit`.
    """

    def right(scores: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        good = scores >= limit
        return good.any(1).double().mean(), good.all(1).double().mean()

    def by_mean(scores: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        share = (scores.mean(1) >= limit).double().mean()
        return share, share

    scores = numbers(
        [4.0, 4.0, 3.0, 4.0],
        [4.0, -3.0, 4.0, 4.0],
        [0.6, -3.0, 1.0, 0.0],
        [3.0, 3.5, 4.0, 3.0],
        [-1.0, 3.0, 0.0, 0.0],
        [4.0, 4.0, 4.0, 4.0],
    )
    cases = [{"scores": scores, "limit": 3.0}, {"scores": scores, "limit": 4.0}]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda s, x: right(s, x)[::-1],
                "the other way round: first those with one success or more, then those where all "
                "are",
            ),
            Mistake(
                lambda s, x: ((s >= x).double().mean(), (s >= x).all(1).double().mean()),
                "the first is the share of samples; count prompts that have at least one success",
            ),
            Mistake(
                lambda s, x: right(s, x + 1e-9),
                "more than the limit; at least the limit is wanted",
            ),
            Mistake(
                by_mean,
                "you compare the mean of a prompt with the limit: a mean hides the worst sample, "
                "which is what this is about",
            ),
            Mistake(
                lambda s, x: right(s.T, x),
                "the wrong axis: samples of one prompt stand in a row",
            ),
            Mistake(
                lambda s, x: tuple(share * len(s) for share in right(s, x)),
                "those are counts; divide by the number of prompts",
            ),
        ],
        "right: what it can do, and what it does every time",
    )
