"""Three sizes of one model: as base, after SFT, and as reward model (F3, F12).

    python -m rlhf_edu experiment sizes [--seeds N]

All sizes see the same demonstrations, answer the same test prompts, and learn to score the same
answers: those of the shipped 1M SFT model, in `data/rankings.jsonl`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_edu import data_folder
from rlhf_edu.data import Ranking, read_rankings
from rlhf_edu.experiments.bases import BASES
from rlhf_edu.experiments.exam import reward_accuracy
from rlhf_edu.experiments.grid import Cells, Finding, above, each_seed, run_grid
from rlhf_edu.experiments.ladder import Ladder, Recipe, gold_ranks
from rlhf_edu.intervals import bootstrap, win_rate
from rlhf_edu.models import count_parameters, load_policy


def measure(size: str, seed: int) -> dict[str, Any]:
    """Gold of each test answer as base and after SFT, and the reward model's accuracies."""
    ladder = Ladder(seed, recipe=Recipe(size=size), quiet=True)
    ladder.base()
    ladder.supervised()
    gold = {name: ladder.answer(ladder.models[name], ladder.test).gold for name in ("base", "sft")}
    ladder.rankings = read_rankings(data_folder() / "rankings.jsonl")
    ladder.train_reward_model()
    unseen = _unseen()
    by_gold = [replace(r, ranks=gold_ranks(ladder.judge, r)) for r in unseen]
    model, tokenizer = ladder.models["reward_model"], ladder.tokenizer
    return {
        "parameters": count_parameters(ladder.models["base"]),
        **gold,
        "labels": reward_accuracy(model, tokenizer, unseen),
        "gold": reward_accuracy(model, tokenizer, by_gold),
    }


def _unseen() -> list[Ranking]:
    """Rankings of the shipped SFT model's answers to validation prompts."""
    ladder = Ladder(0, quiet=True)
    ladder.base()
    ladder.models["sft"] = load_policy(data_folder() / "models" / "sft-1M")
    return ladder.collect_rankings(ladder.validation, 1000)


def run(seeds: int) -> str:
    """Run what is missing and return the table."""
    keys = {f"{size} seed {seed}": (size, seed) for size in BASES for seed in range(seeds)}
    cells = {key: (lambda pair=pair: measure(*pair)) for key, pair in keys.items()}
    found = run_grid("sizes", f"python -m rlhf_edu experiment sizes --seeds {seeds}", cells)
    by_size = {size: each_seed(found, size) for size in BASES}
    columns = {"base": "base", "sft": "SFT", "labels": "RM against labels", "gold": "RM, gold"}
    head = "".join(f"{title:>22}" for title in columns.values())
    lines = [f"{'size':<7}{'parameters':>11}{head}"]
    for size, rows in by_size.items():
        estimates = "".join(f"{bootstrap(_by_prompt(rows, key))!s:>22}" for key in columns)
        lines.append(f"{size:<7}{rows[0]['parameters']:>11,}{estimates}")
    small, large = by_size[list(by_size)[0]], by_size[list(by_size)[-1]]
    wins = win_rate(_by_prompt(small, "sft"), _by_prompt(large, "base"))
    lines.append(f"Win rate of the smallest model after SFT over the largest base: {wins}")
    return "\n".join(lines)


def _by_prompt(rows: list[dict[str, Any]], key: str) -> list[float]:
    """The mean over seeds of what was measured for each prompt."""
    return np.mean([row[key] for row in rows], axis=0).tolist()


def _small_beats_large(cells: Cells) -> tuple[str, str]:
    small, middle, large = (each_seed(cells, size) for size in BASES)
    base = _by_prompt(large, "base")
    wins, also = (win_rate(_by_prompt(rows, "sft"), base) for rows in (small, middle))
    ratios = [large[0]["parameters"] / rows[0]["parameters"] for rows in (small, middle)]
    said = f"win rate {wins} after SFT against a base {ratios[0]:.0f} times larger"
    return f"{said}; {also} against one {ratios[1]:.0f} times larger", above(wins, 0.5)


FINDINGS = [
    Finding(
        "F3",
        "the smallest tuned model beats the largest base",
        "1.3B InstructGPT preferred to 175B GPT-3, more than 100 times larger",
        _small_beats_large,
    )
]
