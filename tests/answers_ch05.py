"""Right and wrong answers to the exercises of chapter 05; see test_exercises.py."""

import numpy as np
import torch


def gradient_by_autograd(probs, rewards):
    logits = probs.log().requires_grad_(True)
    (logits.softmax(0) * rewards).sum().backward()
    return logits.grad


def gradient_by_jacobian(probs, rewards):
    return (torch.diag(probs) - torch.outer(probs, probs)) @ rewards


def reinforce_by_loop(logprobs, rewards, baseline):
    total = 0.0
    for logprob, reward in zip(logprobs, rewards, strict=True):
        total = total + (baseline - reward) * logprob
    return total / len(rewards)


def reinforce_by_ratio(logprobs, rewards, baseline):
    return -((logprobs - logprobs.detach()).exp() * (rewards - baseline)).mean()


def gae_by_sums(rewards, values, gamma, lam):
    after = torch.cat([values[1:], torch.zeros(1)])
    deltas = rewards + gamma * after - values
    steps = range(len(deltas))
    return [sum((gamma * lam) ** (k - t) * deltas[k].item() for k in steps[t:]) for t in steps]


def gae_by_recursion(rewards, values, gamma, lam):
    result, after, last = torch.zeros_like(rewards), 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        last = rewards[t] + gamma * after - values[t] + gamma * lam * last
        result[t], after = last, values[t]
    return result


def ess_by_shares(logprobs, old):
    return 1 / ((logprobs - old).softmax(0) ** 2).sum()


def ess_in_numpy(logprobs, old):
    weights = np.exp(logprobs.numpy() - old.numpy())
    return float(weights.sum() ** 2 / np.square(weights).sum())


def clipped_by_losses(logprobs, old, advantages, clip):
    ratio = torch.exp(logprobs - old)
    losses = torch.stack([-advantages * ratio, -advantages * ratio.clip(1 - clip, 1 + clip)])
    return losses.max(0).values.mean()


def clipped_by_sign(logprobs, old, advantages, clip):
    # Clip above where the advantage is good, below where it is bad: another reading of Eq. 7.
    ratio, good = (logprobs - old).exp(), advantages > 0
    ratio = torch.where(good, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(ratio * advantages).mean()


RIGHT = {
    "check_exact_gradient": [gradient_by_autograd, gradient_by_jacobian],
    "check_reinforce_loss": [reinforce_by_loop, reinforce_by_ratio],
    "check_gae": [gae_by_sums, gae_by_recursion],
    "check_effective_sample_size": [ess_by_shares, ess_in_numpy],
    "check_clipped_loss": [clipped_by_losses, clipped_by_sign],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_exact_gradient", lambda p, r: r * p, "raising one logit lowers"),
    ("check_exact_gradient", lambda p, r: r - p @ r, "factor p is missing"),
    ("check_reinforce_loss", lambda lp, r, b: (lp * (r - b)).mean(), "needs a minus"),
    ("check_reinforce_loss", lambda lp, r, b: -(lp * (r - b)).sum(), "sum instead of a mean"),
    ("check_reinforce_loss", lambda lp, r, b: -lp * (r - b), "one number"),
    ("check_gae", lambda r, v, g, lam: gae_by_recursion(r, v, g, 1.0), "lambda has no effect"),
    ("check_gae", lambda r, v, g, lam: gae_by_recursion(r, v, g, lam) + v, "returns"),
    ("check_effective_sample_size", lambda n, o: ess_by_shares(n, o) / len(n), "share"),
    ("check_effective_sample_size", lambda n, o: 1 / ess_by_shares(n, o), "upside down"),
    ("check_clipped_loss", lambda n, o, a, c: -clipped_by_losses(n, o, a, c), "minus is missing"),
    ("check_clipped_loss", lambda n, o, a, c: clipped_by_sign(n, o, a, 99.0), "nothing is clipped"),
    (
        "check_reinforce_loss",
        lambda lp, r, b: reinforce_by_loop(lp, r, b).item(),
        "no gradient reaches `logprobs`",
    ),
    (
        "check_reinforce_loss",
        lambda lp, r, b: -(lp.detach() * (r - b)).mean(),
        "no gradient reaches `logprobs`",
    ),
    (
        "check_clipped_loss",
        lambda n, o, a, c: clipped_by_losses(n, o, a, 0.2),
        "clip has no effect",
    ),
    ("check_clipped_loss", lambda n, o, a, c: clipped_by_sign(n, o, a, 0.1), "not yet"),
    ("check_clipped_loss", lambda n, o, a, c: clipped_by_sign(n, o, a, 0.15), "not yet"),
    ("check_clipped_loss", lambda n, o, a, c: clipped_by_sign(n, o, a, 0.05), "not yet"),
    ("check_clipped_loss", lambda n, o, a, c: clipped_by_sign(n, o, a, 0.3), "not yet"),
    ("check_clipped_loss", lambda n, o, a, c: clipped_by_sign(n, o, a, 0.39), "not yet"),
]
