"""Checks of chapter 01: language models and prompting."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu.course.checks import Check, numbers


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """student(logits (T, V), ids (T,)) -> mean loss of the next tokens, nats."""
    return F.cross_entropy(logits[:-1], ids[1:])


def _probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    return logits[:-1].softmax(-1).gather(1, ids[1:, None])


_random = torch.Generator().manual_seed(0)


check_next_token_loss = Check(
    next_token_loss,
    cases=[
        {
            "logits": 2 * torch.randn(len(ids), words, generator=_random, dtype=torch.float64),
            "ids": torch.tensor(ids),
        }
        for words, ids in ((4, [1, 3, 0, 2, 2]), (6, [5, 0, 0, 4]))
    ],
    mistakes={
        "no shift: the logits at place t have read token t already. They are a guess of "
        "token t + 1, so compare logits[:-1] with ids[1:]": lambda x, ids: F.cross_entropy(x, ids),
        "the shift goes the wrong way: this asks for the token before, "
        "which has been read": lambda x, ids: F.cross_entropy(x[1:], ids[:-1]),
        "a sum instead of a mean: long pages would count as badly guessed ones": lambda x, ids: (
            F.cross_entropy(x[:-1], ids[1:], reduction="sum")
        ),
        "these are bits, with the logarithm to base 2; nats have the natural one": lambda x, ids: (
            next_token_loss(x, ids) / math.log(2)
        ),
        "the minus is missing: a logarithm of a probability is negative, "
        "a loss is not": lambda x, ids: -next_token_loss(x, ids),
        "probabilities without the logarithm: a "
        "token held impossible would cost 1 only": lambda x, ids: 1 - _probabilities(x, ids).mean(),
        "the logarithm of the mean; it must be the mean of the logarithms": lambda x, ids: (
            -_probabilities(x, ids).mean().log()
        ),
        "logits are not log-probabilities yet: log_softmax first": lambda x, ids: (
            -x[:-1].gather(1, ids[1:, None]).mean()
        ),
        "only the last token is scored; every token of a page is a lesson": lambda x, ids: (
            F.cross_entropy(x[-2:-1], ids[-1:])
        ),
        "roll brings the first token round to the end, where nothing comes next: "
        "leave out the last logits, logits[:-1]": lambda x, ids: F.cross_entropy(x, ids.roll(-1)),
        "that is the perplexity, e to the power of the loss: leave out the exp": lambda x, ids: (
            next_token_loss(x, ids).exp()
        ),
        "you divide by T: of T tokens all but the first are guessed, so "
        "there are T - 1 terms": lambda x, ids: next_token_loss(x, ids) * (len(ids) - 1) / len(ids),
    },
    success="right: this number is all that a language model is ever told",
    learns=("logits",),
)


def causal_mask(length: int) -> Tensor:
    """student(length) -> (T, T), 1 where place i may look at place j."""
    return torch.ones(length, length).tril()


check_causal_mask = Check(
    causal_mask,
    cases=[{"length": 4}, {"length": 7}],
    mistakes={
        "the other triangle: rows look, columns are seen. "
        "Like this a place sees itself and the future": lambda n: torch.ones(n, n).triu(),
        "the diagonal is missing: the token at t is known when t + 1 is guessed, "
        "and the first place would see nothing at all": lambda n: torch.ones(n, n).tril(-1),
        "upside down: this marks what is hidden; 1 means may be seen": lambda n: torch.ones(
            n, n
        ).triu(1),
        "everybody sees everything: that is BERT's mask, and the answer leaks": lambda n: (
            torch.ones(n, n)
        ),
        "every place sees only itself: it would guess from the last token alone": lambda n: (
            torch.eye(n)
        ),
        "this is what is added to the attention scores, 0 or minus infinity; "
        "here 1 and 0 are wanted": lambda n: torch.full((n, n), -torch.inf).triu(1),
    },
    success="right: what is behind may be seen, what is ahead may not",
)


def parameters(layers: int, width: int, vocabulary: int) -> float:
    """student(layers, width, vocabulary) -> parameters of a GPT without biases and norms."""
    return 12 * layers * width**2 + vocabulary * width


check_parameters = Check(
    parameters,
    cases=[
        {"layers": 12, "width": 768, "vocabulary": 40_478},
        {"layers": 48, "width": 1_600, "vocabulary": 50_257},
        {"layers": 96, "width": 12_288, "vocabulary": 50_257},
    ],
    mistakes={
        "the embedding is missing: V rows of d numbers each": lambda n, d, v: 12 * n * d**2,
        "the embedding is counted twice: "
        "GPTs use the same matrix at the way in and out": lambda n, d, v: 12 * n * d**2 + 2 * v * d,
        "only attention is counted: the two matrices "
        "of d x 4d behind it are missing": lambda n, d, v: 4 * n * d**2 + v * d,
        "only the network behind attention is counted: "
        "the four matrices of d x d are missing": lambda n, d, v: 8 * n * d**2 + v * d,
        "that is one layer: there are L of them": lambda n, d, v: 12 * d**2 + v * d,
        "the two matrices of d x 4d count as d x d: 4 + 2 * 4 makes 12, not 6": lambda n, d, v: (
            6 * n * d**2 + v * d
        ),
        "the embedding is counted in every layer; there is one": lambda n, d, v: (
            n * (12 * d**2 + v * d)
        ),
    },
    success=(
        "right: twelve times layers times width squared, and the embedding, "
        "which hardly matters for GPT-3"
    ),
)


def option_probabilities(logprobs: Tensor, mask: Tensor) -> Tensor:
    """student(logprobs (N, R), mask (N, R)) -> probabilities (N,) of N options, adding up to 1."""
    return (logprobs * mask).sum(-1).softmax(-1)


check_option_probabilities = Check(
    option_probabilities,
    cases=[
        {
            "logprobs": numbers([-0.5, -1.0, -3.0], [-1.2, -0.4, -0.1], [-2.0, -0.3, -0.2]),
            "mask": numbers([1, 1, 0], [1, 0, 0], [1, 1, 1]),
        },
        {"logprobs": numbers([-0.1, -2.0], [-1.0, -0.5]), "mask": numbers([1, 1], [1, 0])},
    ],
    mistakes={
        "a mean over the tokens: that is another question, how likely the option is per token. "
        "The probability of a text is a product, "
        "so add up": lambda x, m: ((x * m).sum(-1) / m.sum(-1)).softmax(-1),
        "padding is scored too: multiply by the mask before you add up": lambda x, m: x.sum(
            -1
        ).softmax(-1),
        "only the first token of each option is scored": lambda x, m: x[:, 0].softmax(-1),
        "these do not add up to 1: the model may say something else than any option, "
        "so divide by their sum": lambda x, m: (x * m).sum(-1).exp(),
        "log-probabilities are divided: exp comes first, then the share": lambda x, m: (
            (x * m).sum(-1) / (x * m).sum()
        ),
        "probabilities of the tokens are added; they must be multiplied, "
        "that is, their logarithms added": lambda x, m: (x.exp() * m).sum(-1) / (x.exp() * m).sum(),
    },
    success="right: this is how most multiple-choice tests of language models are scored",
)
