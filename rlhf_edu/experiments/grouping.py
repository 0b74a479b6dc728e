"""Comparisons that belong together, and how often to look at them (F8, F9).

    python -m rlhf_edu experiment grouping [--seeds N]

A reward model learns from 24 prompts with nine ranked answers each: once with all comparisons of a
prompt in one batch element, as InstructGPT did, and once with the same comparisons shuffled as
separate items. A seed takes other prompts of `data/rankings.jsonl`; 60 of its prompts are kept
for validation.
"""

import random
from typing import Any

from rlhf_edu.data import Ranking
from rlhf_edu.experiments import grid
from rlhf_edu.experiments.exam import ordered_pairs
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.intervals import over_seeds
from rlhf_edu.models import scalar_model_from
from rlhf_edu.reward import RewardConfig, train_reward

PROMPTS, ANSWERS, UNSEEN, EPOCHS, BATCH = 24, 9, 60, 4, 4
KINDS = {"grouped": (), "shuffled": ()}


def split(rankings: list[Ranking]) -> list[Ranking]:
    """The same comparisons as separate items of two answers, the better one first."""
    items = []
    for r in rankings:
        # In the order of the answers, whichever of the two is better.
        for best, worst in sorted(ordered_pairs(r.ranks), key=sorted):
            said = (r.answers[best], r.answers[worst]), (r.ended[best], r.ended[worst])
            items.append(Ranking(r.prompt, *said, (1, 2), r.labeler))
    return items


def measure(kind: str, setting: None, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Loss and accuracy on unseen prompts after each epoch, and how many answers were read."""
    shipped = Shipped(device)
    rankings = [r for r in shipped.rankings if len(r.ranks) == ANSWERS]
    unseen, rest = rankings[:UNSEEN], rankings[UNSEEN:]
    few = random.Random(f"grouping {seed}").sample(rest, PROMPTS)
    data = few if kind == "grouped" else split(few)
    # As many comparisons in a step, so that both take as many steps.
    size = BATCH if kind == "grouped" else round(BATCH * len(data) / len(few))
    config = RewardConfig(lr=1e-3, batch_size=size, epochs=EPOCHS, warmup=5, seed=seed)
    model = scalar_model_from(shipped.load("sft"), seed)
    _, history = train_reward(model, shipped.tokenizer, data, config, validation=unseen)
    rows = [record for record in history if "validation_loss" in record]
    return {
        "loss": [row["validation_loss"] for row in rows],
        "accuracy": [row["validation_accuracy"] for row in rows],
        "answers_read_per_epoch": sum(len(r.answers) for r in data),
    }


def run(seeds: int, device: str = "cpu") -> str:
    """Run what is missing and return the table."""
    found = grid.run_experiment("grouping", measure, grid.by_seed(KINDS, seeds), seeds, device)
    lines: list[list[Any]] = [["epoch", *(f"{kind}, loss" for kind in KINDS)]]
    for epoch in range(EPOCHS):
        losses = [
            over_seeds([c["loss"][epoch] for c in grid.each_seed(found, kind)]) for kind in KINDS
        ]
        lines.append([epoch + 1, *losses])
    return "\n".join(text_table(lines, (8, 26, 26)))


# --- verdicts ----------------------------------------------------------------------------------


def _grouped_fits_better(cells: grid.Cells) -> tuple[str, str]:
    pairs = list(
        zip(grid.each_seed(cells, "shuffled"), grid.each_seed(cells, "grouped"), strict=True)
    )
    gaps = {e: over_seeds([s["loss"][e - 1] - g["loss"][e - 1] for s, g in pairs]) for e in (1, 4)}
    work = over_seeds([s["answers_read_per_epoch"] / g["answers_read_per_epoch"] for s, g in pairs])
    ours = "; ".join(
        f"after epoch {e}, shuffled less grouped: {gap} nats" for e, gap in gaps.items()
    )
    return f"{ours}; shuffled reads {work.mean:.1f} times as many answers", grid.above(gaps[4])


def _one_or_two_epochs(cells: grid.Cells) -> tuple[str, str]:
    runs = [cell["loss"] for cell in grid.each_seed(cells, "grouped")]
    least = [run.index(min(run)) + 1 for run in runs]
    rise = over_seeds([run[-1] - min(run) for run in runs])
    ours = f"loss on unseen prompts is least after epochs {sorted(least)}, and {rise} nats above "
    ours += f"that after epoch {EPOCHS}"
    return ours, grid.verdict(max(least) <= 2 and rise.low > 0, min(least) > 2)


FINDINGS = [
    grid.Finding(
        "F8",
        "all comparisons of a prompt in one batch element over-fit less than shuffled ones",
        "in words only (InstructGPT 3.5; K = 4 to 9)",
        "after 4 epochs shuffled pairs have the higher loss, interval above zero",
        _grouped_fits_better,
    ),
    grid.Finding(
        "F9",
        "a reward model over-fits after an epoch or two",
        "trained for one epoch; more over-fit quickly (InstructGPT C.2)",
        "loss is least after 1 or 2 epochs for every seed, and higher after 4 by interval",
        _one_or_two_epochs,
    ),
]
