"""Checks of chapter 05: policy gradients to PPO."""

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Check, numbers


def exact_gradient(probs: Tensor, rewards: Tensor) -> Tensor:
    """student(probs (A,), rewards (A,)) -> gradient (A,) of the expected reward by the logits."""
    return probs * (rewards - (probs * rewards).sum())


check_exact_gradient = Check(
    exact_gradient,
    cases=[
        {"probs": numbers(0.5, 0.3, 0.2), "rewards": numbers(1.0, 2.0, 4.0)},
        {"probs": numbers(0.1, 0.2, 0.3, 0.4), "rewards": numbers(-1.0, 0.5, 3.0, 2.0)},
    ],
    mistakes={
        "p r alone: raising one logit lowers all other probabilities, "
        "so subtract the expected reward from r": lambda p, r: p * r,
        "the factor p is missing: an answer that "
        "is rarely given moves the mean little": lambda p, r: r - (p * r).sum(),
        "you subtract the plain mean of the rewards; "
        "what counts is the mean under the policy, sum(p r)": lambda p, r: p * (r - r.mean()),
        "the sign is the wrong way round: this is the way down, and reward goes up": lambda p, r: (
            -exact_gradient(p, r)
        ),
        "that is the gradient by the probabilities; "
        "the logits come before a softmax": lambda p, r: r,
    },
    success=(
        "right: better than expected goes up, worse goes down, "
        "in proportion to how often it is tried"
    ),
)


def reinforce_loss(logprobs: Tensor, rewards: Tensor, baseline: float) -> Tensor:
    """student(logprobs (N,), rewards (N,), baseline) -> loss whose descent is the policy gradient.

    Its gradient is compared, not its value.
    """
    return -((rewards - baseline) * logprobs).mean()


check_reinforce_loss = Check(
    reinforce_loss,
    cases=[
        {"logprobs": numbers(-0.5, -1.0, -2.0), "rewards": numbers(1.0, 0.0, 3.0), "baseline": 0.5},
        {"logprobs": numbers(-0.1, -0.7), "rewards": numbers(2.0, -1.0), "baseline": -0.25},
    ],
    mistakes={
        "the sign: an optimiser goes down, reward should go up, "
        "so the loss needs a minus": lambda lp, r, b: ((r - b) * lp).mean(),
        "a sum instead of a mean: the step would "
        "grow with the number of samples": lambda lp, r, b: -((r - b) * lp).sum(),
        "the baseline is missing, or stands where it has no gradient: "
        "weigh by r - b": lambda lp, r, b: -(r * lp).mean(),
        "you add the baseline; subtract it, "
        "so that ordinary answers weigh nothing": lambda lp, r, b: -((r + b) * lp).mean(),
        "probabilities instead of log-probabilities: the samples come from the policy, "
        "so they count p already once": lambda lp, r, b: -((r - b) * lp.exp()).mean(),
        "all samples weigh the same: that is the loss of SFT; "
        "weigh them by r - baseline": lambda lp, r, b: -lp.mean(),
    },
    success=(
        "right: the log-likelihood of SFT, "
        "each sample weighed by how much better than expected it was"
    ),
    learns=("logprobs",),
    value=False,
)


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """student(rewards (T,), values (T,), gamma, lam) -> advantages (T,) of one answer."""
    mask = torch.ones_like(rewards)[None]
    return losses.gae(rewards[None], values[None], mask, gamma, lam)[0][0]


def _backward(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, last_value: float = 0.0
) -> Tensor:
    found, after, running = [], torch.tensor(last_value), torch.tensor(0.0)
    for t in reversed(range(len(rewards))):
        running = rewards[t] + gamma * after - values[t] + lam * running
        found.insert(0, running)
        after = values[t]
    return torch.stack(found).double()


