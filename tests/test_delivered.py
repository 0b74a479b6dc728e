"""What was trained is what is delivered: folders opened by plain transformers and peft."""

import json
import re
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForTokenClassification
from test_chat_templates import DATED, on_a_day
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GenerationConfig,
)

from rlhf_edu import __main__, dpo, lora, models, ppo, reward, sft, tokens
from rlhf_edu.generation import generate
from rlhf_edu.real import run
from rlhf_edu.roles import SeparateRoles

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text.strip() for i in range(6)]
CHOSEN, REJECTED = "Yes!", "wet"
# All rows in every step, and steps so small that rounding to 16 bits would undo them.
LEARN = "--epochs 3 --batch-size 6 --max-answer-tokens 12 --warmup 0 --lr 1e-5"
FLAGS = {
    "sft": LEARN,
    "reward": LEARN,
    "dpo": LEARN,
    "ppo": "--steps 2 --batch-size 6 --minibatch 6 --max-new-tokens 8 --lr 1e-5",
}
both = pytest.mark.parametrize("flags", [[], ["--lora"]], ids=["full", "lora"])
every_command = pytest.mark.parametrize("command", FLAGS)


def second_end(model) -> int:
    """The token that a model likes to write third."""
    ids = tokens.encode_prompt(TOK, PROMPTS[0])
    return int(generate(model, TOK, [ids], 3, temperature=0).response[0, -1])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base whose answers end at two tokens, one with a dated template, and pairs."""
    place = tmp_path_factory.mktemp("delivered")
    model = tiny.llama()
    model.generation_config.eos_token_id = [2, second_end(model)]
    models.save_model(model, TOK, place / "base")
    models.save_model(model, TOK, place / "dated")
    tokenizer = AutoTokenizer.from_pretrained(place / "dated")
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(place / "dated")
    rows = [{"prompt": p, "chosen": CHOSEN, "rejected": REJECTED} for p in PROMPTS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "pairs.jsonl").write_text(lines, encoding="utf-8")
    for flags in ([], ["--lora"]):
        assert train(place, "reward", f"rm{flags}", *flags) == 0
    return place


def train(place: Path, command: str, out: str, *flags: str, model: str = "base") -> int:
    given = ["--model", str(place / model), "--data", str(place / "pairs.jsonl"), "--out"]
    given += [str(place / out), "--checkpoint-every", "1", *FLAGS[command].split()]
    given += ["--rank", "2"] if "--lora" in flags else []
    if command == "ppo" and "--reward-model" not in flags:
        given += ["--reward-model", str(place / f"rm{[f for f in flags if f == '--lora']}")]
    return __main__.main([command, *given, *flags])


def history(folder: Path) -> list[dict]:
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def opened(folder: Path, scalar: bool):
    """A folder as transformers or peft opens it, without this package."""
    if not (folder / "adapter_config.json").is_file():
        kind = AutoModelForTokenClassification if scalar else AutoModelForCausalLM
        return kind.from_pretrained(folder).eval()
    if scalar:
        return AutoPeftModelForTokenClassification.from_pretrained(folder, num_labels=1).eval()
    return AutoPeftModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def numbers(model, scalar: bool) -> torch.Tensor:
    """(6, 2) log-probs, or scores, of chosen and rejected, by the model's own forward pass."""
    found = []
    for prompt in PROMPTS:
        for answer in (CHOSEN, REJECTED):
            start, end = tokens.encode_prompt(TOK, prompt), tokens.encode_answer(TOK, answer)
            logits = model(input_ids=torch.tensor([start + end])).logits[0]
            if scalar:
                found.append(logits[-1, 0])
                continue
            laws = logits[len(start) - 1 : -1].log_softmax(-1)
            found.append(laws.gather(1, torch.tensor(end)[:, None]).sum())
    return torch.stack(found).view(-1, 2)


@every_command
@both
def test_the_folder_is_the_trained_model(command, flags, place, monkeypatch) -> None:
    name, scalar, seen = f"{command}{flags}", command == "reward", {}
    trainer = getattr(run, f"train_{command}")

    def watched(*arguments):
        result, history = trainer(*arguments)
        seen["model"] = numbers(getattr(result, "policy", result), scalar)
        return result, history

    monkeypatch.setattr(run, f"train_{command}", watched)
    assert train(place, command, name, *flags) == 0
    folder = place / name / "model"
    found = numbers(opened(folder, scalar), scalar)
    if scalar:  # only the zero is moved after training
        seen["model"] += (found - seen["model"]).mean()
    torch.testing.assert_close(found, seen["model"], atol=1e-5, rtol=0)
    if command == "ppo":
        return
    # And it is what the history says, one small step later.
    lengths = torch.tensor([len(tokens.encode_answer(TOK, a)) for a in (CHOSEN, REJECTED)])
    base = numbers(opened(place / "base", False), False)
    margins = (found if scalar else 0.1 * (found - base)).diff(dim=1).neg()
    loss = -margins.sigmoid().log().mean()
    if command == "sft":
        loss = -found[:, 0].mean() / lengths[0]
    before, last = [record["loss"] for record in history(place / name)[-2:]]
    assert last - (before - last) < loss < last


@pytest.mark.parametrize("command", ["sft", "ppo"])
@both
def test_answers_end_in_plain_transformers_where_they_end_here(command, flags, place) -> None:
    name = f"ends-{command}{flags}"
    assert train(place, command, name, *flags) == 0
    folder = place / name / "model"
    model, settings = opened(folder, False), GenerationConfig.from_pretrained(folder)
    base = models.load_policy(place / "base")
    assert settings.eos_token_id == base.generation_config.eos_token_id
    ours = generate(model, TOK, PROMPTS, 8, temperature=0)
    assert ours.ended.any() and (ours.response == settings.eos_token_id[1]).any()
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([tokens.encode_prompt(TOK, prompt)])
        plain = model.generate(input_ids=ids, generation_config=settings, max_new_tokens=8)
        assert plain[0, ids.shape[1] :].tolist() == ours.response[i, : ours.lengths[i]].tolist()
    checkpoint = sorted((place / name / "checkpoints").iterdir())[-1]
    assert GenerationConfig.from_pretrained(checkpoint).eos_token_id == settings.eos_token_id


