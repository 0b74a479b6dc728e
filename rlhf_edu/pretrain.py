"""Step 0: a tokenizer and a base model, from nothing but web pages."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf_edu.engine.checkpoints import Checkpoint
from rlhf_edu.engine.checks import (
    DROPOUT,
    MISALIGNED,
    OnStep,
    Record,
    about_first_loss,
    require_agreement,
    require_between,
    require_checkpoints,
    require_numbers,
    require_positive,
    require_some,
    require_sound,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import bf16_products, frugal, part_size
from rlhf_edu.engine.parallel import share_of_batch, totals
from rlhf_edu.engine.training import (
    make_optimizer,
    number_of_batches,
    report,
    started,
    update,
    warmup_cosine,
)
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

    Blocks are cut wherever they are full, so that none of them has padding; what is left at the
    end is dropped. A page may be seen together with the one before it, as in GPT-3's training.

    Raises:
        ValueError: the pages together do not fill a single block.
    """
    ids: list[int] = []
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text in texts:
        ids += [*start, *encode_text(tokenizer, text), tokenizer.eos_token_id]
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
        bf16: multiply matrices in bfloat16, see `economy.bf16_products`.
        seed: of the order of the blocks.
        checkpoint_every: save the state after so many steps, and after the last one; 0: never.
        checkpoint_folder: where. A run whose folder holds a checkpoint of it goes on from there.
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
    checkpoint_every: int = 0
    checkpoint_folder: str | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive(self, "lr", "batch_size", "epochs", "max_norm")
        require_between(self, 0, float("inf"), "warmup", "weight_decay")
        require_checkpoints(self)
        if self.steps is not None:
            require_positive(self, "steps")


def next_token_loss(model: PreTrainedModel, blocks: Tensor) -> Tensor:
    """Mean loss of blocks (B, T) of text without padding, in nats per token.

    The same number as `losses.ptx_loss`, faster: torch's fused function, and no copy of a slice.
    """

    blocks = blocks.to(model.device)

    def compute(part: Tensor) -> Tensor:
        logits = model(input_ids=part[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
        return loss * (len(part) / len(blocks))

    return sum(map(frugal(compute), blocks.split(part_size(len(blocks)))))


def plan_blocks(count: int, config: PretrainConfig) -> Iterator[Tensor]:
    """Batches in their order, without end, as row numbers; shuffled anew when all were seen."""
    order = torch.Generator().manual_seed(config.seed)
    while True:
        yield from torch.randperm(count, generator=order).split(config.batch_size)


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
    """Train a model, in place, to predict the next token of web pages.

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
            `training.require_progress` stopped the run.
    """
    config = config or PretrainConfig()
    require_some(blocks, "pretrain", "blocks")
    require_sound(model, "pretrain", blocks.shape[1])
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay, config.betas)
    steps = config.steps or config.epochs * number_of_batches(len(blocks), config.batch_size)
    saved = Checkpoint(config, model, {"model": optimizer}, blocks, tokenizer)
    history = saved.resume()
    start, tokens = started(history), history[-1]["tokens"] if history else 0
    with contextlib.suppress(KeyboardInterrupt):
        for rows in islice(plan_blocks(len(blocks), config), len(history), steps):
            # 1. Take the next blocks.
            step, batch = len(history), blocks[rows].to(model.device)
            mine, weight = share_of_batch(batch, lambda block: 1)

            # 2. How surprised is the model by each next token?
            with bf16_products(model, config.bf16):
                loss = weight * next_token_loss(model, mine)
            note = saved.note(step) if step else check_step_0(model, mine[0], loss)

            # 3. Make it a little less surprised.
            lr = config.lr * warmup_cosine(step, steps, config.warmup)
            norm = update(optimizer, loss, lr, config.max_norm)

            # 4. Report and save.
            tokens += batch.numel()
            record = {"step": step, **totals(loss=loss), "lr": lr, "norm": norm, "tokens": tokens}
            record |= {"seconds": time.perf_counter() - start, **note}
            report(history, record, on_step)
            saved.save_if_due(history, last=len(history) == steps)
    return model, history


@torch.inference_mode()
def lm_loss(model: PreTrainedModel, blocks: Tensor, batch_size: int = 32) -> float:
    """Mean next-token loss on blocks (N, T), in nats per token: the log of the perplexity."""
    require_some(blocks, "lm_loss", "blocks")
    total = 0.0
    for batch in blocks.split(batch_size):
        total += next_token_loss(model, batch).item() * len(batch)
    return total / len(blocks)
