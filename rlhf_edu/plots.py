"""Pictures: what notebooks show and the README carries. Every function returns a figure.

The colours are Okabe and Ito's, which people with any colour vision can tell apart.
"""

from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

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
        plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
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


# --- the map of the course ---------------------------------------------------------------------

_ROWS = (
    ("goes in", "#FBEFC9", 4.7),
    ("is trained", "#D6EAF6", 2.75),
    ("comes out", "#D2EEE4", 0.8),
)
_WIDTH, _HEIGHT, _STEP = 2.6, 1.15, 3.2  # of a box, and from one column to the next


def plot_steps(demonstrations: int, rankings: int, prompts: int) -> Figure:
    """The map of the course: pretraining and the three steps, what goes in and what comes out.

    The numbers are how much of each people gave, as in `ladder.Recipe`.
    """
    columns = (
        ("pages of the web,\nwritten for other ends",)
        + ("0 · pretraining\nguess the next token", "base model\ncontinues any text"),
        (f"{demonstrations:,} demonstrations:\na person writes\nthe answer",)
        + ("1 · SFT\nimitate the answer", "SFT model\nanswers"),
        (f"{rankings:,} rankings:\na person orders\nK answers",)
        + ("2 · reward model\npredict the order", "reward model\nscores any answer"),
        (f"{prompts:,} prompts:\nnobody writes\nan answer",)
        + ("3 · PPO\nearn reward,\nstay near SFT", "PPO model\nearns more reward"),
    )
    figure, axes = plt.subplots(figsize=(10.4, 4.6))
    axes.set(xlim=(-0.35, 4 * _STEP), ylim=(0, 5.5))
    axes.axis("off")
    for i, column in enumerate(columns):
        x = 1.5 + _STEP * i
        for words, (_, colour, y) in zip(column, _ROWS, strict=True):
            _box(axes, x, y, words, colour)
        for _, _, y in _ROWS[:2]:
            _arrow(axes, (x, y - _HEIGHT / 2), (x, y - 1.95 + _HEIGHT / 2))
        if i:  # each step starts from the model before
            _arrow(axes, (x - _STEP + 0.4, 0.8 + _HEIGHT / 2), (x - 0.4, 2.75 - _HEIGHT / 2))
    # PPO starts from the SFT model too, and is held near it.
    place = 1.5 + _STEP, 1.5 + 3 * _STEP
    _arrow(axes, (place[0] + 0.9, 0.8 + _HEIGHT / 2), (place[1] - 1.0, 2.75 - _HEIGHT / 2), "--")
    for words, _, y in _ROWS:
        axes.text(-0.15, y, words, ha="center", va="center", color=GREY, rotation=90)
    return figure


def _box(axes: Axes, x: float, y: float, words: str, colour: str) -> None:
    """Words in a box around a place."""
    corner = x - _WIDTH / 2, y - _HEIGHT / 2
    shape = FancyBboxPatch(
        corner, _WIDTH, _HEIGHT, "round,pad=0,rounding_size=0.15", facecolor=colour, linewidth=0
    )
    axes.add_patch(shape)
    axes.text(x, y, words, ha="center", va="center", linespacing=1.3)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], line: str = "-"
) -> None:
    """An arrow from one place to another."""
    arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.4, "linestyle": line}
    axes.annotate("", end, start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
