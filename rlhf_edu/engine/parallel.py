"""More than one process: each computes its share of every batch, and all take the same step.

    accelerate launch --num_processes 2 -m rlhf_edu sft --model … --data … --out …

All processes run the same program with the same settings, so that all know the whole batch. What
is computed from it is a sum over its rows: each process computes the part of its own rows, and the
parts are added up. So two processes do what one does, up to rounding, in about half the time. They
meet in `share_rows`, `gathered`, `add_gradients` and `totals`; in a program of one process these
change nothing.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch import distributed as dist

Item = TypeVar("Item")


def join_others() -> None:
    """Find the other processes, if `accelerate launch` or `torchrun` started more than one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())


def processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(rows: Sequence[Item]) -> Sequence[Item]:
    """This process' part of the rows, perhaps none; in the order of processes they are all."""
    if processes() == 1:
        return rows
    rank, count = dist.get_rank(), len(rows)
    return rows[count * rank // processes() : count * (rank + 1) // processes()]


def share_of_batch(
    rows: Sequence[Item], size: Callable[[Item], float]
) -> tuple[Sequence[Item], float]:
    """This process' part of a batch, and its weight in the batch's mean.

    Args:
        rows: the whole batch.
        size: what a row counts for in the mean, such as its tokens.

    Returns:
        At least one row, and the weight by which a mean over them is to be multiplied, for the sum
        over all processes to be the mean over the batch: 0 where there was no row left to give.
    """
    if processes() == 1:
        return rows, 1.0
    mine, whole = share(rows), sum(map(size, rows))
    return (mine, sum(map(size, mine)) / whole) if len(mine) else (rows[:1], 0.0)


def gathered(found: list[Any], device: torch.device) -> list[Any]:
    """Tensors, or what moves as they do, that all processes found for their shares, in order."""
    if processes() == 1:
        return found
    return [part.to(device) for part in gather_object([part.to("cpu") for part in found])]


def together(
    compute: Callable[[range], dict[str, Tensor]], count: int, device: torch.device
) -> dict[str, Tensor]:
    """What `compute` finds for rows 0 … count - 1, each process for its share of them.

    Args:
        compute: from row numbers without a gap to tensors (rows, …) by name.
        count: of rows.
        device: where the results are wanted.
    """
    if processes() == 1:
        return compute(range(count))
    mine = share(range(count))
    found = [{name: x.to("cpu") for name, x in compute(mine).items()}] if mine else []
    parts = gather_object(found)
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes."""
    if processes() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def totals(**scalars: Tensor) -> dict[str, float]:
    """Sums over all processes of some scalars, in one transfer from the device."""
    return _transferred(scalars, together=processes() > 1)


def fetched(**scalars: Tensor) -> dict[str, float]:
    """Some scalars of this process, in one transfer from the device: a GPU is waited for once."""
    return _transferred(scalars, together=False)


def _transferred(scalars: dict[str, Tensor], together: bool) -> dict[str, float]:
    found = torch.stack([scalar.detach().double() for scalar in scalars.values()])
    if together:
        dist.all_reduce(found)
    return dict(zip(scalars, found.tolist(), strict=True))
