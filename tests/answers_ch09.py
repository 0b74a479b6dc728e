"""Right and wrong answers to the exercises of chapter 09; see test_exercises.py."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def optimum_by_normalising(reference, rewards, beta):
    tilted = reference * torch.exp(rewards / beta)
    return tilted / tilted.sum()


def optimum_by_loop(reference, rewards, beta):
    pairs = list(zip(reference.tolist(), rewards.tolist(), strict=True))
    z = sum(p * math.exp(r / beta) for p, r in pairs)
    return [p * math.exp(r / beta) / z for p, r in pairs]


def implicit_by_ratio(logprobs, ref_logprobs, beta):
    return beta * torch.log(logprobs.exp() / ref_logprobs.exp())


def implicit_in_numpy(logprobs, ref_logprobs, beta):
    return beta * np.subtract(logprobs.numpy(), ref_logprobs.numpy())


def dpo_by_softplus(chosen, rejected, ref_chosen, ref_rejected, beta):
    return F.softplus(beta * ((rejected - ref_rejected) - (chosen - ref_chosen))).mean()


def dpo_as_classifier(chosen, rejected, ref_chosen, ref_rejected, beta):
    rewards = beta * torch.stack([chosen - ref_chosen, rejected - ref_rejected], 1)
    return F.cross_entropy(rewards, torch.zeros(len(chosen)).long())


def gradient_by_autograd(chosen, rejected, beta):
    logprobs = (chosen / beta).requires_grad_(True)
    (-F.logsigmoid(beta * logprobs - rejected).mean()).backward()
    return logprobs.grad


def gradient_by_exp(chosen, rejected, beta):
    return -beta / (1 + torch.exp(chosen - rejected)) / chosen.numel()


def ipo_by_mse(chosen, rejected, ref_chosen, ref_rejected, tau):
    margin = (chosen - rejected) - (ref_chosen - ref_rejected)
    return F.mse_loss(margin, torch.full_like(margin, 0.5 / tau))


def ipo_by_loop(chosen, rejected, ref_chosen, ref_rejected, tau):
    total = 0.0
    for w, lose, rw, rl in zip(chosen, rejected, ref_chosen, ref_rejected, strict=True):
        total = total + (w - rw - lose + rl - 1 / (2 * tau)) ** 2
    return total / len(chosen)


RIGHT = {
    "check_optimum": [optimum_by_normalising, optimum_by_loop],
    "check_implicit_reward": [implicit_by_ratio, implicit_in_numpy],
    "check_dpo_loss": [dpo_by_softplus, dpo_as_classifier],
    "check_dpo_gradient": [gradient_by_autograd, gradient_by_exp],
    "check_ipo_loss": [ipo_by_mse, ipo_by_loop],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    (
        "check_optimum",
        lambda p, r, b: p * torch.exp(r / b) / torch.exp(r / b).sum(),
        "Z lacks the reference",
    ),
    ("check_optimum", lambda p, r, b: torch.softmax(r / b, 0), "reference is missing"),
    ("check_implicit_reward", lambda n, o, b: n - o, "beta is missing"),
    ("check_implicit_reward", lambda n, o, b: b * (o - n), "upside down"),
    ("check_dpo_loss", lambda *xs: -dpo_by_softplus(*xs), "minus is missing"),
    ("check_dpo_loss", lambda w, x, rw, rl, b: dpo_by_softplus(x, w, rl, rw, b), "swapped"),
    (
        "check_dpo_loss",
        lambda w, x, rw, rl, b: dpo_by_softplus(w.detach(), x, rw, rl, b),
        "no gradient",
    ),
    ("check_dpo_gradient", lambda u, d, b: gradient_by_exp(d, u, b), "wrong way round"),
    ("check_dpo_gradient", lambda u, d, b: -gradient_by_exp(u, d, b), "the sign"),
    (
        "check_ipo_loss",
        lambda w, x, rw, rl, t: ((w - x - 1 / (2 * t)) ** 2).mean(),
        "reference is missing",
    ),
    ("check_ipo_loss", lambda w, x, rw, rl, t: ipo_by_mse(w, x, rw, rl, t / 2), "not 1 / tau"),
    (
        "check_dpo_loss",
        lambda w, x, rw, rl, b: dpo_by_softplus(rw, rl, w, x, b),
        "or policy and reference",
    ),
    ("check_dpo_loss", lambda w, x, rw, rl, b: F.relu(1 - b * (w - x - rw + rl)).mean(), "hinge"),
    (
        "check_dpo_loss",
        lambda w, x, rw, rl, b: dpo_by_softplus(w, x.detach(), rw, rl, b),
        "no gradient reaches `policy_rejected`",
    ),
    (
        "check_dpo_loss",
        lambda *xs: dpo_by_softplus(*xs).item(),
        "reaches `policy_chosen` and `policy_rejected`",
    ),
    (
        "check_ipo_loss",
        lambda w, x, rw, rl, t: ipo_by_mse(rw, rl, w, x, t),
        "or policy and reference",
    ),
    (
        "check_ipo_loss",
        lambda w, x, rw, rl, t: ipo_by_mse(w, x.detach(), rw, rl, t),
        "no gradient reaches `policy_rejected`",
    ),
]
