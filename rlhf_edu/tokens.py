"""Text and token ids: prompts, answers, chat templates, and rows of them with padding.

Shapes: B rows, P prompt tokens, R response tokens, T tokens in all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_edu.data import to_messages
from rlhf_edu.engine.chat_templates import _apply_template, _end_of_turn
from rlhf_edu.engine.economy import part_size

# The one format of every prompt, for every model. The line break is the cue to answer.
PROMPT_TEMPLATE = "{prompt}\n"


MAX_PROMPT_TOKENS = 200


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens: "</s>" in a text is four letters.

    Taught in chapter 01.
    """
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int | None = None
) -> list[int]:
    """Token ids of a prompt: the tokenizer's chat template up to the answer, if it has one.

    Taught in chapter 01.

    Else beginning-of-text and the course's template. A prompt that is too long loses its
    beginning, never the cue at its end.

    Args:
        text: what was asked, or a conversation as `data.to_text` writes it.
        max_tokens: None: `limit_prompts`' number, or MAX_PROMPT_TOKENS.

    Raises:
        ValueError: the chat template refuses the conversation, or is itself too long.
    """
    if max_tokens is None:
        max_tokens = tokenizer.init_kwargs.get("max_prompt_tokens", MAX_PROMPT_TOKENS)
    if tokenizer.chat_template:
        return _encode_chat(tokenizer, to_messages(text), max_tokens)
    ids = encode_text(tokenizer, PROMPT_TEMPLATE.format(prompt=text))
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + ids[-(max_tokens - len(start)) :]


def limit_prompts(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Set how long a prompt may be, in tokens; the tokenizer's files remember it.

    Taught in chapter 11.

    As with the chat template, whoever trains or asks a model later reads prompts in the same way.
    """
    tokenizer.init_kwargs["max_prompt_tokens"] = max_tokens


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], max_tokens: int
) -> list[int]:
    """Encode messages; earlier ones go first if they do not fit, then the last one's beginning."""
    while True:
        ids = _apply_template(tokenizer, messages)
        excess = len(ids) - max_tokens
        if excess <= 0:
            return ids
        if len(messages) > 1:
            later = [i for i, m in enumerate(messages) if i and m["role"] == "user"]
            messages = messages[later[0] :] if later else messages[-1:]
            continue
        left = encode_text(tokenizer, messages[0]["content"])[excess:]
        if not left:
            raise ValueError(
                f"the chat template alone has {len(ids)} tokens or more, and a prompt may have "
                f"{max_tokens}; raise --max-prompt-tokens (models.limit_prompts)"
            )
        messages = [{"role": "user", "content": tokenizer.decode(left).lstrip("\ufffd")}]


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: what the chat template ends a turn with, or end-of-text."""
    end = _end_of_turn(tokenizer, str(tokenizer.chat_template or ""))
    return tokenizer.eos_token_id if end is None else end


def ending_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all tokens that end an answer of a model (or an adapter's), sorted.

    The fact is kept in three places, which need not agree: the chat template, the tokenizer's
    end-of-text, and the model's generation_config (Gemma's lists <eos> and <end_of_turn>).
    """
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    said = said if isinstance(said, list) else [said]
    return sorted({*said, tokenizer.eos_token_id, end_of_answer(tokenizer)} - {None})


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str, ended: bool = True) -> list[int]:
    """Token ids of an answer, with the token that ends it unless the answer was cut off.

    Taught in chapter 03.

    Prompt and answer are tokenised apart and joined as ids, so that no token spans the border.
    """
    return encode_text(tokenizer, text) + ([end_of_answer(tokenizer)] if ended else [])


def _pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    if not rows or not all(len(row) for row in rows):
        raise ValueError("there is nothing to pad: give one row or more, each with a token or more")
    width = max(len(row) for row in rows)

    def padded(row: Sequence[int], fill: int) -> list[int]:
        gap = [fill] * (width - len(row))
        return [*gap, *row] if left else [*row, *gap]

    # Lists first: a tensor for each row would take far longer.
    ids = torch.tensor([padded(row, pad_id) for row in rows])
    return ids, torch.tensor([padded([1] * len(row), 0) for row in rows])


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and mask (B, T), 1 on real tokens; padding comes first.

    Raises:
        ValueError: there are no rows, or one is empty.
    """
    return _pad(rows, pad_id, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and mask (B, T), 1 on real tokens; padding comes last. See pad_left.

    Taught in chapter 01.
    """
    return _pad(rows, pad_id, left=False)


