"""Economy: bfloat16 products and micro-batches change the cost of training, not what it learns."""

import contextlib
from collections.abc import Callable

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import dpo, generation, models, ppo, pretrain, reward, sft, tokens
from rlhf_edu.engine import economy, loop
from rlhf_edu.engine.hollow import Live
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
@pytest.mark.parametrize("passes", [contextlib.nullcontext, economy.whole_batches])
def test_micro_batches_learn_the_same(train: Callable[..., Trained], passes: Callable) -> None:
    whole, before = train()
    with passes():
        parts, after = train(micro_batch=2)
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
    _, in_parts = train(bf16=True, micro_batch=2)
    assert in_parts[0]["norm"] == pytest.approx(after[0]["norm"], rel=0.02)


LAYERED = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "with dropout": lambda: tiny.gpt2(resid_pdrop=0.5, attn_pdrop=0.5),
    "lora": lambda: tiny.lora_roles().policy,
}
IDS = torch.randint(3, 250, (16, 40), generator=torch.Generator().manual_seed(0))
ROWS = tokens.Sequences(IDS, torch.ones_like(IDS), 10)


def loss_of(model: torch.nn.Module, size: int) -> torch.Tensor:
    with economy.micro_batches(size):
        found = tokens.by_length(lambda part: models.response_logprobs(model, part), ROWS)
    return found.mean()


@pytest.mark.parametrize("make", LAYERED.values(), ids=LAYERED)
def test_layers_that_are_computed_again_have_the_same_gradient(make: Callable) -> None:
    model = make()
    learners = [weight for weight in model.parameters() if weight.requires_grad]
    losses = [loss_of(model, size) for size in (0, len(ROWS))]
    wanted, found = (torch.autograd.grad(loss, learners, allow_unused=True) for loss in losses)
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-6, rtol=1e-5)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("size", [4, 16])
def test_of_a_layer_its_input_alone_is_kept(size: int) -> None:
    def kept(layers: int, size: int) -> int:
        model = tiny.llama(num_hidden_layers=layers)
        with Live() as live:
            loss = loss_of(model, size)
        assert loss.requires_grad
        return live.now.total()

    numbers = IDS.numel() * tiny.llama().config.hidden_size
    assert kept(5, size) - kept(2, size) == 3 * numbers * 4
    assert kept(5, 0) - kept(2, 0) > 15 * 3 * numbers * 4


def test_a_rollout_is_read_once_by_each_network() -> None:
    roles, read = tiny.lora_roles(), []
    roles.backbone.get_base_model().model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: read.append(tuple(inputs[0].shape))
    )
    config = ppo.PPOConfig(batch_size=40, max_new_tokens=4, micro_batch=2)
    rollout = generation.generate(roles.policy, TOK, PROMPTS * 5, 4)
    read.clear()
    with economy.whole_batches():
        ppo.evaluate_rollout(roles, rollout, config)
    once = [shape for shape in read if shape != (1, 2)]  # what `logits.finishes` asks
    assert [rows for rows, _ in once] == [40] * 4


def test_rows_are_read_as_memory_allows_and_the_record_says_so(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(loop, "fitting_rows", lambda config, *shape: asked.append(shape) or 3)
    assert "micro_batch" not in train_sft()[1][0] and not asked  # a CPU has no such memory
    monkeypatch.setattr(loop, "free_memory", lambda device: 1e9)
    _, history = train_sft()
    assert [record.get("micro_batch") for record in history] == [3, None]
    [(rows, prompt, answer, free, rank, dtype)] = asked
    assert (rows, rank, dtype) == (5, 0, torch.float32) and prompt > answer > 2 and free < 1e9
    model, after = train_lora()
    assert asked[1][0] == 7 and asked[1][4] == 4 and after[0]["micro_batch"] == 3
    assert "micro_batch" not in train_sft(micro_batch=2)[1][0]


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
