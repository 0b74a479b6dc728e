"""How cost grows with batch, answer length, K and model size: `… bench --stage growth`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from rlhf_edu import data_folder
from rlhf_edu.bench.job import Job
from rlhf_edu.bench.plan import Plan, run_ours
from rlhf_edu.bench.speed import range_text, spread
from rlhf_edu.experiments.grid import Cells, each_seed, run_grid
from rlhf_edu.experiments.plots import BLUE, GREY, ORANGE, style
from rlhf_edu.experiments.tables import text_table

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
LOOKS = {
    "seconds": {"color": BLUE, "linestyle": "-", "label": "time"},
    "memory_mb": {"color": ORANGE, "linestyle": "--", "label": "memory"},
}


def number(value: Any) -> float:
    """A place on an axis as a number; a model's size in millions of parameters."""
    return float(str(value).removesuffix("M"))


def growth(plan: Plan, folder: Path | None = None) -> str:
    """Measure what has no result yet, draw the picture, and return the table."""
    folder = folder or data_folder(create=True) / "results"
    name, cell = f"growth_{plan.device}", partial(measure, plan)
    cells = [{"kind": axis, "setting": value} for axis in AXES for value in AXES[axis][1]]
    found = run_grid(name, plan.command(), cell, cells, folder)
    picture(found).savefig(folder / f"{name}.png", dpi=110)
    return table(found)


def measure(plan: Plan, kind: str, setting: Any) -> dict[str, Any]:
    """Seconds of a step (of a CPU, or of a GPU) and the peak of memory: medians and ranges."""
    given = {"device": plan.device, "warmup": plan.warmup, "steps": plan.steps, kind: setting}
    runs = run_ours(plan, replace(AXES[kind][0], **given))
    seconds = "cpu_seconds" if plan.device == "cpu" else "seconds"
    return {
        "seconds": spread([run[seconds] for run in runs]),
        "memory_mb": spread([run["memory_mb"] for run in runs]),
    }


def costs(cells: Cells, axis: str, what: str) -> list[float]:
    """What each place on an axis costs: the median of seconds or of memory."""
    found = (each_seed(cells, axis, value)[0] for value in AXES[axis][1])
    return [cell[what][0] for cell in found]


def table(cells: Cells) -> str:
    """Every cell, and below each axis how many times larger it and its costs become."""
    rows: list[tuple[str, ...]] = [("", "", "s a step", "MB")]
    for axis, (_, values) in AXES.items():
        for value in values:
            cell = each_seed(cells, axis, value)[0]
            numbers = (range_text(cell[what], ".3g") for what in ("seconds", "memory_mb"))
            rows.append((axis, f" {value}", *numbers))
        along = [number(value) for value in values]
        ends = (along, costs(cells, axis, "seconds"), costs(cells, axis, "memory_mb"))
        times, seconds, memory = (f"× {every[-1] / every[0]:.3g}" for every in ends)
        rows.append(("", f" {times}", seconds, memory))
    return "\n".join(text_table(rows, (12, 14, 22, 22), left=2))


def picture(cells: Cells) -> Figure:
    """Seconds and memory along each axis, both from 1; grey: as fast as the axis itself."""
    style()
    figure, places = plt.subplots(1, len(AXES), figsize=(11, 3), sharey=True)
    for place, (axis, (_, values)) in zip(places, AXES.items(), strict=True):
        along = [number(value) for value in values]
        place.plot(along, [x / along[0] for x in along], color=GREY, linestyle=":", label="linear")
        for what, look in LOOKS.items():
            every = costs(cells, axis, what)
            place.plot(along, [cost / every[0] for cost in every], marker="o", **look)
        place.set(xscale="log", yscale="log", xlabel=TITLES[axis])
        place.set_xticks(along, [f"{x:g}" for x in along])
        place.minorticks_off()
    places[0].set(ylabel="times the first")
    places[0].set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    places[0].legend()
    return figure
