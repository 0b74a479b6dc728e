"""The ladder from end to end, small: every stage trains, every row is there."""

import json

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM

from rlhf_edu import data_folder
from rlhf_edu.__main__ import main
from rlhf_edu.course.chat import chat
from rlhf_edu.data import read_rankings
from rlhf_edu.dpo import DPOConfig
from rlhf_edu.experiments.build import save_stages
from rlhf_edu.experiments.exam import SKILLS
from rlhf_edu.experiments.ladder import STAGES, Ladder, Recipe
from rlhf_edu.experiments.plots import NAMES
from rlhf_edu.experiments.report import describe_ladder, plot_ladder, side_by_side, table
from rlhf_edu.models import load_scalar_model
from rlhf_edu.ppo import PPOConfig
from rlhf_edu.reward import RewardConfig, score_answers
from rlhf_edu.sft import SFTConfig
from rlhf_edu.tinyweb.prompts import is_never_asked, normalise

SMALL = Recipe(
    demonstrations=120,
    ranked_prompts=24,
    answers_per_prompt=(4, 5),
    ppo_prompts=64,
    examples=2,
    best_of=3,
    test_prompts=24,
    per_use_case=1,
    sft=SFTConfig(epochs=4),
    reward=RewardConfig(batch_size=8),
    ppo=PPOConfig(steps=2, batch_size=16, minibatch=8, epochs=1),
    dpo=DPOConfig(batch_size=8),
)


@pytest.fixture(scope="module")
def small_ladder():
    ladder = Ladder(recipe=SMALL, quiet=True)
    return ladder, ladder.run()


def test_every_stage_has_its_row(small_ladder):
    ladder, report = small_ladder
    assert [row["stage"] for row in report["stages"]] == list(STAGES)
    for row in report["stages"]:
        assert row["gold_low"] <= row["gold"] <= row["gold_high"]
        assert 0 < row["web_loss"] < 3 and set(row["skills"]) == set(SKILLS)
    assert json.loads(json.dumps(report)) == report
    assert all(stage in table(report) for stage in STAGES)
    assert ladder.test[0].text in side_by_side(ladder.answers, 1)


def test_sft_answers_better_than_base_and_is_its_own_reference(small_ladder):
    _, report = small_ladder
    rows = {row["stage"]: row for row in report["stages"]}
    assert rows["sft"]["gold"] > rows["base"]["gold"] + 0.5
    assert abs(rows["sft"]["kl"]) < 1e-4 and rows["sft"]["win_rate"] == 0.5
    assert rows["base"]["win_rate"] < 0.5


def test_training_left_the_earlier_models_alone(small_ladder):
    ladder, _ = small_ladder
    weights = [
        dict(ladder.models[name].named_parameters())["model.embed_tokens.weight"]
        for name in ("base", "sft", "ppo", "dpo")
    ]
    assert not any(torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False))


def test_demonstrations_score_zero(small_ladder):
    ladder, _ = small_ladder
    shown = ladder.demonstrations
    found = score_answers(
        ladder.models["reward_model"],
        ladder.tokenizer,
        [d.prompt.text for d in shown],
        [d.answer for d in shown],
    )
    assert abs(found.mean().item()) < 1e-3


def test_ppo_starts_at_the_reference(small_ladder):
    ladder, _ = small_ladder
    for name in ("ppo", "ppo_ptx"):
        first = ladder.histories[name][0]
        assert abs(first["kl"]) < 1e-3 and first["ratio_first"] == pytest.approx(1, abs=1e-3)
    assert ladder.histories["ppo_ptx"][0]["ptx_loss"] > 0 == ladder.histories["ppo"][0]["ptx_loss"]


def test_exam_and_training_do_not_meet(small_ladder):
    ladder, _ = small_ladder
    exam = {normalise(p.text) for p in ladder.test + ladder.test_stratified}
    for prompts in [*ladder.train.values(), ladder.validation]:
        assert not exam & {normalise(p.text) for p in prompts}
        assert not any(is_never_asked(ladder.world, p) for p in prompts)
    assert any(is_never_asked(ladder.world, p) for p in ladder.test)


def test_everything_is_saved_and_opens_with_ordinary_tools(small_ladder, tmp_path, capsys):
    ladder, report = small_ladder
    save_stages(ladder, report, tmp_path)
    for name in ("sft-1M", "ppo-1M", "ppo-ptx-1M", "dpo-1M"):
        folder = tmp_path / "models" / name
        AutoModelForCausalLM.from_pretrained(folder)
        assert (
            name in (folder / "README.md").read_text() and (folder / "model.safetensors").exists()
        )
    reward_model = load_scalar_model(tmp_path / "models" / "reward-model-1M")
    assert torch.equal(reward_model.score.weight, ladder.models["reward_model"].score.weight)
    card = (tmp_path / "README.md").read_text()
    for file in tmp_path.glob("*.jsonl"):
        rows = load_dataset(
            "json", data_files=str(file), cache_dir=str(tmp_path / "cache"), split="train"
        )
        assert f"| `{file.name}` | {len(rows):,} |" in card
    assert read_rankings(tmp_path / "rankings.jsonl") == ladder.rankings
    # What is saved is what was measured: a second build of the same finds no difference.
    capsys.readouterr()
    save_stages(ladder, report, tmp_path)
    said = capsys.readouterr().out
    assert "NOT" not in said and "other weights" not in said
    assert said.count("the same weights as the shipped one") == 6


def test_the_picture_has_every_stage_in_words_too(small_ladder):
    _, report = small_ladder
    figure = plot_ladder(report)
    assert len(figure.axes[0].patches) == len(STAGES)
    assert all(NAMES[stage] in describe_ladder(report) for stage in STAGES)


def test_the_table_of_the_readme_is_the_measured_one():
    measured = data_folder() / "results" / "ladder.json"
    readme = (data_folder().parent / "README.md").read_text(encoding="utf-8")
    assert table(json.loads(measured.read_text(encoding="utf-8"))) in readme


def test_command_line_errors_are_one_line(capsys):
    assert main(["chat", "--stage", "gpt", "--prompt", "Hello"]) == 2
    error = capsys.readouterr().err
    assert "no stage 'gpt'" in error and error.count("\n") == 1
    assert main(["ladder", "--world-seed", "-1"]) == 2
    assert "world seed" in capsys.readouterr().err


def test_chat_answers(capsys):
    chat("base", "Where does the otter live?")
    assert capsys.readouterr().out.strip().startswith("base")
