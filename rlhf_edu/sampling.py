"""The loop that samples answers, token by token, and what comes of it: a `Rollout`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from rlhf_edu.losses import token_logprobs
from rlhf_edu.tokens import Sequences, position_ids


@dataclass(frozen=True)
class Rollout(Sequences):
    """Prompts and what a policy answered; see `Sequences` for tokens and masks.

    Taught in chapter 05.

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
        # 1. Draw a token for each row that is still being written. A row has its own random
        # numbers, so that it writes the same whatever rows are beside it.
        tokens = _draw(logits, uniforms[rows, t], temperature)
        response[rows, t] = tokens
        scored = token_logprobs(logits[:, None], tokens[:, None], temperature or 1.0)
        logprobs[rows, t] = scored.squeeze(1)

        # 2. Take the rows that have ended out of the batch: padding that is read costs as much as
        # text. The token that ended a row is part of its answer.
        over = torch.isin(tokens, ends)
        lengths[rows[over]], ended[rows[over]] = t + 1, True
        if over.all() or t + 1 == limit:
            break
        if over.any():
            keep = (~over).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, tokens, seen, positions = rows[keep], tokens[keep], seen[keep], positions[keep]

        # 3. What comes next? Only the new tokens go through the model; the rest is in the cache.
        # Positions count on from each row's last real token, wherever its padding was.
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


# A vocabulary of more tokens is searched in two steps: first for the block, of so many.
MANY, BLOCK = 16_384, 512


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Draw tokens (B,) from logits (B, V) with one uniform random number (B,) each."""
    if temperature == 0:
        return logits.argmax(-1)
    return _pick(_law(logits, temperature), uniform)


def _law(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, V) of the next token, in fp32."""
    if temperature != 1:
        logits = logits.float() / temperature
    return logits.softmax(-1, dtype=torch.float32)


def _pick(law: Tensor, uniform: Tensor) -> Tensor:
    """Inverse transform sampling from probabilities (B, V): tokens (B,).

    The first token at which the cumulative sum passes the number, times the sum of all. In 64 bits:
    32 would round the thin tail away.
    """
    size, uniform = law.shape[1], uniform[:, None]
    if size <= MANY:
        sums = law.double().cumsum(-1)
        return _first_beyond(sums, uniform * sums[:, -1:]).squeeze(1)
    blocks = F.pad(law, (0, -size % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform * sums[:, -1:]
    block = _first_beyond(sums, target)
    rest = target - F.pad(sums, (1, 0)).gather(1, block)
    sums = blocks.gather(1, block[..., None].expand(-1, 1, BLOCK)).squeeze(1).double().cumsum(-1)
    # Summed otherwise, the block may be rounded to less than the rest; it must not be left then.
    rest = rest.minimum(sums[:, -1:] * (1 - 2**-53))
    return (block * BLOCK + _first_beyond(sums, rest)).squeeze(1)


def _first_beyond(sums: Tensor, target: Tensor) -> Tensor:
    """Index (B, 1) of the first cumulative sum (B, n) above a target (B, 1)."""
    return torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[1] - 1)


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