@dataclass(frozen=True)
class Sequences:
    """Prompts, padded on the left, and responses, padded on the right, side by side.

    Taught in chapter 03.

    Attributes:
        tokens: (B, P + R) ids.
        attention_mask: (B, P + R), 1 on real tokens.
        prompt_length: P, the same for all rows.
    """

    tokens: Tensor
    attention_mask: Tensor
    prompt_length: int

    @property
    def response(self) -> Tensor:
        """Ids of the responses, (B, R)."""
        return self.tokens[:, self.prompt_length :]

    @property
    def mask(self) -> Tensor:
        """1 on the responses' real tokens, the end-of-text included, (B, R)."""
        return self.attention_mask[:, self.prompt_length :]

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self: "Kind", index: slice | Tensor) -> "Kind":
        """Some of the rows, without the columns that are padding in all of them.

        Args:
            index: a slice, or (N,) row numbers.
        """
        mask = self.attention_mask[index]
        real = mask.any(0).tolist()
        first, last = real.index(True), len(real) - real[::-1].index(True)
        return replace(
            self,
            tokens=self.tokens[index, first:last],
            attention_mask=mask[:, first:last],
            prompt_length=self.prompt_length - first,
        )

    def packed(self) -> tuple[Tensor, Tensor]:
        """Rows without the padding before and in them: tokens (B, T), and starts (B,) of responses.

        With nothing but padding behind its tokens a row needs no mask and no positions: a causal
        model does not look ahead. It is also shorter; a model reads a quarter less.
        """
        real = self.attention_mask > 0
        # Stable, so that the real tokens keep their order as they move to the front.
        order = (~real).long().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
        return self.tokens.gather(1, order), real[:, : self.prompt_length].sum(1)

    def to(self, device: torch.device | str) -> "Sequences":
        """Return the same sequences on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


Kind = TypeVar("Kind", bound=Sequences)


def parts_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in parts of `size`, shortest first: padding costs as much as text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[i : i + size] for i in range(0, len(order), size)]


def by_length(
    compute: Callable[[Sequences], Tensor], sequences: Sequences, size: int = 16
) -> Tensor:
    """Compute something for rows of like length at a time, so that little of it is padding.

    Taught in chapter 06.

    Two thirds of a rollout can be padding, and a CPU pays for it. A GPU gains more from one large
    batch of one shape, and gets it.

    Args:
        compute: from n rows to (n,), or to (n, R') for as many response tokens as they have.
        sequences: B rows, R response tokens.
        size: rows at a time.

    Returns:
        (B,) or (B, R), with gradient if `compute` gives one; 0 where all rows were padding.
    """
    # A trainer's `micro_batch` may ask for smaller parts.
    size = part_size(*sequences.tokens.shape, size, sequences.tokens.device)
    if len(sequences) <= size:
        return compute(sequences)
    order = sequences.attention_mask.sum(1).argsort(stable=True)
    parts = [compute(sequences.rows(rows)) for rows in order.split(size)]
    width = sequences.response.shape[1]
    if parts[0].dim() == 2:
        parts = [nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    # argsort of an order is the way back.
    return torch.cat(parts)[order.argsort()]


def join(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> Sequences:
    """Return B prompts and B answers, given as lists of ids, as `Sequences`.

    Taught in chapter 03.
    """
    left, left_mask = pad_left(prompts, pad_id)
    right, right_mask = pad_right(answers, pad_id)
    tokens, mask = torch.cat([left, right], 1), torch.cat([left_mask, right_mask], 1)
    return Sequences(tokens, mask, left.shape[1])


def position_ids(mask: Tensor) -> Tensor:
    """Positions (B, T) of the real tokens, counted from 0 in each row, whatever the padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
