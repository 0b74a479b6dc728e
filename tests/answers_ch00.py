"""Right and wrong answers to the exercises of chapter 00; see test_exercises.py."""

import math

import numpy as np
import torch


def gold_from_the_top(helpful, truthful, harmless, form):
    return 4 * helpful + 3 * truthful + 2 * harmless + form - 6


def gold_by_lists(*parts):
    missing = [1 - part for part in parts]
    return 4 - sum(w * m for w, m in zip((4, 3, 2, 1), missing, strict=True))


def wins_by_loop(ours, theirs):
    points = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a > b:
            points += 1
        elif a == b:
            points += 0.5
    return points / len(ours)


def wins_by_sign(ours, theirs):
    return (torch.sign(ours - theirs).mean() + 1) / 2


def kl_by_library(p, q):
    return torch.nn.functional.kl_div(q.log(), p, reduction="sum")


def kl_by_loop(p, q):
    pairs = zip(p.tolist(), q.tolist(), strict=True)
    return sum(a * (math.log(a) - math.log(b)) for a, b in pairs)


RIGHT = {
    "check_gold": [gold_from_the_top, gold_by_lists],
    "check_win_rate": [wins_by_loop, wins_by_sign],
    "check_kl": [kl_by_library, kl_by_loop],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    (
        "check_gold",
        lambda h, t, a, f: gold_from_the_top(h, t, a, f) + 6,
        "silence would earn points",
    ),
    ("check_gold", lambda h, t, a, f: 4 * h - 3 * t - 2 * a - f, "charge for truth"),
    ("check_win_rate", lambda o, t: np.mean((o > t).numpy()), "ties count nothing"),
    ("check_win_rate", lambda o, t: 1 - (t > o).float().mean(), "ties count as wins"),
    ("check_kl", lambda p, q: kl_by_loop(q, p), "KL(q || p)"),
    ("check_kl", lambda p, q: (p.log() - q.log()).sum(), "weight p is missing"),
]
