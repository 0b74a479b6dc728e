"""LoRA: four roles on one backbone are four networks; adapters are ordinary peft folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForTokenClassification
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_edu import dpo, lora, models, ppo, reward, sft, tokens
from rlhf_edu.engine.adapters import WEIGHTS_FILE
from rlhf_edu.generation import generate
from rlhf_edu.roles import LoraRoles, SeparateRoles

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]
on_both = pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])


def rollout(policy):
    ids = [tokens.encode_prompt(TOK, prompt) for prompt in PROMPTS]
    return generate(policy, TOK, ids, 8, seed=3)


def add_by_hand(model, adapter: lora.Adapter):
    """The adapter added into the weights, without peft: W + (alpha / r) B A."""
    parameters = dict(model.named_parameters())
    scale = adapter.config.lora_alpha / adapter.config.r
    with torch.no_grad():
        for name, a in adapter.weights.items():
            if "lora_A" in name:
                b = adapter.weights[name.replace("lora_A", "lora_B")]
                weight = parameters[name.removeprefix("base_model.model.").replace(".lora_A", "")]
                weight += scale * (a.T @ b.T if adapter.config.fan_in_fan_out else b @ a)
        for name, value in adapter.head.items():
            getattr(models.scalar_head(model), name).copy_(value)
    return model


def by_hand(make) -> SeparateRoles:
    policy = add_by_hand(make(), tiny.policy_adapter(make))
    reward_model = models.scalar_model_from(make())
    return SeparateRoles(policy, add_by_hand(reward_model, tiny.reward_adapter(make)))


# --- one backbone is four networks ---------------------------------------------------------------


@on_both
def test_one_backbone_says_what_four_merged_networks_say(make) -> None:
    one, four = tiny.lora_roles(make), by_hand(make)
    answers = rollout(four.policy)
    assert torch.equal(answers.tokens, rollout(one.policy).tokens)
    for name in ("response_logprobs", "reference_logprobs", "values"):
        ours, theirs = (getattr(roles, name)(answers) for roles in (one, four))
        mask = answers.mask.bool()
        torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.rewards(answers), four.rewards(answers), atol=1e-4, rtol=1e-4)
    plain = models.response_logprobs(make(), answers)
    assert (one.reference_logprobs(answers) - plain).abs().max() > 0.1  # not the base


@on_both
def test_losses_of_a_step_are_those_of_four_merged_networks(make) -> None:
    # Of the first update alone: what comes next depends on which weights may move.
    config = ppo.PPOConfig(batch_size=8, minibatch=8, max_new_tokens=8, steps=1, epochs=1)
    first, second = (
        ppo.train_ppo(roles, TOK, PROMPTS, config)[1][0]
        for roles in (tiny.lora_roles(make), by_hand(make))
    )
    for name in ("policy_loss", "value_loss", "kl", "surprise", "reward"):
        assert first[name] == pytest.approx(second[name], abs=1e-4), name


def test_peft_merges_as_we_do() -> None:
    adapter = tiny.policy_adapter(tiny.gpt2)
    ours, theirs = add_by_hand(tiny.gpt2(), adapter), lora.merged(tiny.gpt2(), adapter)
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_only_policy_and_critic_change() -> None:
    roles = tiny.lora_roles()
    before = {name: weight.clone() for name, weight in roles.backbone.state_dict().items()}
    ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(steps=2, batch_size=8, max_new_tokens=8))
    after = roles.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    learners = {name for name in before if ".policy." in name or ".critic." in name}
    assert changed == learners
    assert any("modules_to_save.critic" in name for name in changed)
    assert not any(name in changed for name in before if ".reference." in name)


def test_ppo_earns_more_reward() -> None:
    roles = LoraRoles(tiny.llama(), tiny.policy_adapter(), tiny.reward_adapter(seed=4))
    config = ppo.PPOConfig(
        steps=40, batch_size=32, beta=0.0, lr=5e-3, max_new_tokens=8, missing_eos_penalty=0
    )
    _, history = ppo.train_ppo(roles, TOK, PROMPTS, config)
    rewards = [record["reward"] for record in history]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.3


def test_every_gradient_reaches_its_own_adapter_whichever_is_active() -> None:
    roles = tiny.lora_roles()
    answers = rollout(roles.policy)
    logprobs, values = roles.response_logprobs(answers, 1.0), roles.values(answers)
    roles.rewards(answers)  # the reward model is active now
    (logprobs.sum() + values.sum()).backward()
    assert all(p.grad is not None for p in roles.policy_parameters() + roles.critic_parameters())
    still = (".reward.", ".reference.", "embed")
    frozen = [p for n, p in roles.backbone.named_parameters() if any(part in n for part in still)]
    assert frozen and all(p.grad is None and not p.requires_grad for p in frozen)


def test_the_critic_starts_as_the_reward_model_with_a_head_of_its_own() -> None:
    roles = tiny.lora_roles()
    answers = rollout(roles.policy)
    scores = roles.rewards(answers)
    values = models.values(roles.critic, answers.tokens, answers.attention_mask)
    last = answers.prompt_length + answers.lengths - 1
    torch.testing.assert_close(values[torch.arange(8), last], scores)
    with torch.no_grad():
        roles.critic_parameters()[-1].add_(1.0)
    assert torch.equal(roles.rewards(answers), scores)


def test_a_new_adapter_on_a_merged_base_starts_as_the_base() -> None:
    policy = lora.take_off(lora.new_adapter(tiny.llama(), rank=4))
    roles = LoraRoles(tiny.llama(), policy, tiny.reward_adapter())
    answers = rollout(roles.policy)
    expected = models.response_logprobs(tiny.llama(), answers)
    mask = answers.mask.bool()
    assert torch.equal(roles.reference_logprobs(answers)[mask], expected[mask])


def test_another_reference_is_found_unless_it_is_meant() -> None:
    roles = tiny.lora_roles(reference=tiny.policy_adapter(seed=5))
    config = {"steps": 1, "batch_size": 8, "max_new_tokens": 8}
    with pytest.raises(RuntimeError, match="KL to the reference"):
        ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(**config))
    ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(**config, same_start=False))


def test_the_critic_may_be_another_reward_model() -> None:
    other = tiny.reward_adapter(seed=9)
    roles = tiny.lora_roles(critic=other)
    answers = rollout(roles.policy)
    found = models.response_values(roles.critic, answers)
    alone = lora.put_on(models.scalar_model_from(tiny.llama()), other)
    torch.testing.assert_close(found, models.response_values(alone, answers))
    assert (found - models.response_values(roles.reward_model, answers)).abs().max() > 0.1


def test_a_new_adapters_settings_are_those_asked_for() -> None:
    adapters = [lora.new_adapter(tiny.llama(), rank=4, seed=seed) for seed in (1, 1, 2)]
    same, again, other = (lora.take_off(adapter).weights for adapter in adapters)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert any(not torch.equal(same[name], other[name]) for name in same)
    assert adapters[0].peft_config["default"].lora_alpha == 8
    config = lora.new_adapter(tiny.llama(), rank=4, alpha=3).peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 3)


def test_ppo_goes_on_in_another_process(tmp_path: Path) -> None:
    keep = {"checkpoint_every": 1, "checkpoint_folder": str(tmp_path)}
    config = ppo.PPOConfig(steps=2, batch_size=4, max_new_tokens=4, **keep)

    def stop(record) -> None:
        if record["step"] == 1:
            raise KeyboardInterrupt

    for seed, then in ((1, stop), (2, None)):  # a process has a global generator of its own
        parts = tiny.llama(), tiny.policy_adapter(), tiny.reward_adapter()
        torch.manual_seed(seed)
        _, history = ppo.train_ppo(LoraRoles(*parts), TOK, PROMPTS, config, then)
        assert len(history) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"step_00001", "step_00002"}


def test_the_checkpoint_of_another_base_is_refused(tmp_path: Path) -> None:
    keep = {"checkpoint_every": 1, "checkpoint_folder": str(tmp_path)}
    config = ppo.PPOConfig(steps=1, batch_size=4, max_new_tokens=4, **keep)
    ppo.train_ppo(tiny.lora_roles(), TOK, PROMPTS, config)
    other = LoraRoles(tiny.llama(7), tiny.policy_adapter(), tiny.reward_adapter())
    with pytest.raises(ValueError, match="other weights"):
        ppo.train_ppo(other, TOK, PROMPTS, config)
    step = tmp_path / "step_00001"
    for role in LoraRoles.NAMES:
        assert lora.is_adapter(step / role)
    assert not [p for p in step.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_adapters_on_another_base_are_another_run(tmp_path: Path) -> None:
    keep = {"checkpoint_every": 1, "checkpoint_folder": str(tmp_path)}
    config, data = sft.SFTConfig(epochs=1, **keep), tiny.demonstrations(4)
    sft.train_sft(lora.new_adapter(tiny.llama(), rank=2), TOK, data, config)
    with pytest.raises(ValueError, match="other weights"):
        sft.train_sft(lora.new_adapter(tiny.llama(7), rank=2), TOK, data, config)


# --- the other trainers --------------------------------------------------------------------------


@on_both
def test_sft_reward_and_dpo_train_adapters_alone(make) -> None:
    frozen, small = make().state_dict(), {"lr": 1e-2, "batch_size": 4, "epochs": 8, "warmup": 0}
    policy = lora.new_adapter(make(), rank=4)
    _, history = sft.train_sft(policy, TOK, tiny.demonstrations(12), sft.SFTConfig(**small))
    assert history[-1]["loss"] < history[0]["loss"]
    scalar = lora.put_on(models.scalar_model_from(make()), lora.take_off(policy))
    config = reward.RewardConfig(**small)
    _, history = reward.train_reward(scalar, TOK, tiny.rankings(12), config)
    losses = [record["loss"] for record in history]
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    before = lora.take_off(policy)
    config = dpo.DPOConfig(**small)
    _, history = dpo.train_dpo(policy, policy, TOK, tiny.rankings(12), config)
    # The reference is the policy with the adapter it started with.
    assert history[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["margin"] > 0.1
    for name, weight in lora.take_off(policy).weights.items():
        assert not torch.equal(weight, before.weights[name])
    for name, weight in frozen.items():
        for model in (policy, scalar):
            state = model.get_base_model().state_dict()
            found = [v for k, v in state.items() if k.replace(".base_layer", "") == name]
            assert all(torch.equal(weight, value) for value in found)


def test_a_normalised_reward_survives_saving(tmp_path: Path) -> None:
    models.save_model(tiny.llama(), TOK, tmp_path / "base", torch.float32)
    base = models.load_policy(tmp_path / "base")
    scalar = lora.new_adapter(models.scalar_model_from(base), rank=2)
    data = tiny.demonstrations(12)
    reward.normalise_reward(scalar, TOK, data)
    texts = [d.prompt.text for d in data], [d.answer for d in data]
    scores = reward.score_answers(scalar, TOK, *texts)
    assert abs(scores.mean()) < 1e-5
    saved = lora.take_off(scalar)
    saved.config.base_model_name_or_path = str(tmp_path / "base")
    lora.save_adapter(saved, TOK, tmp_path / "rm")
    again = AutoPeftModelForTokenClassification.from_pretrained(tmp_path / "rm", num_labels=1)
    torch.testing.assert_close(reward.score_answers(again.eval(), TOK, *texts), scores)
    put_on = lora.put_on(models.scalar_model_from(base, 5), lora.load_adapter(tmp_path / "rm"))
    torch.testing.assert_close(reward.score_answers(put_on, TOK, *texts), scores)


# --- files ---------------------------------------------------------------------------------------

FRESH = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().eval()
ids = torch.tensor([[int(i) for i in sys.argv[2].split()]])
with torch.no_grad():
    print(model.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist())
assert "rlhf_edu" not in sys.modules
"""


