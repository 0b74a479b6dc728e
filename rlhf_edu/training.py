"""What all trainers share: checks, the optimiser, schedules, batches, and step 0."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.losses import token_logprobs
from rlhf_edu.parallel import add_gradients

Record = dict[str, Any]
OnStep = Callable[[Record], None]
IN_A_ROW = 3  # steps that go wrong before a run is stopped


# --- checks before training --------------------------------------------------------------------


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


# --- optimiser and schedules -------------------------------------------------------------------


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """Return AdamW. Matrices decay; biases and norms, of one dimension, do not.

    Raises:
        ValueError: no parameter wants a gradient, or one has 16 bits.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "the model to be trained is frozen; are policy and reference swapped? If not, call "
            "model.requires_grad_(True)"
        )
    for parameter in parameters:
        require_32_bits(parameter.dtype)
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}]
    groups += [{"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """Factor of the learning rate at `step` (from 0): up in a line, then down a cosine to floor."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup - 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def warmup_constant(step: int, warmup: int, start: float = 0.1) -> float:
    """Factor of the learning rate at `step`: up in a line from `start` to 1 (InstructGPT C.4)."""
    return start + (1 - start) * min(1.0, step / max(1, warmup))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, max_norm: float) -> float:
    """Take one optimiser step down the loss, and return the gradient's norm before clipping.

    Raises:
        RuntimeError: the loss or its gradient is NaN or infinite, or the loss has no gradient;
            the weights have not changed.
    """
    if not loss.requires_grad:
        raise RuntimeError(
            "training stopped: no weight that is trained has a part in the loss; are policy and "
            "reference swapped, or is the loss computed without gradient?"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    add_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    # Both in one transfer: a GPU is waited for once a step, before the weights change.
    numbers = torch.stack([loss.detach().double(), norm.double()]).tolist()
    for number, what in zip(numbers, ("the loss", "the gradient"), strict=True):
        require_finite(number, what)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return numbers[1]


LOWER = "lower the learning rate, and check the data and the model that training began with"


def require_finite(number: float, what: str, advice: str = LOWER) -> None:
    """Raise RuntimeError if a number is NaN or infinite."""
    if not math.isfinite(number):
        raise RuntimeError(f"training stopped: {what} is {number}; {advice}")


# --- batches and reports -----------------------------------------------------------------------


def batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator, pool: int = 8
) -> Iterator[list[int]]:
    """One epoch: batches of indices in random order, each of rows of similar length.

    Rows are shuffled, and sorted by length within pools of `pool` batches, since padding costs as
    much as text. Every row comes exactly once; the last batch may be smaller.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    result = []
    for start in range(0, len(order), pool * batch_size):
        rows = sorted(order[start : start + pool * batch_size], key=lambda i: lengths[i])
        result += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    for i in torch.randperm(len(result), generator=generator).tolist():
        yield result[i]


def number_of_batches(rows: int, batch_size: int) -> int:
    """How many batches `batches` makes of so many rows."""
    return math.ceil(rows / batch_size)


def plan_batches(
    lengths: Sequence[int], batch_size: int, epochs: int, seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Every batch of a run in its order, as (epoch, rows); it depends on nothing but the seed.

    A run that was interrupted makes the same plan again, and leaves out what it has done.
    """
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        yield from ((epoch, rows) for rows in batches(lengths, batch_size, order))


def started(history: list[Record]) -> float:
    """When the run would have begun, had it never stopped, by `time.perf_counter`, in seconds."""
    return time.perf_counter() - (history[-1]["seconds"] if history else 0.0)


def report(history: list[Record], record: Record, on_step: OnStep | None) -> None:
    """Put a step's record into the history, and tell whoever wants to know.

    Raises:
        RuntimeError: see `require_progress`.
    """
    history.append(record)
    if on_step is not None:
        on_step(record)
    require_progress(history)


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


# --- step 0 tells the truth --------------------------------------------------------------------


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
