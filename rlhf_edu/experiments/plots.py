"""Pictures: what notebooks show and the README carries. Every function returns a figure.

The colours are Okabe and Ito's, which people with any colour vision can tell apart.
"""

import matplotlib.pyplot as plt
from cycler import cycler

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


# --- the map of the course ---------------------------------------------------------------------

_WIDTH, _HEIGHT, _STEP = 2.6, 1.15, 3.2  # of a box, and from one column to the next