def test_a_trained_policy_opens_in_a_process_without_this_package(tmp_path: Path) -> None:
    models.save_model(tiny.llama(), TOK, tmp_path / "base", torch.float32)
    base = models.load_policy(tmp_path / "base")
    roles = LoraRoles(base, tiny.policy_adapter(), tiny.reward_adapter())
    ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(steps=2, batch_size=4, max_new_tokens=4))
    lora.save_adapter(roles.adapter("policy"), TOK, tmp_path / "out")
    names = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["inference_mode"] is True
    prompt = tokens.encode_prompt(TOK, "Is the cat")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "out"), " ".join(map(str, prompt))],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    ours = generate(roles.policy, TOK, [prompt], 6, temperature=0)
    expected = prompt + ours.response[0, : ours.lengths[0]].tolist()
    assert json.loads(result.stdout)[: len(expected)] == expected


def test_adapters_survive_saving_and_loading(tmp_path: Path) -> None:
    adapter = tiny.policy_adapter()
    adapter.config.base_model_name_or_path = "some/model"
    for _ in range(2):  # the second one replaces the first
        lora.save_adapter(adapter, TOK, tmp_path / "runs" / "a")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]
    again = lora.load_adapter(tmp_path / "runs" / "a")
    assert again.weights.keys() == adapter.weights.keys()
    assert all(torch.equal(again.weights[k], v) for k, v in adapter.weights.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "runs" / "a").eos_token_id == 2
    assert load_file(tmp_path / "runs" / "a" / WEIGHTS_FILE).keys() == again.weights.keys()


