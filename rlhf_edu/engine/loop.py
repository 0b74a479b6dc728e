"""The loop that all trainers share: whose turn it is, one step, its record, saving and going on."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.engine.checkpoints import Checkpoint
from rlhf_edu.engine.checks import (
    OnStep,
    Record,
    require_between,
    require_checkpoints,
    require_micro_batch,
    require_numbers,
    require_positive,
    require_progress,
)
from rlhf_edu.engine.ledger import fitting_rows
from rlhf_edu.engine.parallel import share_of_batch, totals
from rlhf_edu.engine.training import number_of_batches, plan_batches, update, warmup_cosine

Optimizers = dict[str, torch.optim.Optimizer]
OnPhase = Callable[[str], None]


def begin(on_phase: OnPhase | None, phase: str) -> None:
    """Tell whoever measures that a phase of training begins."""
    if on_phase is not None:
        on_phase(phase)


@dataclass(frozen=True)
class TrainConfig:
    """Settings that all trainers have; the words below a setting are also its `--help`."""

    lr: float = 1e-3
    """Peak learning rate of AdamW; a cosine to a tenth of it follows the warm-up."""
    batch_size: int = 32
    """Rows per step."""
    epochs: int = 1
    """Passes over the data."""
    warmup: int = 10
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, on matrices alone."""
    max_norm: float = 1.0
    """The gradient is clipped to this norm."""
    bf16: bool = False
    """Multiply matrices in bfloat16; weights, log-probs and losses stay in fp32."""
    micro_batch: int | Literal["auto"] = "auto"
    """Read so many rows at once, and compute each layer again in the backward pass, where its
    inside is not kept; 0: keep all of all rows. "auto": on a GPU as memory allows, else 0."""
    seed: int = 0
    """Seed of the order of the data, and of all that is drawn."""
    checkpoint_every: int = 0
    """Save a checkpoint after so many steps, and after the last one; 0: never."""
    checkpoint_folder: str | None = None
    """Folder of the checkpoints; a run whose folder holds one of its own goes on from there."""

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive(self, "lr", "batch_size", "epochs", "max_norm")
        require_between(self, 0, float("inf"), "warmup", "weight_decay")
        require_micro_batch(self)
        require_checkpoints(self)


@dataclass(frozen=True)
class Batch:
    """The rows of one step.

    Attributes:
        step: number of the step, from 0.
        epoch: number of the pass over the data, from 0.
        rows: numbers of this process' rows.
        weight: what a mean over them counts for in the mean over the batch: 1 in one process.
        size: what the batch's rows, of all processes, count for together, such as their tokens.
        ends_epoch: whether the pass over the data ends with this batch.
    """

    step: int
    epoch: int
    rows: list[int]
    weight: float
    size: float
    ends_epoch: bool


USABLE = 0.9  # of what is free; between tensors there are gaps


def free_memory(device: torch.device) -> float | None:
    """Bytes that are free on a GPU, or were given back to torch; None for any other device."""
    if device.type != "cuda":
        return None
    given_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + given_back


