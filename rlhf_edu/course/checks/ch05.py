"""Checks of chapter 05: policy gradients to PPO."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers


def _bandit_cases() -> list[Case]:
    return [
        {"probs": numbers(0.5, 0.3, 0.2), "rewards": numbers(1.0, 2.0, 4.0)},
        {"probs": numbers(0.1, 0.2, 0.3, 0.4), "rewards": numbers(-1.0, 0.5, 3.0, 2.0)},
    ]


def check_exact_gradient(student: Callable[..., Any]) -> Result:
    """student(probs (A,), rewards (A,)) -> gradient (A,) of the expected reward by the logits."""

    def right(probs: Tensor, rewards: Tensor) -> Tensor:
        return probs * (rewards - (probs * rewards).sum())

    return check(
        student,
        right,
        _bandit_cases(),
        [
            Mistake(
                lambda p, r: p * r,
                "p r alone: raising one logit lowers all other probabilities, so subtract the "
                "expected reward from r",
            ),
            Mistake(
                lambda p, r: r - (p * r).sum(),
                "the factor p is missing: an answer that is rarely given moves the mean little",
            ),
            Mistake(
                lambda p, r: p * (r - r.mean()),
                "you subtract the plain mean of the rewards; what counts is the mean under the "
                "policy, sum(p r)",
            ),
            Mistake(
                lambda p, r: -right(p, r),
                "the sign is the wrong way round: this is the way down, and reward goes up",
            ),
            Mistake(
                lambda p, r: r,
                "that is the gradient by the probabilities; the logits come before a softmax",
            ),
        ],
        "right: better than expected goes up, worse goes down, in proportion to how often it "
        "is tried",
    )


def check_reinforce_loss(student: Callable[..., Any]) -> Result:
    """student(logprobs (N,), rewards (N,), baseline) -> loss whose descent is the policy gradient.

    Its gradient is compared, not its value.
    """

    def right(logprobs: Tensor, rewards: Tensor, baseline: float) -> Tensor:
        return -((rewards - baseline) * logprobs).mean()

    cases = [
        {
            "logprobs": numbers(-0.5, -1.0, -2.0),
            "rewards": numbers(1.0, 0.0, 3.0),
            "baseline": 0.5,
        },
        {"logprobs": numbers(-0.1, -0.7), "rewards": numbers(2.0, -1.0), "baseline": -0.25},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda lp, r, b: ((r - b) * lp).mean(),
                "the sign: an optimiser goes down, reward should go up, so the loss needs a minus",
            ),
            Mistake(
                lambda lp, r, b: -((r - b) * lp).sum(),
                "a sum instead of a mean: the step would grow with the number of samples",
            ),
            Mistake(
                lambda lp, r, b: -(r * lp).mean(),
                "the baseline is missing, or stands where it has no gradient: weigh by r - b",
            ),
            Mistake(
                lambda lp, r, b: -((r + b) * lp).mean(),
                "you add the baseline; subtract it, so that ordinary answers weigh nothing",
            ),
            Mistake(
                lambda lp, r, b: -((r - b) * lp.exp()).mean(),
                "probabilities instead of log-probabilities: the samples come from the policy, so "
                "they count p already once",
            ),
            Mistake(
                lambda lp, r, b: -lp.mean(),
                "all samples weigh the same: that is the loss of SFT; weigh them by r - baseline",
            ),
        ],
        "right: the log-likelihood of SFT, each sample weighed by how much better than expected "
        "it was",
        gradient="logprobs",
    )


def check_gae(student: Callable[..., Any]) -> Result:
    """student(rewards (T,), values (T,), gamma, lam) -> advantages (T,) of one answer."""

    def right(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
        mask = torch.ones_like(rewards)[None]
        return losses.gae(rewards[None], values[None], mask, gamma, lam)[0][0]

    def backward(
        rewards: Tensor, values: Tensor, gamma: float, lam: float, last_value: float = 0.0
    ) -> Tensor:
        found, after, running = [], torch.tensor(last_value), torch.tensor(0.0)
        for t in reversed(range(len(rewards))):
            running = rewards[t] + gamma * after - values[t] + lam * running
            found.insert(0, running)
            after = values[t]
        return torch.stack(found).double()

    def kept_last(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
        return backward(rewards, values, gamma, gamma * lam, values[-1].item())

    def no_next(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
        return right(rewards - values, torch.zeros_like(values), gamma, lam)

    def forwards(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
        after = torch.cat([values[1:], values.new_zeros(1)])
        deltas, running, found = rewards + gamma * after - values, torch.tensor(0.0), []
        for delta in deltas:
            running = delta + gamma * lam * running
            found.append(running)
        return torch.stack(found).double()

    rewards, values = numbers(0.0, -0.1, 0.0, 2.0), numbers(0.5, 0.8, 0.4, 1.5)
    cases = [
        {"rewards": rewards, "values": values, "gamma": 1.0, "lam": 0.95},
        {"rewards": rewards, "values": values, "gamma": 0.9, "lam": 0.5},
        {"rewards": values, "values": rewards, "gamma": 0.9, "lam": 0.0},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda r, v, g, lam: right(r, v, g, lam) + v,
                "these are the returns, advantage + value: subtract the values",
            ),
            Mistake(
                lambda r, v, g, lam: right(r, v, g, 1.0),
                "lambda has no effect: this is lambda = 1, the whole return minus the value",
            ),
            Mistake(
                lambda r, v, g, lam: right(r, v, g, 0.0),
                "only one step: add gamma lambda times the next advantage",
            ),
            Mistake(no_next, "delta lacks the next value: it is r[t] + gamma V[t + 1] - V[t]"),
            Mistake(
                lambda r, v, g, lam: right(r, v, 1.0, lam),
                "gamma has no effect: it discounts the next value and the next advantage",
            ),
            Mistake(
                lambda r, v, g, lam: backward(r, v, g, lam),
                "the next advantage is discounted by lambda alone; it is gamma lambda",
            ),
            Mistake(
                kept_last,
                "after the last token you go on with its own value: the answer is over, "
                "what comes next is worth 0",
            ),
            Mistake(
                forwards,
                "the sum runs forwards: token t is credited for what happened before it. "
                "Start at the last token and go back",
            ),
        ],
        "right: equal to rlhf_edu.losses.gae, and to what PPO trains with below",
    )


def check_effective_sample_size(student: Callable[..., Any]) -> Result:
    """student(logprobs (N,), old_logprobs (N,)) -> how many fresh samples the N are worth."""

    def weights(new: Tensor, old: Tensor) -> Tensor:
        return (new - old).exp()

    def right(new: Tensor, old: Tensor) -> Tensor:
        w = weights(new, old)
        return w.sum() ** 2 / (w**2).sum()

    cases = [
        {"logprobs": numbers(-1.0, -2.0, -0.5), "old_logprobs": numbers(-1.2, -1.0, -1.5)},
        {"logprobs": numbers(-3.0, -0.2), "old_logprobs": numbers(-0.5, -2.0)},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda n, o: right(n, o) / len(n),
                "that is the share; multiply by N for the number of samples",
            ),
            Mistake(
                lambda n, o: 1 / right(n, o),
                "upside down: (sum w) squared stands above, the sum of w squared below",
            ),
            Mistake(
                lambda n, o: right(o, n),
                "the ratio is the wrong way round: new policy over the old one that sampled",
            ),
            Mistake(
                lambda n, o: (n - o).sum() ** 2 / ((n - o) ** 2).sum(),
                "these weights are logarithms: take exp of the difference",
            ),
            Mistake(
                lambda n, o: (n / o).sum() ** 2 / ((n / o) ** 2).sum(),
                "you divide log-probabilities; the ratio of probabilities is exp(new - old)",
            ),
            Mistake(
                lambda n, o: weights(n, o).sum(),
                "that is the sum of the weights; it does not see that one of them may be all of it",
            ),
        ],
        "right: N equal weights are worth N samples, one huge weight is worth one",
    )


def check_clipped_loss(student: Callable[..., Any]) -> Result:
    """student(logprobs (N,), old_logprobs (N,), advantages (N,), clip) -> PPO's clipped loss."""

    def parts(new: Tensor, old: Tensor, adv: Tensor, clip: float) -> tuple[Tensor, Tensor]:
        ratio = (new - old).exp()
        return ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv

    def right(new: Tensor, old: Tensor, adv: Tensor, clip: float) -> Tensor:
        return losses.policy_loss(new, old, adv, torch.ones_like(new), clip)[0]

    def divided(new: Tensor, old: Tensor, adv: Tensor, clip: float) -> Tensor:
        ratio = new / old
        return -torch.minimum(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv).mean()

    # All four corners: ratio high or low, advantage good or bad; and one ratio inside the range.
    old = numbers(-1.0, -1.0, -1.0, -1.0, -1.0)
    new = numbers(-0.5, -0.5, -1.5, -1.5, -1.05)
    adv = numbers(1.0, -2.0, 3.0, -1.5, 0.7)
    cases = [
        {"logprobs": new, "old_logprobs": old, "advantages": adv, "clip": 0.2},
        {"logprobs": new, "old_logprobs": old, "advantages": -adv, "clip": 0.1},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda n, o, a, c: torch.minimum(*parts(n, o, a, c)).mean(),
                "the minus is missing: PPO maximises the clipped objective, an optimiser minimises",
            ),
            Mistake(
                lambda n, o, a, c: -torch.maximum(*parts(n, o, a, c)).mean(),
                "the wrong side is clipped: of the two objectives take the smaller one "
                "(of two losses, the larger)",
            ),
            Mistake(
                lambda n, o, a, c: -parts(n, o, a, c)[1].mean(),
                "clipped only: a ratio that has already gone the wrong way could never come back. "
                "Take the minimum with the free term",
            ),
            Mistake(lambda n, o, a, c: -parts(n, o, a, c)[0].mean(), "nothing is clipped"),
            Mistake(
                lambda n, o, a, c: -torch.minimum(*parts(o, n, a, c)).mean(),
                "the ratio is upside down: new over old, exp(logprobs - old_logprobs)",
            ),
            Mistake(
                divided, "you divide log-probabilities: the ratio is exp(logprobs - old_logprobs)"
            ),
            Mistake(
                lambda n, o, a, c: -torch.minimum(*parts(n, o, a, c)).sum(),
                "a sum instead of a mean: the step would grow with the length of the answers",
            ),
        ],
        "right: equal to rlhf_edu.losses.policy_loss in all four corners, gradient included",
        gradient="logprobs",
    )
