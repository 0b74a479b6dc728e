"""What trainers check: settings, data, models, and what step 0 must show."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.losses import token_logprobs

Record = dict[str, Any]
OnStep = Callable[[Record], None]
IN_A_ROW = 3  # steps that go wrong before a run is stopped


def require_numbers(config: Any) -> None:
    """Raise ValueError unless whole numbers are whole, and the others finite.

    Limits may be infinite. What is larger than 64 bits is refused, as torch cannot count so far.
    """
    for field in dataclasses.fields(config):
        value, said = getattr(config, field.name), f"{type(config).__name__}: {field.name} must be "
        if field.type is int and not (isinstance(value, Integral) and -(2**63) <= value < 2**63):
            raise ValueError(f"{said}a whole number of 64 bits, not {value}")
        limit = field.name in ("max_norm", "max_kl") and value == math.inf
        if field.type is float and not (isinstance(value, Real) and math.isfinite(value) or limit):
            raise ValueError(f"{said}a finite number, not {value}")


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError unless the named fields of a config are above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            what = f"{type(config).__name__}: {name} must be above 0"
            raise ValueError(f"{what}, not {getattr(config, name)}")


def require_between(config: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError unless the named fields of a config are from `low` to `high`."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            what = f"{type(config).__name__}: {name} must be from {low} to {high}"
            raise ValueError(f"{what}, not {getattr(config, name)}")


def require_micro_batch(config: Any) -> None:
    """Raise ValueError unless micro_batch is "auto" or a whole number from 0."""
    size = config.micro_batch
    if size != "auto" and not (isinstance(size, Integral) and 0 <= size < 2**63):
        said = f"{type(config).__name__}: micro_batch must be auto or a whole number from 0"
        raise ValueError(f"{said}, not {size!r}")


def require_checkpoints(config: Any) -> None:
    """Raise ValueError if checkpoints are wanted and there is no folder to put them in."""
    require_between(config, 0, float("inf"), "checkpoint_every")
    if config.checkpoint_every and config.checkpoint_folder is None:
        raise ValueError(f"{type(config).__name__}: checkpoint_every needs a checkpoint_folder")


def require_some(records: Sequence[Any], trainer: str, what: str) -> None:
    """Raise ValueError if there is nothing to train on."""
    if not len(records):
        raise ValueError(f"{trainer}: give at least one of the {what} to train on")


def require_tokens(tokenizer: PreTrainedTokenizerBase, trainer: str) -> None:
    """Raise ValueError if the tokenizer has no end-of-text or no padding token."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{trainer}: the tokenizer has no end-of-text token, so no answer could ever end; "
            "set tokenizer.eos_token"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{trainer}: the tokenizer has no padding token; set tokenizer.pad_token = "
            "tokenizer.eos_token (masks come from lengths, so the end is still learned)"
        )


def require_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str
) -> None:
    """Raise ValueError if the tokenizer writes tokens that the model cannot read."""
    words = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > words:
        raise ValueError(
            f"{what} reads {words} tokens, but the tokenizer has {len(tokenizer)}; take the "
            "tokenizer that the model was trained with"
        )


def require_32_bits(dtype: torch.dtype) -> None:
    """Raise ValueError if weights of this dtype are too coarse for the steps of AdamW."""
    if dtype.itemsize < 4:
        raise ValueError(
            f"weights in {str(dtype).removeprefix('torch.')} cannot be trained: most steps of "
            "AdamW are lost to rounding; keep them in float32 and multiply in bfloat16 (--bf16), "
            "or train an adapter on them (--lora)"
        )


