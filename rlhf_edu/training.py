"""What all trainers share: the optimiser, learning-rate schedules, checks and checkpoints."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import write_text
from rlhf_edu.models import replace_folder, save_model

Record = dict[str, Any]
OnStep = Callable[[Record], None]


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError unless the named fields of a config are above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            what = f"{type(config).__name__}: {name} must be above 0"
            raise ValueError(f"{what}, not {getattr(config, name)}")


def require_between(config: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError unless the named fields of a config are from `low` to `high`."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            what = f"{type(config).__name__}: {name} must be from {low} to {high}"
            raise ValueError(f"{what}, not {getattr(config, name)}")


def require_checkpoints(config: Any) -> None:
    """Raise ValueError if checkpoints are wanted and there is no folder to put them in."""
    require_between(config, 0, float("inf"), "checkpoint_every")
    if config.checkpoint_every and config.checkpoint_folder is None:
        raise ValueError(f"{type(config).__name__}: checkpoint_every needs a checkpoint_folder")


def require_some(records: Sequence[Any], trainer: str, what: str) -> None:
    """Raise ValueError if there is nothing to train on."""
    if not len(records):
        raise ValueError(f"{trainer}: give at least one of the {what} to train on")


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """Return AdamW. Matrices decay; biases and norms, of one dimension, do not."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
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
        RuntimeError: the loss or its gradient is NaN or infinite; the weights have not changed.
    """
    require_finite(loss, "the loss")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return apply_gradients(optimizer, lr, max_norm)


def apply_gradients(optimizer: torch.optim.Optimizer, lr: float, max_norm: float) -> float:
    """Take one step along gradients that are there already; returns and raises as `update`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    require_finite(norm, "the gradient")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return norm.item()


def require_finite(number: Tensor, what: str) -> None:
    """Raise RuntimeError if a scalar is NaN or infinite."""
    if not math.isfinite(number.item()):
        advice = (
            "lower the learning rate, and check the data and the model that training began with"
        )
        raise RuntimeError(f"training stopped: {what} is {number.item()}; {advice}")


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


def report(history: list[Record], record: Record, on_step: OnStep | None) -> None:
    """Put a step's record into the history, and tell whoever wants to know."""
    history.append(record)
    if on_step is not None:
        on_step(record)


def checkpoint_if_due(
    config: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: list[Record],
) -> None:
    """Write `checkpoint_folder/step_00020` and so on after every `checkpoint_every` steps."""
    done = len(history)
    if config.checkpoint_every and done % config.checkpoint_every == 0:
        folder = Path(config.checkpoint_folder) / f"step_{done:05d}"
        write_checkpoint(model, tokenizer, history, folder)


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: list[Record],
    folder: str | Path,
) -> None:
    """Save weights (fp32), tokenizer and `history.json` as one folder; all or nothing."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.checkpoint")
    try:
        save_model(model, tokenizer, temporary, dtype=torch.float32)
        write_text(temporary / "history.json", json.dumps(history, indent=1))
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
