"""Sampling: prompts in, a `Rollout` out. One loop for a CPU, one for a GPU.

The law that tokens are drawn from is softmax(logits / temperature) and nothing else, no top-k,
no penalty: PPO scores the same tokens under the same law again, and must find the same numbers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.engine.parallel import gathered, share
from rlhf_edu.engine.sampling_cuda import _has_static_cache, _sample_static
from rlhf_edu.sampling import Rollout, _sample, _stack
from rlhf_edu.tokens import encode_prompt, ending_ids, pad_left, parts_by_length


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
    """Sample one answer to each prompt. Taught in chapter 01.

    A row ends at the first of its `tokens.ending_ids`, which belongs to the answer. Padding and
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
        static: compute in shapes that never change, if the model can; None: on a GPU.

    Returns:
        B rows in the order of the prompts; with temperature 0 the log-probs are those at 1.

    Raises:
        ValueError: there are no prompts, a number is out of range, or a row would be too long.
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

    # Prompts of like length together, since padding costs as much as text; then back into order.
    pad_id, parts, order = tokenizer.pad_token_id, [], []
    for numbers in _by_length(rows, batch_size):
        padded = pad_left([rows[i] for i in numbers], pad_id)
        ids, mask = (tensor.to(model.device) for tensor in padded)
        parts.append(sample(model, ids, mask, uniforms[numbers], temperature, ends))
        order += numbers
    parts = gathered(parts, model.device)
    order = torch.cat(gathered([torch.tensor(order, dtype=torch.long)], model.device))
    return replace(_stack(parts, pad_id).rows(order.argsort().to(model.device)), stop=stop)


def _by_length(rows: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of this process' rows, in parts of `size`, the longest part first.

    What a GPU records for it serves the others.
    """
    mine = share(range(len(rows)))
    parts = parts_by_length([len(rows[i]) for i in mine], size)
    return [[mine[i] for i in part] for part in parts[::-1]]


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
