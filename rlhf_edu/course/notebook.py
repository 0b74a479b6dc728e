"""What every notebook uses: the first cell, figures with words, a bar and a curve that grow.

    from rlhf_edu.course import LiveCurve, progress, show, start

    course = start(tier="tiny", seed=0)

Whatever is shown here leaves the same text behind at every run, so that a test can compare it:
no times, no addresses, and numbers rounded to what stays the same from machine to machine.
"""

import base64
import contextlib
import html
import io
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets
import matplotlib
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rlhf_edu import data_folder
from rlhf_edu.course.checks import Check
from rlhf_edu.data import Prompt
from rlhf_edu.experiments.plots import style
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.real.rows import hub_chosen

DPI = 110
TIERS = ("tiny", "local", "hub")
# Without its kernel a widget of a saved notebook is an error message, in an element that has this
# class only then. It is made invisible, and a sentence put in its place.
GONE = """<style>
.jp-OutputArea-output.jupyter-widgets {font-size: 0}
.jp-OutputArea-output.jupyter-widgets::after {
  content: "Here was something to click: run this cell again."; font-size: 14px; font-style: italic}
</style>"""
T = TypeVar("T")


# --- the first cell ----------------------------------------------------------------------------


class Course(Shipped):
    """Where the models are, and the world they live in.

    Attributes:
        tier: "tiny" for the shipped models, "local" for a folder of your own, "hub" for ids.
        seed: of everything random in the notebook.
        device, models: where models are loaded to, and the folder that holds one folder per model.
    """

    def __init__(self, tier: str, seed: int, device: str | torch.device, models: Path) -> None:
        super().__init__(device, models)
        self.tier, self.seed = tier, seed

    def __repr__(self) -> str:
        network = "online" if self.tier == "hub" else "offline"
        return f"tier {self.tier}, seed {self.seed}, {self.device.type}, {network}"

    def prompts(self, n: int, split: str = "train", seed: int | None = None) -> list[Prompt]:
        """`n` different prompts of simulated customers; None: of the notebook's seed."""
        return super().prompts(n, split, self.seed if seed is None else seed)


def start(
    tier: str = "tiny", seed: int = 0, models: str | Path | None = None, device: str | None = None
) -> Course:
    """Set threads, seeds, the look of figures and the warnings; say where we are.

    Args:
        tier: "tiny": the shipped models, on the CPU. "local": models of your own, on a GPU if
            there is one. "hub": there too, models and data by their ids, from the network.
        seed: of torch, numpy and random.
        models: for "local", the folder that holds one folder per model (base, sft, …).
        device: auto, cpu or cuda; None: what the tier says.

    Raises:
        ValueError: unknown tier, "local" without a folder, or "hub" without the network.
    """
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, not {tier!r}")
    if tier == "local" and models is None:
        raise ValueError('tier "local" needs models=, the folder that holds your models')
    if tier == "hub" and not hub_chosen():
        raise ValueError(
            'tier "hub" needs the network: before rlhf_edu is imported, set os.environ'
            '["HF_HUB_OFFLINE"] = "0"; in a running notebook, restart the kernel first'
        )
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.set_printoptions(precision=3, sci_mode=False, linewidth=88)
    np.set_printoptions(precision=3, suppress=True, linewidth=88)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.simplefilter("ignore", category)
    style()
    folder = data_folder() / "models" if models is None else Path(models)
    course = Course(tier, seed, device or ("cpu" if tier == "tiny" else "auto"), folder)
    print(course)
    if get_ipython():  # HTML alone, which `tidy` drops: the course stores no widgets
        display({"text/html": GONE}, raw=True)
    return course


# --- what the student writes, trains ------------------------------------------------------------


def mine_or_ours(mine: Callable[..., Any], check: Check) -> Callable[..., Any]:
    """The student's function if it passes its check, until then the package's; a line says which.

    It goes to a trainer: `train_dpo(…, loss=mine_or_ours(my_dpo_loss, check_dpo_loss))`.
    """
    passed = check.verdict(mine).status == "passed"
    whose = "yours is used" if passed else "not solved yet, so rlhf_edu's own is used"
    print(f"{mine.__name__}: {whose}")
    return mine if passed else check.right


# --- figures with words ------------------------------------------------------------------------


def png(figure: Figure, colours: int = 96) -> bytes:
    """The figure as a small PNG file, the same bytes at every call."""
    raw, small = io.BytesIO(), io.BytesIO()
    if not hasattr(figure.canvas, "print_png"):
        FigureCanvasAgg(figure)
    figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    picture = Image.open(raw).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    picture.save(small, "png", optimize=True)
    return small.getvalue()


def picture_html(data: bytes, alt: str, caption: str = "") -> str:
    """A PNG as HTML, with its alternative text; the caption stands below, or else the text."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (
        '<figure style="margin:0">'
        f'<img alt="{html.escape(alt)}" src="{source}" style="max-width:100%">'
        f'<figcaption style="font-size:90%;opacity:0.8">{html.escape(caption or alt)}</figcaption>'
        "</figure>"
    )


def show(figure: Figure, alt: str, caption: str = "") -> None:
    """Show a figure, and say what it shows.

    Args:
        figure: any matplotlib figure; it is closed, so that nothing shows it twice.
        alt: the finding in a sentence, with its numbers. A test compares it at every run, as it
            cannot compare pictures, so round what training made.
        caption: what stands below the figure; empty: the alternative text.

    Raises:
        ValueError: there is no alternative text.
    """
    if not alt.strip():
        raise ValueError("show: say in `alt` what the figure shows, for those who cannot see it")
    data = png(figure)
    plt.close(figure)
    words = alt if not caption else f"{alt}\n{caption}"
    bundle = {
        "text/plain": words,
        "text/html": picture_html(data, alt, caption),
        "image/png": base64.b64encode(data).decode(),
    }
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


# --- while something runs ----------------------------------------------------------------------


class Live(ipywidgets.VBox):
    """Something that moves while a cell runs, and leaves one line of text that never changes."""

    def __init__(self, children: Sequence[ipywidgets.Widget], words: str) -> None:
        """Show the children at once, below each other."""
        self._words, self._place = words, uuid.uuid4().hex
        super().__init__(list(children))
        display(self, display_id=self._place)

    def leave(self) -> None:
        """Put the line of text in the widget's place, for a saved notebook cannot show a widget."""
        with contextlib.suppress(Exception):  # a closed front end must not stop a training
            display({"text/plain": self._words}, raw=True, display_id=self._place, update=True)
            for widget in (*self.children, self):
                widget.close()

    def __repr__(self) -> str:
        return self._words

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        return {**bundle, "text/plain": self._words}