def _whitened(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / advantages.std()


def _forwards(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    after = torch.cat([values[1:], values.new_zeros(1)])
    deltas, running, found = rewards + gamma * after - values, torch.tensor(0.0), []
    for delta in deltas:
        running = delta + gamma * lam * running
        found.append(running)
    return torch.stack(found).double()


_REWARDS, _VALUES = numbers(0.0, -0.1, 0.0, 2.0), numbers(0.5, 0.8, 0.4, 1.5)


check_gae = Check(
    gae,
    cases=[
        {"rewards": _REWARDS, "values": _VALUES, "gamma": 1.0, "lam": 0.95},
        {"rewards": _REWARDS, "values": _VALUES, "gamma": 0.9, "lam": 0.5},
        {"rewards": _VALUES[:3], "values": _REWARDS[1:], "gamma": 0.9, "lam": 0.0},
    ],
    mistakes={
        "these are the returns, advantage + value: subtract the values": lambda r, v, g, lam: (
            gae(r, v, g, lam) + v
        ),
        "lambda has no effect: this is lambda = 1, "
        "the whole return minus the value": lambda r, v, g, lam: gae(r, v, g, 1.0),
        "only one step: add gamma lambda times the next advantage": lambda r, v, g, lam: gae(
            r, v, g, 0.0
        ),
        "delta lacks the next value: it is r[t] + gamma V[t + 1] - V[t]": lambda r, v, g, lam: gae(
            r - v, 0 * v, g, lam
        ),
        "gamma has no effect: it discounts the "
        "next value and the next advantage": lambda r, v, g, lam: gae(r, v, 1.0, lam),
        "the next advantage is discounted by lambda alone; "
        "it is gamma lambda": lambda r, v, g, lam: _backward(r, v, g, lam),
        "after the last token you go on with its own value: the answer is over, what "
        "comes next is worth 0": lambda r, v, g, lam: _backward(r, v, g, g * lam, v[-1].item()),
        "the sum runs forwards: token t is credited for what happened before it. "
        "Start at the last token and go back": _forwards,
        "whitened: PPO does that later, to the advantages of a whole batch; "
        "here they are wanted as they are": lambda r, v, g, lam: _whitened(gae(r, v, g, lam)),
        "whitened, with the mean added back: here the advantages "
        "are wanted as they are": lambda r, v, g, lam: _whitened(a := gae(r, v, g, lam)) + a.mean(),
        "the right numbers in reverse order: the loop runs backwards, "
        "so turn its list round at the end": lambda r, v, g, lam: gae(r, v, g, lam).flip(0),
    },
    success="right: equal to rlhf_edu.losses.gae, and to what PPO trains with below",
)


def effective_sample_size(new: Tensor, old: Tensor) -> Tensor:
    """student(logprobs (N,), old_logprobs (N,)) -> how many fresh samples the N are worth."""
    w = (new - old).exp()
    return w.sum() ** 2 / (w**2).sum()


check_effective_sample_size = Check(
    effective_sample_size,
    cases=[
        {"logprobs": numbers(-1.0, -2.0, -0.5), "old_logprobs": numbers(-1.2, -1.0, -1.5)},
        {"logprobs": numbers(-3.0, -0.2), "old_logprobs": numbers(-0.5, -2.0)},
    ],
    mistakes={
        "that is the share; multiply by N for the number of samples": lambda n, o: (
            effective_sample_size(n, o) / len(n)
        ),
        "upside down: (sum w) squared stands above, the sum of w squared below": lambda n, o: (
            1 / effective_sample_size(n, o)
        ),
        "the ratio is the wrong way round: new policy over the old one that sampled": lambda n, o: (
            effective_sample_size(o, n)
        ),
        "these weights are logarithms: take exp of the difference": lambda n, o: (
            (n - o).sum() ** 2 / ((n - o) ** 2).sum()
        ),
        "you divide log-probabilities; the ratio of probabilities is exp(new - old)": lambda n, o: (
            (n / o).sum() ** 2 / ((n / o) ** 2).sum()
        ),
        "that is the sum of the weights; "
        "it does not see that one of them may be all of it": lambda n, o: (n - o).exp().sum(),
    },
    success="right: N equal weights are worth N samples, one huge weight is worth one",
)


def clipped_loss(new: Tensor, old: Tensor, adv: Tensor, clip: float) -> Tensor:
    """student(logprobs (N,), old_logprobs (N,), advantages (N,), clip) -> PPO's clipped loss."""
    return losses.policy_loss(new, old, adv, torch.ones_like(new), clip)[0]


def _smaller(free: Tensor, clipped: Tensor, adv: Tensor) -> Tensor:
    return -torch.minimum(free * adv, clipped * adv).mean()


# All four corners: ratio high or low, advantage good or bad; one ratio near 1; and two beside each
# bound, so that a clip of one's own is found. The second case is the first one upside down.
_OLD = -torch.ones(9, dtype=torch.float64)
_NEW = _OLD + numbers(1.65, 1.65, 0.6, 0.6, 0.95, 1.15, 1.21, 0.85, 0.79).log()
_ADVANTAGES = numbers(1.0, -2.0, 3.0, -1.5, 0.7, 1.2, 0.8, -0.9, -0.4)

check_clipped_loss = Check(
    clipped_loss,
    cases=[
        {"logprobs": _NEW, "old_logprobs": _OLD, "advantages": _ADVANTAGES, "clip": 0.2},
        {
            "logprobs": _OLD[:8],
            "old_logprobs": _NEW[:8],
            "advantages": -_ADVANTAGES[:8],
            "clip": 0.1,
        },
    ],
    mistakes={
        "the minus is missing: PPO maximises the clipped objective, "
        "an optimiser minimises": lambda n, o, a, c: -clipped_loss(n, o, a, c),
        "the wrong side is clipped: of the two objectives take the smaller one (of two losses, "
        "the larger)": lambda n, o, a, c: -clipped_loss(n, o, -a, c),
        "clipped only: a ratio that has already gone the wrong way could never come back. Take "
        "the minimum of both": lambda n, o, a, c: -((n - o).exp().clamp(1 - c, 1 + c) * a).mean(),
        "nothing is clipped": lambda n, o, a, c: -((n - o).exp() * a).mean(),
        "the ratio is upside down: new over old, exp(logprobs - old_logprobs)": lambda n, o, a, c: (
            _smaller((o - n).exp(), (o - n).exp().clamp(1 - c, 1 + c), a)
        ),
        "you divide log-probabilities: the ratio is exp(logprobs "
        "- old_logprobs)": lambda n, o, a, c: _smaller(n / o, (n / o).clamp(1 - c, 1 + c), a),
        "a sum instead of a mean: the step would "
        "grow with the length of the answers": lambda n, o, a, c: len(n) * clipped_loss(n, o, a, c),
        "you clip the ratio to [-clip, clip], "
        "but it is 1 where nothing has changed: take [1 - clip, "
        "1 + clip]": lambda n, o, a, c: _smaller((n - o).exp(), (n - o).exp().clamp(-c, c), a),
        "you clip the log-ratio: the bounds 1 - clip and 1 + clip are those of the ratio, "
        "after the exp": lambda n, o, a, c: _smaller((n - o).exp(), (n - o).clamp(-c, c).exp(), a),
        "you take the log-ratio for the ratio: exp is missing, and the ratio is 1 where "
        "nothing has changed": lambda n, o, a, c: _smaller(n - o, (n - o).clamp(1 - c, 1 + c), a),
        "you take the log-ratio for the ratio, clipped around 0: "
        "exp is missing": lambda n, o, a, c: _smaller(n - o, (n - o).clamp(-c, c), a),
        "clip has no effect: you clip at 0.2, whatever it is": lambda n, o, a, c: clipped_loss(
            n, o, a, 0.2
        ),
    },
    success="right: equal to rlhf_edu.losses.policy_loss in all four corners, gradient included",
    learns=("logprobs",),
    value=False,
)
