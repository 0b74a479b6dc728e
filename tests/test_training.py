"""What all trainers share: ranges of settings, batches, the optimiser, and when to stop."""

import itertools
import math
from types import SimpleNamespace

import pytest
import tiny_models as tiny
import torch
from transformers import PreTrainedModel

from rlhf_edu import dpo, models, ppo, pretrain, reward, sft
from rlhf_edu.engine import checks, training
from rlhf_edu.roles import SeparateRoles

TOK = tiny.tokenizer()
CONFIGS = [
    sft.SFTConfig,
    reward.RewardConfig,
    dpo.DPOConfig,
    ppo.PPOConfig,
    pretrain.PretrainConfig,
]
every_config = pytest.mark.parametrize("config", CONFIGS)


# --- settings ------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1.5),
        ("epochs", 2**63),
        ("batch_size", "4"),
        ("seed", 2**70),
        ("warmup", math.nan),
        ("lr", math.inf),
        ("lr", math.nan),
        ("lr", "fast"),
        ("max_norm", 0.0),
        ("checkpoint_every", -1),
    ],
)
def test_settings_out_of_range_are_named(config, name, value) -> None:
    with pytest.raises(ValueError, match=f"{config.__name__}: {name} must be"):
        config(**{name: value})


@every_config
def test_gradients_need_not_be_clipped(config) -> None:
    assert config(max_norm=math.inf).max_norm == math.inf


@pytest.mark.parametrize("config", [c for c in CONFIGS if c is not pretrain.PretrainConfig])
@pytest.mark.parametrize("value", [-1, 1.5])
def test_a_micro_batch_is_a_whole_number(config, value) -> None:
    with pytest.raises(ValueError, match="micro_batch must be"):
        config(micro_batch=value)


# --- batches and the optimiser -------------------------------------------------------------------


def test_batches_are_shuffled_and_lose_no_row() -> None:
    lengths = [1 + i % 7 for i in range(32)]  # one pool, which is sorted by length
    first, again = (training.plan_batches(lengths, 4, 2, seed=3) for _ in range(2))
    plan = list(first)
    assert plan == list(again) and len(plan) == 16
    for epoch in (0, 1):
        rows = [row for e, batch in plan if e == epoch for row in batch]
        assert sorted(rows) == list(range(32)) and rows != list(range(32))
    assert plan[:8] != [(0, rows) for _, rows in plan[8:]]
    # Nor do short rows always come before long ones.
    means = [sum(lengths[i] for i in rows) / len(rows) for _, rows in plan[:8]]
    assert means != sorted(means)


def test_a_plan_for_ever_costs_nothing() -> None:
    plan = training.plan_batches([1, 2, 3], 2, 2**62, seed=0)
    assert len(list(itertools.islice(plan, 5))) == 5
    stop = KeyboardInterrupt

    def on_step(record) -> None:
        raise stop

    config = sft.SFTConfig(epochs=2**31)
    sft.train_sft(tiny.llama(), TOK, tiny.demonstrations(2), config, on_step)
    config = pretrain.PretrainConfig(epochs=2**31)
    blocks = pretrain.pack(TOK, tiny.TEXTS * 4, 16)
    assert len(pretrain.pretrain(tiny.llama(), blocks, config, on_step)[1]) == 1


def test_the_optimiser_is_the_one_of_the_papers() -> None:
    """AdamW with beta2 0.95; matrices decay, biases and norms do not."""
    model = tiny.gpt2()
    optimizer = training.make_optimizer(model.parameters(), 0.1, weight_decay=0.5)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    training.update(optimizer, 0 * sum(p.sum() for p in model.parameters()), 0.1, 1.0)
    for name, weight in model.named_parameters():
        expected = before[name] * (0.95 if weight.dim() == 2 else 1)
        torch.testing.assert_close(weight, expected, msg=name)


# --- step 0, and stopping ------------------------------------------------------------------------


def test_a_first_loss_above_an_even_guess_is_pointed_at() -> None:
    assert checks.about_first_loss(7.4, 1536)[0] == "ok"
    verdict, numbers = checks.about_first_loss(12.5, 1536)
    assert verdict == "look" and "12.500 nats, an even guess has 7.337; is the tok" in numbers
    model = sure_of_nonsense()
    _, history = sft.train_sft(model, TOK, tiny.demonstrations(4), sft.SFTConfig(epochs=1))
    assert history[0]["step_0"].startswith("look: ")
    blocks, config = pretrain.pack(TOK, tiny.TEXTS * 4, 16), pretrain.PretrainConfig(steps=1)
    _, history = pretrain.pretrain(sure_of_nonsense(), blocks, config)
    assert history[0]["step_0"].startswith("look: ")


def sure_of_nonsense() -> PreTrainedModel:
    model = tiny.llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(9)
    return model


def records(losses: list[float], norm: float = 1.0) -> list[dict]:
    return [{"loss": loss, "norm": norm} for loss in losses]


def test_a_wrecked_model_is_not_done() -> None:
    checks.require_progress(records([1.3, 900.0, 900.0, 6.0]))
    checks.require_progress(records([0.01, 4.9, 4.9, 4.9]))
    checks.require_progress(records([1.3, 900.0, 900.0]))
    with pytest.raises(RuntimeError, match=r"loss was 1.3 at first, and is 7 now, so the mod.*low"):
        checks.require_progress(records([1.3, 2.0, 7.0, 7.0, 7.0]))


def test_a_gradient_of_0_teaches_nothing() -> None:
    checks.require_progress(records([2.0, 2.0], norm=0.0))
    checks.require_progress(records([2.0, 0.0, 0.0, 0.0], norm=0.0))  # all has been learned
    with pytest.raises(RuntimeError, match="the gradient was 0 for 3 steps, so nothing is"):
        checks.require_progress(records([2.0] * 3, norm=0.0))


def test_every_trainer_stops_when_the_model_is_wrecked() -> None:
    hot = {"lr": 10.0, "epochs": 9, "batch_size": 4, "warmup": 0}
    match = "so the model is wrecked; lower the learning rate"
    with pytest.raises(RuntimeError, match=match):
        sft.train_sft(tiny.llama(), TOK, tiny.demonstrations(8), sft.SFTConfig(**hot))
    data = tiny.rankings(4) + [
        type(r)(r.prompt, r.answers, r.ended, r.ranks[::-1]) for r in tiny.rankings(4)
    ]
    with pytest.raises(RuntimeError, match=match):
        model = models.scalar_model_from(tiny.llama())
        reward.train_reward(model, TOK, data, reward.RewardConfig(**hot))
    with pytest.raises(RuntimeError, match=match):
        dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, data, dpo.DPOConfig(**hot))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30])
def test_ppo_stops_where_the_temperature_leaves_nothing_to_learn(temperature) -> None:
    config = ppo.PPOConfig(steps=9, batch_size=4, max_new_tokens=4, temperature=temperature)
    roles = SeparateRoles(tiny.llama(), models.scalar_model_from(tiny.llama(1)))
    prompts, seen = [tiny.prompt(i).text for i in range(4)], []
    with pytest.raises(RuntimeError, match="gradient was 0 for 3 steps.*temperature"):
        ppo.train_ppo(roles, TOK, prompts, config, seen.append)
    assert len(seen) == 3


# --- devices -------------------------------------------------------------------------------------


def test_text_moves_to_the_device_of_the_model() -> None:
    class Elsewhere:
        device = torch.device("meta")

        def __call__(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 280, device="meta"))

    blocks = pretrain.pack(TOK, tiny.TEXTS * 4, 16)
    assert pretrain.next_token_loss(Elsewhere(), blocks).device.type == "meta"
