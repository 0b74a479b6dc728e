"""Training as on paper: a row at a time, no padding, no shortcut, nothing from the trainers.

`test_by_hand.py` trains models with this and with the trainers, and compares. The formulas are
those of `losses.py`, which has tests of its own.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import tiny_models as tiny
import torch
from torch import Tensor

from rlhf_edu.losses import token_logprobs
from rlhf_edu.pretrain import pack

TOK = tiny.tokenizer()
BOS, EOS = 1, 2
BLOCKS = pack(TOK, tiny.TEXTS * 2, block=16)
ANSWERS = ("Yes!", "wet", "The hen is old.", "Is the cat wet?", "Old dog, old hen, old cat!")
TOLERANCE = 1e-5  # of a weight; one step moves most of them hundreds of times as far

llama = functools.partial(tiny.llama, num_hidden_layers=1)  # a layer is enough to be right or wrong

Plan = list[tuple[int, list[int]]]
Models = Sequence[torch.nn.Module]
Run = Iterator[tuple[Models, dict[str, float]]]  # after each update; {} where a step has more


# --- tokens, and what models say of them -------------------------------------------------------


def encode_prompt(text: str) -> list[int]:
    return [BOS, *TOK.encode(text + "\n")]


def encode_answer(text: str, ended: bool = True) -> list[int]:
    return TOK.encode(text) + [EOS] * ended


def logprobs(model, prompt: list[int], answer: list[int], temperature: float = 1.0) -> Tensor:
    """Log-probs (tokens,) of an answer: each token is predicted from the place before it."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids).logits[:, len(prompt) - 1 : -1]
    return token_logprobs(logits, ids[:, len(prompt) :], temperature)[0]


def values(critic, prompt: list[int], answer: list[int]) -> Tensor:
    """Values (tokens,) of a critic, each before its token is known."""
    return critic(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1, 0]


def score(reward_model, prompt: list[int], answer: list[int]) -> Tensor:
    """The score of an answer, read at its last token."""
    return reward_model(input_ids=torch.tensor([prompt + answer])).logits[0, -1, 0]


# --- batches, schedule, optimiser --------------------------------------------------------------


def chunks(rows: list, size: int) -> list[list]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def plan(lengths: Sequence[int], config: Any) -> Plan:
    """Epoch and rows of every batch. Rows are shuffled, sorted by length among eight batches at a
    time, and cut into batches, which are shuffled again."""
    random, result = torch.Generator().manual_seed(config.seed), []
    for epoch in range(config.epochs):
        shuffled = torch.randperm(len(lengths), generator=random).tolist()
        pools = [
            sorted(pool, key=lengths.__getitem__)
            for pool in chunks(shuffled, 8 * config.batch_size)
        ]
        batches = [batch for pool in pools for batch in chunks(pool, config.batch_size)]
        result += [(epoch, batches[i]) for i in torch.randperm(len(batches), generator=random)]
    return result


def warmup_cosine(step: int, steps: int, config: Any) -> float:
    """The learning rate: up in a line, then down half a cosine, to a tenth at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    way = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    return config.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * way)) / 2)


class Descent:
    """AdamW on clipped gradients; matrices decay, vectors do not."""

    def __init__(self, model, weight_decay: float = 0.0, betas=(0.9, 0.95), eps: float = 1e-8):
        self.weights = list(model.parameters())
        matrices = [weight for weight in self.weights if weight.dim() == 2]
        vectors = [weight for weight in self.weights if weight.dim() == 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]
        self.adam = torch.optim.AdamW(groups, weight_decay=0.0, betas=betas, eps=eps)

    def step(self, loss: Tensor, lr: float, max_norm: float) -> float:
        """Go down a loss, and return the gradient's norm before it was clipped."""
        self.adam.zero_grad()
        loss.backward()
        norm = torch.stack([w.grad.norm() for w in self.weights if w.grad is not None]).norm()
        for weight in self.weights:
            if weight.grad is not None and norm > max_norm:
                weight.grad *= max_norm / norm
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        return norm.item()


# --- comparing ---------------------------------------------------------------------------------


def weights(models: Models) -> list[Tensor]:
    """Copies of all weights but the bias of a reward model's head: pairs leave it free, so that its
    gradient is nothing but rounding."""
    every = [weight for model in models for weight in model.parameters()]
    return [weight.detach().clone() for weight in every if weight.numel() > 1]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def assert_same(trained: Models, history: list[dict], on_paper: Run) -> None:
    """Every number of every record is the same, and in the end every weight."""
    found = [{key: r[key] for key in r.keys() - {"seconds", "step_0"}} for r in history]
    steps = list(on_paper)
    wanted = [record for _, record in steps if record]
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert distance(weights(trained), weights(steps[-1][0])) < TOLERANCE


def assert_every_setting_matters(
    train: Callable[[Any], Run],
    configs: Sequence[Any],
    elsewhere: set[str],
    others: dict[str, Any] | None = None,
) -> None:
    """On paper another value of any setting gives other weights.

    So a trainer that gives the weights of `configs` honours their settings. The other value is the
    default, or that of `others`; settings named in `elsewhere` are not looked at.
    """
    fields = {field.name: field.default for field in dataclasses.fields(configs[0])}
    assert elsewhere <= fields.keys()
    runs = [(config, [weights(models) for models, _ in train(config)]) for config in configs]
    for name in fields.keys() - elsewhere:
        change = {name: (others or {}).get(name, fields[name])}
        assert any(
            _differs(train(dataclasses.replace(config, **change)), known) for config, known in runs
        ), f"{name} = {change[name]} changes nothing"


def _differs(run: Run, known: list[list[Tensor]]) -> bool:
    for found, expected in itertools.zip_longest(run, known):
        ours = weights(found[0]) if found else []
        if len(ours) != len(expected or []) or distance(ours, expected) > 10 * TOLERANCE:
            return True
    return False
