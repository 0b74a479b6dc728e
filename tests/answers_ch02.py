"""Right and wrong answers to the exercises of chapter 02; see test_exercises.py."""

import math

import numpy as np
import torch


def margin_by_variance(p, n):
    variance_of_mean = (p - p**2) / n
    return 1.96 * math.sqrt(variance_of_mean)


def margin_in_numpy(p, n):
    coin = np.array([0.0, 1.0])
    spread = np.sqrt(np.average((coin - p) ** 2, weights=[1 - p, p]))
    return spread / np.sqrt(n) * 1.96


def answer_rate_by_loop(weights, fits, answers):
    both = prompt = 0.0
    for w, f, a in zip(weights.tolist(), fits.tolist(), answers.tolist(), strict=True):
        both += w * f * a
        prompt += w * f
    return both / prompt


def answer_rate_by_softmax(weights, fits, answers):
    return (weights.log() + fits.log()).softmax(0) @ answers


def gold_by_dot(helpful, truthful, harmless, format):
    return float(np.dot([4, 3, 2, 1], [helpful, truthful - 1, harmless - 1, format - 1]))


def gold_from_the_top(helpful, truthful, harmless, format):
    return 4 * helpful + 3 * truthful + 2 * harmless + format - 6


def pooled_by_odds(a, b, s):
    first = s / (1 + (-a).exp()) + (1 - s) / (1 + (-b).exp())
    return (first / (1 - first)).log()


def pooled_in_numpy(a, b, s):
    p = s / (1 + np.exp(-a.numpy())) + (1 - s) / (1 + np.exp(-b.numpy()))
    return np.log(p) - np.log1p(-p)


RIGHT = {
    "check_margin": [margin_by_variance, margin_in_numpy],
    "check_answer_rate": [answer_rate_by_loop, answer_rate_by_softmax],
    "check_gold": [gold_by_dot, gold_from_the_top],
    "check_pooled_reward": [pooled_by_odds, pooled_in_numpy],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_margin", lambda p, n: math.sqrt(p * (1 - p) / n), "standard error"),
    ("check_margin", lambda p, n: 1.96 * math.sqrt(p * (1 - p)), "n is missing"),
    ("check_answer_rate", lambda w, f, a: (w @ a) / w.sum(), "fits are missing"),
    ("check_answer_rate", lambda w, f, a: (f @ a) / f.sum(), "weights are missing"),
    ("check_gold", lambda h, t, m, f: 4 * h + 3 * t + 2 * m + f, "6 points too many"),
    ("check_gold", lambda h, t, m, f: 4 * h - 3 * t - 2 * m - f, "1 - truthful"),
    ("check_pooled_reward", lambda a, b, s: s * a + (1 - s) * b, "votes, not worths"),
    (
        "check_pooled_reward",
        lambda a, b, s: s * torch.sigmoid(a) + (1 - s) * torch.sigmoid(b),
        "share of votes",
    ),
]
