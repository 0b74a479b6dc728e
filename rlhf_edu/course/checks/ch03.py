"""Checks of chapter 03: supervised fine-tuning."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers

IGNORE = -100  # what PyTorch's cross_entropy leaves out


def check_labels(student: Callable[..., Any]) -> Result:
    """student(prompt, answer, end) -> labels of the row prompt + answer + [end], a list.

    Token ids; -100 where nothing is scored. Not shifted: the model does that.
    """

    def right(prompt: list[int], answer: list[int], end: int) -> list[int]:
        return [IGNORE] * len(prompt) + answer + [end]

    cases: list[Case] = [
        {"prompt": [1, 40, 7, 12], "answer": [7, 33], "end": 2},
        {"prompt": [1, 2, 9], "answer": [40, 2, 8, 5], "end": 2},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda p, a, e: p + a + [e],
                "the prompt is scored too: the model would learn to write what customers write",
            ),
            Mistake(
                lambda p, a, e: right(p, a, e)[:-1],
                "the end is missing: a model that never sees an end never stops. The row is "
                "prompt + answer + [end], and so are its labels",
            ),
            Mistake(
                lambda p, a, e: right(p, a, e)[:-1] + [IGNORE],
                "the end is there and is not scored: the model would not learn to stop",
            ),
            Mistake(
                lambda p, a, e: [IGNORE] * (len(p) - 1) + a + [e, IGNORE],
                "these labels are shifted by one already. The model shifts them itself, so it "
                "would learn to guess the token after the next",
            ),
            Mistake(
                lambda p, a, e: [0] * len(p) + a + [e],
                "0 is a token like any other; what is not scored is marked by -100",
            ),
            Mistake(
                lambda p, a, e: [IGNORE if t == e else t for t in right(p, a, e)],
                "every token that equals the end is masked: go by places, not by ids, or the "
                "model never learns to stop (the usual bug where padding is the end token)",
            ),
            Mistake(
                lambda p, a, e: a + [e],
                "labels are as long as the row: put a -100 for each token of the prompt",
            ),
            Mistake(
                lambda p, a, e: p + [IGNORE] * len(a) + [e],
                "the wrong way round: you score the prompt and leave out the answer",
            ),
            Mistake(
                lambda p, a, e: [int(label != IGNORE) for label in right(p, a, e)],
                "that is a mask, 1 where a token is scored; labels say which token is wanted there",
            ),
        ],
        "right: the answer and its end are scored, the prompt is read",
    )


def check_sft_loss(student: Callable[..., Any]) -> Result:
    """student(logits (B, T, V), tokens (B, T), mask (B, T)) -> nats per answer token.

    The logits are as the model returns them; the mask is 1 on answers with their ends.
    """

    def shifted(logits: Tensor, tokens: Tensor) -> Tensor:
        return losses.token_logprobs(logits[:, :-1], tokens[:, 1:])

    def right(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return losses.ptx_loss(logits, tokens, mask)

    def by_rows(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        found, m = shifted(logits, tokens), mask[:, 1:]
        return -((found * m).sum(1) / m.sum(1)).mean()

    def twice(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        found = losses.token_logprobs(logits[:, :-2], tokens[:, 2:])
        return -(found * mask[:, 2:]).sum() / mask[:, 2:].sum()

    def same_place(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return -(losses.token_logprobs(logits, tokens) * mask).sum() / mask.sum()

    random = torch.Generator().manual_seed(3)
    cases: list[Case] = [
        {
            "logits": torch.randn(2, 6, 5, generator=random, dtype=torch.float64),
            "tokens": torch.tensor([[1, 3, 4, 0, 3, 2], [1, 4, 4, 3, 2, 0]]),
            "mask": torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]),
        },
        {
            "logits": torch.randn(3, 4, 5, generator=random, dtype=torch.float64),
            "tokens": torch.tensor([[1, 3, 4, 2], [1, 0, 2, 0], [1, 4, 3, 2]]),
            "mask": torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]]),
        },
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda lo, t, m: -right(lo, t, m),
                "the minus is missing: a loss goes down, a log-likelihood should go up",
            ),
            Mistake(
                same_place,
                "nothing is shifted: the logits at a place have read its token already; they are a "
                "guess of the *next* one. Pair logits[:, :-1] with tokens[:, 1:]",
            ),
            Mistake(
                twice,
                "shifted twice: this is a guess of the token after the next",
            ),
            Mistake(
                lambda lo, t, m: -(shifted(lo, t) * m[:, :-1]).sum() / m[:, :-1].sum(),
                "the mask is not shifted with the tokens: it scores the prompt's last token and "
                "leaves out the end. Use mask[:, 1:]",
            ),
            Mistake(
                lambda lo, t, m: -shifted(lo, t).mean(),
                "the mask has no effect: prompt and padding are scored too",
            ),
            Mistake(
                lambda lo, t, m: -(shifted(lo, t) * m[:, 1:]).mean(),
                "you divide by all places; divide by the number of scored ones, or longer prompts "
                "make a smaller loss",
            ),
            Mistake(
                lambda lo, t, m: -(shifted(lo, t) * m[:, 1:]).sum(),
                "a sum: divide by the number of scored tokens, or the step grows with the batch",
            ),
            Mistake(
                lambda lo, t, m: -(shifted(lo, t) * m[:, 1:]).sum() / len(t),
                "you divide by the number of rows; divide by the number of scored tokens",
            ),
            Mistake(
                by_rows,
                "a mean of the rows' means: a token of a short answer counts more than one of a "
                "long answer. Divide the whole sum by the whole count",
            ),
            Mistake(
                lambda lo, t, m: -(shifted(lo, t).exp() * m[:, 1:]).sum() / m[:, 1:].sum(),
                "probabilities: the likelihood of a text is their product, so take logarithms",
            ),
            Mistake(
                lambda lo, t, m: (
                    -(lo[:, :-1].gather(-1, t[:, 1:, None]).squeeze(-1) * m[:, 1:]).sum()
                    / m[:, 1:].sum()
                ),
                "these are raw logits: a log_softmax is missing, so nothing pushes other tokens "
                "down",
            ),
        ],
        "right: equal to rlhf_edu.losses, and to what all of this chapter trains with",
    )


def check_two_kls(student: Callable[..., Any]) -> Result:
    """student(p (A,), q (A,)) -> (KL(p || q), KL(q || p)), in nats; p: people, q: the model."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    def pair(first: Any, second: Any) -> Tensor:
        return torch.stack([torch.as_tensor(first), torch.as_tensor(second)])

    def right(p: Tensor, q: Tensor) -> Tensor:
        return pair(kl(p, q), kl(q, p))

    def given(p: Tensor, q: Tensor) -> Any:
        answer = student(p, q)  # a pair of numbers is as good as one of tensors
        is_pair = isinstance(answer, (tuple, list)) and len(answer) == 2
        return pair(*answer) if is_pair else answer

    cases: list[Case] = [
        {"p": numbers(0.5, 0.4, 0.1), "q": numbers(0.2, 0.2, 0.6)},
        {"p": numbers(0.1, 0.2, 0.3, 0.4), "q": numbers(0.05, 0.45, 0.4, 0.1)},
    ]
    return check(
        given,
        right,
        cases,
        [
            Mistake(
                lambda p, q: right(q, p),
                "the two are exchanged: the first, forward one averages under people's p",
            ),
            Mistake(
                lambda p, q: -right(p, q),
                "the sign: a KL divergence is never negative. log(p / q), not log(q / p)",
            ),
            Mistake(
                lambda p, q: pair(-(p * q.log()).sum(), -(q * p.log()).sum()),
                "that is the cross-entropy: the loss of SFT. KL subtracts what nobody can avoid, "
                "the entropy of the answers themselves",
            ),
            Mistake(
                lambda p, q: pair((p / q).log().sum(), (q / p).log().sum()),
                "the weights are missing: each log-ratio counts as often as its answer comes",
            ),
            Mistake(
                lambda p, q: pair((p / q).log().mean(), (q / p).log().mean()),
                "a plain mean: each log-ratio counts as often as its answer comes",
            ),
            Mistake(
                lambda p, q: pair(kl(p, q), kl(p, q)),
                "both are the same direction; the second averages under the model's q",
            ),
            Mistake(
                lambda p, q: pair((p * (p / q)).sum(), (q * (q / p)).sum()),
                "the logarithm is missing",
            ),
            Mistake(
                lambda p, q: kl(p, q),
                "only one of the two: return a pair",
            ),
        ],
        "right: the first is what SFT makes small, the second comes back in chapter 06",
    )


