"""Right and wrong answers to the exercises of chapter 04; see test_exercises.py."""

import itertools
import math

import torch
import torch.nn.functional as F


def pair_loss_by_softplus(chosen, rejected):
    return F.softplus(rejected - chosen).mean()


def pair_loss_by_classes(chosen, rejected):
    # A softmax over the two answers, with the chosen one as the right class.
    return F.cross_entropy(torch.stack([chosen, rejected], 1), torch.zeros(len(chosen)).long())


def kwise_by_loop(scores, ranks):
    terms = []
    for i, j in itertools.permutations(range(len(scores)), 2):
        if ranks[i] < ranks[j]:
            terms.append(F.softplus(scores[j] - scores[i]))
    return torch.stack(terms).mean()


def kwise_by_table(scores, ranks):
    gaps = scores[:, None] - scores[None, :]
    return -F.logsigmoid(gaps)[ranks[:, None] < ranks[None, :]].mean()


def kwise_without_mean(scores, ranks):
    gaps = scores[:, None] - scores[None, :]
    return -F.logsigmoid(gaps)[ranks[:, None] < ranks[None, :]].sum()


def kwise_against_detached(scores, ranks):
    gaps = scores[:, None] - scores[None, :].detach()
    return -F.logsigmoid(gaps)[ranks[:, None] < ranks[None, :]].mean()


def ceiling_by_formula(agreement):
    return 0.5 + math.sqrt(2 * agreement - 1) / 2


def ceiling_by_bisection(agreement):
    low, high = 0.5, 1.0
    for _ in range(60):
        q = (low + high) / 2
        low, high = (q, high) if q * q + (1 - q) ** 2 < agreement else (low, q)
    return (low + high) / 2


def elo_by_score(win_rate):
    return torch.logit(torch.tensor(win_rate).double()) * 400 / math.log(10)


RIGHT = {
    "check_pair_loss": [pair_loss_by_softplus, pair_loss_by_classes],
    "check_kwise_loss": [kwise_by_loop, kwise_by_table],
    "check_ceiling": [ceiling_by_formula, ceiling_by_bisection],
    "check_elo": [elo_by_score, lambda p: -400 * math.log10(1 / p - 1)],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_pair_loss", lambda c, r: -F.softplus(r - c).mean(), "minus is missing"),
    ("check_pair_loss", lambda c, r: F.softplus(c - r).mean(), "wrong way round"),
    ("check_pair_loss", lambda c, r: F.softplus(r - c), "shape"),
    ("check_kwise_loss", lambda s, r: kwise_by_loop(s, -r), "rank 1 is the best"),
    ("check_kwise_loss", kwise_without_mean, "Divide by the number of pairs"),
    ("check_ceiling", lambda a: a, "agreement is not the ceiling"),
    ("check_ceiling", lambda a: a**0.5, "both wrong agree"),
    ("check_elo", lambda p: 400 * math.log(p / (1 - p)), "natural logarithm"),
    ("check_elo", lambda p: 400 * math.log10(1 / p - 1), "the sign"),
    (
        "check_pair_loss",
        lambda c, r: pair_loss_by_softplus(c, r).item(),
        "reaches `chosen` and `rejected`",
    ),
    (
        "check_pair_loss",
        lambda c, r: pair_loss_by_softplus(c, r).detach(),
        "reaches `chosen` and `rejected`",
    ),
    (
        "check_pair_loss",
        lambda c, r: pair_loss_by_softplus(c, r.detach()),
        "no gradient reaches `rejected`",
    ),
    (
        "check_pair_loss",
        lambda c, r: pair_loss_by_softplus(c.detach(), r),
        "no gradient reaches `chosen`",
    ),
    ("check_kwise_loss", lambda s, r: kwise_by_loop(s, r).detach(), "no gradient reaches `scores`"),
    ("check_kwise_loss", lambda s, r: kwise_by_table(s, r).item(), "no gradient reaches `scores`"),
    (
        "check_kwise_loss",
        kwise_against_detached,
        "the value is right, but the gradient of your loss by `scores`",
    ),
]
