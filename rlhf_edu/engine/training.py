"""What all trainers share: checks, the optimiser, schedules, batches, and step 0."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rlhf_edu.engine.checks import require_32_bits, require_finite
from rlhf_edu.engine.parallel import add_gradients

# --- optimiser and schedules -------------------------------------------------------------------


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """Return AdamW. Matrices decay; biases and norms, of one dimension, do not.

    Raises:
        ValueError: no parameter wants a gradient, or one has 16 bits.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "the model to be trained is frozen; are policy and reference swapped? If not, call "
            "model.requires_grad_(True)"
        )
    for parameter in parameters:
        require_32_bits(parameter.dtype)
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}]
    groups += [{"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """Factor of the learning rate at `step` (from 0): up in a line, then down a cosine to floor."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup - 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_constant(step: int, warmup: int, start: float = 0.1) -> float:
    """Factor of the learning rate at `step`: up in a line from `start` to 1 (InstructGPT C.4)."""
    return start + (1 - start) * min(1.0, step / max(1, warmup))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, max_norm: float) -> float:
    """Take one optimiser step down the loss, and return the gradient's norm before clipping.

    Raises:
        RuntimeError: the loss or its gradient is NaN or infinite, or the loss has no gradient;
            the weights have not changed.
    """
    if not loss.requires_grad:
        raise RuntimeError(
            "training stopped: no weight that is trained has a part in the loss; are policy and "
            "reference swapped, or is the loss computed without gradient?"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    add_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    # Both in one transfer: a GPU is waited for once a step, before the weights change.
    numbers = torch.stack([loss.detach().double(), norm.double()]).tolist()
    for number, what in zip(numbers, ("the loss", "the gradient"), strict=True):
        require_finite(number, what)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return numbers[1]


# --- batches and reports -----------------------------------------------------------------------


def batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator, pool: int = 8
) -> Iterator[list[int]]:
    """One epoch: batches of indices in random order, each of rows of similar length.

    Rows are shuffled, and sorted by length within pools of `pool` batches, since padding costs as
    much as text. Every row comes exactly once; the last batch may be smaller.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    result = []
    for start in range(0, len(order), pool * batch_size):
        rows = sorted(order[start : start + pool * batch_size], key=lambda i: lengths[i])
        result += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    for i in torch.randperm(len(result), generator=generator).tolist():
        yield result[i]


def number_of_batches(rows: int, batch_size: int) -> int:
    """How many batches `batches` makes of so many rows."""
    return math.ceil(rows / batch_size)


def plan_batches(
    lengths: Sequence[int], batch_size: int, epochs: int, seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Every batch of a run in its order, as (epoch, rows); it depends on nothing but the seed.

    A run that was interrupted makes the same plan again, and leaves out what it has done.
    """
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        yield from ((epoch, rows) for rows in batches(lengths, batch_size, order))