def test_contradictory_generation_settings_are_saved_all_the_same(tmp_path) -> None:
    model = tiny.llama()
    models.save_model(model, TOK, tmp_path / "base")
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.7, "do_sample": False, "eos_token_id": [5, 2]}))
    for _ in range(2):
        models.save_model(models.load_policy(tmp_path / "base"), TOK, tmp_path / "base")
        kept = json.loads(file.read_text(encoding="utf-8"))
        assert (kept["temperature"], kept["eos_token_id"]) == (0.7, [2, 5])


# --- 16 bits -------------------------------------------------------------------------------------


def test_rounding_is_asked_for_and_says_what_it_costs(place, capsys) -> None:
    for lr, fine in (("1e-5", False), ("1e-1", True)):
        name = f"rounded-{lr}"
        assert train(place, "sft", name, "--save-dtype", "bfloat16", "--lr", lr) == 0
        said = capsys.readouterr().out
        assert "rounded to bfloat16: " in said
        assert ("what is saved is not what was trained" in said) is not fine
        model = opened(place / name / "model", False)
        assert model.dtype == torch.bfloat16
        # What the run says about the model holds for the one that it has saved.
        samples = (place / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        after = generate(model.float(), TOK, PROMPTS[:4], 12).texts(TOK)
        assert [json.loads(row)["after"] for row in samples] == after
    assert opened(place / "rm[]" / "model", True).dtype == torch.float32


def test_what_is_left_after_rounding() -> None:
    start = models.round_weights(tiny.llama())
    for change, low, high in ((1e-6, 0, 0.05), (0.1, 0.99, 1), (0.0, 1, 1)):
        trained = tiny.llama()
        trained.load_state_dict({k: v + change for k, v in start.state_dict().items()})
        assert low <= models.change_kept(start, trained, torch.bfloat16) <= high


def test_training_in_16_bits_is_refused(place, capsys) -> None:
    for flags, message in (
        (["--dtype", "bfloat16"], "weights in bfloat16 cannot be trained: .*--bf16"),
        (["--lora", "--save-dtype", "bfloat16"], "--save-dtype is for whole networks"),
    ):
        assert train(place, "sft", "refused", *flags) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and re.search(message, said), said
        assert not (place / "refused").exists()
    rows, half = (tiny.demonstrations(4), tiny.rankings(4)), torch.float16
    roles = SeparateRoles(tiny.llama().to(half), models.scalar_model_from(tiny.llama()))
    for work in (
        lambda: sft.train_sft(tiny.llama().to(half), TOK, rows[0]),
        lambda: dpo.train_dpo(tiny.llama().to(half), tiny.llama().to(half), TOK, rows[1]),
        lambda: reward.train_reward(models.scalar_model_from(tiny.llama()).half(), TOK, rows[1]),
        lambda: ppo.train_ppo(roles, TOK, PROMPTS),
    ):
        with pytest.raises(ValueError, match="weights in float16 cannot be trained"):
            work()


@pytest.mark.parametrize("command", ["reward", "ppo"])
def test_an_adapter_on_frozen_16_bits_learns_in_32(command, place) -> None:
    flags = ["--lora", "--dtype", "bfloat16", "--lr", "1e-3"]
    assert train(place, command, f"16-{command}", *flags) == 0
    folder = place / f"16-{command}" / ("critic" if command == "ppo" else "model")
    weights = lora.load_adapter(folder).weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


# --- what the folder remembers -------------------------------------------------------------------


def test_tokenizers_remember_the_longest_prompt_of_their_run(place) -> None:
    assert train(place, "sft", "short", "--max-prompt-tokens", "77") == 0
    tokenizer = AutoTokenizer.from_pretrained(place / "short" / "model")
    assert tokenizer.init_kwargs["max_prompt_tokens"] == 77


def test_an_adapter_knows_its_base_from_any_folder(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    flags = "--data pairs.jsonl --out near --lora --rank 2".split()
    assert __main__.main(["sft", "--model", "base", *flags, *LEARN.split()]) == 0
    monkeypatch.chdir(place / "near")
    assert opened(place / "near" / "model", False).peft_config["default"].r == 2


def test_a_date_in_the_template_is_that_of_the_first_day(place, monkeypatch) -> None:
    def day(folder: str) -> str:
        tokenizer = AutoTokenizer.from_pretrained(place / folder / "model")
        return tokenizer.init_kwargs["template_day"]

    on_a_day(monkeypatch, "2025-11-27")
    assert train(place, "reward", "dated-rm", model="dated") == 0
    step = run.Run.step

    def stopping(self, record) -> None:
        step(self, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "step", stopping)
        train(place, "dpo", "dated-dpo", model="dated")
    on_a_day(monkeypatch, "2025-11-28")
    assert train(place, "dpo", "dated-dpo", model="dated") == 0  # goes on
    flags = ["--reward-model", str(place / "dated-rm")]
    assert train(place, "ppo", "dated-ppo", *flags, model="dated") == 0
    assert train(place, "sft", "dated-sft", model="dated-ppo") == 0
    assert {day(f"dated-{name}") for name in ("rm", "dpo", "ppo", "sft")} == {"2025-11-27"}
    assert train(place, "sft", "dated-new", model="dated") == 0
    assert day("dated-new") == "2025-11-28"
