"""Checks of chapter 12: beyond PPO and DPO."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers


def _groups() -> list[Case]:
    return [
        {"rewards": numbers([1.0, 2.0, 6.0], [0.5, -1.0, -1.5])},
        {"rewards": numbers([0.0, 1.0, 1.0, 4.0, -2.0])},
    ]


def check_leave_one_out(student: Callable[..., Any]) -> Result:
    """student(rewards (B, K)) -> (B, K): each reward less the mean of the others in its row."""

    def others(r: Tensor, dim: int | None = 1) -> Tensor:
        if dim is None:
            return (r.sum() - r) / (r.numel() - 1)
        return (r.sum(dim, keepdim=True) - r) / max(1, r.shape[dim] - 1)

    return check(
        student,
        losses.leave_one_out,
        _groups(),
        [
            Mistake(
                lambda r: r - r.mean(1, keepdim=True),
                "you subtract the mean of all K, the answer itself included: right but for the "
                "factor (K - 1) / K. Leave the answer's own reward out of its baseline",
            ),
            Mistake(
                lambda r: r - (r.sum(1, keepdim=True) - r) / r.shape[1],
                "the sum of the others is divided by K; there are K - 1 of them",
            ),
            Mistake(
                lambda r: others(r) - r,
                "the sign is the wrong way round: reward less baseline, so that good is positive",
            ),
            Mistake(
                lambda r: others(r),
                "that is the baseline, the mean of the others; subtract it from the reward",
            ),
            Mistake(
                lambda r: r - others(r, 0),
                "the mean runs over the prompts: the other answers to the *same* prompt are in "
                "the same row, dim 1",
            ),
            Mistake(
                lambda r: r - others(r, None),
                "the mean runs over the whole batch: some prompts are easier than others. Compare "
                "an answer with those to the same prompt, in its row",
            ),
            Mistake(
                lambda r: r - r.mean(),
                "the mean runs over the whole batch, the answer itself included: compare it with "
                "the other answers in its row",
            ),
        ],
        "right: equal to rlhf_edu.losses.leave_one_out. The baseline has never seen the answer "
        "that it judges",
    )


def check_group_advantages(student: Callable[..., Any]) -> Result:
    """student(rewards (B, K)) -> (B, K): (reward - mean) / std of its row; 0 if all are equal."""

    def centred(r: Tensor) -> Tensor:
        return r - r.mean(1, keepdim=True)

    def std(r: Tensor, correction: int = 0) -> Tensor:
        return r.std(1, keepdim=True, correction=correction)

    def whole(r: Tensor) -> Tensor:
        return (r - r.mean()) / r.std(correction=0)

    # A row without a spread, so that NaN is named first; large rewards elsewhere, so that any tiny
    # number under the fraction will do.
    cases: list[Case] = [
        {"rewards": numbers([2.0, 2.0, 2.0], [30.0, 0.0, 0.0], [10.0, 20.0, 60.0])},
        {"rewards": numbers([0.0, 10.0, 10.0, 40.0, -20.0])},
    ]
    return check(
        student,
        losses.group_advantages,
        cases,
        [
            Mistake(
                lambda r: centred(r) / (std(r, 1) + 1e-6),
                "the std is the one with divisor K - 1; take that of these K numbers "
                "(correction=0)",
            ),
            Mistake(
                lambda r: centred(r) / (std(r) ** 2 + 1e-6),
                "you divide by the variance; its square root is the std",
            ),
            Mistake(
                lambda r: centred(r),
                "the division is missing: this is the group mean alone",
            ),
            Mistake(
                losses.leave_one_out,
                "that is RLOO: GRPO subtracts the mean of all K and divides by the spread",
            ),
            Mistake(
                lambda r: r / (std(r) + 1e-6),
                "the mean is not subtracted: worse than the others must come out negative",
            ),
            Mistake(
                lambda r: losses.leave_one_out(r) / (std(r) + 1e-6),
                "the mean leaves the answer itself out, as in RLOO; here it is the mean of all K",
            ),
            Mistake(
                whole,
                "mean and std run over the whole batch; GRPO takes those of each row, the answers "
                "to one prompt",
            ),
        ],
        "right: equal to rlhf_edu.losses.group_advantages. How much better, in units of how much "
        "these answers differ",
    )


def check_answer_mean(student: Callable[..., Any]) -> Result:
    """student(x (B, T), mask (B, T)) -> mean over answers of each one's mean over its tokens."""
    long = {
        "x": numbers([1.0, 2.0, 3.0, 4.0], [8.0, 20.0, 5.0, -1.0], [7.0, 9.0, 2.0, 3.0]),
        "mask": numbers([1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]).long(),
    }
    short = {"x": numbers([1.0, -2.0], [0.5, 3.0]), "mask": numbers([1, 0], [1, 1]).long()}
    return check(
        student,
        losses.answer_mean,
        [long, short],
        [
            Mistake(
                losses.masked_mean,
                "that is the mean over all tokens, in which a long answer weighs more: take the "
                "mean of each row first",
            ),
            Mistake(
                lambda x, mask: x.mean(),
                "padding is counted too: multiply by the mask, and divide by its sum",
            ),
            Mistake(
                lambda x, mask: (x * mask).mean(),
                "the padding is zero now, but the divisor still counts it: divide by mask.sum(1)",
            ),
            Mistake(
                lambda x, mask: (x.sum(1) / mask.sum(1)).mean(),
                "the sum holds the padding: multiply by the mask before you add up",
            ),
            Mistake(
                lambda x, mask: (x * mask).sum(1).mean(),
                "these are sums over tokens: divide each answer's by its own length, mask.sum(1)",
            ),
            Mistake(
                lambda x, mask: ((x * mask).sum(1) / mask.sum(1)).sum(),
                "a sum over answers: take their mean, or the step grows with the batch",
            ),
            Mistake(
                lambda x, mask: (x * mask).sum(1) / mask.sum(1),
                "one number for each answer: take their mean at the end",
            ),
        ],
        "right: equal to rlhf_edu.losses.answer_mean. One answer, one vote, however long",
    )


