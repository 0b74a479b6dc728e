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


def _shifted(logits: Tensor, tokens: Tensor) -> Tensor:
    return losses.token_logprobs(logits[:, :-1], tokens[:, 1:])


def sft_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """student(logits (B, T, V), tokens (B, T), mask (B, T)) -> nats per answer token.

    The logits are as the model returns them; the mask is 1 on answers with their ends.
    """
    return losses.ptx_loss(logits, tokens, mask)


def _by_rows(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    found, m = _shifted(logits, tokens), mask[:, 1:]
    return -((found * m).sum(1) / m.sum(1)).mean()


def _twice(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    found = losses.token_logprobs(logits[:, :-2], tokens[:, 2:])
    return -(found * mask[:, 2:]).sum() / mask[:, 2:].sum()


def _without_end(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    still_to_come = mask.flip(1).cumsum(1).flip(1)
    return sft_loss(logits, tokens, mask * (still_to_come > 1))


def _same_place(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return -(losses.token_logprobs(logits, tokens) * mask).sum() / mask.sum()


_random = torch.Generator().manual_seed(3)


check_sft_loss = Check(
    sft_loss,
    cases=[
        {
            "logits": torch.randn(2, 6, 5, generator=_random, dtype=torch.float64),
            "tokens": torch.tensor([[1, 3, 4, 0, 3, 2], [1, 4, 4, 3, 2, 0]]),
            "mask": torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]),
        },
        {
            "logits": torch.randn(3, 4, 5, generator=_random, dtype=torch.float64),
            "tokens": torch.tensor([[1, 3, 4, 2], [1, 0, 2, 0], [1, 4, 3, 2]]),
            "mask": torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]]),
        },
    ],
    mistakes={
        "the minus is missing: a loss goes down, a log-likelihood should go up": lambda lo, t, m: (
            -sft_loss(lo, t, m)
        ),
        "nothing is shifted: the logits at a place have read its token already; "
        "they are a guess of the *next* one. Pair logits[:, :-1] with tokens[:, 1:]": _same_place,
        "shifted twice: this is a guess of the token after the next": _twice,
        "the mask is not shifted with the tokens: "
        "it scores the prompt's last token and leaves out the end. "
        "Use mask[:, 1:]": lambda lo, t, m: -(_shifted(lo, t) * m[:, :-1]).sum() / m[:, :-1].sum(),
        "the mask has no effect: prompt and padding are scored too": lambda lo, t, m: (
            -_shifted(lo, t).mean()
        ),
        "you divide by all places; divide by the number of scored ones, or "
        "longer prompts make a smaller loss": lambda lo, t, m: -(_shifted(lo, t) * m[:, 1:]).mean(),
        "a sum: divide by the number of scored tokens, "
        "or the step grows with the batch": lambda lo, t, m: -(_shifted(lo, t) * m[:, 1:]).sum(),
        "you divide by the number of rows; divide by the "
        "number of scored tokens": lambda lo, t, m: -(_shifted(lo, t) * m[:, 1:]).sum() / len(t),
        "a mean of the rows' means: a token of a short answer counts more than "
        "one of a long answer. Divide the whole sum by the whole count": _by_rows,
        "probabilities: the likelihood of a text is their product, so take "
        "logarithms": lambda lo, t, m: -(_shifted(lo, t).exp() * m[:, 1:]).sum() / m[:, 1:].sum(),
        "these are raw logits: a log_softmax is missing, "
        "so nothing pushes other tokens down": lambda lo, t, m: (
            -(lo[:, :-1].gather(-1, t[:, 1:, None]).squeeze(-1) * m[:, 1:]).sum() / m[:, 1:].sum()
        ),
        "the end of each answer is left out: "
        "the mask has a 1 there, and without it the model never learns to stop": _without_end,
    },
    success="right: equal to rlhf_edu.losses, and to what all of this chapter trains with",
    learns=("logits",),
)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum()


def two_kls(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """student(p (A,), q (A,)) -> (KL(p || q), KL(q || p)), in nats; p: people, q: the model."""
    return _kl(p, q), _kl(q, p)


check_two_kls = Check(
    two_kls,
    cases=[
        {"p": numbers(0.5, 0.4, 0.1), "q": numbers(0.2, 0.2, 0.6)},
        {"p": numbers(0.1, 0.2, 0.3, 0.4), "q": numbers(0.05, 0.45, 0.4, 0.1)},
    ],
    mistakes={
        "the two are exchanged: the first, forward one averages under people's p": lambda p, q: (
            two_kls(q, p)
        ),
        "the sign: a KL divergence is never negative. log(p / q), not log(q / p)": lambda p, q: (
            (-_kl(p, q), -_kl(q, p))
        ),
        "that is the cross-entropy: the loss of SFT. "
        "KL subtracts what nobody can avoid, the entropy "
        "of the answers themselves": lambda p, q: (-(p * q.log()).sum(), -(q * p.log()).sum()),
        "the weights are missing: each log-ratio counts as "
        "often as its answer comes": lambda p, q: ((p / q).log().sum(), (q / p).log().sum()),
        "a plain mean: each log-ratio counts as often as its answer comes": lambda p, q: (
            (p / q).log().mean(),
            (q / p).log().mean(),
        ),
        "both are the same direction; the second averages under the model's q": lambda p, q: (
            _kl(p, q),
            _kl(p, q),
        ),
        "the logarithm is missing": lambda p, q: ((p * (p / q)).sum(), (q * (q / p)).sum()),
        "only one of the two: return a pair": lambda p, q: _kl(p, q),
    },
    success="right: the first is what SFT makes small, the second comes back in chapter 06",
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
