"""Models on one device and data on another: whatever calls a model moves its input there first.

The device is pretended (see `pretended_device.py`), so that a machine without a GPU finds what
would break on one. Everything runs to its end, and finds what it finds on the CPU.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import tiny_models as tiny
import torch
from pretended_device import Shell, each, pretended_device
from test_economy import BLOCKS, PROMPTS, TOK, Trained, train_reward, train_sft
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_edu import dpo, generation, models, ppo, pretrain, reward, roles, sft, tokens
from rlhf_edu.course.microscope import Microscope
from rlhf_edu.engine import checkpoints, economy, groups
from rlhf_edu.experiments import bases, exam, ladder
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.prompts import make_prompts

Train = Callable[..., Trained]


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretended_device() as there:
        yield there


# --- the mode itself -----------------------------------------------------------------------------


def here(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


MIXED = {
    "a sum": lambda there: here(2) + here(2).to(there),
    "a product": lambda there: here(2, 2).to(there) @ here(2, 2),
    "a number there with a tensor here": lambda there: here(2) * torch.tensor(2.0, device=there),
    "a row joined": lambda there: torch.cat([here(2), here(2).to(there)]),
    "numbers joined": lambda there: torch.stack([torch.tensor(1.0), torch.tensor(1.0).to(there)]),
    "a sum kept here": lambda there: torch.tensor(0.0).add_(torch.tensor(1.0, device=there)),
    "a mask": lambda there: here(2).to(there).masked_fill(here(2) > 0, 0.0),
    "indices there of a tensor here": lambda there: here(2)[torch.tensor([0], device=there)],
    "tensors here written there": lambda there: (
        here(2).to(there).index_put_([torch.tensor([0, 1])], here(2))
    ),
    "a generator": lambda there: torch.rand(2, device=there, generator=torch.Generator()),
    "a layer": lambda there: torch.nn.Linear(2, 2).to(there)(here(2)),
}
ALLOWED = {
    "a copy": lambda there: torch.zeros(2, device=there).copy_(here(2)),
    "a number here with a tensor there": lambda there: here(2).to(there) * torch.tensor(2.0),
    "indices here of a tensor there": lambda there: here(2).to(there)[torch.tensor([1])],
    "a list of indices": lambda there: torch.tensor([0.0, 1.0], device=there)[[1]],
    "a layer": lambda there: torch.nn.Linear(2, 2).to(there)(here(2).to(there)),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_tensors_of_two_devices_do_not_meet(mix: Callable, device) -> None:
    with pytest.raises(RuntimeError, match="device"):
        mix(device)


@pytest.mark.parametrize("mix", ALLOWED.values(), ids=ALLOWED)
def test_what_a_gpu_allows_is_allowed(mix: Callable, device) -> None:
    found = mix(device)
    assert found.device == device and found.cpu().device.type == "cpu"
    assert not found.cpu().isnan().any() and found.cpu().abs().max() > 0


def test_a_model_there_is_the_model_here(device) -> None:
    model, moved = tiny.llama(), tiny.llama().to(device)
    assert moved.device == device and moved.lm_head.weight is moved.model.embed_tokens.weight
    for one in (model, moved):
        one(BLOCKS.to(one.device)).logits.float().logsumexp(-1).mean().backward()
    for one, two in zip(model.parameters(), moved.parameters(), strict=True):
        assert isinstance(two, Shell) and isinstance(two.grad, Shell)
        assert torch.allclose(one.grad, two.grad.cpu(), atol=1e-5)


# --- every trainer -------------------------------------------------------------------------------


def train_base(device: str = "cpu", **settings) -> Trained:
    config = pretrain.PretrainConfig(steps=2, batch_size=4, **settings)
    return pretrain.pretrain(tiny.llama().to(device), BLOCKS, config)


def train_dpo(device: str = "cpu", **settings) -> Trained:
    config = dpo.DPOConfig(batch_size=3, **settings)
    # The reference is asked before training and never again, so it may stay behind.
    return dpo.train_dpo(tiny.llama().to(device), tiny.llama(), TOK, tiny.rankings(6), config)


def in_small(who: roles.Roles, reward: ppo.Reward | None = None, **settings) -> Trained:
    small = {"steps": 2, "batch_size": 4, "minibatch": 4, "epochs": 1, "max_new_tokens": 2}
    config = ppo.PPOConfig(**small | settings)
    who, history = ppo.train_ppo(who, TOK, PROMPTS, config, ptx_blocks=BLOCKS, reward=reward)
    return who.policy, history


def train_ppo(device: str = "cpu", **settings) -> Trained:
    policy = tiny.llama().to(device)
    return in_small(roles.SeparateRoles(policy, models.scalar_model_from(policy)), **settings)


def train_lora(device: str = "cpu", **settings) -> Trained:
    return in_small(tiny.lora_roles(lambda: tiny.llama().to(device)), **settings)


def own_reward(prompts: list[str], answers: list[str]) -> list[float]:
    return [len(answer) / len(prompt) for prompt, answer in zip(prompts, answers, strict=True)]


IN_PAIRS = {"answers_per_prompt": 2}
TRAINERS: dict[str, Train] = {
    "pretrain": train_base,
    "sft": train_sft,
    "sft in parts": partial(train_sft, micro_batch=3),
    "reward": train_reward,
    **{f"dpo, {loss}": partial(train_dpo, loss=loss) for loss in dpo.PREFERENCES},
    "ppo-ptx": partial(train_ppo, ptx_coef=0.5),
    "rloo, own reward": partial(train_ppo, reward=own_reward, **IN_PAIRS, baseline="rloo"),
    "grpo": partial(train_ppo, **IN_PAIRS, baseline="grpo"),
    "lora-ptx": partial(train_lora, ptx_coef=0.5),
}


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_every_trainer_learns_there_what_it_learns_here(train: Train, device) -> None:
    (model, there), (_, here) = train(device), train()
    assert all(isinstance(parameter, Shell) for parameter in model.parameters())
    assert len(there) == 2
    for one, two in zip(there, here, strict=True):
        assert one["norm"] == pytest.approx(two["norm"], rel=1e-3)


@pytest.mark.parametrize("few_tokens", [0, groups.FEW_TOKENS])  # with a mask, and without
@pytest.mark.parametrize("train", [train_sft, train_reward, train_dpo])
def test_few_large_passes_learn_there_what_they_learn_here(
    train: Train, few_tokens: int, device, monkeypatch
) -> None:
    monkeypatch.setattr(groups, "FEW_TOKENS", few_tokens)
    _, here = train()
    with economy.whole_batches():
        _, there = train(device, micro_batch=3)
    for one, two in zip(there, here, strict=True):
        assert one["norm"] == pytest.approx(two["norm"], rel=1e-3)


def test_a_batch_that_is_left_behind_is_noticed(device, monkeypatch) -> None:
    monkeypatch.setattr(tokens.Sequences, "to", lambda self, device: self)
    with pytest.raises(RuntimeError, match="embedding: expected all tensors on one device"):
        train_sft(device)


def test_pretraining_text_that_is_left_behind_is_noticed(device, monkeypatch) -> None:
    def loss(model: torch.nn.Module, blocks: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=blocks[:, :-1].to(model.device)).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())

    monkeypatch.setattr(ppo, "next_token_loss", loss)
    with pytest.raises(RuntimeError, match="nll_loss_forward: expected all tensors on one device"):
        train_ppo(device, ptx_coef=0.5)


# --- whatever else calls a model -----------------------------------------------------------------


@pytest.mark.parametrize("static, temperature", [(False, 0.7), (True, 0.0)])
def test_samples_there_are_samples_here(static: bool, temperature: float, device) -> None:
    options = {"max_new_tokens": 5, "temperature": temperature, "batch_size": 3}
    there, here = (
        generation.generate(model, TOK, PROMPTS, static=static, stop="e", **options)
        for model in (tiny.llama().to(device), tiny.llama())
    )
    assert isinstance(there.tokens, Shell)
    assert there.texts(TOK) == here.texts(TOK) and there.ended.tolist() == here.ended.tolist()


def test_an_exam_is_taken_on_any_device(device) -> None:
    world = World(0)
    model, scorer = tiny.llama().to(device), models.scalar_model_from(tiny.llama().to(device))
    prompts = make_prompts(world, "test", 3)
    answers = exam.answer_all(model, TOK, Judge(world), prompts)
    assert exam.mean_kl(model, tiny.llama().to(device), answers.rollout) == 0
    assert set(exam.skills(model, TOK, world, n=2)) == set(exam.SKILLS)
    assert len(exam.reward_accuracy(scorer, TOK, tiny.rankings(2))) == 2
    assert pretrain.lm_loss(model, BLOCKS) > 0
    alone = groups.Group([1, 5], [[7, 2]], (1,))  # a row without a mask
    assert groups.answer_logprobs(model, [alone], 0)[0][0].device == device
    assert 0 <= reward.evaluate_reward(scorer, TOK, tiny.rankings(3))["accuracy"] <= 1
    shown = tiny.demonstrations(3)
    assert sft.answer_loss(model, TOK, shown) > 0
    reward.normalise_reward(scorer, TOK, shown)
    texts = [d.prompt.text for d in shown], [d.answer for d in shown]
    assert abs(reward.score_answers(scorer, TOK, *texts).mean()) < 1e-5


def test_the_microscope_looks_at_a_model_on_any_device(device) -> None:
    policy = tiny.llama().to(device)
    scorer = models.scalar_model_from(policy)
    slide = Microscope(TOK, policy, policy, scorer, scorer, PROMPTS[0], "Yes!").look()
    assert len(slide.tokens) == len(slide.numbers["advantage"])


@pytest.fixture
def in_miniature(monkeypatch) -> ladder.Ladder:
    """A ladder of the smallest model with a few prompts, answers of two tokens and a short web."""
    pages = ladder.web
    monkeypatch.setattr(ladder, "web", lambda world, count, seed=0: pages(world, 20, seed))
    monkeypatch.setattr(ladder, "skills", lambda *_: {})  # they have a test above
    monkeypatch.setattr(ladder, "device_of", torch.device)
    monkeypatch.setattr(exam, "MAX_NEW_TOKENS", 2)
    size = {"size": "0.05M", "demonstrations": 8, "ranked_prompts": 4, "answers_per_prompt": (3,)}
    size |= {"ppo_prompts": 8, "examples": 1, "best_of": 2, "test_prompts": 4, "per_use_case": 1}
    recipe = ladder.Recipe(
        **size,
        sft=sft.SFTConfig(epochs=1),
        reward=reward.RewardConfig(batch_size=4),
        ppo=ppo.PPOConfig(steps=1, batch_size=4, minibatch=4, epochs=1, max_new_tokens=2),
        dpo=dpo.DPOConfig(batch_size=4),
    )
    found = ladder.Ladder(recipe=recipe, quiet=True, device="meta")
    found.validation = found.validation[:4]
    return found


def test_the_whole_ladder_climbs_on_any_device(device, in_miniature) -> None:
    report = in_miniature.run()
    assert [row["stage"] for row in report["stages"]] == list(ladder.STAGES)
    for name, model in in_miniature.models.items():
        assert all(isinstance(parameter, Shell) for parameter in model.parameters()), name


def test_a_base_model_is_made_on_any_device(device, monkeypatch) -> None:
    pages = bases.web
    monkeypatch.setattr(bases, "web", lambda world, count, seed: pages(world, 60, seed))
    model, tokenizer = bases.make_base("0.05M", World(0), pages=60, device=device)
    assert all(isinstance(parameter, Shell) for parameter in model.parameters())


def test_a_run_that_was_stopped_goes_on_there(device, tmp_path, monkeypatch) -> None:
    write = checkpoints.save_file  # which takes tensors of any real device
    monkeypatch.setattr(
        checkpoints, "save_file", lambda found, file: write(each(Tensor.cpu, found), file)
    )
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_: None)
    settings = {"checkpoint_every": 1, "checkpoint_folder": str(tmp_path)}
    model, whole = train_ppo(device, **settings)
    shutil.rmtree(tmp_path / "step_00002")
    again, resumed = train_ppo(device, **settings)
    assert [record["norm"] for record in resumed] == [record["norm"] for record in whole]
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert isinstance(two, Shell) and torch.equal(one.cpu(), two.cpu())
