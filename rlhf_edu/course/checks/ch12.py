"""Checks of chapter 12: beyond PPO and DPO."""

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Check, numbers


def _others(r: Tensor, dim: int | None = 1) -> Tensor:
    if dim is None:
        return (r.sum() - r) / (r.numel() - 1)
    return (r.sum(dim, keepdim=True) - r) / max(1, r.shape[dim] - 1)


def leave_one_out(rewards: Tensor) -> Tensor:
    """student(rewards (B, K)) -> (B, K): each reward less the mean of the others in its row."""
    return losses.leave_one_out(rewards)


check_leave_one_out = Check(
    leave_one_out,
    cases=[
        {"rewards": numbers([1.0, 2.0, 6.0], [0.5, -1.0, -1.5])},
        {"rewards": numbers([0.0, 1.0, 1.0, 4.0, -2.0])},
    ],
    mistakes={
        "you subtract the mean of all K, the answer itself included: "
        "right but for the factor (K - 1) / K. "
        "Leave the answer's own reward out of its baseline": lambda r: r - r.mean(1, keepdim=True),
        "the sum of the others is divided by K; there are K - 1 of them": lambda r: (
            r - (r.sum(1, keepdim=True) - r) / r.shape[1]
        ),
        "the sign is the wrong way round: "
        "reward less baseline, so that good is positive": lambda r: _others(r) - r,
        "that is the baseline, the mean of the others; subtract it from the reward": lambda r: (
            _others(r)
        ),
        "the mean runs over the prompts: the other answers "
        "to the *same* prompt are in the same row, dim 1": lambda r: r - _others(r, 0),
        "the mean runs over the whole batch: some prompts are easier than others. Compare "
        "an answer with those to the same prompt, in its row": lambda r: r - _others(r, None),
        "the mean runs over the whole batch, the answer itself included: "
        "compare it with the other answers in its row": lambda r: r - r.mean(),
        "the mean runs over the prompts, and holds the answer itself: the other answers "
        "to the *same* prompt are in the same row, dim 1": lambda r: r - r.mean(0, keepdim=True),
    },
    success=(
        "right: equal to rlhf_edu.losses.leave_one_out. "
        "The baseline has never seen the answer that it judges"
    ),
)


def _centred(r: Tensor) -> Tensor:
    return r - r.mean(1, keepdim=True)


def _std(r: Tensor, correction: int = 0) -> Tensor:
    return r.std(1, keepdim=True, correction=correction)


def _whole(r: Tensor) -> Tensor:
    return (r - r.mean()) / r.std(correction=0)


def group_advantages(rewards: Tensor) -> Tensor:
    """student(rewards (B, K)) -> (B, K): (reward - mean) / std of its row; 0 if all are equal."""
    return losses.group_advantages(rewards)


check_group_advantages = Check(
    group_advantages,
    # A row without a spread, so that NaN is named first; large rewards elsewhere, so that any tiny
    # number under the fraction will do.
    cases=[
        {"rewards": numbers([2.0, 2.0, 2.0], [30.0, 0.0, 0.0], [10.0, 20.0, 60.0])},
        {"rewards": numbers([0.0, 10.0, 10.0, 40.0, -20.0])},
    ],
    mistakes={
        "the std is the one with divisor K - 1; "
        "take that of these K numbers (correction=0)": lambda r: _centred(r) / (_std(r, 1) + 1e-6),
        "you divide by the variance; its square root is the std": lambda r: (
            _centred(r) / (_std(r) ** 2 + 1e-6)
        ),
        "the division is missing: this is the group mean alone": lambda r: _centred(r),
        "that is RLOO: GRPO subtracts the mean "
        "of all K and divides by the spread": losses.leave_one_out,
        "the mean is not subtracted: worse than the others must come out negative": lambda r: (
            r / (_std(r) + 1e-6)
        ),
        "the mean leaves the answer itself out, as in RLOO; "
        "here it is the mean of all K": lambda r: losses.leave_one_out(r) / (_std(r) + 1e-6),
        "mean and std run over the whole batch; "
        "GRPO takes those of each row, the answers to one prompt": _whole,
        "mean and std run over the prompts; GRPO takes those of each row, "
        "the answers to one prompt": lambda r: (r - r.mean(0)) / (r.std(0, correction=0) + 1e-6),
        "the mean is added back at the end; leave that out": lambda r: (
            losses.group_advantages(r) + r.mean(1, keepdim=True)
        ),
    },
    success=(
        "right: equal to rlhf_edu.losses.group_advantages. "
        "How much better, in units of how much these answers differ"
    ),
)