def check_kto_loss(student: Callable[..., Any]) -> Result:
    """student(logprobs, ref_logprobs, desirable (all (N,)), kl, beta) -> KTO's loss, a scalar."""

    def up(lp: Tensor, ref: Tensor, kl: float, beta: float) -> Tensor:
        return beta * (lp - ref - kl)

    def right(lp: Tensor, ref: Tensor, thumb: Tensor, kl: float, beta: float) -> Tensor:
        return losses.kto_loss(lp, ref, thumb, kl, beta)[0]

    def signed(lp: Tensor, ref: Tensor, thumb: Tensor, kl: float, beta: float) -> Tensor:
        return torch.where(thumb, 1.0, -1.0) * up(lp, ref, kl, beta)

    def kl_outside(lp: Tensor, ref: Tensor, thumb: Tensor, kl: float, beta: float) -> Tensor:
        sign = torch.where(thumb, 1.0, -1.0)
        return torch.sigmoid(-(sign * beta * (lp - ref) - beta * kl)).mean()

    cases = [
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
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda lp, ref, d, kl, b: right(lp, ref, d, 0.0, b),
                "the KL is missing: an answer is compared with what the policy does on average",
            ),
            Mistake(
                lambda lp, ref, d, kl, b: torch.sigmoid(-up(lp, ref, kl, b)).mean(),
                "all answers are treated as desirable: for a thumb down the argument of sigmoid "
                "changes its sign",
            ),
            Mistake(
                lambda lp, ref, d, kl, b: right(lp, ref, ~d, kl, b),
                "the thumbs are swapped, or the 1 - is missing: this loss falls when undesirable "
                "answers become likelier",
            ),
            Mistake(
                lambda lp, ref, d, kl, b: (
                    -torch.nn.functional.logsigmoid(signed(lp, ref, d, kl, b)).mean()
                ),
                "that is -log of a sigmoid, as in DPO; KTO has 1 - sigmoid, without a logarithm",
            ),
            Mistake(
                lambda lp, ref, d, kl, b: right(lp, 0 * ref, d, kl, b),
                "the reference is missing: the reward is beta log(policy / reference)",
            ),
            Mistake(
                kl_outside,
                "for a thumb down the sign of the whole bracket changes, the KL's too: "
                "sigmoid(beta (kl - ratio))",
            ),
            Mistake(
                lambda lp, ref, d, kl, b: torch.sigmoid(
                    torch.where(d, -1.0, 1.0) * (b * (lp - ref) - kl)
                ).mean(),
                "the KL is in nats like the log-ratio: beta multiplies both",
            ),
            Mistake(
                lambda lp, ref, d, kl, b: (1 - torch.sigmoid(signed(lp, ref, d, kl, b))).sum(),
                "a sum instead of a mean: the step would grow with the number of answers",
            ),
        ],
        "right: equal to rlhf_edu.losses.kto_loss, gradient included. No pairs, only thumbs",
        gradient="logprobs",
    )
