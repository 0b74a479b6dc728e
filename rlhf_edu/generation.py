"""Sampling: prompts in, a `Rollout` out. One loop for a CPU, one for a GPU.

The law that tokens are drawn from is softmax(logits / temperature) and nothing else, no top-k,
no penalty: PPO scores the same tokens under the same law again, and must find the same numbers.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache
from transformers.cache_utils import Cache, StaticLayer

from rlhf_edu.losses import token_logprobs
from rlhf_edu.models import (
    Sequences,
    encode_prompt,
    ending_ids,
    pad_left,
    parts_by_length,
    position_ids,
)
from rlhf_edu.parallel import gathered, share

# On a GPU: tokens before recording, and after how many to ask whether all rows have ended.
WARM, LOOK_EVERY = 2, 16


@dataclass(frozen=True)
class Rollout(Sequences):
    """Prompts and what a policy answered; see `Sequences` for tokens and masks.

    Attributes:
        ended: (B,) bool; False for an answer that ran into the limit.
        logprobs: (B, R) of the response tokens when they were sampled, nats; 0 on padding.
        stop: the text that ended an answer besides its end tokens, if any.
    """

    ended: Tensor
    logprobs: Tensor
    stop: str | None = None

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each row, end-of-text included, (B,)."""
        return self.mask.sum(1)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The answers as B texts, without the token that ended them or other special ones."""
        last = self.ended.long() if self.stop is None else 0  # with `stop` it may hold more
        rows = zip(self.response.tolist(), (self.lengths - last).tolist(), strict=True)
        ids = [row[:length] for row, length in rows]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts if self.stop is None else [text.split(self.stop)[0] for text in texts]

    def rows(self, index: slice | Tensor) -> "Rollout":
        """See `Sequences`."""
        part = super().rows(index)
        width = part.response.shape[1]
        return replace(part, ended=self.ended[index], logprobs=self.logprobs[index, :width])


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    seed: int | torch.Generator = 0,
    batch_size: int = 256,
    stop: str | None = None,
    static: bool | None = None,
) -> Rollout:
    """Sample one answer to each prompt.

    A row ends at the first of its `models.ending_ids`, which belongs to the answer. Padding and
    other special tokens may be sampled like any, and end nothing. Each row has random numbers of
    its own, so that its answer depends on seed, row number and max_new_tokens, not on the rows
    beside it.

    Args:
        model: a causal language model.
        prompts: B texts, which get the template, or B lists of token ids, taken as they are.
        max_new_tokens: an answer that has not ended by then is cut off.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        seed: a number, or a generator to draw on.
        batch_size: rows at a time; memory grows with it.
        stop: a text, such as a line break, whose first token ends an answer too.
        static: compute in shapes that never change, see `_sample_static`, if the model can; the
            samples are the same up to rounding. None: on a GPU.

    Returns:
        A Rollout with B rows in the order of the prompts. With temperature 0 its log-probs are
        those at temperature 1.

    Raises:
        ValueError: there are no prompts, a number is out of range, or a prompt with its answer is
            longer than what the model reads.
    """
    if temperature < 0 or max_new_tokens < 1 or batch_size < 1:
        raise ValueError("generate: temperature >= 0, max_new_tokens and batch_size >= 1, please")
    if not len(prompts):
        raise ValueError("generate: give at least one prompt")
    rows = [encode_prompt(tokenizer, p) if isinstance(p, str) else list(p) for p in prompts]
    _require_room(model, max(map(len, rows)), max_new_tokens)
    if not isinstance(seed, torch.Generator):
        seed = torch.Generator().manual_seed(seed)
    # In 64 bits: 32 would round the thin tail of the distribution away.
    uniforms = torch.rand(len(rows), max_new_tokens, generator=seed, dtype=torch.float64)
    uniforms = uniforms.to(model.device)
    ends = _ending_ids(model, tokenizer, stop).to(model.device)

    static = model.device.type == "cuda" if static is None else static
    sample = _sample_static if static and _has_static_cache(model) else _sample

    parts, order, mine = [], [], share(range(len(rows)))
    for part in parts_by_length([len(rows[i]) for i in mine], batch_size):
        chosen = [mine[i] for i in part]
        order += chosen
        ids, mask = pad_left([rows[i] for i in chosen], tokenizer.pad_token_id)
        ids, mask = ids.to(model.device), mask.to(model.device)
        parts.append(sample(model, ids, mask, uniforms[chosen], temperature, ends))
    parts = gathered(parts, model.device)
    order = torch.cat(gathered([torch.tensor(order, dtype=torch.long)], model.device))
    back = order.argsort().to(model.device)
    return replace(_stack(parts, tokenizer.pad_token_id).rows(back), stop=stop)


def _require_room(model: PreTrainedModel, prompt: int, answer: int) -> None:
    """Raise ValueError if so many tokens of prompt and answer do not fit into the context."""
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if context is not None and prompt + answer > context:
        raise ValueError(
            f"generate: the longest prompt has {prompt} tokens, and its answer may have {answer}, "
            f"but the model reads {context} at most; shorten the prompt or lower max_new_tokens"
        )


def _ending_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str | None
) -> Tensor:
    """Ids of the tokens that end an answer, and of all that contain `stop`."""
    ends = ending_ids(model, tokenizer)
    if stop is not None:
        words = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        found = [i for i, word in enumerate(words) if stop in word]
        if not found:
            raise ValueError(f"generate: no single token contains stop={stop!r}; choose a shorter")
        ends += found
    return torch.tensor(ends)


# The rollout itself is made outside, as inference tensors cannot take part in training.
@torch.inference_mode()
def _sample(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    temperature: float,
    ends: Tensor,
) -> Rollout:
    """Answer one batch of prompts, left-padded (B, P), with random numbers `uniforms` (B, R)."""
    batch, limit = uniforms.shape
    response = torch.zeros(batch, limit, dtype=torch.long, device=ids.device)
    logprobs = torch.zeros(batch, limit, device=ids.device)
    lengths = torch.full((batch,), limit, device=ids.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=ids.device)
    rows, seen, positions = torch.arange(batch, device=ids.device), mask, position_ids(mask)
    logits, cache = _read(model, ids, mask)
    for t in range(limit):
        # 1. Draw a token for each row that is still being written.
        tokens = _draw(logits, uniforms[rows, t], temperature)
        response[rows, t] = tokens
        scored = token_logprobs(logits[:, None], tokens[:, None], temperature or 1.0)
        logprobs[rows, t] = scored.squeeze(1)

        # 2. Take the rows that have ended out of the batch.
        over = torch.isin(tokens, ends)
        lengths[rows[over]], ended[rows[over]] = t + 1, True
        if over.all() or t + 1 == limit:
            break
        if over.any():
            keep = (~over).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, tokens, seen, positions = rows[keep], tokens[keep], seen[keep], positions[keep]

        # 3. What comes next? Only the new tokens go through the model; the rest is in the cache.
        positions = positions[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)
        logits = _next_logits(model, tokens[:, None], seen, positions, cache)
    return _as_rollout(ids, mask, response, lengths, ended, logprobs)


def _as_rollout(
    ids: Tensor, mask: Tensor, response: Tensor, lengths: Tensor, ended: Tensor, logprobs: Tensor
) -> Rollout:
    """Prompts (B, P), their mask, and what was written (B, R), of which `lengths` (B,) count."""
    real = torch.arange(response.shape[1], device=ids.device) < lengths[:, None]
    tokens, mask = torch.cat([ids, response], 1), torch.cat([mask, real.long()], 1)
    return Rollout(tokens, mask, ids.shape[1], ended, logprobs.where(real, 0.0))


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


def _read(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
    """Logits (B, V) after prompts (B, P), and what the model remembers of them.

    A prompt that stands in several rows, to be answered several times, is read once.
    """
    both, copies = torch.cat([ids, mask], 1).unique(dim=0, return_inverse=True)
    ids, mask = both.chunk(2, dim=1)
    cache = DynamicCache()
    logits = _next_logits(model, ids, mask, position_ids(mask), cache)
    cache.batch_select_indices(copies)
    return logits[copies], cache


def _next_logits(
    model: PreTrainedModel, ids: Tensor, seen: Tensor, positions: Tensor, cache: Cache
) -> Tensor:
    """Logits (B, V) after tokens (B, N) that follow those in the cache, which takes them in."""
    output = model(
        input_ids=ids,
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Draw tokens (B,) from logits (B, V) with one uniform random number (B,) each."""
    if temperature == 0:
        return logits.argmax(-1)
    # Inverse transform sampling: the first token at which the cumulative sum passes the number.
    sums = (logits.float() / temperature).softmax(-1).double().cumsum(-1)
    target = (uniform * sums[:, -1]).unsqueeze(1)
    return torch.searchsorted(sums, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def _stack(parts: Sequence[Rollout], pad_id: int) -> Rollout:
    """Join rollouts of different prompt lengths into one with B rows."""
    width = max(part.prompt_length for part in parts)

    def left(tensor: Tensor, part: Rollout, value: int) -> Tensor:
        missing = width - part.prompt_length
        return F.pad(tensor, (missing, 0), value=value)

    mask = torch.cat([left(part.attention_mask, part, 0) for part in parts])
    tokens = torch.cat([left(part.tokens, part, pad_id) for part in parts])
    return Rollout(
        tokens=tokens.masked_fill(mask == 0, pad_id),
        attention_mask=mask,
        prompt_length=width,
        ended=torch.cat([part.ended for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
    )
