"""Step 0: a tokenizer and a base model, from nothing but web pages."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_edu.engine.checks import (
    DROPOUT,
    MISALIGNED,
    OnStep,
    Record,
    about_first_loss,
    require_agreement,
    require_positive,
    require_some,
    require_sound,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import economy, part_size
from rlhf_edu.engine.logits import in_parts, logprobs_of
from rlhf_edu.engine.loop import Loop, TrainConfig
from rlhf_edu.engine.training import make_optimizer, number_of_batches
from rlhf_edu.models import last_hidden
from rlhf_edu.tokens import encode_text

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

    Taught in chapter 01.

    Blocks are cut wherever they are full, so that none of them has padding; what is left at the
    end is dropped. A page may be seen together with the one before it, as in GPT-3's training.

    Raises:
        ValueError: the pages together do not fill a single block.
    """
    # A page's end is a token like any other: whoever is to answer later must have seen ends.
    ids: list[int] = []
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text in texts:
        ids += [*start, *encode_text(tokenizer, text), tokenizer.eos_token_id]
    if len(ids) < block:
        raise ValueError(f"pack: {len(ids)} tokens do not fill a block of {block}; give more text")
    whole = len(ids) // block * block
    return torch.tensor(ids[:whole]).view(-1, block)


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Settings of `pretrain`. Taught in chapter 01."""

    lr: float = 3e-3
    """Peak learning rate; smaller models take larger ones."""
    batch_size: int = 16
    """Blocks per step."""
    steps: int | None = None
    """Stop after so many steps; None: at the end of the epochs."""
    warmup: int = 50
    """Steps in which the learning rate rises; afterwards it falls along a cosine to a tenth."""
    weight_decay: float = 0.1
    """Weight decay of AdamW, on matrices alone."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of its two running means."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None:
            require_positive(self, "steps")


def next_token_loss(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """Mean loss of blocks (B, T) of text without padding, in nats per token. Taught in chapter 01.

    The same number as `losses.ptx_loss`, faster: torch's fused function, and no copy of a slice.
    """

    blocks = blocks.to(model.device)

    def compute(part: Tensor) -> Tensor:
        ids, next_ids = part[:, :-1], part[:, 1:].flatten()
        if in_parts(model):
            loss = -logprobs_of(model, last_hidden(model, ids).flatten(0, 1), next_ids).mean()
        else:
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), next_ids)
        return loss * (len(part) / len(blocks))

    rows, tokens = blocks.shape
    return sum(map(compute, blocks.split(part_size(rows, tokens, rows, model.device))))


def plan_blocks(count: int, batch_size: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Batches without end, as (epoch, row numbers); shuffled anew when all have been seen."""
    order = torch.Generator().manual_seed(seed)
    for epoch in itertools.count():
        for rows in torch.randperm(count, generator=order).split(batch_size):
            yield epoch, rows.tolist()


@torch.no_grad()
def check_step_0(model: PreTrainedModel, block: Tensor, loss: Tensor) -> Record:
    """Before the first update: each token is predicted from those before it, and no others.

    Args:
        block: (T,) one block.
        loss: of the first batch, nats per token.

    Raises:
        RuntimeError: dropout is on, or the loss is not that of the next tokens.
    """
    limit = step_0_tolerance(model)
    found, again = (next_token_loss(model, block[None]) for _ in range(2))
    require_agreement(found, again, limit, "two passes over one block", DROPOUT)
    logprobs = model(input_ids=block[None], use_cache=False).logits[0].float().log_softmax(-1)
    wanted = -logprobs[:-1].gather(1, block[1:, None]).mean()
    require_agreement(found, wanted, limit, "the loss and that of the next tokens", MISALIGNED)
    verdict, numbers = about_first_loss(loss.item(), model.config.vocab_size)
    return {"step_0": f"{verdict}: the loss is of the next token; {numbers}"}


def pretrain(
    model: PreTrainedModel,
    blocks: Tensor,
    config: PretrainConfig | None = None,
    on_step: OnStep | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a model, in place, to predict the next token of web pages. Taught in chapter 01.

    Args:
        model: from `new_llama`.
        blocks: (N, T) token ids, from `pack`.
        config: settings; None: the defaults.
        on_step: called with the record of each step.
        tokenizer: to be saved with the model in checkpoints.

    Returns:
        The model, and one record per step: step, loss (nats per token), lr, norm (of the
        gradient), tokens (so far), seconds (so far); step_0, what `check_step_0` found. An
        interrupt (Ctrl-C, "stop" in a notebook) returns what there is.

    Raises:
        ValueError: there are no blocks, or they are longer than the model can read.
        RuntimeError: step 0 is not what it must be, loss or gradient is NaN or infinite, or
            `checks.require_progress` stopped the run.
    """
    config = config or PretrainConfig()
    require_some(blocks, "pretrain", "blocks")
    require_sound(model, "pretrain", blocks.shape[1])
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay, config.betas)
    loop = Loop(config, model, {"model": optimizer}, blocks, tokenizer, on_step)
    config = loop.fitted(config.batch_size, blocks.shape[1], blocks.shape[1] - 1)
    plan = plan_blocks(len(blocks), config.batch_size, config.seed)
    steps = config.steps or config.epochs * number_of_batches(len(blocks), config.batch_size)
    with loop:
        for batch in loop.batches(plan, steps):
            # 1. Take the next blocks.
            part = blocks[batch.rows].to(model.device)  # no mask: blocks have no padding

            # 2. How surprised is the model by each next token?
            with economy(config, model):
                loss = batch.weight * next_token_loss(model, part)
            if batch.step == 0:
                loop.note(check_step_0(model, part[0], loss))

            # 3. Make it a little less surprised.
            loop.descend(loss)

            # 4. Report and save.
            loop.report(tokens=loop.so_far("tokens") + batch.size * blocks.shape[1])
    return model, loop.history


@torch.inference_mode()
def lm_loss(model: PreTrainedModel, blocks: Tensor, batch_size: int = 32) -> float:
    """Mean next-token loss on blocks (N, T), in nats per token: the log of the perplexity.

    Taught in chapter 01.
    """
    require_some(blocks, "lm_loss", "blocks")
    total = 0.0
    for batch in blocks.split(batch_size):
        total += next_token_loss(model, batch).item() * len(batch)
    return total / len(blocks)
