"""Checks of chapter 03: supervised fine-tuning."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Case, Check, numbers

IGNORE = -100  # what PyTorch's cross_entropy leaves out


def labels(prompt: list[int], answer: list[int], end: int) -> list[int]:
    """student(prompt, answer, end) -> labels of the row prompt + answer + [end], a list.

    Token ids; -100 where nothing is scored. Not shifted: the model does that.
    """
    return [IGNORE] * len(prompt) + answer + [end]


check_labels = Check(
    labels,
    cases=[
        {"prompt": [1, 40, 7, 12], "answer": [7, 33], "end": 2},
        {"prompt": [1, 3, 9], "answer": [40, 3, 8, 5], "end": 3},
    ],
    mistakes={
        "the prompt is scored too: the model would "
        "learn to write what customers write": lambda p, a, e: p + a + [e],
        "the end is missing: a model that never sees an end never stops. The row "
        "is prompt + answer + [end], and so are its labels": lambda p, a, e: labels(p, a, e)[:-1],
        "the end is there and is not scored: the model would not learn to stop": lambda p, a, e: (
            labels(p, a, e)[:-1] + [IGNORE]
        ),
        "these labels are shifted by one already. "
        "The model shifts them itself, so it would learn to "
        "guess the token after the next": lambda p, a, e: [IGNORE] * (len(p) - 1) + a + [e, IGNORE],
        "0 is a token like any other; what is not scored is marked by -100": lambda p, a, e: (
            [0] * len(p) + a + [e]
        ),
        "every token that equals the end is masked: "
        "go by places, not by ids, or the model never learns to stop (the usual bug where padding "
        "is the end token)": lambda p, a, e: [IGNORE if t == e else t for t in labels(p, a, e)],
        "labels are as long as the row: put a -100 for each token of the prompt": lambda p, a, e: (
            a + [e]
        ),
        "the wrong way round: you score the prompt and leave out the answer": lambda p, a, e: (
            p + [IGNORE] * len(a) + [e]
        ),
        "that is a mask, 1 where a token is scored; labels say which token "
        "is wanted there": lambda p, a, e: [int(label != IGNORE) for label in labels(p, a, e)],
        "-1 is the mark of other libraries; "
        "what PyTorch leaves out is marked by -100": lambda p, a, e: [-1] * len(p) + a + [e],
        "the answer begins one token too early: the last token "
        "of the prompt is scored too": lambda p, a, e: [IGNORE] * (len(p) - 1) + p[-1:] + a + [e],
        "the answer begins one token too late: its first token is not scored": lambda p, a, e: (
            [IGNORE] * (len(p) + 1) + a[1:] + [e]
        ),
    },
    success="right: the answer and its end are scored, the prompt is read",
)


def next_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """student(logits (B, T, V), tokens (B, T)) -> log-probs (B, T - 1) of all tokens but the first.

    The logits are as the model returns them: those at a place have read its token.
    """
    return losses.token_logprobs(logits[:, :-1], tokens[:, 1:])


def _picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[..., None]).squeeze(-1)


_random = torch.Generator().manual_seed(3)


check_next_logprobs = Check(
    next_logprobs,
    cases=[
        {
            "logits": torch.randn(2, 6, 5, generator=_random, dtype=torch.float64),
            "tokens": torch.tensor([[1, 3, 4, 0, 3, 2], [1, 4, 4, 3, 2, 0]]),
        },
        {
            "logits": torch.randn(3, 4, 5, generator=_random, dtype=torch.float64),
            "tokens": torch.tensor([[1, 3, 4, 2], [1, 0, 2, 0], [1, 4, 3, 2]]),
        },
    ],
    mistakes={
        "nothing is shifted: the logits at a place have read its token already; they are a guess "
        "of the *next* one. Pair logits[:, :-1] with tokens[:, 1:]": losses.token_logprobs,
        "cut, but not shifted: the logits at a place are a guess of the *next* token. "
        "Pair logits[:, :-1] with tokens[:, 1:]": lambda lo, t: losses.token_logprobs(
            lo[:, 1:], t[:, 1:]
        ),
        "nothing is shifted, and the last token is left out: it is the first that nobody "
        "guesses": lambda lo, t: losses.token_logprobs(lo[:, :-1], t[:, :-1]),
        "shifted the wrong way: pair logits[:, :-1] with tokens[:, 1:]": lambda lo, t: (
            losses.token_logprobs(lo[:, 1:], t[:, :-1])
        ),
        "shifted twice: this is a guess of the token after the next": lambda lo, t: (
            losses.token_logprobs(lo[:, :-2], t[:, 2:])
        ),
        "these are raw logits: a log_softmax over the vocabulary is missing": lambda lo, t: _picked(
            lo[:, :-1], t[:, 1:]
        ),
        "probabilities: take their logarithms, or log_softmax": lambda lo, t: next_logprobs(
            lo, t
        ).exp(),
        "that is the surprise, minus the log-prob; the minus comes with the loss": lambda lo, t: (
            -next_logprobs(lo, t)
        ),
        "softmax over the places: the vocabulary is the last axis": lambda lo, t: _picked(
            lo.log_softmax(1)[:, :-1], t[:, 1:]
        ),
        "that is the likeliest token's; look up the one that "
        "stands there, with gather": lambda lo, t: lo[:, :-1].log_softmax(-1).amax(-1),
    },
    success="right: of every token but the first, which nobody guesses",
)


def sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """student(logprobs (B, R), mask (B, R)) -> nats per answer token, a scalar.

    The mask is 1 on the tokens of answers and on their ends, 0 on all others.
    """
    return losses.sft_loss(logprobs, mask)


def _by_rows(logprobs: Tensor, mask: Tensor) -> Tensor:
    return -((logprobs * mask).sum(1) / mask.sum(1)).mean()


def _without_end(logprobs: Tensor, mask: Tensor) -> Tensor:
    still_to_come = mask.flip(1).cumsum(1).flip(1)
    return sft_loss(logprobs, mask * (still_to_come > 1))


check_sft_loss = Check(
    sft_loss,
    cases=[
        {
            "logprobs": numbers([-0.3, -1.2, -0.1, -2.0], [-0.7, -0.2, -4.0, -5.0]),
            "mask": numbers([1, 1, 1, 1], [1, 1, 0, 0]),
        },
        {
            "logprobs": numbers([-3.0, -0.4, -1.5], [-6.0, -2.5, -0.9], [-0.8, -0.6, -7.0]),
            "mask": numbers([0, 1, 1], [0, 0, 1], [1, 1, 0]),
        },
    ],
    mistakes={
        "the minus is missing: a loss goes down, a log-likelihood should go up": lambda x, m: (
            -sft_loss(x, m)
        ),
        "the mask has no effect: prompt and padding are scored too": lambda x, m: -x.mean(),
        "the wrong way round: this scores what the mask leaves out": lambda x, m: sft_loss(
            x, 1 - m
        ),
        "you divide by all places; divide by the number of scored ones, or "
        "padding makes a smaller loss": lambda x, m: -(x * m).mean(),
        "a sum: divide by the number of scored tokens, "
        "or the step grows with the batch": lambda x, m: -(x * m).sum(),
        "you divide by the number of rows; divide by the number of scored tokens": lambda x, m: (
            -(x * m).sum() / len(x)
        ),
        "a mean of the rows' means: a token of a short answer counts more than "
        "one of a long answer. Divide the whole sum by the whole count": _by_rows,
        "probabilities: the likelihood of a text is their product, so add up "
        "logarithms": lambda x, m: -(x.exp() * m).sum() / m.sum(),
        "one number for each row: take one for the batch": lambda x, m: -(x * m).sum(1) / m.sum(1),
        "the end of each answer is left out: "
        "the mask has a 1 there, and without it the model never learns to stop": _without_end,
    },
    success="right: equal to rlhf_edu.losses.sft_loss, and fit for train_sft(loss=…)",
    learns=("logprobs",),
)


def _parts(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return x @ w.T, x @ a.T @ b.T


def lora(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """student(x (N, i), W (o, i), A (r, i), B (o, r), alpha) -> outputs (N, o) of a LoRA layer."""
    frozen, added = _parts(x, w, a, b)
    return frozen + alpha / len(a) * added


def _scaled(factor: Callable[[float, int], float]) -> Callable[..., Tensor]:
    def wrong(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
        frozen, added = _parts(x, w, a, b)
        return frozen + factor(alpha, len(a)) * added

    return wrong


_random = torch.Generator().manual_seed(4)


def _case(n: int, i: int, o: int, r: int, alpha: float) -> Case:
    shapes = {"x": (n, i), "W": (o, i), "A": (r, i), "B": (o, r)}
    made = {
        name: torch.randn(shape, generator=_random, dtype=torch.float64).round(decimals=1)
        for name, shape in shapes.items()
    }
    return made | {"alpha": alpha}


check_lora = Check(
    lora,
    cases=[_case(2, 3, 3, 2, 4.0), _case(1, 3, 3, 1, 3.0)],
    mistakes={
        "the factor alpha / r is missing in front of the low-rank part": _scaled(
            lambda alpha, r: 1.0
        ),
        "the low-rank part is scaled by alpha alone; "
        "divide by the rank r, which is the number of rows of A": _scaled(lambda alpha, r: alpha),
        "you divide by the width of the layer; r is the number of rows of A": _scaled(
            lambda alpha, r: alpha / 3
        ),
        "the low-rank part has no effect": _scaled(lambda alpha, r: 0.0),
        "the frozen weights are missing: LoRA adds to them": lambda x, w, a, b, alpha: (
            alpha / len(a) * _parts(x, w, a, b)[1]
        ),
        "alpha / r belongs to the low-rank part alone; here it scales "
        "the frozen one too": lambda x, w, a, b, alpha: alpha / len(a) * sum(_parts(x, w, a, b)),
        "W is (outputs, inputs), as in nn.Linear: x @ W.T": lambda x, w, a, b, alpha: (
            x @ w + alpha / len(a) * _parts(x, w, a, b)[1]
        ),
        "W is (outputs, inputs), as in nn.Linear: x @ (W + ...).T": lambda x, w, a, b, alpha: (
            x @ (w + alpha / len(a) * b @ a)
        ),
    },
    success="right: B starts at zero, so training starts at the frozen model exactly",
)


def lora_size(matrices: int, inputs: int, outputs: int, rank: int) -> int:
    """student(matrices, inputs, outputs, rank) -> number of weights that LoRA trains."""
    return matrices * rank * (inputs + outputs)


check_lora_size = Check(
    lora_size,
    cases=[
        {"matrices": 2 * 96, "inputs": 12_288, "outputs": 12_288, "rank": 1},
        {"matrices": 4, "inputs": 128, "outputs": 344, "rank": 8},
        {"matrices": 1, "inputs": 10, "outputs": 30, "rank": 2},
    ],
    mistakes={
        "that is all of the weights, as in full fine-tuning: "
        "the rank has no part in it": lambda m, i, o, r: m * i * o,
        "A is (rank, inputs) and B is (outputs, rank): "
        "add their sizes, do not multiply": lambda m, i, o, r: m * r * i * o,
        "only A is counted; B has outputs x rank more": lambda m, i, o, r: m * r * i,
        "only B is counted; A has rank x inputs more": lambda m, i, o, r: m * r * o,
        "that is one matrix; there are more": lambda m, i, o, r: r * (i + o),
        "the rank has no effect": lambda m, i, o, r: m * (i + o),
        "the frozen weights are counted too; they get no gradient": lambda m, i, o, r: (
            m * (i * o + r * (i + o))
        ),
    },
    success="right: it grows with the width, where full fine-tuning grows with its square",
)
