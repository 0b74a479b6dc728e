"""Operations of a step, counted: a GPU waits for each of them."""

from pathlib import Path

import pytest
import torch

from rlhf_edu.bench import launches
from rlhf_edu.bench.plan import Plan
from rlhf_edu.engine.economy import whole_batches

# At most, with 24 layers. A number here may rise only if whoever raises it knows why.
MOST = {
    ("ppo", "full"): {"generate": 17_500, "evaluate": 4_200, "learn": 8_500},
    ("ppo", "LoRA"): {"generate": 29_000, "evaluate": 8_000, "learn": 14_000},
    ("sft", "LoRA"): {"learn": 4_100},
    ("reward", "LoRA"): {"learn": 4_100},
    ("dpo", "LoRA"): {"learn": 4_300},
}


def counted(stage: str, way: str, layers: int) -> dict[str, int]:
    with whole_batches():
        if stage == "ppo":
            return launches.ppo_launches(way, launches.EPISODES, layers)
        return {"learn": launches.step_launches(stage, way, layers=layers)}


@pytest.mark.parametrize("stage, way", MOST)
def test_a_step_has_no_more_launches(stage: str, way: str) -> None:
    few, more = (counted(stage, way, layers) for layers in (1, 3))  # each layer has as many
    found = {phase: few[phase] + 23 * (more[phase] - few[phase]) // 2 for phase in few}
    for phase, most in MOST[stage, way].items():
        assert found[phase] <= most, (phase, found[phase])


def test_what_only_looks_is_not_counted() -> None:
    count, _ = launches.count(lambda: torch.ones(4, 3).view(3, 4).t()[1:] + 1)
    assert count == 2


def test_the_table_says_what_a_free_card_needs(tmp_path: Path, monkeypatch) -> None:
    def measure(kind: str, setting: int, way: str) -> dict[str, int]:
        found = MOST.get((kind, way), {"learn": 3_000})
        return {phase: found[phase] for phase in found}

    monkeypatch.setattr(launches, "measure", measure)
    text = launches.launches(Plan(stage="launches"), tmp_path)
    assert max(map(len, text.splitlines())) <= 72  # a slide's width
    assert "ppo, LoRA" in text and "14,000" in text and (tmp_path / "launches.json").is_file()
    cells = {launches.cell_name(**cell): cell | measure(**cell) for cell in launches._cells()}
    assert launches.minutes(cells) < 30 and launches.peak() < 16e9
