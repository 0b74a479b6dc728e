"""Right and wrong answers to the exercises of chapter 07; see test_exercises.py."""

import itertools
import math

import numpy as np
import torch


def weights_by_listing(scores, n):
    found = torch.zeros(len(scores), dtype=torch.float64)
    subsets = list(itertools.combinations(range(len(scores)), n))
    for subset in subsets:
        found[max(subset, key=lambda i: scores[i])] += 1 / len(subsets)
    return found


def weights_by_counting(scores, n):
    below = (scores[None, :] < scores[:, None]).sum(1).tolist()
    return [math.comb(b, n - 1) / math.comb(len(scores), n) for b in below]


def law_by_listing(probs, scores, n):
    law = torch.zeros_like(probs)
    for drawn in itertools.product(range(len(probs)), repeat=n):
        law[max(drawn, key=lambda i: scores[i])] += probs[list(drawn)].prod()
    return law


def law_by_levels(probs, scores, n):
    law, before = np.zeros(len(probs)), 0.0
    for level in sorted(set(scores.tolist())):
        here = scores.numpy() == level
        mass = probs.numpy()[here].sum()
        law[here] = ((before + mass) ** n - before**n) * probs.numpy()[here] / mass
        before += mass
    return law


def fit_by_numpy(d, gain):
    features = np.stack([d.numpy(), -(d.numpy() ** 2)], 1)
    return np.linalg.lstsq(features, gain.numpy(), rcond=None)[0]


def fit_by_normal_equations(d, gain):
    features = torch.stack([d, -(d**2)])
    return torch.linalg.solve(features @ features.T, features @ gain)


def peak_by_formula(alpha, beta):
    return alpha / beta / 2, math.exp(alpha / beta - 1)


def peak_by_search(alpha, beta):
    d = torch.linspace(1e-3, 12, 2_000_001, dtype=torch.float64)
    laws = d * (alpha - beta * d), d * (alpha - beta * d.log())
    return [d[law.argmax()].item() for law in laws]


def best_of_the_first(scores, n):
    weights = torch.zeros(len(scores))
    weights[scores[:n].argmax()] = 1
    return weights


def law_with_full_ties(probs, scores, n):
    def mass(keep):
        return (probs * keep).sum(1)

    upto, below = scores[None] <= scores[:, None], scores[None] < scores[:, None]
    return mass(upto) ** n - mass(below) ** n


RIGHT = {
    "check_best_of_n_weights": [weights_by_listing, weights_by_counting],
    "check_best_of_n_law": [law_by_listing, law_by_levels],
    "check_gao_fit": [fit_by_numpy, fit_by_normal_equations],
    "check_gao_peak": [peak_by_formula, peak_by_search],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_best_of_n_weights", lambda s, n: weights_by_listing(-s, n), "worst of n"),
    ("check_best_of_n_weights", best_of_the_first, "best of the first n"),
    (
        "check_best_of_n_law",
        lambda p, s, n: law_with_full_ties(p, s, n) * p,
        "share of the tie",
    ),
    (
        "check_best_of_n_law",
        lambda p, s, n: law_with_full_ties(p, s, n) / torch.stack([(s == x).sum() for x in s]),
        "split a tie evenly",
    ),
    ("check_gao_fit", lambda d, g: fit_by_numpy(d, g) * np.array([1, -1]), "sign of beta"),
    (
        "check_gao_fit",
        lambda d, g: np.polyfit(d.numpy(), g.numpy(), 2)[:2][::-1] * [1, -1],
        "const",
    ),
    ("check_gao_peak", lambda a, b: (a / b, math.exp(a / b)), "back at 0"),
    ("check_gao_peak", lambda a, b: (a / b / 2, math.exp(a / b)), "log d + 1"),
]