def check_lora(student: Callable[..., Any]) -> Result:
    """student(x (N, i), W (o, i), A (r, i), B (o, r), alpha) -> outputs (N, o) of a LoRA layer."""

    def parts(x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return x @ w.T, x @ a.T @ b.T

    def right(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
        frozen, added = parts(x, w, a, b)
        return frozen + alpha / len(a) * added

    def scaled(factor: Callable[[float, int], float]) -> Callable[..., Tensor]:
        def wrong(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
            frozen, added = parts(x, w, a, b)
            return frozen + factor(alpha, len(a)) * added

        return wrong

    random = torch.Generator().manual_seed(4)

    def case(n: int, i: int, o: int, r: int, alpha: float) -> Case:
        shapes = {"x": (n, i), "W": (o, i), "A": (r, i), "B": (o, r)}
        made = {
            name: torch.randn(shape, generator=random, dtype=torch.float64).round(decimals=1)
            for name, shape in shapes.items()
        }
        return made | {"alpha": alpha}

    return check(
        student,
        right,
        [case(2, 3, 3, 2, 4.0), case(1, 3, 3, 1, 3.0)],
        [
            Mistake(
                scaled(lambda alpha, r: 1.0),
                "the factor alpha / r is missing in front of the low-rank part",
            ),
            Mistake(
                scaled(lambda alpha, r: alpha),
                "the low-rank part is scaled by alpha alone; divide by the rank r, which is the "
                "number of rows of A",
            ),
            Mistake(
                scaled(lambda alpha, r: alpha / 3),
                "you divide by the width of the layer; r is the number of rows of A",
            ),
            Mistake(
                scaled(lambda alpha, r: 0.0),
                "the low-rank part has no effect",
            ),
            Mistake(
                lambda x, w, a, b, alpha: alpha / len(a) * parts(x, w, a, b)[1],
                "the frozen weights are missing: LoRA adds to them",
            ),
            Mistake(
                lambda x, w, a, b, alpha: alpha / len(a) * sum(parts(x, w, a, b)),
                "alpha / r belongs to the low-rank part alone; here it scales the frozen one too",
            ),
            Mistake(
                lambda x, w, a, b, alpha: x @ w + alpha / len(a) * parts(x, w, a, b)[1],
                "W is (outputs, inputs), as in nn.Linear: x @ W.T",
            ),
            Mistake(
                lambda x, w, a, b, alpha: x @ (w + alpha / len(a) * b @ a),
                "W is (outputs, inputs), as in nn.Linear: x @ (W + ...).T",
            ),
        ],
        "right: B starts at zero, so training starts at the frozen model exactly",
    )


def check_lora_size(student: Callable[..., Any]) -> Result:
    """student(matrices, inputs, outputs, rank) -> number of weights that LoRA trains."""

    def right(matrices: int, inputs: int, outputs: int, rank: int) -> int:
        return matrices * rank * (inputs + outputs)

    names = ("matrices", "inputs", "outputs", "rank")
    cases: list[Case] = [
        dict(zip(names, sizes, strict=True))
        for sizes in ((2 * 96, 12288, 12288, 1), (4, 128, 344, 8), (1, 10, 30, 2))
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda m, i, o, r: m * i * o,
                "that is all of the weights, as in full fine-tuning: the rank has no part in it",
            ),
            Mistake(
                lambda m, i, o, r: m * r * i * o,
                "A is (rank, inputs) and B is (outputs, rank): add their sizes, do not multiply",
            ),
            Mistake(
                lambda m, i, o, r: m * r * i,
                "only A is counted; B has outputs x rank more",
            ),
            Mistake(
                lambda m, i, o, r: m * r * o,
                "only B is counted; A has rank x inputs more",
            ),
            Mistake(
                lambda m, i, o, r: r * (i + o),
                "that is one matrix; there are more",
            ),
            Mistake(
                lambda m, i, o, r: m * (i + o),
                "the rank has no effect",
            ),
            Mistake(
                lambda m, i, o, r: m * (i * o + r * (i + o)),
                "the frozen weights are counted too; they get no gradient",
            ),
        ],
        "right: it grows with the width, where full fine-tuning grows with its square",
    )
