"""Means with 95 % intervals, over prompts (bootstrap) and over seeds (Student)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval. Taught in chapter 10."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(numbers: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of the numbers (one a prompt) and its 95 % percentile bootstrap interval.

    Taught in chapter 10.

    Raises:
        ValueError: there are no numbers.
    """
    values = np.asarray(numbers, dtype=float)
    if not len(values):
        raise ValueError("bootstrap: no numbers to take the mean of")
    rows = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAPS, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Share of prompts at which ours is better than theirs; ties count one half; paired.

    Taught in chapter 00.
    """
    pairs = zip(ours, theirs, strict=True)
    return bootstrap([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])


# 97.5 % quantiles of Student's t, by degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def over_seeds(numbers: Sequence[float]) -> Estimate:
    """The mean of one number a seed, and its 95 % interval by Student's t. Taught in chapter 06.

    Raises:
        ValueError: there are fewer than two seeds, or more than eleven.
    """
    values = np.asarray(numbers, dtype=float)
    if not 2 <= len(values) <= len(STUDENT) + 1:
        raise ValueError(f"over_seeds: give 2 to {len(STUDENT) + 1} seeds, not {len(values)}")
    half = STUDENT[len(values) - 2] * values.std(ddof=1) / len(values) ** 0.5
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))
