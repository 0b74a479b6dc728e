"""How cost grows with batch, answer length, K and model size: `… bench --stage growth`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from rlhf_edu import data_folder
from rlhf_edu.bench.plan import WORKER, Plan, range_text, run_worker, spread
from rlhf_edu.bench.worker import Job
from rlhf_edu.experiments.grid import Cells, run_grid
from rlhf_edu.experiments.plots import BLUE, GREY, ORANGE, style

START = Job("ours", "ppo", batch=16, tokens=16)
# What grows eightfold, the stage in which it does, and its sizes.
AXES: dict[str, tuple[Job, tuple[Any, ...]]] = {
    "batch": (START, (16, 32, 64, 128)),
    "tokens": (START, (16, 32, 64, 128)),
    "answers": (replace(START, stage="reward", batch=16), (2, 4, 6, 9)),
    "size": (replace(START, stage="sft"), ("2M", "4M", "8M", "17M")),
}
TITLES = {
    "batch": "PPO: episodes a step",
    "tokens": "PPO: tokens of an answer",
    "answers": "reward model: K answers",
    "size": "SFT: parameters, millions",
}


def number(value: Any) -> float:
    """A place on an axis as a number; a model's size in millions of parameters."""
    return float(str(value).removesuffix("M"))


def growth(plan: Plan, folder: Path | None = None) -> str:
    """Measure what has no result yet, draw the picture, and return the table."""
    folder, cells = folder or data_folder(create=True) / "results", {}
    given = {"device": plan.device, "warmup": plan.warmup, "steps": plan.steps}
    for axis, (job, values) in AXES.items():
        for value in values:
            sized = replace(job, **{axis: value}, **given)
            cells[f"{axis} {value}"] = lambda job=sized: measure(plan, job)
    found = run_grid(f"growth_{plan.device}", plan.command(), cells, folder)
    picture(found).savefig(folder / f"growth_{plan.device}.png", dpi=110)
    return table(found)


def measure(plan: Plan, job: Job) -> dict[str, Any]:
    """Seconds of a step (of a CPU, or of a GPU) and the peak of memory: medians and ranges."""
    jobs = [asdict(replace(job, seed=seed)) for seed in range(plan.repeats)]
    runs = [run_worker(plan, plan.python("ours", job.stage), WORKER, one) for one in jobs]
    seconds = "cpu_seconds" if plan.device == "cpu" else "seconds"
    return {
        "seconds": spread([run[seconds] for run in runs]),
        "memory_mb": spread([run["memory_mb"] for run in runs]),
    }


def times(cells: Cells, axis: str, what: str) -> tuple[float, float]:
    """How many times larger the axis and its cost become from its first place to its last."""
    first, *_, last = AXES[axis][1]
    costs = [cells[f"{axis} {value}"][what][0] for value in (first, last)]
    return number(last) / number(first), costs[1] / costs[0]


def table(cells: Cells) -> str:
    """Every cell, and below each axis whether cost grew faster than what it was for."""
    lines = [f"{'':26}{'s a step':>22}{'MB':>22}"]
    for axis, (_, values) in AXES.items():
        for value in values:
            cell = cells[f"{axis} {value}"]
            numbers = "".join(
                f"{range_text(cell[name], '.3g'):>22}" for name in ("seconds", "memory_mb")
            )
            lines.append(f"{axis:>12} {value!s:<13}{numbers}")
        (by, seconds), (_, memory) = (times(cells, axis, x) for x in ("seconds", "memory_mb"))
        lines.append(f"{'':13}× {by:<11.3g}{f'× {seconds:.3g}':>22}{f'× {memory:.3g}':>22}")
    return "\n".join(lines)


def picture(cells: Cells) -> Figure:
    """Seconds and memory along each axis, both from 1; grey: as fast as the axis itself."""
    style()
    figure, axes = plt.subplots(1, len(AXES), figsize=(11, 3), sharey=True)
    for place, (axis, (_, values)) in zip(axes, AXES.items(), strict=True):
        along = [number(value) for value in values]
        place.plot(along, [x / along[0] for x in along], color=GREY, linestyle=":", label="linear")
        for what, name, colour in (("seconds", "time", BLUE), ("memory_mb", "memory", ORANGE)):
            costs = [cells[f"{axis} {value}"][what][0] for value in values]
            line = {"marker": "o", "linestyle": "-" if colour == BLUE else "--"}
            grown = [cost / costs[0] for cost in costs]
            place.plot(along, grown, color=colour, label=name, **line)
        place.set(xscale="log", yscale="log", xlabel=TITLES[axis])
        place.set_xticks(along, [f"{x:g}" for x in along])
        place.minorticks_off()
    axes[0].set(ylabel="times the first")
    axes[0].set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes[0].legend()
    return figure