_MASK = numbers([1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]).long()
_CLIPPED_CASE = {
    "logprobs": numbers([-0.6, -1.5, -1.0, -1.1], [-0.7, -2.0, -9.0, -9.0], [-1.6, 0.0, -3.0, 0.0]),
    "old_logprobs": numbers([-1.0, -1.0, -1.1, -1.0], [-1.0, -1.2, -1.0, -2.0], [-1.0, -2, 0, -1]),
    "advantages": numbers([2.0] * 4, [-1.0] * 4, [-0.5] * 4),
    "mask": _MASK,
    "clip": 0.2,
}
_NEAR_CASE = {
    "logprobs": numbers([-1.0, -2.1], [-0.9, -3.0]),
    "old_logprobs": numbers([-1.1, -2.0], [-1.0, -2.0]),
    "advantages": numbers([1.0, 1.0], [-3.0, -3.0]),
    "mask": numbers([1, 1], [1, 0]).long(),
    "clip": 0.05,
}


def grpo_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """student(logprobs, old_logprobs, advantages, mask (all (B, T)), clip) -> GRPO's loss."""
    return losses.grpo_loss(new, old, advantages, mask, clip)


def _min_of(new: Tensor, old: Tensor, a: Tensor, clip: float) -> Tensor:
    ratio = (new - old).exp()
    return torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)


def _max_of(new: Tensor, old: Tensor, a: Tensor, clip: float) -> Tensor:
    ratio = (new - old).exp()
    return torch.maximum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)


