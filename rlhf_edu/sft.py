"""Step 1 of InstructGPT: supervised fine-tuning on demonstrations (arXiv 2203.02155, 3.5)."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Demonstration
from rlhf_edu.engine.checkpoints import Checkpoint
from rlhf_edu.engine.checks import (
    OnStep,
    Record,
    about_first_loss,
    check_logprobs,
    require_between,
    require_checkpoints,
    require_numbers,
    require_positive,
    require_some,
    require_sound,
    require_tokens,
    require_vocabulary,
)
from rlhf_edu.engine.economy import economy
from rlhf_edu.engine.parallel import share_of_batch, totals
from rlhf_edu.engine.training import (
    make_optimizer,
    number_of_batches,
    plan_batches,
    report,
    started,
    update,
    warmup_cosine,
)
from rlhf_edu.losses import sft_loss
from rlhf_edu.models import require_kind, response_logprobs
from rlhf_edu.tokens import Sequences, by_length, encode_answer, encode_prompt, join

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class SFTConfig:
    """Settings of `train_sft`.

    Attributes:
        lr: peak learning rate; a cosine to a tenth follows.
        batch_size: demonstrations per step.
        epochs: passes over the demonstrations (InstructGPT took 16 and overfitted on purpose).
        warmup: steps in which the learning rate rises.
        weight_decay: how strongly AdamW pulls the matrices to 0.
        max_norm: the gradient is clipped to this norm.
        max_answer_tokens: longer answers are left out, as a cut answer would teach not to end.
        bf16: multiply matrices in bfloat16, see `economy.bf16_products`.
        micro_batch: hold the activations of so many demonstrations at once; the
            backward pass computes them again. 0: of all. See `economy.micro_batches`.
        seed: of the random order of the demonstrations.
        checkpoint_every: save the state after so many steps, and after the last one; 0: never.
        checkpoint_folder: where. A run whose folder holds a checkpoint of it goes on from there.
    """

    lr: float = 1e-3
    batch_size: int = 32
    epochs: int = 3
    warmup: int = 10
    weight_decay: float = 0.0
    max_norm: float = 1.0
    max_answer_tokens: int = 64
    bf16: bool = False
    micro_batch: int = 0
    seed: int = 0
    checkpoint_every: int = 0
    checkpoint_folder: str | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive(self, "lr", "batch_size", "epochs", "max_norm", "max_answer_tokens")
        require_between(self, 0, float("inf"), "warmup", "weight_decay", "micro_batch")
        require_checkpoints(self)


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    max_answer_tokens: int,
) -> list[Pair]:
    """Token ids of prompt and answer of each demonstration whose answer is not too long.

    Raises:
        ValueError: none is left.
    """
    prompts = [encode_prompt(tokenizer, d.prompt.text) for d in demonstrations]
    answers = [encode_answer(tokenizer, d.answer) for d in demonstrations]
    pairs = zip(prompts, answers, strict=True)
    kept = [(prompt, answer) for prompt, answer in pairs if len(answer) <= max_answer_tokens]
    require_some(kept, "train_sft", f"demonstrations of at most {max_answer_tokens} answer tokens")
    return kept


def _join(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Sequences:
    prompts, answers = zip(*pairs, strict=True)
    return join(prompts, answers, tokenizer.pad_token_id)


def check_step_0(
    model: PreTrainedModel, batch: Sequences, pairs: Sequence[Pair], loss: Tensor
) -> Record:
    """Before the first update: check the batch (`training.check_logprobs`), and note the loss."""
    masks = batch.mask.bool()

    def compute() -> list[Tensor]:
        rows = zip(response_logprobs(model, batch), masks, strict=True)
        return [row[mask] for row, mask in rows]

    check_logprobs(model, compute, pairs)
    verdict, numbers = about_first_loss(loss.item(), model.config.vocab_size)
    return {"step_0": f"{verdict}: answers and their ends are scored; {numbers}"}


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    config: SFTConfig | None = None,
    on_step: OnStep | None = None,
    validation: Sequence[Demonstration] | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a language model, in place, to answer as the labelers did.

    Args:
        model: the base model.
        demonstrations: prompts with answers.
        config: settings; None: the defaults.
        on_step: called with the record of each step.
        validation: demonstrations to measure the loss on after each epoch.

    Returns:
        The model, and one record per step: step, epoch, loss (nats per answer token), lr, norm,
        tokens (answer tokens so far), seconds, validation_loss on each epoch's last step; step_0,
        what `check_step_0` found. An interrupt returns what there is.

    Raises:
        ValueError: there are no demonstrations, all answers are too long, or what does not fit.
        RuntimeError: step 0 is not what it must be, loss or gradient is NaN or infinite, or
            `training.require_progress` stopped the run.
    """
    config = config or SFTConfig()
    require_tokens(tokenizer, "train_sft")
    require_kind(model, "train_sft: the model")
    require_vocabulary(model, tokenizer, "train_sft: the model")
    pairs = encode_demonstrations(tokenizer, demonstrations, config.max_answer_tokens)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    require_sound(model, "train_sft", max(lengths))
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay)
    plan = plan_batches(lengths, config.batch_size, config.epochs, config.seed)
    per_epoch = number_of_batches(len(lengths), config.batch_size)
    steps = config.epochs * per_epoch
    saved = Checkpoint(config, model, {"model": optimizer}, pairs, tokenizer)
    history = saved.resume()
    start, tokens = started(history), history[-1]["tokens"] if history else 0
    with contextlib.suppress(KeyboardInterrupt):
        for epoch, rows in islice(plan, len(history), None):
            # 1. Put prompts and answers side by side.
            step, batch_tokens = len(history), sum(len(pairs[i][1]) for i in rows)
            part, weight = share_of_batch([pairs[i] for i in rows], lambda pair: len(pair[1]))
            batch = _join(part, tokenizer).to(model.device)

            # 2. How surprised is the model by the answers? The prompts do not count.
            with economy(config, model):
                logprobs = by_length(lambda x: response_logprobs(model, x), batch)
                loss = weight * sft_loss(logprobs, batch.mask)
                note = saved.note(step) if step else check_step_0(model, batch, part, loss)

            # 3. Make it a little less surprised.
            lr = config.lr * warmup_cosine(step, steps, config.warmup)
            norm = update(optimizer, loss, lr, config.max_norm)

            # 4. Report and save.
            tokens += batch_tokens
            record = {"step": step, "epoch": epoch, **totals(loss=loss), "lr": lr, "norm": norm}
            if validation and (step + 1) % per_epoch == 0:
                record["validation_loss"] = answer_loss(model, tokenizer, validation)
            record |= {"tokens": tokens, "seconds": time.perf_counter() - start, **note}
            report(history, record, on_step)
            saved.save_if_due(history, last=len(history) == steps)
    return model, history


@torch.no_grad()
def answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
    batch_size: int = 64,
    max_answer_tokens: int = 64,
) -> float:
    """Mean loss on the answers, end-of-text included, in nats per answer token."""
    pairs = encode_demonstrations(tokenizer, demonstrations, max_answer_tokens)
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    total, tokens = 0.0, 0
    for start in range(0, len(pairs), batch_size):
        batch = _join(pairs[start : start + batch_size], tokenizer).to(model.device)
        count = int(batch.mask.sum())
        total += sft_loss(response_logprobs(model, batch), batch.mask).item() * count
        tokens += count
    return total / tokens
