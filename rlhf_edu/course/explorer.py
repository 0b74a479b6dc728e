"""What if? Sliders over the stored runs: the nearest one answers, with its curve and its answers.

from rlhf_edu.course.explorer import WhatIf

WhatIf(runs, best)    # the cells of data/results/rl.json and of best_of_n.json
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
from matplotlib.figure import Figure

from rlhf_edu.course.notebook import picture_html, png
from rlhf_edu.course.widgets import WIDE, Panel
from rlhf_edu.experiments.grid import Cells
from rlhf_edu.experiments.plots import BLUE, ORANGE


class Method(NamedTuple):
    """What can be chosen: a kind of run in the cells of an experiment, and its setting's name."""

    kind: str
    setting: str
    experiment: str = "rl"


METHODS = {
    "PPO": Method("ppo", "price of KL, beta"),
    "PPO-ptx": Method("ptx", "weight of pretraining text, gamma"),
    "DPO": Method("dpo", "beta of DPO"),
    "PPO without a price, step by step": Method("long", "step"),
    "best of n, by labelled prompts": Method("labels", "labelled prompts", "best_of_n"),
    "best of n, small reward model": Method("small", "labelled prompts", "best_of_n"),
    "best of n, by the labelers' taste": Method("taste", "taste", "best_of_n"),
}
WORDS = {
    "gold": "gold",
    "reward": "proxy",
    "proxy": "proxy",
    "kl": "KL to SFT, nats",
    "kl_bound": "KL to SFT, nats, at most",
    "words": "words",
    "hedging": "share of hedged sentences",
    "web_loss": "web loss, nats per token",
}


class WhatIf(Panel):
    """Choose a method and a setting; see the nearest stored run."""

    def __init__(self, runs: Cells, best: Cells) -> None:
        """Take the stored cells.

        Args:
            runs: of `rl.json`.
            best: of `best_of_n.json`.

        Raises:
            ValueError: neither holds a run that could be shown.
        """
        super().__init__()
        self.cells = _by_method(runs, best)
        if not self.cells:
            raise ValueError(
                "WhatIf: no stored runs; `python -m rlhf_edu experiment rl` makes them"
            )
        self.method = ipywidgets.Dropdown(
            options=list(self.cells), description="method", layout=WIDE
        )
        self.setting = ipywidgets.SelectionSlider(options=["-"], layout=WIDE)
        self.n = ipywidgets.SelectionSlider(options=[1], description="n", layout=WIDE)
        self.seed = ipywidgets.SelectionSlider(options=[0], description="seed", layout=WIDE)
        for control in (self.setting, self.n, self.seed):
            control.style.description_width = "220px"
        self._offer()
        self.method.observe(self._offer, "value")
        for control in (self.setting, self.n, self.seed):
            control.observe(self.refresh, "value")
        self._build([self.method, self.setting, self.n, self.seed])

    def _offer(self, _change: Any = None) -> None:
        """Give the sliders what the method has, and hide what it has not."""
        cells = self.cells[self.method.value]
        self.setting.description = METHODS[self.method.value].setting
        settings = list(dict.fromkeys(setting for setting, _ in cells))
        seeds = sorted({seed for _, seed in cells})
        ns = [row["n"] for row in next(iter(cells.values())).get("rows", []) if "n" in row]
        for slider, options in ((self.setting, settings), (self.seed, seeds), (self.n, ns or [1])):
            slider.options = options
            slider.layout.visibility = "visible" if len(options) > 1 else "hidden"
        if hasattr(self, "page"):
            self.refresh()

    @property
    def nearest(self) -> tuple[Any, int]:
        """Setting and seed of the stored run that is shown."""
        cells = self.cells[self.method.value]
        wanted = (self.setting.value, self.seed.value)
        if wanted in cells:
            return wanted
        same = [key for key in cells if key[0] == wanted[0]] or list(cells)
        return min(same, key=lambda key: abs(key[1] - wanted[1]))

    def _row(self) -> Mapping[str, Any]:
        """The numbers at the sliders' place."""
        cell = self.cells[self.method.value][self.nearest]
        rows = cell.get("rows", [])
        return next((row for row in rows if row.get("n") == self.n.value), cell)

    def _name(self) -> str:
        name = METHODS[self.method.value].setting
        setting, seed = self.nearest
        n = f", best of {self.n.value}" if self._row().get("n") else ""
        return f"{self.method.value}: {name} {setting}, seed {seed}{n}"

    def words(self) -> str:
        """The run and its numbers, in a sentence."""
        row = self._row()
        numbers = [f"{WORDS[key]} {row[key]:.2f}" for key in WORDS if key in row]
        return f"{self._name()}: {', '.join(numbers)}."

    def view(self) -> str:
        """Numbers, curve and answers."""
        cell = self.cells[self.method.value][self.nearest]
        parts = [f"<p><b>{html.escape(self.words())}</b></p>", _picture(cell, self._name())]
        answers = cell.get("answers", {})
        rows = []
        for prompt, said in list(answers.items())[:4]:
            text = said[str(self.n.value)] if isinstance(said, Mapping) else said
            cells = f"<td>{html.escape(prompt)}</td><td>{html.escape(text)}</td>"
            rows.append(f"<tr style='text-align:left;vertical-align:top'>{cells}</tr>")
        if rows:
            parts.append(f"<table><tr><th>prompt</th><th>answer</th></tr>{''.join(rows)}</table>")
        return "".join(parts)


def _by_method(runs: Cells, best: Cells) -> dict[str, dict[tuple[Any, int], dict[str, Any]]]:
    """Method -> (setting, seed) -> cell with `rows` (the curve) and `answers`."""
    experiments, found = {"rl": runs, "best_of_n": best}, {}
    for name, method in METHODS.items():
        stored = experiments[method.experiment].values()
        cells: dict[tuple[Any, int], dict[str, Any]] = {}
        for cell in (cell for cell in stored if cell["kind"] == method.kind):
            if method.kind == "long":
                cells |= {(row["step"], cell["seed"]): _long(cell, row) for row in cell["steps"]}
            else:
                cells[cell["setting"], cell["seed"]] = {**cell, "rows": cell["curve"]}
        if cells:
            found[name] = dict(sorted(cells.items(), key=lambda item: item[0][0]))
    return found


def _long(cell: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A step of the long run; the answers are known at its end alone."""
    at_end = row["step"] == cell["steps"][-1]["step"]
    return {**row, "rows": cell["steps"], "answers": cell["answers"] if at_end else {}}


def _picture(cell: Mapping[str, Any], name: str) -> str:
    """The run's curve: proxy, and gold or KL beside it."""
    rows: Sequence[Mapping[str, Any]] = cell.get("rows", [])
    x = next((key for key in ("n", "step") if rows and key in rows[0]), None)
    keys = [key for key in ("reward", "proxy", "loss", "margin", "gold", "kl")
            if x and key in rows[0]][:3]  # fmt: skip
    if not keys:
        return ""
    figure = Figure(figsize=(3.1 * len(keys), 2.3), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        colour = ORANGE if key == "gold" else BLUE
        axes.plot([row[x] for row in rows], [row.get(key, math.nan) for row in rows], color=colour)
        axes.set(title=WORDS.get(key, key), xlabel=x)
        if x == "n":
            axes.set_xscale("log", base=2)
    ends = ", ".join(f"{WORDS.get(k, k)} {rows[0][k]:.2f} to {rows[-1][k]:.2f}" for k in keys)
    return picture_html(png(figure), f"The stored run of {name}, from start to end: {ends}.")
