"""Checks of chapter 09: direct preference optimisation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers
from rlhf_edu.experiments import exact


def check_optimum(student: Callable[..., Any]) -> Result:
    """student(reference (A,), rewards (A,), beta) -> the policy (A,) that maximises r - beta KL."""

    def wrong_z(p: Tensor, r: Tensor, beta: float) -> Tensor:
        return p * (r / beta).exp() / (r / beta).exp().sum()

    def no_z(p: Tensor, r: Tensor, beta: float) -> Tensor:
        return p * (r / beta).exp()

    cases: list[Case] = [
        {"reference": numbers(0.5, 0.3, 0.2), "rewards": numbers(0.0, 1.0, 2.0), "beta": 0.5},
        {
            "reference": numbers(0.1, 0.2, 0.3, 0.4),
            "rewards": numbers(1.0, -0.5, 0.2, 0.4),
            "beta": 2.0,
        },
    ]
    return check(
        student,
        exact.optimum,
        cases,
        [
            Mistake(
                wrong_z,
                "Z lacks the reference: it is the sum of pi_ref exp(r / beta), or the "
                "probabilities do not sum to 1 (some write-ups have this slip)",
            ),
            Mistake(
                lambda p, r, beta: (r / beta).softmax(0),
                "the reference is missing: an answer that it hardly gives stays rare, so "
                "multiply by pi_ref",
            ),
            Mistake(no_z, "not divided by Z: the probabilities do not sum to 1"),
            Mistake(
                lambda p, r, beta: exact.optimum(p, r, 1 / beta),
                "you multiply by beta: a high price of KL would move the policy far. Divide",
            ),
            Mistake(
                lambda p, r, beta: exact.optimum(p, r, 1.0),
                "beta has no effect: the exponent is r / beta",
            ),
            Mistake(
                lambda p, r, beta: exact.optimum(p, -r, beta),
                "the sign: exp(-r / beta) makes the worst answers likely",
            ),
            Mistake(
                lambda p, r, beta: (p + r / beta).softmax(0),
                "you add r / beta to probabilities: add it to log pi_ref, or multiply pi_ref by "
                "exp(r / beta)",
            ),
        ],
        "right: pi_ref, tilted by exp(r / beta), and divided by its sum",
    )


def check_implicit_reward(student: Callable[..., Any]) -> Result:
    """student(logprobs (N,), ref_logprobs (N,), beta) -> the reward the policy is best for (N,)."""

    def right(new: Tensor, ref: Tensor, beta: float) -> Tensor:
        return beta * (new - ref)

    cases: list[Case] = [
        {"logprobs": numbers(-1.0, -2.0, -0.5), "ref_logprobs": numbers(-1.2, -1.0, -2.5)}
        | {"beta": 0.5},
        {"logprobs": numbers(-3.0, -0.2), "ref_logprobs": numbers(-0.5, -2.0), "beta": 0.1},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda n, o, beta: n - o,
                "beta is missing: nats of log-ratio become points of reward by beta",
            ),
            Mistake(
                lambda n, o, beta: right(o, n, beta),
                "the ratio is upside down: what became likelier has the larger reward",
            ),
            Mistake(
                lambda n, o, beta: (n - o) / beta,
                "you divide by beta; r / beta stands in the exponent, so r is beta times the "
                "log-ratio",
            ),
            Mistake(
                lambda n, o, beta: beta * n,
                "the reference is missing: an answer that was likely before has not earned it",
            ),
            Mistake(
                lambda n, o, beta: beta * (n.exp() - o.exp()),
                "a difference of probabilities; take the difference of log-probabilities",
            ),
            Mistake(
                lambda n, o, beta: beta * (n - o).exp(),
                "that is the ratio; the reward is beta times its logarithm",
            ),
            Mistake(
                lambda n, o, beta: beta * n / o,
                "you divide log-probabilities: the log of a ratio is a difference of logs",
            ),
            Mistake(
                lambda n, o, beta: beta * (n / o).log(),
                "you take the log of a ratio of log-probs; they are logarithms already, so "
                "subtract them",
            ),
        ],
        "right: beta times how many nats likelier the policy has made the answer",
    )


Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


def _margin(w: Tensor, x: Tensor, rw: Tensor, rl: Tensor) -> Tensor:
    return (w - rw) - (x - rl)


def _pair_cases(**settings: tuple[float, float]) -> list[Case]:
    """Log-probs of three pairs and of two; the settings have a value for each."""
    cases: list[Case] = [
        {
            "policy_chosen": numbers(-1.0, -2.5, -0.3),
            "policy_rejected": numbers(-2.0, -1.0, -0.9),
            "ref_chosen": numbers(-1.5, -2.0, -1.0),
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


def check_dpo_loss(student: Callable[..., Any]) -> Result:
    """student(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta) -> DPO's loss.

    All four are (N,) log-probs of whole answers. The gradient by policy_chosen is compared.
    """

    def right(*inputs: Any) -> Tensor:
        return losses.dpo_loss(*inputs)[0]

    return check(
        student,
        right,
        _pair_cases(beta=(0.5, 0.1)),
        [
            Mistake(
                lambda w, x, rw, rl, b: F.logsigmoid(b * _margin(w, x, rw, rl)).mean(),
                "the minus is missing: the log-likelihood of the labels goes up, a loss goes down",
            ),
            Mistake(
                lambda w, x, rw, rl, b: right(x, w, rl, rw, b),
                "chosen and rejected are swapped: this learns what the labelers did not want",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -F.logsigmoid(b * (w - x)).mean(),
                "the reference is missing: subtract its log-probs, or its habits count as merit",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -F.logsigmoid(_margin(w, x, rw, rl)).mean(),
                "beta is missing: it turns nats into points of reward inside the sigmoid",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -b * F.logsigmoid(_margin(w, x, rw, rl)).mean(),
                "beta stands outside the sigmoid; there it only scales the step",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -(b * _margin(w, x, rw, rl)).sigmoid().mean(),
                "the log is missing: the loss is -log sigmoid, a likelihood",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -(b * _margin(w, x, rw, rl)).mean(),
                "the sigmoid is missing: without it each pair pulls for ever, however well "
                "it is ordered",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -F.logsigmoid(b * _margin(w, x, rw, rl)).sum(),
                "a sum instead of a mean: the step would grow with the number of pairs",
            ),
            Mistake(
                lambda w, x, rw, rl, b: -F.logsigmoid(b * ((w - rw) + (x - rl))).mean(),
                "you add the rejected answer's log-ratio: subtract it",
            ),
        ],
        "right: equal to rlhf_edu.losses.dpo_loss, gradient included",
        gradient="policy_chosen",
    )


def check_dpo_gradient(student: Callable[..., Any]) -> Result:
    """student(chosen_rewards (N,), rejected_rewards (N,), beta) -> gradient (N,).

    Of DPO's loss, a mean over N pairs, by the log-probs of the chosen answers.
    """

    def right(up: Tensor, down: Tensor, beta: float) -> Tensor:
        return -beta * torch.sigmoid(down - up) / len(up)

    cases: list[Case] = [
        {"chosen_rewards": numbers(0.5, -1.0, 2.0), "rejected_rewards": numbers(0.1, 1.5, -1.0)}
        | {"beta": 0.5},
        {"chosen_rewards": numbers(0.2, 0.7), "rejected_rewards": numbers(0.9, -0.4), "beta": 0.1},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda u, d, b: -b * torch.sigmoid(u - d) / len(u),
                "the weight is the wrong way round: pairs that are ordered well already would "
                "pull most (the DPO paper's appendix has this slip)",
            ),
            Mistake(
                lambda u, d, b: -right(u, d, b),
                "the sign: the loss falls when the chosen answer becomes likelier",
            ),
            Mistake(
                lambda u, d, b: -torch.sigmoid(d - u) / len(u),
                "beta is missing: the chain rule brings it out of the sigmoid",
            ),
            Mistake(
                lambda u, d, b: -b * torch.sigmoid(d - u),
                "the loss is a mean over pairs: divide by their number",
            ),
            Mistake(
                lambda u, d, b: -b * torch.ones_like(u) / len(u),
                "the weight is missing: every pair pulls the same, however well it is ordered",
            ),
            Mistake(
                lambda u, d, b: -b * torch.sigmoid(b * (d - u)) / len(u),
                "beta twice: the implicit rewards hold it already",
            ),
            Mistake(
                lambda u, d, b: -b * torch.sigmoid(d - u) * torch.sigmoid(u - d) / len(u),
                "that is the slope of the sigmoid; the slope of -log sigmoid(h) is -sigmoid(-h)",
            ),
        ],
        "right: the pairs that the policy gets wrong pull, the others hardly do",
    )


def check_ipo_loss(student: Callable[..., Any]) -> Result:
    """student(policy_chosen, policy_rejected, ref_chosen, ref_rejected, tau) -> IPO's loss.

    All four are (N,) log-probs of whole answers. The gradient by policy_chosen is compared.
    """

    def right(*inputs: Any) -> Tensor:
        return losses.ipo_loss(*inputs)[0]

    return check(
        student,
        right,
        _pair_cases(tau=(0.5, 0.2)),
        [
            Mistake(
                lambda w, x, rw, rl, t: ((w - x - 1 / (2 * t)) ** 2).mean(),
                "the reference is missing: the target is for the difference of the log-ratios",
            ),
            Mistake(
                lambda w, x, rw, rl, t: ((_margin(w, x, rw, rl) - 1 / t) ** 2).mean(),
                "the target is 1 / (2 tau), not 1 / tau",
            ),
            Mistake(
                lambda w, x, rw, rl, t: ((_margin(w, x, rw, rl) - t / 2) ** 2).mean(),
                "the target is 1 / (2 tau), small where tau is large (in Python `1 / 2 * tau` is "
                "tau / 2)",
            ),
            Mistake(
                lambda w, x, rw, rl, t: (_margin(w, x, rw, rl) ** 2).mean(),
                "the target is missing: this holds every margin at 0, so nothing is learned",
            ),
            Mistake(
                lambda w, x, rw, rl, t: ((t * _margin(w, x, rw, rl) - 1 / (2 * t)) ** 2).mean(),
                "tau stands in the target alone: the margin is a plain difference of log-ratios",
            ),
            Mistake(
                lambda w, x, rw, rl, t: ((_margin(w, x, rw, rl) + 1 / (2 * t)) ** 2).mean(),
                "the sign of the target: this makes the rejected answer likelier",
            ),
            Mistake(
                lambda w, x, rw, rl, t: (_margin(w, x, rw, rl) - 1 / (2 * t)).abs().mean(),
                "the distance to the target is squared: the pull fades as the target comes near",
            ),
        ],
        "right: equal to rlhf_edu.losses.ipo_loss; the margin has a goal and stays there",
        gradient="policy_chosen",
    )
