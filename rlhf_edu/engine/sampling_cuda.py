"""The same loop in shapes that never change, so that a GPU can record one step and replay it."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import Cache, StaticLayer

from rlhf_edu.losses import token_logprobs
from rlhf_edu.sampling import Rollout, _as_rollout, _draw, _next_logits, _read
from rlhf_edu.tokens import position_ids

# On a GPU: tokens before recording, and after how many to ask whether all rows have ended.
WARM, LOOK_EVERY = 2, 16


@torch.inference_mode()
def _sample_static(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    temperature: float,
    ends: Tensor,
) -> Rollout:
    """As `_sample`, in shapes and places that never change, and without a question to the device.

    So a GPU can record all that is done for one token as one CUDA graph, and do it again without
    waiting for Python. Rows that have ended are written on, and cut off in the end.
    """
    (batch, limit), width, device = uniforms.shape, ids.shape[1], ids.device
    logits, cache = _read(model, ids, mask)
    cache = _to_static(cache, width + limit)
    t = torch.zeros(1, dtype=torch.long, device=device)
    response = torch.zeros(batch, limit, dtype=torch.long, device=device)
    logprobs = torch.zeros(batch, limit, device=device)
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    seen, positions = F.pad(mask, (0, limit)), position_ids(mask)[:, -1:].clone()

    def step() -> None:
        # 1. Draw a token for each row.
        tokens = _draw(logits, uniforms.index_select(1, t).squeeze(1), temperature)[:, None]
        response.index_copy_(1, t, tokens)
        scored = token_logprobs(logits[:, None], tokens, temperature or 1.0)
        logprobs.index_copy_(1, t, scored.to(logprobs.dtype))

        # 2. Which rows were still being written, and which have ended?
        lengths.add_((~ended).long())
        ended.logical_or_((tokens == ends).any(1))

        # 3. What comes next?
        positions.add_(1)
        seen.index_fill_(1, t + width, 1)
        logits.copy_(_next_logits(model, tokens, seen, positions, cache))
        t.add_(1)

    for done in range(limit):
        if done == WARM:
            step = _recorded(step, device)
        step()
        if (done + 1) % LOOK_EVERY == 0 and ended.all():
            break
    return _as_rollout(ids, mask, response, lengths, ended, logprobs)


_REFUSED: list[str] = []  # why a step could not be recorded; once is enough


def _recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what a function has a GPU do, without doing it yet; return what then does it."""
    if device.type != "cuda" or _REFUSED:
        return step
    graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    # Only this thread's calls may spoil a recording: a notebook has others.
    options = {"stream": _recording_stream(device), "capture_error_mode": "thread_local"}
    try:
        with torch.cuda.graph(graph, **options):
            step()
    except RuntimeError as error:
        # None of it has been done, so all can go on, where it would have.
        torch.cuda.set_stream(usual)
        _REFUSED.append(str(error.__context__ or error).splitlines()[0])
        warnings.warn(
            f"sampling cannot be recorded, so it takes longer: {_REFUSED[0]}", stacklevel=3
        )
        return step
    return graph.replay


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU: left to itself a graph takes the one that is current."""
    return torch.cuda.Stream(device)


def _has_static_cache(model: PreTrainedModel) -> bool:
    """Whether a cache need not grow: no sliding window, no attention or positions that look."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return False
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(model.config, 1).layers)


class OneDtypeLayer(StaticLayer):
    """Keeps keys and values in one dtype; autocast makes keys in fp32 and values in bfloat16."""

    def update(
        self, keys: Tensor, values: Tensor, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """Take new ones in, (B, heads, N, D); return all."""
        dtype = self.dtype if self.is_initialized else keys.dtype
        return super().update(keys.to(dtype), values.to(dtype), *args, **more)


def _to_static(cache: DynamicCache, length: int) -> Cache:
    """The same memory, with room for so many tokens."""
    static = Cache(layers=[OneDtypeLayer(length) for _ in cache.layers])
    for i, layer in enumerate(cache.layers):
        static.update(layer.keys, layer.values, i)
    return static