def require_sound(model: PreTrainedModel, trainer: str, longest: int = 0) -> None:
    """Raise if a model cannot be trained on rows of up to `longest` tokens.

    Raises:
        RuntimeError: a weight is NaN or infinite.
        ValueError: the model's context is shorter.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise RuntimeError(
                f"{trainer}: the weights {name} hold NaN or infinity, so the loss is nan; load "
                "the model anew"
            )
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ValueError(
            f"{trainer}: the longest row has {longest} tokens, but the model reads {context} at "
            "most; shorten prompts or answers, or leave them out"
        )


LOWER = "lower the learning rate, and check the data and the model that training began with"


def require_finite(number: float, what: str, advice: str = LOWER) -> None:
    """Raise RuntimeError if a number is NaN or infinite."""
    if not math.isfinite(number):
        raise RuntimeError(f"training stopped: {what} is {number}; {advice}")


def require_progress(history: list[Record]) -> None:
    """Raise RuntimeError if the last steps say that the model is wrecked, or learns nothing.

    A single batch may be hard, so it takes `IN_A_ROW` steps with five times the first loss, and at
    least 5 nats. A gradient of 0 is no failure where the loss is 0 too: all has been learned.
    """
    recent = history[-IN_A_ROW:]
    if len(recent) < IN_A_ROW:
        return
    first = history[0].get("loss", 0.0)
    if all(record.get("loss", 0.0) > 5 * max(first, 1.0) for record in recent):
        raise RuntimeError(
            f"training stopped: the loss was {first:.4g} at first, and is {recent[-1]['loss']:.4g} "
            "now, so the model is wrecked; lower the learning rate, and start from the model anew"
        )
    if all(record["norm"] == 0 and record.get("loss") != 0 for record in recent):
        raise RuntimeError(
            f"training stopped: the gradient was 0 for {IN_A_ROW} steps, so nothing is learned; "
            "look at the loss and, in PPO, at the temperature"
        )


def step_0_tolerance(model: PreTrainedModel) -> float:
    """How far two ways to compute one log-prob (nats) or score may lie apart."""
    coarse = torch.is_autocast_enabled(model.device.type)
    return 1e-3 if model.dtype in (torch.float32, torch.float64) and not coarse else 0.2


def require_agreement(found: Tensor, wanted: Tensor, limit: float, what: str, why: str) -> None:
    """Raise RuntimeError if tensors that must be equal differ by more than a limit.

    Args:
        found, wanted: of the same shape.
        limit: in their unit; for log-probs and scores from `step_0_tolerance`.
        what: the name of what is compared, for the message.
        why: likely causes and what to do, for the message.
    """
    gap = (found - wanted).abs().max().item()
    if not gap <= limit:
        raise RuntimeError(f"step 0: {what} differ by {gap:.3g}; {why}")


def about_first_loss(loss: float, words: int) -> tuple[str, str]:
    """For `step_0`: "ok", or "look" where the first loss is above an even guess; and the numbers.

    Args:
        loss: nats per token.
        words: V; an even guess has log V. A fresh model is a little worse than that.
    """
    guess = math.log(words)
    numbers = f"first loss {loss:.3f} nats, an even guess has {guess:.3f}"
    if loss <= 1.1 * guess:
        return "ok", numbers
    return "look", f"{numbers}; is the tokenizer the one that the model was trained with?"


DROPOUT = "dropout is on: call model.eval() before training"


MISALIGNED = (
    "look for positions counted without the mask, padding or other answers that are attended to, "
    "a shift by one, or layers whose kind of attention groups.shares_rows does not know"
)


@torch.no_grad()
def check_logprobs(
    model: PreTrainedModel,
    compute: Callable[[], Sequence[Tensor]],
    rows: Sequence[tuple[list[int], list[int]]],
) -> None:
    """Before the first update: does a batch give an answer the log-probs it has alone?

    Args:
        model: a language model.
        compute: what the trainer takes for the log-probs of each answer, tensors (tokens,).
        rows: the same prompts and answers, as lists of ids.

    Raises:
        RuntimeError: padding is scored, or the end of an answer is not; dropout is on; or the
            batch's log-probs are others than those of a row alone.
    """
    # 1. Does the mask cover the answers' tokens, and nothing else?
    found, again, lengths = compute(), compute(), [len(answer) for _, answer in rows]
    scored = list(map(len, found))
    if any(n > length for n, length in zip(scored, lengths, strict=True)):
        raise RuntimeError("step 0: padding is scored; the mask must end where the answers do")
    if scored != lengths:
        raise RuntimeError(
            "step 0: the mask leaves out answer tokens, perhaps end-of-text, and the model would "
            "not learn to stop; make masks from lengths, not from ids (pad = EOS confusion)"
        )
    # 2. Do two passes agree?
    limit, what = step_0_tolerance(model), "two passes over one batch"
    require_agreement(torch.cat(list(found)), torch.cat(list(again)), limit, what, DROPOUT)
    # 3. Do the last answer to the shortest prompt, which has most beside it, and the longest row,
    # which looks back farthest, agree with themselves alone?
    every = range(len(rows))
    shortest = min(reversed(every), key=lambda i: len(rows[i][0]))
    for i in (shortest, max(every, key=lambda i: sum(map(len, rows[i])))):
        prompt, answer = rows[i]
        ids = torch.tensor([prompt + answer], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 : -1]
        alone = token_logprobs(logits, ids[:, len(prompt) :])[0]
        what = "log-probs of an answer in its batch and alone"
        require_agreement(found[i], alone, limit, what, MISALIGNED)
