"""Right and wrong answers to the exercises of chapter 10; see test_exercises.py."""

import math

import numpy as np
import torch


def interval_by_loop(ours, theirs):
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    rate = sum(won) / len(won)
    variance = sum((w - rate) ** 2 for w in won) / (len(won) - 1)
    return rate, 1.96 * math.sqrt(variance / len(won))


def interval_by_sign(ours, theirs):
    won = (torch.sign(ours - theirs) + 1) / 2
    return won.mean(), 1.96 * won.var().sqrt() / math.sqrt(len(won))


def interval_of(won):
    return won.mean(), 1.96 * won.std() / len(won) ** 0.5


def elo_by_loop(ratings, wins, k):
    new = ratings.clone()
    for i in range(len(ratings)):
        for j in range(len(ratings)):
            chance = 1 / (1 + 10 ** ((ratings[j] - ratings[i]) / 400))
            new[i] += k * (wins[i, j] - (wins[i, j] + wins[j, i]) * chance)
    return new


def elo_by_sigmoid(ratings, wins, k):
    chance = torch.sigmoid((ratings[:, None] - ratings) * math.log(10) / 400)
    surprise = wins * (1 - chance) - wins.T * chance
    return ratings + k * surprise.sum(-1)


def days_in_flops(work, gpus, peak, use):
    flops = work * 1e15 * 86_400
    return flops / (gpus * peak * 1e12 * use) / 86_400


def days_by_gpu(work, gpus, peak, use):
    gpu_days = work / (peak / 1000)
    return gpu_days / gpus / use


def reliability_by_extremes(scores, limit):
    best, worst = scores.max(1).values, scores.min(1).values
    return (best >= limit).double().mean(), (worst >= limit).double().mean()


def reliability_by_loop(scores, limit):
    good = [[score >= limit for score in row] for row in scores.tolist()]
    return np.mean([any(row) for row in good]), np.mean([all(row) for row in good])


RIGHT = {
    "check_win_rate_interval": [interval_by_loop, interval_by_sign],
    "check_elo_update": [elo_by_loop, elo_by_sigmoid],
    "check_days": [days_in_flops, days_by_gpu],
    "check_reliability": [reliability_by_extremes, reliability_by_loop],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_win_rate_interval", lambda a, b: interval_of((a > b).double()), "ties count as lost"),
    ("check_win_rate_interval", lambda a, b: interval_of((a >= b).double()), "ties count as won"),
    ("check_win_rate_interval", lambda a, b: interval_by_loop(a, b)[0], "1 result(s); 2 wanted"),
    ("check_elo_update", lambda r, w, k: elo_by_loop(-r, w, k) + 2 * r, "wrong way round"),
    ("check_elo_update", lambda r, w, k: r + k * w.sum(1), "you add all wins"),
    ("check_days", lambda w, n, p, u: w * 1000 / (n * p), "utilisation has no effect"),
    ("check_days", lambda w, n, p, u: w / (n * p * u), "peta and tera"),
    (
        "check_reliability",
        lambda s, x: ((s >= x).all(1).double().mean(), (s >= x).any(1).double().mean()),
        "the other way round",
    ),
    (
        "check_reliability",
        lambda s, x: ((s >= x).double().mean(), (s >= x).all(1).double().mean()),
        "share of samples",
    ),
]