def test_what_is_no_adapter_or_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere holds no adapter"):
        lora.load_adapter(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not fit the model: .* start from that model"):
        lora.put_on(tiny.llama(intermediate_size=24), tiny.policy_adapter())
    with pytest.raises(ValueError, match="does not fit the model|not found in the base model"):
        lora.put_on(tiny.llama(num_hidden_layers=1), tiny.policy_adapter())
    with pytest.raises(ValueError, match="adapter has no head; give one that train_reward made"):
        LoraRoles(tiny.llama(), tiny.policy_adapter(), tiny.policy_adapter())
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        lora.new_adapter(tiny.llama(), rank=0)
    lora.save_adapter(tiny.policy_adapter(), TOK, tmp_path / "orphan")
    with pytest.raises(ValueError, match="does not say which model its adapter belongs to"):
        lora.load_adapter(tmp_path / "orphan")


def test_a_policy_opens_as_a_plain_peft_model(tmp_path: Path) -> None:
    models.save_model(tiny.gpt2(), TOK, tmp_path / "base", torch.float32)
    model = lora.new_adapter(models.load_policy(tmp_path / "base"), rank=4)
    small = sft.SFTConfig(lr=1e-2, batch_size=4)
    sft.train_sft(model, TOK, tiny.demonstrations(8), small)
    lora.save_adapter(lora.take_off(model), TOK, tmp_path / "sft")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "sft").eval()
    ids = torch.tensor([[1, 40, 41, 42]])
    torch.testing.assert_close(again(ids).logits, model(input_ids=ids).logits)