class Loop:
    """What is the same in every training, so that a trainer is left with its algorithm.

        loop = Loop(config, model, {"model": optimizer}, data, tokenizer, on_step)
        with loop:                                # Ctrl-C ends it, and what there is stays
            for batch in loop.by_length(lengths): # those that no earlier run has done
                ...
                loop.descend(loss)                # one step of AdamW at the scheduled rate
                loop.report(accuracy=...)         # record, callback, checkpoint
        return model, loop.history

    Attributes:
        history: the records so far, those before an interruption among them.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        optimizers: Optimizers,
        data: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        on_step: OnStep | None = None,
        *,
        frozen: Sequence[PreTrainedModel] = (),
        generator: torch.Generator | None = None,
        queue: list[int] | None = None,
        check: Callable[[list[Record]], None] | None = None,
    ) -> None:
        """Go back to the run's last checkpoint, if there is one; see `Checkpoint` for most of it.

        Args:
            on_step: called with each record.
            check: called with the history after each step; raises to stop a run that is wrecked.
        """
        self.config, self.optimizers = config, optimizers
        self.on_step, self.check = on_step, check
        self.saved = Checkpoint(
            config, model, optimizers, data, tokenizer, frozen, generator, queue
        )
        self.history = self.saved.resume()
        # When the run would have begun, had it never stopped.
        self.began = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0.0)
        self.planned = 0
        self.parts: Record = {}
        self.step_0 = self.saved.note(self.step)

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, KeyboardInterrupt)

    @property
    def step(self) -> int:
        """Number of the step that comes next, from 0."""
        return len(self.history)

    def fitted(self, rows: int, longest: int, answer: int) -> Any:
        """The settings, with a number for `micro_batch`; the first record says one that was chosen.

        Args:
            rows: of a step.
            longest, answer: tokens of the longest row, and of the longest answer in one.
        """
        if self.config.micro_batch == "auto":
            free, model, size = self._free_bytes(), self.saved.model, 0
            if free is not None:
                adapters = getattr(model, "peft_config", {}).values()
                rank = max((adapter.r for adapter in adapters), default=0)
                shape = rows, longest - answer, answer
                size = fitting_rows(model.config, *shape, USABLE * free, rank, model.dtype)
                self.note({"micro_batch": size})
            self.config = replace(self.config, micro_batch=size)
        return self.config

    def _free_bytes(self) -> float | None:
        """What a GPU has left for activations; None where there is no GPU."""
        free = free_memory(self.saved.model.device)
        if free is None:
            return None
        groups = [
            group for optimizer in self.optimizers.values() for group in optimizer.param_groups
        ]
        # Before the first step gradients and AdamW's two averages are still to come.
        return free - 3 * sum(weight.nbytes for group in groups for weight in group["params"])

    def steps(self, count: int) -> Iterator[int]:
        """The numbers of the steps that are left of so many."""
        self.planned = count
        yield from range(self.step, count)

    def by_length(
        self, lengths: Sequence[int], sizes: Sequence[float] | None = None
    ) -> Iterator[Batch]:
        """The batches that are left, each of rows of similar length, in an order fixed by the seed.

        Args:
            lengths: of all rows, tokens.
            sizes: see `batches`.
        """
        config = self.config
        count = config.epochs * number_of_batches(len(lengths), config.batch_size)
        plan = plan_batches(lengths, config.batch_size, config.epochs, config.seed)
        return self.batches(plan, count, sizes)

    def batches(
        self,
        plan: Iterable[tuple[int, Sequence[int]]],
        count: int,
        sizes: Sequence[float] | None = None,
    ) -> Iterator[Batch]:
        """The batches of a plan that are left.

        Args:
            plan: (epoch, row numbers) of every batch; it may go on for ever.
            count: of batches.
            sizes: what each row counts for in its batch's mean; None: all the same.
        """
        self.planned = count
        for epoch, rows in islice(plan, self.step, count):
            mine, weight = share_of_batch(rows, lambda i: sizes[i] if sizes else 1)
            size = sum(sizes[i] for i in rows) if sizes else len(rows)
            last = (self.step + 1) % (count // self.config.epochs or 1) == 0
            yield Batch(self.step, epoch, list(mine), weight, size, last)

    def descend(self, loss: Tensor) -> None:
        """Take one step of the optimiser "model" down the loss, at the scheduled learning rate.

        Args:
            loss: a scalar; of more than one process the sum of theirs is the batch's loss.
        """
        config = self.config
        lr = config.lr * warmup_cosine(self.step, self.planned, config.warmup)
        norm = update(self.optimizers["model"], loss, lr, config.max_norm)
        self.parts = {**totals(loss=loss), "lr": lr, "norm": norm}

    def so_far(self, name: str) -> float:
        """A number of the last record, 0 before the first."""
        return self.history[-1][name] if self.history else 0

    def note(self, found: Record) -> None:
        """What the first record says besides."""
        self.step_0 |= found

    def report(self, **numbers: Any) -> None:
        """End a step: its record goes into the history and to whoever listens; save if it is due.

        Args:
            numbers: what the record says besides step, loss, lr, norm and seconds.

        Raises:
            RuntimeError: the model is wrecked, or learns nothing; see `checks.require_progress`.
        """
        epoch = {"epoch": numbers.pop("epoch")} if "epoch" in numbers else {}
        record = {"step": self.step, **epoch, **self.parts, **numbers}
        record |= {"seconds": time.perf_counter() - self.began, **self.step_0}
        self.parts, self.step_0 = {}, {}
        self.history.append(record)
        if self.on_step is not None:
            self.on_step(record)
        require_progress(self.history)
        if self.check is not None:
            self.check(self.history)
        self.saved.save_if_due(self.history, last=self.step == self.planned)
