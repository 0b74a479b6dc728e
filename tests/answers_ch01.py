"""Right and wrong answers to the exercises of chapter 01; see test_exercises.py."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def loss_by_loop(logits, ids):
    total = 0.0
    for t in range(len(ids) - 1):
        total -= logits[t].log_softmax(0)[ids[t + 1]]
    return total / (len(ids) - 1)


def loss_by_gather(logits, ids):
    chosen = logits[:-1].gather(1, ids[1:, None]).squeeze(1)
    return (logits[:-1].logsumexp(1) - chosen).mean()


def loss_in_numpy(logits, ids):
    x = logits.numpy()[:-1]
    logprobs = x - np.log(np.exp(x).sum(1, keepdims=True))
    return float(-logprobs[np.arange(len(x)), ids.numpy()[1:]].mean())


def mask_by_lists(length):
    return [[1 if j <= i else 0 for j in range(length)] for i in range(length)]


def mask_by_cumsum(length):
    return torch.eye(length).cumsum(0).bool()


def parameters_by_matrices(layers, width, vocabulary):
    attention = 4 * width * width
    network = width * 4 * width + 4 * width * width
    return layers * (attention + network) + vocabulary * width


def parameters_by_sum(layers, width, vocabulary):
    return float(sum(12 * width**2 for _ in range(layers)) + vocabulary * width)


def options_by_product(logprobs, mask):
    p = torch.where(mask > 0, logprobs.exp(), torch.ones_like(logprobs)).prod(-1)
    return p / p.sum()


def options_by_loop(logprobs, mask):
    sums = []
    for row, keep in zip(logprobs.tolist(), mask.tolist(), strict=True):
        sums.append(math.exp(sum(x for x, k in zip(row, keep, strict=True) if k)))
    return [s / sum(sums) for s in sums]


RIGHT = {
    "check_next_token_loss": [loss_by_loop, loss_by_gather],
    "check_causal_mask": [mask_by_lists, mask_by_cumsum],
    "check_parameters": [parameters_by_matrices, parameters_by_sum],
    "check_option_probabilities": [options_by_product, options_by_loop],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_next_token_loss", lambda x, i: F.nll_loss(x.log_softmax(-1), i), "no shift"),
    ("check_next_token_loss", lambda x, i: loss_by_loop(x, i) * (len(i) - 1), "sum instead"),
    ("check_causal_mask", lambda n: torch.triu(torch.ones(n, n)), "other triangle"),
    ("check_causal_mask", lambda n: np.tril(np.ones((n, n)), -1), "diagonal is missing"),
    ("check_causal_mask", lambda n: torch.ones(n), "shape"),
    ("check_parameters", lambda n, d, v: n * 12 * d * d, "embedding is missing"),
    ("check_parameters", lambda n, d, v: n * 4 * d * d + v * d, "only attention"),
    ("check_option_probabilities", lambda x, m: (x * m).sum(1).exp(), "do not add up"),
    ("check_option_probabilities", lambda x, m: x.sum(1).softmax(0), "padding"),
    ("check_next_token_loss", loss_in_numpy, "numpy forgets the gradient"),
    (
        "check_next_token_loss",
        lambda x, i: loss_in_numpy(x.detach(), i),
        "no gradient reaches `logits`",
    ),
    (
        "check_next_token_loss",
        lambda x, i: loss_by_loop(x, i).item(),
        "no gradient reaches `logits`",
    ),
    ("check_next_token_loss", lambda x, i: loss_by_loop(x, i).exp().item(), "the perplexity"),
]
