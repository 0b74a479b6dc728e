"""The map of the three steps of InstructGPT, chapter 00."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rlhf_edu.experiments.plots import GREY

_WIDTH, _HEIGHT, _STEP = 2.6, 1.15, 3.2  # of a box, and from one column to the next
_ROWS = (
    ("goes in", "#FBEFC9", 4.7),
    ("is trained", "#D6EAF6", 2.75),
    ("comes out", "#D2EEE4", 0.8),
)


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