class Progress:
    """A progress bar: a number of steps, a label, and the time, which is only seen live.

    It can be called with a trainer's record (`on_step=Progress(40, "SFT")`).
    """

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.done = total, label, 0
        self.bar = ipywidgets.IntProgress(max=max(1, total), layout={"width": "60%"})
        self.text = ipywidgets.Label()
        steps = "1 step" if total == 1 else f"{total} steps"
        self.panel = Live([self.bar, self.text], f"{label}: {steps}")
        self._start = self._drawn = time.perf_counter()

    def __call__(self, record: Any = None) -> None:
        """One more step is done."""
        self.done += 1
        now = time.perf_counter()
        if now - self._drawn > 0.2 or self.done >= self.total:
            self._drawn = now
            self.bar.value = self.done
            self.text.value = f"{self.label}: {self.done}/{self.total}, {now - self._start:.0f} s"
        if self.done >= self.total:
            self.panel.leave()


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Go through the items with a progress bar: `for step in progress(range(200), "fitting"):`"""
    if total is None:
        items = list(items)
        total = len(items)
    bar = Progress(total, label)
    try:
        for item in items:
            yield item
            bar()
    finally:
        bar.panel.leave()


class LiveCurve:
    """Curves that grow while a trainer runs; at the end they become a figure with words.

        live = LiveCurve(20, "PPO", reward="score of the answer", kl="KL to the start, nats")
        train_ppo(…, on_step=live)

    Attributes:
        records: what the trainer has reported so far.
    """

    def __init__(self, total: int, label: str, digits: int | None = 1, **curves: str) -> None:
        """Show empty axes, one for each curve.

        Args:
            total: steps after which the final figure replaces the live one.
            label: what is being trained.
            digits: to which the numbers in the words are rounded. None: words alone, rises and
                falls, for reinforcement learning, where one sampled token that comes out
                differently on another machine changes all that follows.
            curves: key of the records = label of its axis, with the unit.

        Raises:
            ValueError: no curves.
        """
        if not curves:
            raise ValueError('LiveCurve: name at least one curve, such as loss="loss, nats"')
        self.total, self.label, self.digits, self.curves = total, label, digits, curves
        self.records: list[dict[str, Any]] = []
        self.finished = False
        self._bar = ipywidgets.IntProgress(max=max(1, total), layout={"width": "60%"})
        # Without a value a browser shows the sign for a broken image until the first step.
        empty = png(self.figure())
        self._image = ipywidgets.Image(value=empty, format="png", width=self._size()[0] * DPI)
        self._panel = Live([self._bar, self._image], f"{label}: {total} steps")
        self._due = 0.0

    def __call__(self, record: dict[str, Any]) -> None:
        """Add a step's record; this is the trainer's `on_step`."""
        self.records.append({name: float(record[name]) for name in self.curves})
        if len(self.records) >= self.total:
            self.finish()
            return
        now = time.perf_counter()
        if now >= self._due:
            self._bar.value = len(self.records)
            self._image.value = png(self.figure())
            # Drawing may take a tenth of the time, however slow the machine.
            self._due = time.perf_counter() + 10 * (time.perf_counter() - now)

    def finish(self) -> None:
        """Replace the live curves by the figure; called by itself after the last step."""
        if not self.finished:
            self.finished = True
            self._panel.leave()
            if self.records:
                show(self.figure(), self.words())

    def words(self) -> str:
        """What the curves show: the mean of their first fifth and of their last."""
        fifth = max(1, len(self.records) // 5)
        parts = []
        for name, label in self.curves.items():
            row = [record[name] for record in self.records]
            first, last = np.mean(row[:fifth]), np.mean(row[-fifth:])
            if self.digits is None:
                parts.append(f"{label} {'rises' if last > first else 'falls'}")
            else:
                parts.append(f"{label} goes from {first:.{self.digits}f} to {last:.{self.digits}f}")
        return f"{self.label}, {len(self.records)} steps: {'; '.join(parts)}."

    def _size(self) -> tuple[float, float]:
        return min(3.6 * len(self.curves) + 1.2, 10.0), 2.8

    def figure(self) -> Figure:
        """The curves so far."""
        figure = Figure(figsize=self._size(), layout="constrained")
        colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
        rows = figure.subplots(1, len(self.curves), squeeze=False)[0]
        for i, (axes, (name, label)) in enumerate(zip(rows, self.curves.items(), strict=True)):
            row = [record[name] for record in self.records]
            mark = "o" if len(row) == 1 else ""  # one step is no line
            hue = colours[i % len(colours)]
            axes.plot(range(1, len(row) + 1), row, marker=mark, color=hue, linestyle="-")
            axes.set(xlim=(0, self.total + 0.5), xlabel="step", title=label)
        figure.suptitle(self.label, fontsize=11)
        return figure
