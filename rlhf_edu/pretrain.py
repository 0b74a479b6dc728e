"""Step 0: a tokenizer and a base model, from nothing but web pages."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_edu.models import encode_text
from rlhf_edu.training import (
    OnStep,
    Record,
    make_optimizer,
    number_of_batches,
    require_between,
    require_positive,
    require_some,
    update,
    warmup_cosine,
)

# In the order of their ids. Padding has an id of its own: where it shares one with end-of-text,
# models have been taught, by mistake, never to stop.
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1536) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE (GPT-2's kind): it can write any text, so it needs no unknown token.

    Args:
        texts: the pages to learn from.
        vocab_size: entries in all: 3 special tokens, 256 bytes, and merges.

    Raises:
        ValueError: vocab_size leaves no room for all the bytes.
    """
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"train_tokenizer: vocab_size must be at least 259, not {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], block: int = 256) -> Tensor:
    """Return the pages as blocks (N, block) of token ids: `<s> page </s> <s> page </s> …`.

    Blocks are cut wherever they are full, so that none of them has padding; what is left at the
    end is dropped. A page may be seen together with the one before it, as in GPT-3's training.

    Raises:
        ValueError: the pages together do not fill a single block.
    """
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_token_id, *encode_text(tokenizer, text), tokenizer.eos_token_id]
    if len(ids) < block:
        raise ValueError(f"pack: {len(ids)} tokens do not fill a block of {block}; give more text")
    whole = len(ids) // block * block
    return torch.tensor(ids[:whole]).view(-1, block)


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `pretrain`.

    Attributes:
        lr: peak learning rate; smaller models take larger ones.
        batch_size: blocks per step.
        epochs: passes over the blocks.
        steps: stop after so many steps; None: at the end of the epochs.
        warmup: steps in which the learning rate rises; afterwards a cosine to a tenth.
        weight_decay, betas: of AdamW.
        max_norm: the gradient is clipped to this norm.
        bf16: multiply matrices in bfloat16 (weights, attention and loss stay fp32). Nearly twice
            as fast on a processor with such instructions (avx512_bf16, AMX), slower without.
        seed: of the order of the blocks.
    """

    lr: float = 3e-3
    batch_size: int = 16
    epochs: int = 1
    steps: int | None = None
    warmup: int = 50
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_norm: float = 1.0
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "lr", "batch_size", "epochs", "max_norm")
        require_between(self, 0, float("inf"), "warmup", "weight_decay")
        if self.steps is not None:
            require_positive(self, "steps")


def _fp32_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register("sdpa_fp32", _fp32_attention)
AttentionMaskInterface.register("sdpa_fp32", sdpa_mask)


@contextlib.contextmanager
def bf16_products(model: PreTrainedModel, enabled: bool = True) -> Iterator[None]:
    """Within this context the model multiplies matrices in bfloat16, but attends in fp32."""
    if not enabled:
        yield
        return
    before = model.config._attn_implementation
    # On a CPU the backward pass of attention in bfloat16 costs several times that in fp32.
    model.set_attn_implementation("sdpa_fp32")
    try:
        with torch.autocast(model.device.type, torch.bfloat16):
            yield
    finally:
        model.set_attn_implementation(before)


def next_token_loss(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """Mean loss of blocks (B, T) of text without padding, in nats per token.

    The same number as `losses.ptx_loss`, faster: torch's fused function, and no copy of a slice.
    """
    logits = model(input_ids=blocks[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten())


def pretrain(
    model: PreTrainedModel,
    blocks: Tensor,
    config: PretrainConfig | None = None,
    on_step: OnStep | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a model, in place, to predict the next token of web pages.

    Args:
        model: from `new_llama`.
        blocks: (N, T) token ids, from `pack`.
        config: settings; None: the defaults.
        on_step: called with the record of each step.

    Returns:
        The model, and one record per step: step, loss (nats per token), lr, norm (of the
        gradient), tokens (so far) and seconds (so far). An interrupt (Ctrl-C, "stop" in a
        notebook) returns what there is.

    Raises:
        ValueError: there are no blocks.
        RuntimeError: the loss or its gradient is NaN or infinite.
    """
    config = config or PretrainConfig()
    require_some(blocks, "pretrain", "blocks")
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay, config.betas)
    steps = config.steps or config.epochs * number_of_batches(len(blocks), config.batch_size)
    order = torch.Generator().manual_seed(config.seed)
    history: list[Record] = []
    tokens, start, rows = 0, time.perf_counter(), torch.empty(0, dtype=torch.long)
    with contextlib.suppress(KeyboardInterrupt):
        for step in range(steps):
            # 1. Take the next blocks; shuffle again when they are used up.
            if not len(rows):
                rows = torch.randperm(len(blocks), generator=order)
            batch, rows = blocks[rows[: config.batch_size]], rows[config.batch_size :]

            # 2. How surprised is the model by each next token?
            with bf16_products(model, config.bf16):
                loss = next_token_loss(model, batch)

            # 3. Make it a little less surprised.
            lr = config.lr * warmup_cosine(step, steps, config.warmup)
            norm = update(optimizer, loss, lr, config.max_norm)

            # 4. Report.
            tokens += batch.numel()
            record = {"step": step, "loss": loss.item(), "lr": lr, "norm": norm, "tokens": tokens}
            history.append(record | {"seconds": time.perf_counter() - start})
            if on_step is not None:
                on_step(history[-1])
    return model, history


@torch.inference_mode()
def lm_loss(model: PreTrainedModel, blocks: Tensor, batch_size: int = 32) -> float:
    """Mean next-token loss on blocks (N, T), in nats per token: the log of the perplexity."""
    require_some(blocks, "lm_loss", "blocks")
    total = 0.0
    for batch in blocks.split(batch_size):
        total += next_token_loss(model, batch).item() * len(batch)
    return total / len(blocks)
