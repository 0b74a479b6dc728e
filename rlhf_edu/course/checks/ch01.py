"""Checks of chapter 01: language models and prompting."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu.course.checks import Case, Mistake, Result, check, numbers


def check_next_token_loss(student: Callable[..., Any]) -> Result:
    """student(logits (T, V), ids (T,)) -> mean loss of the next tokens, nats."""

    def right(logits: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(logits[:-1], ids[1:])

    def probabilities(logits: Tensor, ids: Tensor) -> Tensor:
        return logits[:-1].softmax(-1).gather(1, ids[1:, None])

    random = torch.Generator().manual_seed(0)
    cases: list[Case] = [
        {
            "logits": 2 * torch.randn(len(ids), words, generator=random, dtype=torch.float64),
            "ids": torch.tensor(ids),
        }
        for words, ids in ((4, [1, 3, 0, 2, 2]), (6, [5, 0, 0, 4]))
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda x, ids: F.cross_entropy(x, ids),
                "no shift: the logits at place t have read token t already. They are a guess of "
                "token t + 1, so compare logits[:-1] with ids[1:]",
            ),
            Mistake(
                lambda x, ids: F.cross_entropy(x[1:], ids[:-1]),
                "the shift goes the wrong way: this asks for the token before, which has been read",
            ),
            Mistake(
                lambda x, ids: F.cross_entropy(x[:-1], ids[1:], reduction="sum"),
                "a sum instead of a mean: long pages would count as badly guessed ones",
            ),
            Mistake(
                lambda x, ids: right(x, ids) / torch.log(numbers(2.0))[0],
                "these are bits, with the logarithm to base 2; nats have the natural one",
            ),
            Mistake(
                lambda x, ids: -right(x, ids),
                "the minus is missing: a logarithm of a probability is negative, a loss is not",
            ),
            Mistake(
                lambda x, ids: 1 - probabilities(x, ids).mean(),
                "probabilities without the logarithm: a token held impossible would cost 1 only",
            ),
            Mistake(
                lambda x, ids: -probabilities(x, ids).mean().log(),
                "the logarithm of the mean; it must be the mean of the logarithms",
            ),
            Mistake(
                lambda x, ids: -x[:-1].gather(1, ids[1:, None]).mean(),
                "logits are not log-probabilities yet: log_softmax first",
            ),
            Mistake(
                lambda x, ids: F.cross_entropy(x[-2:-1], ids[-1:]),
                "only the last token is scored; every token of a page is a lesson",
            ),
        ],
        "right: this number is all that a language model is ever told",
    )


def check_causal_mask(student: Callable[..., Any]) -> Result:
    """student(length) -> (T, T), 1 where place i may look at place j."""

    def right(length: int) -> Tensor:
        return torch.ones(length, length).tril()

    return check(
        student,
        right,
        [{"length": 4}, {"length": 7}],
        [
            Mistake(
                lambda n: torch.ones(n, n).triu(),
                "the other triangle: rows look, columns are seen. Like this a place sees itself "
                "and the future",
            ),
            Mistake(
                lambda n: torch.ones(n, n).tril(-1),
                "the diagonal is missing: the token at t is known when t + 1 is guessed, and the "
                "first place would see nothing at all",
            ),
            Mistake(
                lambda n: torch.ones(n, n).triu(1),
                "upside down: this marks what is hidden; 1 means may be seen",
            ),
            Mistake(
                lambda n: torch.ones(n, n),
                "everybody sees everything: that is BERT's mask, and the answer leaks",
            ),
            Mistake(
                lambda n: torch.eye(n),
                "every place sees only itself: it would guess from the last token alone",
            ),
            Mistake(
                lambda n: torch.full((n, n), -torch.inf).triu(1),
                "this is what is added to the attention scores, 0 or minus infinity; here 1 and 0 "
                "are wanted",
            ),
        ],
        "right: what is behind may be seen, what is ahead may not",
    )


def check_parameters(student: Callable[..., Any]) -> Result:
    """student(layers, width, vocabulary) -> parameters of a GPT without biases and norms."""

    def right(layers: int, width: int, vocabulary: int) -> float:
        return 12 * layers * width**2 + vocabulary * width

    cases: list[Case] = [
        {"layers": layers, "width": width, "vocabulary": vocabulary}
        for layers, width, vocabulary in (
            (12, 768, 40_478),
            (48, 1_600, 50_257),
            (96, 12_288, 50_257),
        )
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda n, d, v: 12 * n * d**2, "the embedding is missing: V rows of d numbers each"
            ),
            Mistake(
                lambda n, d, v: 12 * n * d**2 + 2 * v * d,
                "the embedding is counted twice: GPTs use the same matrix at the way in and out",
            ),
            Mistake(
                lambda n, d, v: 4 * n * d**2 + v * d,
                "only attention is counted: the two matrices of d x 4d behind it are missing",
            ),
            Mistake(
                lambda n, d, v: 8 * n * d**2 + v * d,
                "only the network behind attention is counted: the four matrices of d x d are "
                "missing",
            ),
            Mistake(
                lambda n, d, v: 12 * d**2 + v * d,
                "that is one layer: there are L of them",
            ),
            Mistake(
                lambda n, d, v: 6 * n * d**2 + v * d,
                "the two matrices of d x 4d count as d x d: 4 + 2 * 4 makes 12, not 6",
            ),
            Mistake(
                lambda n, d, v: n * (12 * d**2 + v * d),
                "the embedding is counted in every layer; there is one",
            ),
        ],
        "right: twelve times layers times width squared, and the embedding, which hardly matters "
        "for GPT-3",
    )


def check_option_probabilities(student: Callable[..., Any]) -> Result:
    """student(logprobs (N, R), mask (N, R)) -> probabilities (N,) of N options, adding up to 1."""

    def right(logprobs: Tensor, mask: Tensor) -> Tensor:
        return (logprobs * mask).sum(-1).softmax(-1)

    cases: list[Case] = [
        {
            "logprobs": numbers([-0.5, -1.0, -3.0], [-1.2, -0.4, -0.1], [-2.0, -0.3, -0.2]),
            "mask": numbers([1, 1, 0], [1, 0, 0], [1, 1, 1]),
        },
        {
            "logprobs": numbers([-0.1, -2.0], [-1.0, -0.5]),
            "mask": numbers([1, 1], [1, 0]),
        },
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda x, m: ((x * m).sum(-1) / m.sum(-1)).softmax(-1),
                "a mean over the tokens: that is another question, how likely the option is per "
                "token. The probability of a text is a product, so add up",
            ),
            Mistake(
                lambda x, m: x.sum(-1).softmax(-1),
                "padding is scored too: multiply by the mask before you add up",
            ),
            Mistake(
                lambda x, m: x[:, 0].softmax(-1),
                "only the first token of each option is scored",
            ),
            Mistake(
                lambda x, m: (x * m).sum(-1).exp(),
                "these do not add up to 1: the model may say something else than any option, so "
                "divide by their sum",
            ),
            Mistake(
                lambda x, m: (x * m).sum(-1) / (x * m).sum(),
                "log-probabilities are divided: exp comes first, then the share",
            ),
            Mistake(
                lambda x, m: (x.exp() * m).sum(-1) / (x.exp() * m).sum(),
                "probabilities of the tokens are added; they must be multiplied, that is, their "
                "logarithms added",
            ),
        ],
        "right: this is how most multiple-choice tests of language models are scored",
    )
