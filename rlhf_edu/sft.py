"""Step 1 of InstructGPT: supervised fine-tuning on demonstrations (arXiv 2203.02155, 3.5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Demonstration
from rlhf_edu.engine.checks import (
    OnStep,
    Record,
    about_first_loss,
    check_logprobs,
    require_positive,
    require_some,
    require_tokens,
)
from rlhf_edu.engine.economy import economy
from rlhf_edu.engine.loop import Loop, TrainConfig
from rlhf_edu.engine.training import make_optimizer
from rlhf_edu.losses import sft_loss
from rlhf_edu.models import require_fit, response_logprobs
from rlhf_edu.tokens import Sequences, by_length, encode_answer, encode_prompt, join

Pair = tuple[list[int], list[int]]
TokenLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SFTConfig(TrainConfig):
    """Settings of `train_sft`. Taught in chapter 03."""

    lr: float = 1e-3
    """Peak learning rate of AdamW; a cosine to a tenth of it follows the warm-up."""
    batch_size: int = 32
    """Demonstrations per step."""
    epochs: int = 3
    """Passes over the demonstrations (InstructGPT made 16, and overfitted on purpose)."""
    max_answer_tokens: int = 64
    """Longer answers are left out, as a cut answer would teach not to end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_answer_tokens")


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
    # Left out, not cut: a cut answer would teach the model not to end.
    kept = [(prompt, answer) for prompt, answer in pairs if len(answer) <= max_answer_tokens]
    require_some(kept, "train_sft", f"demonstrations of at most {max_answer_tokens} answer tokens")
    return kept


def _join(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Sequences:
    prompts, answers = zip(*pairs, strict=True)
    return join(prompts, answers, tokenizer.pad_token_id)


def check_step_0(
    model: PreTrainedModel, batch: Sequences, pairs: Sequence[Pair], loss: Tensor
) -> Record:
    """Before the first update: check the batch (`checks.check_logprobs`), and note the loss."""
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
    loss: TokenLoss = sft_loss,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a language model, in place, to answer as the labelers did. Taught in chapter 03.

    Args:
        model: the base model.
        demonstrations: prompts with answers.
        config, on_step: settings, and what is called with the record of each step.
        validation: demonstrations to measure the loss on after each epoch.
        loss: from log-probs (B, R) of answer tokens, nats, and their mask (B, R) to a scalar: your
            own in the place of `losses.sft_loss`.

    Returns:
        The model, and one record per step: step, epoch, loss (nats per answer token), lr, norm,
        tokens (answer tokens so far), seconds, validation_loss on each epoch's last step; step_0,
        what `check_step_0` found. An interrupt returns what there is.

    Raises:
        ValueError: there are no demonstrations, all answers are too long, or what does not fit.
        RuntimeError: step 0 is not what it must be, loss or gradient is NaN or infinite, or
            `checks.require_progress` stopped the run.
    """
    config = config or SFTConfig()
    require_tokens(tokenizer, "train_sft")
    pairs = encode_demonstrations(tokenizer, demonstrations, config.max_answer_tokens)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    answer_tokens = [len(answer) for _, answer in pairs]
    require_fit(model, tokenizer, "train_sft", max(lengths))
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay)
    loop = Loop(config, model, {"model": optimizer}, pairs, tokenizer, on_step)
    config = loop.fitted(config.batch_size, max(lengths), max(answer_tokens))
    with loop:
        for batch in loop.by_length(lengths, answer_tokens):
            # 1. Put prompts and answers side by side.
            part = [pairs[i] for i in batch.rows]
            sequences = _join(part, tokenizer).to(model.device)

            # 2. How surprised is the model by the answers? The prompts do not count.
            with economy(config, model):
                logprobs = by_length(lambda x: response_logprobs(model, x), sequences)
                mean = batch.weight * loss(logprobs, sequences.mask)
                if batch.step == 0:
                    loop.note(check_step_0(model, sequences, part, mean))

            # 3. Make it a little less surprised.
            loop.descend(mean)

            # 4. Report and save.
            more = {"tokens": loop.so_far("tokens") + batch.size}
            if validation and batch.ends_epoch:
                more["validation_loss"] = answer_loss(model, tokenizer, validation)
            loop.report(epoch=batch.epoch, **more)
    return model, loop.history


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
