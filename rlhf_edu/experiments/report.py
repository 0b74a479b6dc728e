"""The ladder in print: its table, and what every stage answered, side by side."""

from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_edu.experiments.exam import Answers
from rlhf_edu.experiments.plots import COLOURS, NAMES
from rlhf_edu.experiments.tables import text_table

HEAD = ("stage", "gold", "at T = 0", "flawless", "helpful", "truthful", "harmless", "words")
HEAD += ("win vs SFT", "ties", "KL", "web loss", "skills", "labels", "parameters", "min")


def table(report: dict[str, Any]) -> str:
    """The ladder as text, one stage a line."""
    cells = [_cells(row) for row in report["stages"] + report["beside"]]
    head, *rows = text_table([HEAD, *cells])
    lines = [
        head,
        "-" * len(head),
        *rows,
        "",
        "at T = 0: gold of the likeliest answers, and how many of them are flawless. skills: what "
        "the web had taught, on average.",
        "KL: to the SFT model, nats per answer. labels: demonstrations + rankings. min: of "
        f"training; the reward model, counted apart, took {report['minutes']['reward_model']:.1f}.",
        *_about_reward_model(report["reward_model"]),
    ]
    return "\n".join(lines)


def _cells(r: dict[str, Any]) -> tuple[str, ...]:
    """A stage in the table."""
    return (
        r["stage"],
        f"{r['gold']:.2f} [{r['gold_low']:.2f}, {r['gold_high']:.2f}]",
        _greedy(r),
        f"{r['flawless']:.0%}",
        f"{r['helpful']:.2f}",
        f"{r['truthful']:.2f}",
        f"{r['harmless']:.2f}",
        f"{r['words']:.1f}",
        f"{r['win_rate']:.0%} [{r['win_rate_low']:.0%}, {r['win_rate_high']:.0%}]",
        f"{r['ties']:.0%}",
        "–" if r["kl"] is None else f"{r['kl']:.1f}",
        f"{r['web_loss']:.3f}",
        f"{fmean(r['skills'].values()):.2f}",
        _budget(r["labels"]),
        f"{r['parameters']:,}",
        f"{r['minutes']:.1f}",
    )


def _greedy(r: dict[str, Any]) -> str:
    """Gold at temperature 0, and the share of flawless answers."""
    if r["gold_greedy"] is None:
        return "–"
    low, high = r["gold_greedy_low"], r["gold_greedy_high"]
    return f"{r['gold_greedy']:.2f} [{low:.2f}, {high:.2f}] {r['flawless_greedy']:.0%}"


def _about_reward_model(found: dict[str, float]) -> list[str]:
    def share(name: str) -> str:
        return f"{found[name]:.1%} [{found[f'{name}_low']:.1%}, {found[f'{name}_high']:.1%}]"

    return [
        f"The reward model orders two new answers as a labeler does in {share('label_accuracy')} "
        f"of pairs, as gold does in {share('gold_accuracy')}.",
        f"Two labelers agree on {share('agreement')} of pairs; that implies a ceiling of "
        f"{found['ceiling']:.1%}: agreement is not the ceiling.",
    ]


def _budget(labels: dict[str, int]) -> str:
    return " + ".join(str(n) for n in labels.values() if n) or "0"


def side_by_side(answers: dict[str, Answers], prompts: int = 5) -> str:
    """A few prompts with every stage's answer."""
    lines = []
    for i in range(prompts):
        lines.append(f"\n{answers['base'].prompts[i].text}")
        for stage, found in answers.items():
            said = " / ".join(found.texts[i].split("\n"))
            lines.append(f"  {stage:<17}{found.gold[i]:>5.1f}  {said}")
    return "\n".join(lines)


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
