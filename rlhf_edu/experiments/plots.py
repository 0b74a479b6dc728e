"""Pictures: what notebooks show and the README carries. Every function returns a figure.

The colours are Okabe and Ito's, which people with any colour vision can tell apart.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
from cycler import cycler

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
YELLOW, SKY, PINK, GREY = "#E69F00", "#56B4E9", "#CC79A7", "#777777"
# Lines differ in colour and in style, so that they can be told apart in grey too.
PALETTE = (BLUE, ORANGE, GREEN, YELLOW, SKY, PINK, GREY)
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


class Stage(NamedTuple):
    """A stage of the course: what it is called, drawn in, and kept as; "" if it has no model."""

    title: str
    colour: str
    folder: str = ""


STAGES = {
    "base": Stage("base", "#999999", "base"),
    "prompted": Stage("prompted", SKY),
    "sft": Stage("SFT", BLUE, "sft"),
    "best_of_16": Stage("best of 16", PINK),
    "ppo": Stage("PPO", ORANGE, "ppo"),
    "ppo_ptx": Stage("PPO-ptx", YELLOW, "ppo-ptx"),
    "dpo": Stage("DPO", GREEN, "dpo"),
}
COLOURS = {name: stage.colour for name, stage in STAGES.items()}
NAMES = {name: stage.title for name, stage in STAGES.items()}


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
