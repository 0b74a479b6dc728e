"""Checks of chapter 04: reward modelling."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Check, numbers
from rlhf_edu.tinyweb import labelers


def pair_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """student(chosen (N,), rejected (N,)) -> Bradley-Terry loss, a scalar."""
    return losses.bradley_terry_loss(chosen, rejected)


check_pair_loss = Check(
    pair_loss,
    cases=[
        {"chosen": numbers(1.0, 2.0, -0.5), "rejected": numbers(0.0, 2.5, 0.25)},
        {"chosen": numbers(0.3), "rejected": numbers(0.3)},
        {"chosen": numbers(-1000.0, 3.0), "rejected": numbers(1000.0, 2.0)},
    ],
    mistakes={
        "the minus is missing: this is the log-likelihood, "
        "and an optimiser would lower it": lambda c, r: F.logsigmoid(c - r).mean(),
        "the wrong way round: the chosen answer is the one to score higher": lambda c, r: (
            -F.logsigmoid(r - c).mean()
        ),
        "a sum instead of a mean: the step would grow with the number of pairs": lambda c, r: (
            -F.logsigmoid(c - r).sum()
        ),
        "the logarithm is missing: a likelihood is a product over pairs, "
        "its log a sum": lambda c, r: -torch.sigmoid(c - r).mean(),
        "right on paper, infinite in practice: "
        "sigmoid(-2000) is rounded to 0 before the log sees it. torch.nn.functional.logsigmoid "
        "does both in one go": lambda c, r: -torch.sigmoid(c - r).log().mean(),
        "that is the hinge loss of a ranking machine; "
        "Bradley-Terry wants -log sigmoid": lambda c, r: (1 - (c - r)).clamp(min=0).mean(),
        "the sigmoid is missing: this loss has no bottom, "
        "scores would run apart for ever": lambda c, r: (r - c).mean(),
    },
    success=(
        "right: the surprise at what the labelers chose; "
        "ln 2 = 0.693 for a model that knows nothing"
    ),
    learns=("chosen", "rejected"),
)


Pairs = Sequence[tuple[Any, Any]]


def _pairs(ranks: Tensor, ties: bool = False) -> Pairs:
    """(Better, worse) answers; with ties, those as well, both ways."""
    found = itertools.permutations(range(len(ranks)), 2)
    return [(i, j) for i, j in found if ranks[i] < ranks[j] or (ties and ranks[i] == ranks[j])]


def _mean(scores: Tensor, chosen: Pairs, of: int | None = None) -> Tensor:
    total = sum(-F.logsigmoid(scores[i] - scores[j]) for i, j in chosen)
    return total / (of or len(chosen))


def _neighbours(scores: Tensor, ranks: Tensor) -> Tensor:
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    near = [p for p in zip(order, order[1:], strict=False) if ranks[p[0]] < ranks[p[1]]]
    return _mean(scores, near)


def _best_only(scores: Tensor, ranks: Tensor) -> Tensor:
    best = int(ranks.argmin())
    return _mean(scores, [p for p in _pairs(ranks) if p[0] == best])


def kwise_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """student(scores (K,), ranks (K,)) -> mean loss of all pairs without ties."""
    return losses.kwise_loss(scores, ranks)


check_kwise_loss = Check(
    kwise_loss,
    cases=[
        {"scores": numbers(0.5, -1.0, 2.0), "ranks": torch.tensor([2, 3, 1])},
        {"scores": numbers(1.0, 0.2, 0.1, -0.7), "ranks": torch.tensor([3, 1, 1, 4])},
        {"scores": numbers(0.0, 1.0, 2.0, 3.0, 4.5), "ranks": torch.tensor([5, 2, 2, 1, 4])},
    ],
    mistakes={
        "rank 1 is the best: a smaller rank should get the higher score": lambda s, r: kwise_loss(
            s, r.max() + 1 - r
        ),
        "a sum over the pairs: a prompt with nine answers would weigh six times as much "
        "as one with four. Divide by the number of pairs": lambda s, r: _mean(s, _pairs(r), of=1),
        "ties are counted as a preference for one of the two; leave them out": lambda s, r: _mean(
            s, _pairs(r + torch.arange(len(r)) / 100)
        ),
        "you divide by all K (K - 1) / 2 pairs, ties too; divide "
        "by those you added up": lambda s, r: _mean(s, _pairs(r), of=len(r) * (len(r) - 1) // 2),
        "you divide by the number of answers; divide by the number of pairs": lambda s, r: _mean(
            s, _pairs(r), of=len(r)
        ),
        "neighbours in the ranking only: "
        "the best is better than the third and the fourth as well, so take every pair": _neighbours,
        "the best against the rest only: what the ranking says of the others is lost": _best_only,
        "`<=` takes ties both ways, and each answer against itself, for preferences: "
        "use `<`": lambda s, r: -F.logsigmoid(s[:, None] - s)[r[:, None] <= r].mean(),
        "`<=` takes ties for preferences, both ways: use `<`": lambda s, r: _mean(
            s, _pairs(r, ties=True)
        ),
        "the best against the worst only: what "
        "the ranking says of the others is lost": lambda s, r: _mean(s, [(r.argmin(), r.argmax())]),
    },
    success="right: equal to rlhf_edu.losses.kwise_loss, Equation 1 of InstructGPT",
    learns=("scores",),
)


def ceiling(agreement: float) -> float:
    """student(agreement) -> how often one labeler is right, if errors are independent."""
    return labelers.ceiling(agreement)


check_ceiling = Check(
    ceiling,
    cases=[{"agreement": a} for a in (0.726, 0.773, 0.5, 1.0, 0.6)],
    mistakes={
        "agreement is not the ceiling: two labelers differ whenever ONE of them is wrong, "
        "so that each of them is right more often than they agree": lambda a: a,
        "two labelers who are both wrong agree as well: a = q^2 + (1 - q)^2": lambda a: math.sqrt(
            a
        ),
        "that is the other root, a labeler who is wrong more often than right": lambda a: (
            (1 - math.sqrt(2 * a - 1)) / 2
        ),
        "the wrong direction: that is how often two labelers "
        "agree who are right with probability a. Solve for q": lambda a: a * a + (1 - a) * (1 - a),
        "you took it that a disagreement is one labeler's error half of the time each; "
        "but two errors cancel. Solve a = q^2 + (1 - q)^2 for q": lambda a: (1 + a) / 2,
    },
    success="right: labelers who agree 72.6 % of the time are right 83.6 % of the time",
)


def elo(win_rate: float) -> float:
    """student(win rate) -> Elo points ahead."""
    return 400 * math.log10(win_rate / (1 - win_rate))


check_elo = Check(
    elo,
    cases=[{"win_rate": p} for p in (0.85, 0.71, 0.5, 0.1)],
    mistakes={
        "the natural logarithm; Elo counts in tens, so take log10": lambda p: (
            400 * math.log(p / (1 - p))
        ),
        "the sign: whoever wins more than half of the time is ahead": lambda p: (
            400 * math.log10((1 - p) / p)
        ),
        "the probability instead of the odds: p / (1 - p), which is 1 at a draw": lambda p: (
            400 * math.log10(p)
        ),
        "that is the difference of the scores; "
        "one point of score is 400 / ln 10 = 174 Elo": lambda p: math.log(p / (1 - p)),
        "a straight line: then to win always would be worth 200 points and no more": lambda p: (
            400 * (p - 0.5)
        ),
    },
    success="right: 85 % of wins are 301 Elo points, 71 % are 156",
)
