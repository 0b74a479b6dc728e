"""Three sizes of one model: as base, after SFT, and as reward model (F3, F12).

    python -m rlhf_edu experiment sizes [--seeds N]

All sizes see the same demonstrations, answer the same test prompts, and learn to score the same
answers: those of the shipped 1M SFT model, in `data/rankings.jsonl`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_edu.data import Ranking
from rlhf_edu.experiments import grid
from rlhf_edu.experiments.bases import BASES
from rlhf_edu.experiments.exam import reward_accuracy
from rlhf_edu.experiments.ladder import Ladder, Recipe, gold_ranks
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.intervals import Estimate, bootstrap, win_rate
from rlhf_edu.models import count_parameters

COLUMNS = {"base": "base", "sft": "SFT", "labels": "RM against labels", "gold": "RM, gold"}


def measure(kind: str, setting: None, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Gold of each test answer as base and after SFT, and the reward model's accuracies.

    `kind` is the size.
    """
    shipped = Shipped(device)
    ladder = Ladder(seed, recipe=Recipe(size=kind), quiet=True, device=device)
    ladder.base()
    ladder.supervised()
    gold = {name: ladder.answer(ladder.models[name], ladder.test).gold for name in ("base", "sft")}
    ladder.rankings = shipped.rankings
    ladder.train_reward_model()
    unseen = _unseen(shipped)
    by_gold = [replace(r, ranks=gold_ranks(ladder.judge, r)) for r in unseen]
    model, tokenizer = ladder.models["reward_model"], ladder.tokenizer
    return {
        "parameters": count_parameters(ladder.models["base"]),
        **gold,
        "labels": reward_accuracy(model, tokenizer, unseen),
        "gold": reward_accuracy(model, tokenizer, by_gold),
    }


def _unseen(shipped: Shipped) -> list[Ranking]:
    """Rankings of the shipped SFT model's answers to validation prompts."""
    ladder = Ladder(0, quiet=True, device=str(shipped.device))
    ladder.base()
    ladder.models["sft"] = shipped.load("sft")
    return ladder.collect_rankings(ladder.validation, 1000)


def run(seeds: int, device: str = "cpu") -> str:
    """Run what is missing and return the table."""
    cells = grid.by_seed(dict.fromkeys(BASES, ()), seeds)
    found = grid.run_experiment("sizes", measure, cells, seeds, device)
    lines: list[list[Any]] = [["size", "parameters", *COLUMNS.values()]]
    for size in BASES:
        runs = grid.each_seed(found, size)
        estimates = [bootstrap(_by_prompt(runs, key)) for key in COLUMNS]
        lines.append([size, f"{runs[0]['parameters']:,}", *estimates])
    table = text_table(lines, (7, 11, 22, 22, 22, 22))
    smallest = next(iter(BASES))
    wins = "Win rate of the smallest model after SFT over the largest base: "
    return "\n".join([*table, wins + str(_win_rate(found, smallest))])


def _win_rate(cells: grid.Cells, size: str) -> Estimate:
    """Of a size after SFT over the largest base."""
    *_, largest = BASES
    ours, theirs = grid.each_seed(cells, size), grid.each_seed(cells, largest)
    return win_rate(_by_prompt(ours, "sft"), _by_prompt(theirs, "base"))


def _by_prompt(rows: list[dict[str, Any]], key: str) -> list[float]:
    """The mean over seeds of what was measured for each prompt."""
    return np.mean([row[key] for row in rows], axis=0).tolist()


def _small_beats_large(cells: grid.Cells) -> tuple[str, str]:
    small, middle, large = BASES
    parameters = {size: grid.each_seed(cells, size)[0]["parameters"] for size in BASES}
    wins, also = _win_rate(cells, small), _win_rate(cells, middle)
    times, fewer = (parameters[large] / parameters[size] for size in (small, middle))
    said = f"win rate {wins} after SFT against a base {times:.0f} times larger"
    return f"{said}; {also} against one {fewer:.0f} times larger", grid.above(wins, 0.5)


FINDINGS = [
    grid.Finding(
        "F3",
        "the smallest tuned model beats the largest base",
        "1.3B InstructGPT preferred to 175B GPT-3, more than 100 times larger",
        "win rate above 50 % by interval, at the ratio that is stated",
        _small_beats_large,
    )
]
