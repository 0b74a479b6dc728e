"""The ladder again: other seeds, and other worlds with base models of their own (F2).

    python -m rlhf_edu experiment fresh [--seeds N]

N seeds in world 0 from the shipped base model, and worlds 1 and 2 from nothing. No choice of the
recipe was made by looking at them. About a quarter of an hour a seed, and forty minutes a world.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from rlhf_edu.experiments.grid import Cells, Finding, run_experiment
from rlhf_edu.experiments.ladder import STAGES, Ladder
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.intervals import Estimate, bootstrap, over_seeds

WORLDS = (1, 2)
# Which stage should be above which: the rungs of the ladder.
RUNGS = (("prompted", "base"), ("sft", "prompted"), ("ppo", "sft"), ("dpo", "ppo"))


def measure(seed: int, world: int, device: str = "cpu") -> dict[str, Any]:
    """One ladder: its table, and what each rung gains on the same prompts."""
    ladder = Ladder(seed, world, quiet=True, device=device)
    report = ladder.run()
    kept = ("gold", "gold_low", "gold_high", "win_rate", "kl", "web_loss", "gold_greedy", "skills")
    beside = {row["stage"]: row["gold"] for row in report["beside"]}
    return {
        "stages": {row["stage"]: {key: row[key] for key in kept} for row in report["stages"]},
        "sft_colder": beside["sft_colder"],
        "whole_budget": beside["sft_whole_budget"],
        "reward_model": report["reward_model"],
        "rungs": {f"{a} - {b}": vars(_gain(ladder, a, b)) for a, b in RUNGS},
    }


def _gain(ladder: Ladder, above: str, below: str) -> Estimate:
    """Gold of one stage less gold of another, paired by prompt."""
    pairs = zip(ladder.answers[above].gold, ladder.answers[below].gold, strict=True)
    return bootstrap([a - b for a, b in pairs])


def run(seeds: int, device: str = "cpu") -> str:
    """Run what is missing and return the table."""
    cells = [{"seed": seed, "world": 0} for seed in range(1, seeds + 1)]
    cells += [{"seed": 0, "world": world} for world in WORLDS]
    return table(run_experiment("fresh", measure, cells, seeds, device))


def table(found: Cells) -> str:
    """Gold of every stage by run, what each rung gains, and what PPO-ptx keeps and removes."""
    rungs = [f"{a} - {b}" for a, b in RUNGS]
    gold: list[Sequence[Any]] = [("gold", *STAGES)]
    gains: list[Sequence[Any]] = [("gain, by prompt", *rungs)]
    for cell in found.values():
        run = f"seed {cell['seed']}, world {cell['world']}"
        gold.append((run, *(f"{cell['stages'][stage]['gold']:.2f}" for stage in STAGES)))
        gains.append((run, *(Estimate(**cell["rungs"][rung]) for rung in rungs)))
    wins = mean(cell["stages"]["ppo"]["win_rate"] for cell in found.values())
    shares = [_ptx(cell["stages"]) for cell in found.values()]
    kept, removed = mean(kept for kept, _ in shares), mean(removed for _, removed in shares)
    return "\n".join(
        [
            *text_table(gold, (18, *[12] * len(STAGES))),
            "",
            *text_table(gains, (18, *[22] * len(RUNGS))),
            "",
            f"Win rate of PPO over SFT by gold: {wins:.0%} on average",
            f"PPO-ptx keeps {kept:.0%} of PPO's gain and removes {removed:.0%} of its tax",
        ]
    )


def _ptx(stages: dict[str, Any]) -> tuple[float, float]:
    """Share of PPO's gain over SFT that PPO-ptx keeps, and of its alignment tax that it removes."""
    gain = {name: stages[name]["gold"] - stages["sft"]["gold"] for name in ("ppo", "ppo_ptx")}
    tax = {name: stages[name]["web_loss"] - stages["base"]["web_loss"] for name in gain}
    return gain["ppo_ptx"] / gain["ppo"], 1 - tax["ppo_ptx"] / tax["ppo"]


def _ladder(cells: Cells) -> tuple[str, str]:
    """The strict order, in every gain over the runs."""
    gains = {
        f"{a} - {b}": over_seeds([cell["rungs"][f"{a} - {b}"]["mean"] for cell in cells.values()])
        for a, b in RUNGS[:3]
    }
    ours = "gold, " + "; ".join(f"{rung} {gain}" for rung, gain in gains.items())
    if all(gain.low > 0 for gain in gains.values()):
        return ours, "reproduced"
    failed = [rung for rung, gain in gains.items() if gain.high < 0]
    return ours, f"not reproduced: {failed[0]}" if failed else "inconclusive"


FINDINGS = [
    Finding(
        "F2",
        "a few-shot prompt helps, SFT more, PPO most",
        "175B: InstructGPT over GPT-3 85 ± 3 %, over few-shot GPT-3 71 ± 4 %, of prompts",
        "each rung above the one below: three intervals over the runs above zero",
        _ladder,
    )
]
