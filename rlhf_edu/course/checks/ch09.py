"""Checks of chapter 09: direct preference optimisation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Case, Check, numbers
from rlhf_edu.experiments import exact


def optimum(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """student(reference (A,), rewards (A,), beta) -> the policy (A,) that maximises r - beta KL."""
    return exact.optimum(reference, rewards, beta)


check_optimum = Check(
    optimum,
    cases=[
        {"reference": numbers(0.5, 0.3, 0.2), "rewards": numbers(0.0, 1.0, 2.0), "beta": 0.5},
        {
            "reference": numbers(0.1, 0.2, 0.3, 0.4),
            "rewards": numbers(1.0, -0.5, 0.2, 0.4),
            "beta": 2.0,
        },
    ],
    mistakes={
        "Z lacks the reference: it is the sum of pi_ref exp(r / beta), or the probabilities do not "
        "sum to 1 (some write-ups have this slip)": lambda p, r, beta: p * (r / beta).softmax(0),
        "the reference is missing: an answer that it hardly gives stays rare, "
        "so multiply by pi_ref": lambda p, r, beta: (r / beta).softmax(0),
        "not divided by Z: the probabilities do not sum to 1": lambda p, r, beta: (
            p * (r / beta).exp()
        ),
        "you multiply by beta: a high price of KL would move the policy far. "
        "Divide": lambda p, r, beta: exact.optimum(p, r, 1 / beta),
        "beta has no effect: the exponent is r / beta": lambda p, r, beta: exact.optimum(p, r, 1.0),
        "the sign: exp(-r / beta) makes the worst answers likely": lambda p, r, beta: exact.optimum(
            p, -r, beta
        ),
        "you add r / beta to probabilities: add it to log pi_ref, "
        "or multiply pi_ref by exp(r / beta)": lambda p, r, beta: (p + r / beta).softmax(0),
    },
    success="right: pi_ref, tilted by exp(r / beta), and divided by its sum",
)


def implicit_reward(new: Tensor, ref: Tensor, beta: float) -> Tensor:
    """student(logprobs (N,), ref_logprobs (N,), beta) -> the reward the policy is best for (N,)."""
    return beta * (new - ref)


check_implicit_reward = Check(
    implicit_reward,
    cases=[
        {"logprobs": numbers(-1.0, -2.0, -0.5), "ref_logprobs": numbers(-1.2, -1.0, -2.5)}
        | {"beta": 0.5},
        {"logprobs": numbers(-3.0, -0.2), "ref_logprobs": numbers(-0.5, -2.0), "beta": 0.1},
    ],
    mistakes={
        "beta is missing: nats of log-ratio become points of reward by beta": lambda n, o, beta: (
            n - o
        ),
        "the ratio is upside down: what became likelier has the larger reward": lambda n, o, beta: (
            implicit_reward(o, n, beta)
        ),
        "you divide by beta; r / beta stands in the exponent, "
        "so r is beta times the log-ratio": lambda n, o, beta: (n - o) / beta,
        "the reference is missing: an answer that "
        "was likely before has not earned it": lambda n, o, beta: beta * n,
        "a difference of probabilities; "
        "take the difference of log-probabilities": lambda n, o, beta: beta * (n.exp() - o.exp()),
        "that is the ratio; the reward is beta times its logarithm": lambda n, o, beta: (
            beta * (n - o).exp()
        ),
        "you divide log-probabilities: "
        "the log of a ratio is a difference of logs": lambda n, o, beta: beta * n / o,
        "you take the log of a ratio of log-probs; "
        "they are logarithms already, so subtract them": lambda n, o, beta: beta * (n / o).log(),
    },
    success="right: beta times how many nats likelier the policy has made the answer",
)


def _of_margin(loss: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """A loss of the margin between chosen and rejected, and of beta or tau."""
    return lambda w, x, rw, rl, setting: loss((w - rw) - (x - rl), setting)


def _pair_cases(**settings: tuple[float, float]) -> list[Case]:
    """Log-probs of three pairs and of two; the settings have a value for each."""
    cases: list[Case] = [
        {
            "policy_chosen": numbers(-1.0, -2.5, -0.3),
            "policy_rejected": numbers(-2.0, -1.0, -0.9),
            "ref_chosen": numbers(-1.5, -2.0, -3.0),  # the last pair lies beyond a hinge
            "ref_rejected": numbers(-1.8, -1.7, -0.4),
        },
        {
            "policy_chosen": numbers(-4.0, -0.7),
            "policy_rejected": numbers(-3.0, -2.0),
            "ref_chosen": numbers(-3.5, -1.1),
            "ref_rejected": numbers(-3.8, -0.6),
        },
    ]
    for i, case in enumerate(cases):
        case |= {name: values[i] for name, values in settings.items()}
    return cases


def dpo_loss(*inputs: Any) -> Tensor:
    """student(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta) -> DPO's loss.

    All four are (N,) log-probs of whole answers. The gradients by both of the policy are compared.
    """
    return losses.dpo_loss(*inputs)[0]


check_dpo_loss = Check(
    dpo_loss,
    cases=_pair_cases(beta=(0.5, 0.1)),
    mistakes={
        "the minus is missing: the log-likelihood of the labels goes up, "
        "a loss goes down": _of_margin(lambda m, b: F.logsigmoid(b * m).mean()),
        "chosen and rejected are swapped, or policy and reference, which is the same: this "
        "learns what the labelers did not want": lambda w, x, rw, rl, b: dpo_loss(x, w, rl, rw, b),
        "the reference is missing: subtract its log-probs, "
        "or its habits count as merit": lambda w, x, rw, rl, b: -F.logsigmoid(b * (w - x)).mean(),
        "beta is missing: it turns nats into points of reward inside the sigmoid": _of_margin(
            lambda m, b: -F.logsigmoid(m).mean()
        ),
        "beta stands outside the sigmoid; there it only scales the step": _of_margin(
            lambda m, b: -b * F.logsigmoid(m).mean()
        ),
        "the log is missing: the loss is -log sigmoid, a likelihood": _of_margin(
            lambda m, b: -(b * m).sigmoid().mean()
        ),
        "the sigmoid is missing: without it each pair pulls for ever, "
        "however well it is ordered": _of_margin(lambda m, b: -(b * m).mean()),
        "a sum instead of a mean: the step would grow with the number of pairs": _of_margin(
            lambda m, b: -F.logsigmoid(b * m).sum()
        ),
        "you add the rejected answer's log-ratio: subtract it": lambda w, x, rw, rl, b: (
            -F.logsigmoid(b * ((w - rw) + (x - rl))).mean()
        ),
        "that is the hinge loss, which lets go of a pair that is ordered well enough; "
        "DPO wants -log sigmoid": _of_margin(lambda m, b: (1 - b * m).clamp(min=0).mean()),
        "you divide by beta: the reward is beta times the log-ratio": _of_margin(
            lambda m, b: -F.logsigmoid(m / b).mean()
        ),
        "the rejected answer is left out: subtract its log-ratio": lambda w, x, rw, rl, b: (
            -F.logsigmoid(b * (w - rw)).mean()
        ),
        "you take exp of the log-probs: subtract them as they are, for a log-ratio is a difference "
        "of logs": lambda w, x, rw, rl, b: dpo_loss(w.exp(), x.exp(), rw.exp(), rl.exp(), b),
    },
    success="right: equal to rlhf_edu.losses.dpo_loss, gradient included",
    learns=("policy_chosen", "policy_rejected"),
    value=False,
)


def dpo_gradient(up: Tensor, down: Tensor, beta: float) -> Tensor:
    """student(chosen_rewards (N,), rejected_rewards (N,), beta) -> gradient (N,).

    Of DPO's loss, a mean over N pairs, by the log-probs of the chosen answers.
    """
    return -beta * torch.sigmoid(down - up) / len(up)


check_dpo_gradient = Check(
    dpo_gradient,
    cases=[
        {"chosen_rewards": numbers(0.5, -1.0, 2.0), "rejected_rewards": numbers(0.1, 1.5, -1.0)}
        | {"beta": 0.5},
        {"chosen_rewards": numbers(0.2, 0.7), "rejected_rewards": numbers(0.9, -0.4), "beta": 0.1},
    ],
    mistakes={
        "the weight is the wrong way round: "
        "pairs that are ordered well already would pull most (the "
        "DPO paper's appendix has this slip)": lambda u, d, b: -b * torch.sigmoid(u - d) / len(u),
        "the sign: the loss falls when the chosen answer becomes likelier": lambda u, d, b: (
            -dpo_gradient(u, d, b)
        ),
        "beta is missing: the chain rule brings it out of the sigmoid": lambda u, d, b: (
            -torch.sigmoid(d - u) / len(u)
        ),
        "the loss is a mean over pairs: divide by their number": lambda u, d, b: (
            -b * torch.sigmoid(d - u)
        ),
        "the weight is missing: every pair pulls the same, "
        "however well it is ordered": lambda u, d, b: -b * torch.ones_like(u) / len(u),
        "beta twice: the implicit rewards hold it already": lambda u, d, b: (
            -b * torch.sigmoid(b * (d - u)) / len(u)
        ),
        "that is the slope of the sigmoid; the slope of -log sigmoid(h) is "
        "-sigmoid(-h)": lambda u, d, b: -b * torch.sigmoid(d - u) * torch.sigmoid(u - d) / len(u),
    },
    success="right: the pairs that the policy gets wrong pull, the others hardly do",
)


def ipo_loss(*inputs: Any) -> Tensor:
    """student(policy_chosen, policy_rejected, ref_chosen, ref_rejected, tau) -> IPO's loss.

    All four are (N,) log-probs of whole answers. The gradients by both of the policy are compared.
    """
    return losses.ipo_loss(*inputs)[0]


check_ipo_loss = Check(
    ipo_loss,
    cases=_pair_cases(tau=(0.5, 0.2)),
    mistakes={
        "the reference is missing: the target is for the "
        "difference of the log-ratios": lambda w, x, rw, rl, t: ((w - x - 1 / (2 * t)) ** 2).mean(),
        "the target is 1 / (2 tau), not 1 / tau": _of_margin(
            lambda m, t: ((m - 1 / t) ** 2).mean()
        ),
        "the target is 1 / (2 tau), small where tau is large "
        "(in Python `1 / 2 * tau` is tau / 2)": _of_margin(lambda m, t: ((m - t / 2) ** 2).mean()),
        "the target is missing: this holds every margin at 0, so nothing is learned": _of_margin(
            lambda m, t: (m**2).mean()
        ),
        "tau stands in the target alone: the margin is a plain "
        "difference of log-ratios": _of_margin(lambda m, t: ((t * m - 1 / (2 * t)) ** 2).mean()),
        "the sign of the target, or chosen and rejected swapped, "
        "or policy and reference: the rejected answer is made "
        "likelier": _of_margin(lambda m, t: ((m + 1 / (2 * t)) ** 2).mean()),
        "the distance to the target is squared: the pull "
        "fades as the target comes near": _of_margin(lambda m, t: (m - 1 / (2 * t)).abs().mean()),
        "the rejected answer is left out: subtract its log-ratio": lambda w, x, rw, rl, t: (
            (w - rw - 1 / (2 * t)) ** 2
        ).mean(),
    },
    success="right: equal to rlhf_edu.losses.ipo_loss; the margin has a goal and stays there",
    learns=("policy_chosen", "policy_rejected"),
    value=False,
)
