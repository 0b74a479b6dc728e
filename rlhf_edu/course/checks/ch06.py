"""Checks of chapter 06: RLHF with PPO."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Check, numbers


def reward_row(score: float, new: Tensor, ref: Tensor, beta: float) -> Tensor:
    """student(score, logprobs (T,), ref_logprobs (T,), beta) -> reward of each token (T,).

    One answer, without padding; its last token is its end-of-text.
    """
    rows = new[None], ref[None], torch.ones_like(new)[None]
    return losses.shaped_rewards(new.new_tensor([score]), *rows, beta)[0]


def _spread(score: float, new: Tensor, ref: Tensor, beta: float) -> Tensor:
    return score - beta * (new - ref)


def _end_only(score: float, new: Tensor, ref: Tensor, beta: float) -> Tensor:
    rewards = torch.zeros_like(new)
    rewards[-1] = score - beta * (new - ref).sum()
    return rewards


def _replaced(score: float, new: Tensor, ref: Tensor, beta: float) -> Tensor:
    rewards = -beta * (new - ref)
    rewards[-1] = score
    return rewards


check_reward_row = Check(
    reward_row,
    cases=[
        {
            "score": 1.5,
            "logprobs": numbers(-0.2, -1.5, -0.1, -0.7),
            "ref_logprobs": numbers(-0.9, -1.0, -0.3, -0.8),
            "beta": 0.1,
        },
        {
            "score": -0.5,
            "logprobs": numbers(-2.0, -0.4),
            "ref_logprobs": numbers(-1.1, -1.3),
            "beta": 0.5,
        },
    ],
    mistakes={
        "the KL has the wrong sign: a token that has become likelier than it was pays, "
        "so it is -beta (logprobs - ref_logprobs)": lambda s, n, r, b: reward_row(s, r, n, b),
        "every token gets the whole score; it arrives once, at the last token": _spread,
        "all of the KL is paid at the last token; "
        "each token pays for itself, where it is written": _end_only,
        "the score replaces the last token's own KL: add it to what stands there": _replaced,
        "beta has no effect: it is the price of one nat": lambda s, n, r, b: reward_row(
            s, n, r, 1.0
        ),
        "beta weighs the score too; it is the price of the KL alone": lambda s, n, r, b: reward_row(
            b * s, n, r, b
        ),
        "the score is missing: add it to the last token": lambda s, n, r, b: reward_row(
            0.0, n, r, b
        ),
        "you take differences of probabilities: the log-ratio "
        "is logprobs - ref_logprobs": lambda s, n, r, b: reward_row(s, n.exp(), r.exp(), b),
        "the score is spread over the tokens: "
        "all of it arrives at the last one": lambda s, n, r, b: s / len(n) - b * (n - r),
        "the score arrives at the first token: it judges the whole answer, so it "
        "comes at the end": lambda s, n, r, b: _spread(s, n, r, b) - s * (torch.arange(len(n)) > 0),
        "the reference is missing: a token pays for being likelier than it was, "
        "not for being likely": lambda s, n, r, b: reward_row(s, n, torch.zeros_like(r), b),
    },
    success=(
        "right: the row adds up to score - beta log(policy / reference), "
        "the reward that InstructGPT maximises"
    ),
)


def answer_mask(response: Tensor, eos: int) -> Tensor:
    """student(response (B, R) ids, eos) -> mask (B, R): 1 through the first end-of-text, then 0."""
    is_end = (response == eos).long()
    return (is_end.cumsum(1) - is_end == 0).double()


def _by_argmax(response: Tensor, eos: int) -> Tensor:
    places = torch.arange(response.shape[1])[None]
    return (places <= (response == eos).int().argmax(1)[:, None]).double()


def _to_the_last(response: Tensor, eos: int) -> Tensor:
    ends = (response == eos).long()
    after = ends.flip(1).cumsum(1).flip(1)
    return torch.where(ends.any(1, keepdim=True), after > 0, True).double()


check_answer_mask = Check(
    answer_mask,
    # Padded with end-of-text itself, with another id, and never ended.
    cases=[
        {"response": torch.tensor([[7, 5, 2, 2, 2], [4, 2, 2, 2, 2], [8, 9, 3, 6, 5]]), "eos": 2},
        {"response": torch.tensor([[7, 5, 2, 0, 0], [4, 2, 0, 0, 0], [2, 0, 0, 0, 0]]), "eos": 2},
        {"response": torch.tensor([[3, 0, 6, 1], [1, 0, 0, 0]]), "eos": 1},
    ],
    mistakes={
        "the mask is 0 where the id is end-of-text, and nowhere else: the model would "
        "never learn to stop, and other padding is scored": lambda x, eos: (x != eos).double(),
        "end-of-text itself is left out: "
        "stopping is an action too, and the last token of the answer, "
        "where the score arrives": lambda x, eos: ((x == eos).long().cumsum(1) == 0).double(),
        "everything counts: what stands after the first end-of-text is padding": lambda x, eos: (
            torch.ones_like(x).double()
        ),
        "the mask is made from the id of padding: if the tokenizer pads with end-of-text, "
        "all padding counts. Look for the first end-of-text": lambda x, eos: (x != 0).double(),
        "the mask runs to the last end-of-text; "
        "the answer is over at the first, and padding may have the same id": _to_the_last,
        "one end-of-text may come, and everything up to a second one counts: padding "
        "with another id is scored": lambda x, eos: ((x == eos).long().cumsum(1) <= 1).double(),
        "an answer that was cut off has no end-of-text, and argmax then says 0: "
        "all of it counts": _by_argmax,
    },
    success="right: whatever the padding is, the answer ends with its first end-of-text",
)


def kl_estimators(new: Tensor, ref: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """student(logprobs (N,), ref_logprobs (N,)) -> k1, k2, k3, each (N,).

    The tokens were sampled from the policy, whose log-probs come first.
    """
    return losses.kl_k1(new, ref), losses.kl_k2(new, ref), losses.kl_k3(new, ref)


def _with_third(third: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """The three, with another k3, a function of log(reference / policy)."""
    return lambda new, ref: (*kl_estimators(new, ref)[:2], third(ref - new))


def _with_second(second: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda new, ref: (new - ref, second(new - ref), kl_estimators(new, ref)[2])


check_kl_estimators = Check(
    kl_estimators,
    cases=[
        {"logprobs": numbers(-0.5, -1.0, -2.0), "ref_logprobs": numbers(-0.9, -0.4, -2.0)},
        {"logprobs": numbers(-0.1, -3.0), "ref_logprobs": numbers(-1.7, -2.5)},
    ],
    mistakes={
        "the other way round: the samples come from the policy, so k1 is log(policy / reference), "
        "and rho in k3 is reference / policy": lambda n, r: kl_estimators(r, n),
        "k1 has the wrong sign: it is log(policy / reference) "
        "= logprobs - ref_logprobs": lambda n, r: (r - n, *kl_estimators(n, r)[1:]),
        "log rho has the wrong sign in k1 and in k3: both subtract it": lambda n, r: (
            r - n,
            kl_estimators(n, r)[1],
            (r - n).expm1() + (r - n),
        ),
        "k1 keeps its sign; without it the mean is too large": lambda n, r: (
            (n - r).abs(),
            *kl_estimators(n, r)[1:],
        ),
        "k2 lacks its half: the square is divided by 2": _with_second(lambda x: x**2),
        "k3 has rho upside down: it is reference / policy": _with_third(lambda x: (-x).expm1() + x),
        "k3 lacks - log rho: rho - 1 alone has mean 0": _with_third(torch.expm1),
        "k3 lacks - 1: where policy and reference agree, it must be 0": _with_third(
            lambda x: x.exp() - x
        ),
        "k3 has + log rho: subtract it, so that the result is never negative": _with_third(
            lambda x: x.expm1() + x
        ),
    },
    success=(
        "right: three estimates from the same two numbers; k1 may be negative, the others never"
    ),
)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """student(values (B, R), old_values (B, R), returns (B, R), mask (B, R), clip) -> a scalar.

    Half the squared error, the larger one of the value itself and of the value that is held within
    `clip` of its old one; mean over real tokens.
    """
    return losses.value_loss(values, old_values, returns, mask, clip)


def _errors(v: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Squared errors of the values, and of the values held near the old ones."""
    held = old + (v - old).clamp(-clip, clip)
    return (v - returns) ** 2, (held - returns) ** 2


