"""Less time and memory for the same numbers: products in bfloat16, and a batch in small parts."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class Economy(Protocol):
    """The settings of a trainer that `economy` looks at."""

    bf16: bool
    micro_batch: int


@contextlib.contextmanager
def economy(config: Economy, model: PreTrainedModel) -> Iterator[None]:
    """Within this context forward passes are made as a trainer's settings say.

    Leave it before the weights change: it keeps copies of them in bfloat16.
    """
    with bf16_products(model, config.bf16), micro_batches(config.micro_batch):
        yield


# --- products in bfloat16 ------------------------------------------------------------------------


def bf16_products(model: PreTrainedModel, enabled: bool = True) -> torch.autocast:
    """A context in which forward passes on the model's device multiply matrices in bfloat16.

    Weights, the optimiser's step and losses stay in fp32, on a CPU attention too. It pays on a
    processor with such instructions (avx512_bf16, AMX) and on any recent GPU; others are slower.
    """
    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)


def _sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As `transformers` attends; on a CPU always in fp32."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    with torch.autocast("cpu", enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


# On a CPU the backward pass of attention in bfloat16 costs several times that in fp32.
AttentionInterface.register("sdpa", _sdpa)


# --- a batch in small parts ----------------------------------------------------------------------

_MICRO_BATCH: ContextVar[int] = ContextVar("micro_batch", default=0)

Part = TypeVar("Part")
Found = TypeVar("Found")


@contextlib.contextmanager
def micro_batches(size: int) -> Iterator[None]:
    """A context in which no more than `size` rows have their activations in memory; 0: no limit.

    What gradient accumulation is for, and activation checkpointing, in one: the forward pass keeps
    nothing of a part but its result, say one log-prob per token, and the backward pass computes
    the part again. Loss and gradient are those of the whole batch, whatever the loss compares, at
    the price of one more forward pass.
    """
    token = _MICRO_BATCH.set(size)
    try:
        yield
    finally:
        _MICRO_BATCH.reset(token)


def part_size(usual: int) -> int:
    """How many rows to compute at a time, where it would usually be so many."""
    return min(_MICRO_BATCH.get() or usual, usual)


def frugal(compute: Callable[[Part], Found]) -> Callable[[Part], Found]:
    """`compute`, with nothing kept for the backward pass while `micro_batches` has a limit."""
    if not _MICRO_BATCH.get() or not torch.is_grad_enabled():
        return compute
    return lambda part: checkpoint(compute, part, use_reentrant=False, preserve_rng_state=False)
