"""Checks of chapter 04: reward modelling."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Mistake, Result, check, numbers
from rlhf_edu.tinyweb import labelers


def check_pair_loss(student: Callable[..., Any]) -> Result:
    """student(chosen (N,), rejected (N,)) -> Bradley-Terry loss, a scalar."""
    cases = [
        {"chosen": numbers(1.0, 2.0, -0.5), "rejected": numbers(0.0, 2.5, 0.25)},
        {"chosen": numbers(0.3), "rejected": numbers(0.3)},
        {"chosen": numbers(-1000.0, 3.0), "rejected": numbers(1000.0, 2.0)},
    ]
    return check(
        student,
        losses.bradley_terry_loss,
        cases,
        [
            Mistake(
                lambda c, r: F.logsigmoid(c - r).mean(),
                "the minus is missing: this is the log-likelihood, and an optimiser would lower it",
            ),
            Mistake(
                lambda c, r: -F.logsigmoid(r - c).mean(),
                "the wrong way round: the chosen answer is the one to score higher",
            ),
            Mistake(
                lambda c, r: -F.logsigmoid(c - r).sum(),
                "a sum instead of a mean: the step would grow with the number of pairs",
            ),
            Mistake(
                lambda c, r: -torch.sigmoid(c - r).mean(),
                "the logarithm is missing: a likelihood is a product over pairs, its log a sum",
            ),
            Mistake(
                lambda c, r: -torch.sigmoid(c - r).log().mean(),
                "right on paper, infinite in practice: sigmoid(-2000) is rounded to 0 before the "
                "log sees it. torch.nn.functional.logsigmoid does both in one go",
            ),
            Mistake(
                lambda c, r: (1 - (c - r)).clamp(min=0).mean(),
                "that is the hinge loss of a ranking machine; Bradley-Terry wants -log sigmoid",
            ),
            Mistake(
                lambda c, r: (r - c).mean(),
                "the sigmoid is missing: this loss has no bottom, scores would run apart for ever",
            ),
        ],
        "right: the surprise at what the labelers chose; ln 2 = 0.693 for a model that knows "
        "nothing",
    )


def check_kwise_loss(student: Callable[..., Any]) -> Result:
    """student(scores (K,), ranks (K,)) -> mean loss of all pairs without ties."""

    def pairs(ranks: Tensor, ties: bool = False) -> list[tuple[int, int]]:
        k = range(len(ranks))
        found = [(i, j) for i in k for j in k if ranks[i] < ranks[j]]
        return found + [(i, j) for i in k for j in k if ties and i < j and ranks[i] == ranks[j]]

    def mean(scores: Tensor, chosen: list[tuple[int, int]], of: int | None = None) -> Tensor:
        total = sum(-F.logsigmoid(scores[i] - scores[j]) for i, j in chosen)
        return total / (of or len(chosen))

    def neighbours(scores: Tensor, ranks: Tensor) -> Tensor:
        order = sorted(range(len(ranks)), key=lambda i: ranks[i])
        near = [p for p in zip(order, order[1:], strict=False) if ranks[p[0]] < ranks[p[1]]]
        return mean(scores, near)

    def best_only(scores: Tensor, ranks: Tensor) -> Tensor:
        best = int(ranks.argmin())
        return mean(scores, [p for p in pairs(ranks) if p[0] == best])

    cases = [
        {"scores": numbers(0.5, -1.0, 2.0), "ranks": torch.tensor([2, 3, 1])},
        {"scores": numbers(1.0, 0.2, 0.1, -0.7), "ranks": torch.tensor([3, 1, 1, 4])},
        {"scores": numbers(0.0, 1.0, 2.0, 3.0, 4.5), "ranks": torch.tensor([5, 2, 2, 1, 4])},
    ]
    return check(
        student,
        losses.kwise_loss,
        cases,
        [
            Mistake(
                lambda s, r: losses.kwise_loss(s, r.max() + 1 - r),
                "rank 1 is the best: a smaller rank should get the higher score",
            ),
            Mistake(
                lambda s, r: mean(s, pairs(r), of=1),
                "a sum over the pairs: a prompt with nine answers would weigh six times as much "
                "as one with four. Divide by the number of pairs",
            ),
            Mistake(
                lambda s, r: mean(s, pairs(r, ties=True)),
                "ties are counted as a preference for one of the two; leave them out",
            ),
            Mistake(
                lambda s, r: mean(s, pairs(r), of=len(r) * (len(r) - 1) // 2),
                "you divide by all K (K - 1) / 2 pairs, ties too; divide by those you added up",
            ),
            Mistake(
                lambda s, r: mean(s, pairs(r), of=len(r)),
                "you divide by the number of answers; divide by the number of pairs",
            ),
            Mistake(
                neighbours,
                "neighbours in the ranking only: the best is better than the third and the fourth "
                "as well, so take every pair",
            ),
            Mistake(
                best_only,
                "the best against the rest only: what the ranking says of the others is lost",
            ),
        ],
        "right: equal to rlhf_edu.losses.kwise_loss, Equation 1 of InstructGPT",
    )


def check_ceiling(student: Callable[..., Any]) -> Result:
    """student(agreement) -> how often one labeler is right, if errors are independent."""
    cases = [{"agreement": a} for a in (0.726, 0.773, 0.5, 1.0, 0.6)]
    return check(
        student,
        labelers.ceiling,
        cases,
        [
            Mistake(
                lambda a: a,
                "agreement is not the ceiling: two labelers differ whenever ONE of them is wrong, "
                "so that each of them is right more often than they agree",
            ),
            Mistake(
                lambda a: math.sqrt(a),
                "two labelers who are both wrong agree as well: a = q^2 + (1 - q)^2",
            ),
            Mistake(
                lambda a: (1 - math.sqrt(2 * a - 1)) / 2,
                "that is the other root, a labeler who is wrong more often than right",
            ),
            Mistake(
                lambda a: a * a + (1 - a) * (1 - a),
                "the wrong direction: that is how often two labelers agree who are right with "
                "probability a. Solve for q",
            ),
            Mistake(
                lambda a: (1 + a) / 2,
                "you took it that a disagreement is one labeler's error half of the time each; "
                "but two errors cancel. Solve a = q^2 + (1 - q)^2 for q",
            ),
        ],
        "right: labelers who agree 72.6 % of the time are right 83.6 % of the time",
    )


def check_elo(student: Callable[..., Any]) -> Result:
    """student(win rate) -> Elo points ahead."""
    return check(
        student,
        lambda p: 400 * math.log10(p / (1 - p)),
        [{"win_rate": p} for p in (0.85, 0.71, 0.5, 0.1)],
        [
            Mistake(
                lambda p: 400 * math.log(p / (1 - p)),
                "the natural logarithm; Elo counts in tens, so take log10",
            ),
            Mistake(
                lambda p: 400 * math.log10((1 - p) / p),
                "the sign: whoever wins more than half of the time is ahead",
            ),
            Mistake(
                lambda p: 400 * math.log10(p),
                "the probability instead of the odds: p / (1 - p), which is 1 at a draw",
            ),
            Mistake(
                lambda p: math.log(p / (1 - p)),
                "that is the difference of the scores; one point of score is 400 / ln 10 = 174 Elo",
            ),
            Mistake(
                lambda p: 400 * (p - 0.5),
                "a straight line: then to win always would be worth 200 points and no more",
            ),
        ],
        "right: 85 % of wins are 301 Elo points, 71 % are 156",
    )
