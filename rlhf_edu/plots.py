"""Pictures: what notebooks show and the README carries. Every function returns a figure.

The colours are Okabe and Ito's, which people with any colour vision can tell apart.
"""

from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
YELLOW, SKY, PINK, GREY = "#E69F00", "#56B4E9", "#CC79A7", "#777777"
# Lines differ in colour and in style, so that they can be told apart in grey too.
PALETTE = (BLUE, ORANGE, GREEN, YELLOW, SKY, PINK, GREY)
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

COLOURS = {
    "base": "#999999",
    "prompted": "#56B4E9",
    "sft": "#0072B2",
    "best_of_16": "#CC79A7",
    "ppo": "#D55E00",
    "ppo_ptx": "#E69F00",
    "dpo": "#009E73",
}
NAMES = {
    "base": "base",
    "prompted": "prompted",
    "sft": "SFT",
    "best_of_16": "best of 16",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "dpo": "DPO",
}


def style() -> None:
    """Give every figure that follows the look of the course."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 3.4),
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=LINES),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "grid.alpha": 0.3,
            "font.size": 10.5,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
        }
    )


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def plot_ladder(report: dict[str, Any]) -> Figure:
    """Three views of a ladder's report: gold by stage, gold against KL, and what was forgotten.

    `report` is what `Ladder.run` returns and `python -m rlhf_edu ladder --json` writes.
    """
    rows = report["stages"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    names, colours = [NAMES[r["stage"]] for r in rows], [COLOURS[r["stage"]] for r in rows]
    gold = [r["gold"] for r in rows]
    spread = [[r["gold"] - r["gold_low"] for r in rows], [r["gold_high"] - r["gold"] for r in rows]]
    left.bar(names, gold, color=colours, yerr=spread, capsize=3)
    left.axhline(0, color="black", linewidth=0.8)
    left.set(title="How good are the answers?", ylabel="gold score, 95 % interval")
    for r in rows:
        if r["kl"] is not None:
            place = r["kl"], r["gold"]
            middle.plot(*place, "o", color=COLOURS[r["stage"]], markersize=9)
            middle.annotate(NAMES[r["stage"]], place, xytext=(6, 5), textcoords="offset points")
    middle.margins(x=0.2, y=0.15)
    middle.set(
        title="How far from SFT for it?", xlabel="KL to SFT, nats per answer", ylabel="gold score"
    )
    tax = [r["web_loss"] - rows[0]["web_loss"] for r in rows]
    right.bar(names, tax, color=colours)
    right.set(title="What was forgotten?", ylabel="web loss above the base, nats per token")
    for axes in (left, right):
        axes.tick_params(axis="x", rotation=40)
    for axes in (left, middle, right):
        _quiet(axes)
    return figure


def describe_ladder(report: dict[str, Any]) -> str:
    """The picture of `plot_ladder` in words, for those who cannot see it."""
    parts = [
        f"{NAMES[r['stage']]} {r['gold']:.2f} (95 % interval {r['gold_low']:.2f} to "
        f"{r['gold_high']:.2f}, web loss {r['web_loss']:.2f})"
        for r in report["stages"]
    ]
    return "Gold score by stage: " + ", ".join(parts) + "."
