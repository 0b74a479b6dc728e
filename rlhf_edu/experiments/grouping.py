"""Comparisons that belong together, and how often to look at them (F8, F9).

    python -m rlhf_edu experiment grouping [--seeds N]

A reward model learns from 24 prompts with nine ranked answers each: once with all comparisons of a
prompt in one batch element, as InstructGPT did, and once with the same comparisons shuffled as
separate items. A seed takes other prompts of `data/rankings.jsonl`; 60 of its prompts are kept
for validation.
"""

import random
from itertools import combinations
from typing import Any

from rlhf_edu import data_folder
from rlhf_edu.data import Ranking, read_rankings
from rlhf_edu.experiments.grid import Cells, Finding, above, each_seed, run_grid
from rlhf_edu.intervals import over_seeds
from rlhf_edu.models import load_policy, load_tokenizer, scalar_model_from
from rlhf_edu.reward import RewardConfig, train_reward

PROMPTS, ANSWERS, UNSEEN, EPOCHS, BATCH = 24, 9, 60, 4, 4


def split(rankings: list[Ranking]) -> list[Ranking]:
    """The same comparisons as separate items of two answers, the better one first."""
    items = []
    for r in rankings:
        for pair in combinations(range(len(r.ranks)), 2):
            if r.ranks[pair[0]] != r.ranks[pair[1]]:
                best, worst = sorted(pair, key=lambda i: r.ranks[i])
                said = (r.answers[best], r.answers[worst]), (r.ended[best], r.ended[worst])
                items.append(Ranking(r.prompt, *said, (1, 2), r.labeler))
    return items


def measure(grouped: bool, seed: int) -> dict[str, Any]:
    """Loss and accuracy on unseen prompts after each epoch, and how many answers were read."""
    folder = data_folder()
    models = folder / "models" / "sft-1M"
    rankings = [r for r in read_rankings(folder / "rankings.jsonl") if len(r.ranks) == ANSWERS]
    unseen, rest = rankings[:UNSEEN], rankings[UNSEEN:]
    few = random.Random(f"grouping {seed}").sample(rest, PROMPTS)
    data = few if grouped else split(few)
    # As many comparisons in a step, so that both take as many steps.
    size = BATCH if grouped else round(BATCH * len(data) / len(few))
    config = RewardConfig(lr=1e-3, batch_size=size, epochs=EPOCHS, warmup=5, seed=seed)
    model = scalar_model_from(load_policy(models), seed)
    _, history = train_reward(model, load_tokenizer(models), data, config, validation=unseen)
    rows = [record for record in history if "validation_loss" in record]
    return {
        "loss": [row["validation_loss"] for row in rows],
        "accuracy": [row["validation_accuracy"] for row in rows],
        "answers_read_per_epoch": sum(len(r.answers) for r in data),
    }


def run(seeds: int) -> str:
    """Run what is missing and return the table."""
    kinds = {"grouped": True, "shuffled": False}
    cells = {
        f"{kind} seed {seed}": (lambda g=grouped, s=seed: measure(g, s))
        for kind, grouped in kinds.items()
        for seed in range(seeds)
    }
    found = run_grid("grouping", f"python -m rlhf_edu experiment grouping --seeds {seeds}", cells)
    lines = [f"{'epoch':<8}" + "".join(f"{f'{kind}, loss':>26}" for kind in kinds)]
    for epoch in range(EPOCHS):
        losses = (over_seeds([c["loss"][epoch] for c in each_seed(found, kind)]) for kind in kinds)
        lines.append(f"{epoch + 1:<8}" + "".join(f"{loss!s:>26}" for loss in losses))
    return "\n".join(lines)


# --- verdicts ----------------------------------------------------------------------------------


def _grouped_fits_better(cells: Cells) -> tuple[str, str]:
    pairs = list(zip(each_seed(cells, "shuffled"), each_seed(cells, "grouped"), strict=True))
    gaps = {e: over_seeds([s["loss"][e - 1] - g["loss"][e - 1] for s, g in pairs]) for e in (1, 4)}
    work = over_seeds([s["answers_read_per_epoch"] / g["answers_read_per_epoch"] for s, g in pairs])
    ours = "; ".join(
        f"after epoch {e}, shuffled less grouped: {gap} nats" for e, gap in gaps.items()
    )
    return f"{ours}; shuffled reads {work.mean:.1f} times as many answers", above(gaps[4])


def _one_or_two_epochs(cells: Cells) -> tuple[str, str]:
    runs = [cell["loss"] for cell in each_seed(cells, "grouped")]
    least = [run.index(min(run)) + 1 for run in runs]
    rise = over_seeds([run[-1] - min(run) for run in runs])
    ours = f"loss on unseen prompts is least after epochs {sorted(least)}, and {rise} nats above "
    ours += f"that after epoch {EPOCHS}"
    if max(least) <= 2 and rise.low > 0:
        return ours, "reproduced"
    return ours, "not reproduced" if min(least) > 2 else "inconclusive"


FINDINGS = [
    Finding(
        "F8",
        "all comparisons of a prompt in one batch element over-fit less than shuffled ones",
        "in words only (InstructGPT 3.5; K = 4 to 9)",
        _grouped_fits_better,
    ),
    Finding(
        "F9",
        "a reward model over-fits after an epoch or two",
        "trained for one epoch; more over-fit quickly (InstructGPT C.2)",
        _one_or_two_epochs,
    ),
]