def _by_answer(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum(1) / mask.sum(1)


check_grpo_loss = Check(
    grpo_loss,
    cases=[_CLIPPED_CASE, _NEAR_CASE],
    mistakes={
        "that is the mean over all tokens, in which a long answer weighs more: "
        "take the mean of each row first": lambda n, o, a, m, c: (
            -losses.masked_mean(_min_of(n, o, a, c), m)
        ),
        "the sign is that of an objective: a loss falls when the objective "
        "rises": lambda n, o, a, m, c: _by_answer(_min_of(n, o, a, c), m).mean(),
        "padding is counted too: multiply by the mask, and divide by "
        "its sum": lambda n, o, a, m, c: -_min_of(n, o, a, c).mean(1).mean(),
        "the padding is zero now, but the divisor still counts it: "
        "divide by mask.sum(1)": lambda n, o, a, m, c: -(_min_of(n, o, a, c) * m).mean(),
        "the sum holds the padding: multiply by the mask before you add up": lambda n, o, a, m, c: (
            -(_min_of(n, o, a, c).sum(1) / m.sum(1)).mean()
        ),
        "these are sums over tokens: divide each answer's by its own length, "
        "mask.sum(1)": lambda n, o, a, m, c: -(_min_of(n, o, a, c) * m).sum(1).mean(),
        "a sum over answers: take their mean, or the step grows with the "
        "batch": lambda n, o, a, m, c: -_by_answer(_min_of(n, o, a, c), m).sum(),
        "the larger of the two products is taken: the clip may hold the policy back, "
        "never flatter it, so torch.minimum": lambda n, o, a, m, c: (
            -_by_answer(_max_of(n, o, a, c), m).mean()
        ),
        "nothing is clipped: compare with the product of the clamped ratio": lambda n, o, a, m, c: (
            -_by_answer((n - o).exp() * a, m).mean()
        ),
        "only the clipped product is left: without the minimum a bad token "
        "that has become likely is never brought back": lambda n, o, a, m, c: (
            -_by_answer((n - o).exp().clamp(1 - c, 1 + c) * a, m).mean()
        ),
        "the ratio is upside down: new over old, so "
        "exp(logprobs - old_logprobs)": lambda n, o, a, m, c: (
            -_by_answer(_min_of(o, n, a, c), m).mean()
        ),
        "the ratio is left as a logarithm: take its exp": lambda n, o, a, m, c: (
            -_by_answer(torch.minimum((n - o) * a, (n - o).clamp(1 - c, 1 + c) * a), m).mean()
        ),
        "the clip is meant for 1 - clip to 1 + clip, not for -clip to clip": lambda n, o, a, m, c: (
            -_by_answer(torch.minimum((n - o).exp() * a, (n - o).exp().clamp(-c, c) * a), m).mean()
        ),
    },
    success=(
        "right: equal to rlhf_edu.losses.grpo_loss, gradient included. "
        "One answer, one vote, however long"
    ),
    learns=("logprobs",),
)


_SOLVED = {"solved": numbers([1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]), "k": 2}


def pass_at_k(solved: Tensor, k: int) -> Tensor:
    """student(solved (B, n), k) -> (B,): unbiased estimates of pass@k."""
    return losses.pass_at_k(solved, k)


check_pass_at_k = Check(
    pass_at_k,
    cases=[_SOLVED, {"solved": numbers([0, 0, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0]), "k": 3}],
    mistakes={
        "that is 1 - (1 - c / n)**k, which puts each answer back before the next is drawn: "
        "biased, too low. Draw without putting back": lambda s, k: 1 - (1 - s.mean(1)) ** k,
        "that is pass@1, the share of right answers": lambda s, k: s.mean(1),
        "only the first k answers are looked at: right on average, and far noisier; use all n, "
        "every set of k": lambda s, k: s[:, :k].amax(1),
        "that is pass@n: whether any of all answers is right": lambda s, k: s.amax(1),
        "that is how probably all k are wrong; pass@k is 1 less": lambda s, k: (
            1 - losses.pass_at_k(s, k)
        ),
        "that is how probably all k are *right*; pass@k asks for one right answer": lambda s, k: (
            1 - losses.pass_at_k(1 - s, k)
        ),
        "one number for each prompt: leave the mean over prompts to the reader": lambda s, k: (
            losses.pass_at_k(s, k).mean()
        ),
    },
    success=(
        "right: equal to rlhf_edu.losses.pass_at_k. "
        "Unbiased: every set of k out of the n answers is counted"
    ),
)


def _up(lp: Tensor, ref: Tensor, kl: float, beta: float) -> Tensor:
    return beta * (lp - ref - kl)


def kto_loss(lp: Tensor, ref: Tensor, thumb: Tensor, kl: float, beta: float) -> Tensor:
    """student(logprobs, ref_logprobs, desirable (all (N,)), kl, beta) -> KTO's loss, a scalar."""
    return losses.kto_loss(lp, ref, thumb, kl, beta)[0]


def _signed(lp: Tensor, ref: Tensor, thumb: Tensor, kl: float, beta: float) -> Tensor:
    return torch.where(thumb, 1.0, -1.0) * _up(lp, ref, kl, beta)


def _kl_outside(lp: Tensor, ref: Tensor, thumb: Tensor, kl: float, beta: float) -> Tensor:
    sign = torch.where(thumb, 1.0, -1.0)
    return torch.sigmoid(-(sign * beta * (lp - ref) - beta * kl)).mean()


check_kto_loss = Check(
    kto_loss,
    cases=[
        {
            "logprobs": numbers(-1.0, -2.0, -3.0, -0.5),
            "ref_logprobs": numbers(-2.0, -2.0, -2.5, -1.5),
            "desirable": torch.tensor([True, False, False, True]),
            "kl": 0.4,
            "beta": 0.5,
        },
        {
            "logprobs": numbers(-4.0, -1.0),
            "ref_logprobs": numbers(-3.0, -2.0),
            "desirable": torch.tensor([False, True]),
            "kl": 1.5,
            "beta": 2.0,
        },
    ],
    mistakes={
        "the KL is missing: an answer is compared with "
        "what the policy does on average": lambda lp, ref, d, kl, b: kto_loss(lp, ref, d, 0.0, b),
        "all answers are treated as desirable: for a thumb down the argument of sigmoid "
        "changes its sign": lambda lp, ref, d, kl, b: torch.sigmoid(-_up(lp, ref, kl, b)).mean(),
        "the thumbs are swapped, or the 1 - is missing: this loss falls when undesirable "
        "answers become likelier": lambda lp, ref, d, kl, b: kto_loss(lp, ref, ~d, kl, b),
        "that is -log of a sigmoid, as in DPO; "
        "KTO has 1 - sigmoid, without a logarithm": lambda lp, ref, d, kl, b: (
            -torch.nn.functional.logsigmoid(_signed(lp, ref, d, kl, b)).mean()
        ),
        "the reference is missing: the reward is "
        "beta log(policy / reference)": lambda lp, ref, d, kl, b: kto_loss(lp, 0 * ref, d, kl, b),
        "for a thumb down the sign of the whole bracket changes, the KL's too: "
        "sigmoid(beta (kl - ratio))": _kl_outside,
        "the KL is in nats like the log-ratio: beta multiplies both": lambda lp, ref, d, kl, b: (
            torch.sigmoid(torch.where(d, -1.0, 1.0) * (b * (lp - ref) - kl)).mean()
        ),
        "a sum instead of a mean: the step would grow with the number of "
        "answers": lambda lp, ref, d, kl, b: (1 - torch.sigmoid(_signed(lp, ref, d, kl, b))).sum(),
        "policy and reference are exchanged: the reward "
        "is beta log(policy / reference)": lambda lp, ref, d, kl, b: (
            1 - torch.sigmoid(_signed(ref, lp, d, kl, b))
        ).mean(),
        "beta is missing: it turns nats into points inside the sigmoid": lambda lp, ref, d, kl, b: (
            kto_loss(lp, ref, d, kl, 1.0)
        ),
    },
    success="right: equal to rlhf_edu.losses.kto_loss, gradient included. No pairs, only thumbs",
    learns=("logprobs",),
    value=False,
)
