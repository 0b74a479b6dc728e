"""Economy: bfloat16 products and micro-batches change the cost of training, not what it learns."""

from collections.abc import Callable

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import dpo, models, ppo, pretrain, reward, sft, tokens
from rlhf_edu.engine import economy, ledger
from rlhf_edu.roles import Roles, SeparateRoles

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]
BLOCKS = pretrain.pack(TOK, tiny.TEXTS * 8, block=16)

Trained = tuple[torch.nn.Module, list[dict]]


def train_sft(device: str = "cpu", **settings) -> Trained:
    config = sft.SFTConfig(batch_size=5, epochs=1, **settings)
    return sft.train_sft(tiny.llama().to(device), TOK, tiny.demonstrations(10), config)


def train_reward(device: str = "cpu", **settings) -> Trained:
    config = reward.RewardConfig(batch_size=5, **settings)
    model = models.scalar_model_from(tiny.llama().to(device))
    return reward.train_reward(model, TOK, tiny.rankings(10), config)


def train_dpo(device: str = "cpu", **settings) -> Trained:
    config = dpo.DPOConfig(batch_size=5, **settings)
    policy, reference = tiny.llama().to(device), tiny.llama().to(device)
    return dpo.train_dpo(policy, reference, TOK, tiny.rankings(10), config)


def _ppo(roles: Roles, **settings) -> Trained:
    settings = {"minibatch": 7, "max_new_tokens": 6, "missing_eos_penalty": 0.5} | settings
    config = ppo.PPOConfig(steps=2, batch_size=14, ptx_coef=0.5, **settings)
    roles, history = ppo.train_ppo(roles, TOK, PROMPTS, config, ptx_blocks=BLOCKS)
    return roles.policy, history


def train_ppo(device: str = "cpu", **settings) -> Trained:
    policy = tiny.llama().to(device)
    return _ppo(SeparateRoles(policy, models.scalar_model_from(policy)), **settings)


def train_lora(device: str = "cpu", **settings) -> Trained:
    return _ppo(tiny.lora_roles(lambda: tiny.llama().to(device)), **settings)


every_trainer = pytest.mark.parametrize(
    "train", [train_sft, train_reward, train_dpo, train_ppo, train_lora]
)


@every_trainer
def test_micro_batches_learn_the_same(train: Callable[..., Trained]) -> None:
    (whole, before), (parts, after) = train(), train(micro_batch=2)
    for one, two in zip(before, after, strict=True):
        assert two["norm"] == pytest.approx(one["norm"], rel=1e-3)
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        # A reward head's bias has no gradient but rounding.
        assert len(one) == 1 or torch.allclose(one, two, atol=1e-5)


@every_trainer
def test_bf16_learns_nearly_the_same_and_leaves_weights_in_fp32(
    train: Callable[..., Trained],
) -> None:
    (_, before), (model, after) = train(), train(bf16=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert after[0]["step_0"].startswith(("ok", "look"))
    assert after[0]["norm"] == pytest.approx(before[0]["norm"], rel=0.2)
    assert after[0]["norm"] != before[0]["norm"]


def test_micro_batches_keep_little() -> None:
    model, ids = tiny.llama(), torch.randint(3, 250, (16, 40))
    rows = tokens.Sequences(ids, torch.ones_like(ids), 10)

    def kept(size: int) -> int:
        with economy.micro_batches(size), ledger.saved_bytes(model) as sizes:
            tokens.by_length(lambda part: models.response_logprobs(model, part), rows)
        return sum(sizes)

    # What went into each layer, and nothing that was computed from it.
    assert kept(4) < 0.1 * kept(0)


def test_the_limit_is_gone_outside_and_where_nothing_is_learned() -> None:
    def size(rows: int, tokens: int = 10) -> int:
        return economy.part_size(rows, tokens, 4, torch.device("cpu"))

    assert size(7) == 4 and size(2) == 2
    with economy.micro_batches(3):
        assert size(7) == 3 and size(2) == 2
        with torch.no_grad():
            assert size(7) == 4
    with economy.whole_batches():
        assert size(700, 100) == 700
        with torch.no_grad():  # so many tokens at a time, but one row at least
            assert size(700, 100) == economy.MOST_TOKENS // 100 and size(3, 10**6) == 1
        with economy.micro_batches(3):
            assert size(7) == 3
    assert size(7) == 4


def test_bf16_is_honoured_inside_and_gone_outside() -> None:
    model, seen = tiny.llama(), []
    layer = model.model.layers[0]
    for module in (layer.mlp.up_proj, layer.self_attn.o_proj):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    layer.self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].dtype)
    )
    with economy.bf16_products(model):
        model(BLOCKS)
    inside, seen[:] = list(seen), []
    model(BLOCKS)
    assert inside == [torch.float32, torch.bfloat16, torch.bfloat16]  # attention, then products
    assert set(seen) == {torch.float32}