def _mean(errors: Tensor, mask: Tensor) -> Tensor:
    return 0.5 * (errors * mask).sum() / mask.sum()


check_value_loss = Check(
    value_loss,
    # Values that have moved too far in the right and in the wrong direction, and hardly moved.
    cases=[
        {
            "values": numbers([0.9, -0.5, 0.3], [0.1, -0.8, 2.0]),
            "old_values": numbers([0.2, 0.4, 0.25], [0.5, -0.2, -1.0]),
            "returns": numbers([1.5, 1.0, -0.4], [-0.7, 0.6, 3.0]),
            "mask": numbers([1, 1, 1], [1, 1, 0]),
            "clip": 0.2,
        },
        {
            "values": numbers([1.4, 0.7], [-1.1, 5.0]),
            "old_values": numbers([0.6, 1.9], [-0.3, 0.0]),
            "returns": numbers([2.5, 2.2], [0.8, -3.0]),
            "mask": numbers([1, 1], [1, 0]),
            "clip": 0.5,
        },
    ],
    mistakes={
        "the minus: an error is to get smaller as it is": lambda *xs: -value_loss(*xs),
        "the half is missing": lambda *xs: 2 * value_loss(*xs),
        "nothing is clipped: the value is to be held within `clip` of its old one": (
            lambda v, o, r, m, c: _mean(_errors(v, o, r, c)[0], m)
        ),
        "only the clipped value counts: where it has moved too far it gets no gradient at all, not "
        "even back. Take the larger error": lambda v, o, r, m, c: _mean(_errors(v, o, r, c)[1], m),
        "the smaller of the two errors: clipping may hold the critic back, and never flatter "
        "it": lambda v, o, r, m, c: _mean(torch.minimum(*_errors(v, o, r, c)), m),
        "padding counts: multiply by the mask": lambda v, o, r, m, c: value_loss(v, o, r, m**0, c),
        "you divide by all places; divide by the number of real tokens": (
            lambda v, o, r, m, c: 0.5 * (torch.maximum(*_errors(v, o, r, c)) * m).mean()
        ),
        "a sum over tokens: take the mean over the real ones": lambda v, o, r, m, c: (
            0.5 * (torch.maximum(*_errors(v, o, r, c)) * m).sum()
        ),
        "values have no ratio: clip the difference, not new / old": lambda v, o, r, m, c: _mean(
            torch.maximum((v - r) ** 2, (o * (v / o).clamp(1 - c, 1 + c) - r) ** 2), m
        ),
        "errors are squared here": lambda v, o, r, m, c: _mean(
            torch.maximum(*(e.sqrt() for e in _errors(v, o, r, c))), m
        ),
    },
    success="right: equal to rlhf_edu.losses.value_loss, gradient included",
    learns=("values",),
)
