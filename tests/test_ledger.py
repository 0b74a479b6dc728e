"""The memory ledger against counted tensors, and against the figures of the literature."""

import pytest
import tiny_models as tiny
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_edu import lora, models, tokens
from rlhf_edu.bench.job import Job, llama_config
from rlhf_edu.bench.ours import roles_of
from rlhf_edu.engine import economy, hollow, ledger, training
from rlhf_edu.ppo import PPOConfig, evaluate_rollout, learn
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.sampling import Rollout

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=172,
    max_position_embeddings=128,
)


def test_four_networks_of_175_billion() -> None:
    def total(networks) -> float:
        return sum(network.total for network in networks.values()) / 1e12

    assert total(ledger.four_networks(175e9)) == pytest.approx(7.0)  # 88 cards of 80 GB: 7.04 TB
    mixed = ledger.Network(trained=175e9, bytes_each=2, bytes_master=4)
    assert mixed.total / 175e9 == 16
    frozen = ledger.Network(frozen=175e9, bytes_each=2)
    assert total({"a": mixed, "b": mixed, "c": frozen, "d": frozen}) == pytest.approx(6.3)


def standing(roles, optimizers) -> int:
    """Bytes of all tensors that are there between two steps."""
    parameters = {p for role in vars(roles).values() for p in role.parameters()}
    tensors = list(parameters) + [p.grad for p in parameters if p.grad is not None]
    for optimizer in optimizers:
        tensors += [x for state in optimizer.state.values() for x in state.values() if x.dim()]
    return sum(tensor.nbytes for tensor in tensors)


def test_what_stands_is_what_training_leaves_standing() -> None:
    policy = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    roles = SeparateRoles(policy, models.scalar_model_from(policy))
    optimizers = []
    for parameters in (roles.policy_parameters(), roles.critic_parameters()):
        optimizers.append(training.make_optimizer(parameters, 1e-3))
        training.update(optimizers[-1], sum(p.sum() for p in parameters), 1e-3, 1.0)
    expected = ledger.ppo_ledger(CONFIG, 8, 4, 30, 20).standing
    assert standing(roles, optimizers) == pytest.approx(expected, rel=0.01)


def test_parameters_of_an_adapter_are_those_that_peft_makes() -> None:
    for model in (tiny.llama(), tiny.gpt2()):
        expected = ledger.lora_parameters(model, rank=3)
        adapted = lora.new_adapter(model, rank=3)
        assert expected == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_lora_takes_less_and_the_table_adds_up() -> None:
    four, one = (ledger.ppo_ledger(CONFIG, 64, 8, 30, 20, rank) for rank in (0, 4))
    assert one.standing < four.standing / 4
    assert sum(size for _, _, size in four.rows()) >= four.peak
    assert "reward model" in str(four) and "backbone" in str(one) and "peak" in str(one)


def test_the_cache_is_what_a_model_caches() -> None:
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    cache = model(input_ids=torch.ones(3, 11, dtype=torch.long), use_cache=True).past_key_values
    expected = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert ledger.cache_bytes(CONFIG, 3, 11) == expected


def test_out_of_memory_says_who_took_what_and_what_to_change() -> None:
    expected = ledger.ppo_ledger(CONFIG, 8, 8, 60, 60)
    message = "(?s)policy .activations.: set micro_batch.*critic"
    with pytest.raises(MemoryError, match=message), ledger.explained(expected):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_evaluation_and_optimisation_take_turns_beside_the_cache() -> None:
    network = {"policy": ledger.Network(trained=1)}  # 4 + 4 + 8 bytes
    sizes = {"activations": 30.0, "logits": 7.0, "cache": 20.0}
    assert ledger.Ledger(network, **sizes, reading=36.0).peak == 16 + 20 + 37
    assert ledger.Ledger(network, **sizes, reading=38.0).peak == 16 + 20 + 38


def test_keys_of_shared_heads_are_cached_once() -> None:
    config = LlamaConfig(**CONFIG.to_dict() | {"num_key_value_heads": 2})
    assert ledger.cache_bytes(config, 3, 11) == ledger.cache_bytes(CONFIG, 3, 11) / 2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    cache = model(input_ids=torch.ones(3, 11, dtype=torch.long), use_cache=True).past_key_values
    assert ledger.cache_bytes(config, 3, 11) == sum(
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
    )


def test_fewer_rows_held_at_once_take_less_and_the_cache_is_the_same() -> None:
    found = [ledger.ppo_ledger(CONFIG, 8, held, 30, 20) for held in (2, 8, 0)]
    few, more, every = (one.activations for one in found)
    assert few < more < every and len({one.cache for one in found}) == 1


def test_a_minibatch_is_what_an_optimiser_step_holds() -> None:
    whole, half = (ledger.ppo_ledger(CONFIG, 64, 0, 30, 20, minibatch=n) for n in (64, 32))
    assert half.activations < 0.6 * whole.activations and half.reading == whole.reading


# --- against the trainer's own code ---------------------------------------------------------------


def shape(size: str, layers: int | None = None) -> LlamaConfig:
    config = llama_config(Job("ours", "ppo", size=size, prompt=256, tokens=128))
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config


def tracked(config: LlamaConfig, rank: int, dtype, batch: int, micro_batch: int, *sizes) -> int:
    """Bytes at the peak of `evaluate_rollout` and two steps of `learn`."""
    ids = torch.full((batch, sum(sizes)), 9)
    settings = PPOConfig(batch_size=batch, minibatch=batch, micro_batch=micro_batch)
    with economy.whole_batches(), hollow.hollow() as live:
        roles = roles_of(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype).eval(), rank)
        learners = {"policy": roles.policy_parameters(), "critic": roles.critic_parameters()}
        both = {name: training.make_optimizer(found, 1e-4) for name, found in learners.items()}
        about = torch.zeros(batch, dtype=torch.bool), torch.zeros(batch, sizes[1])
        rollout = Rollout(ids, torch.ones_like(ids), sizes[0], *about)
        live.at_peak.clear()
        experience = evaluate_rollout(roles, rollout, settings)
        for _ in range(2):  # the averages are made at the end of the first
            learn(roles, experience, torch.arange(batch), both, 1.0, settings, None)
    return live.peak


FOUR, LORA = (0, torch.float32), (16, torch.bfloat16)
HALF, SMALL = ("0.5B", 32, 256, 128), ("135M", 16, 128, 64)


@pytest.mark.parametrize(
    "way, sizes, micro_batch, layers",
    [
        (FOUR, SMALL, 8, 4),
        (LORA, SMALL, 0, 4),
        (FOUR, HALF, 32, 4),
        (LORA, HALF, 32, 4),
    ],
)
def test_the_peak_is_that_of_the_trainer(way, sizes, micro_batch: int, layers: int) -> None:
    size, batch, *lengths = sizes
    config = shape(size, layers)
    expected = ledger.ppo_ledger(config, batch, micro_batch, *lengths, *way)
    found = tracked(config, *way, batch, micro_batch, *lengths)
    # Nothing was sampled, so there is no cache.
    assert found == pytest.approx(expected.peak - expected.cache, rel=0.1)


# Measured on an H200 with LoRA of rank 16 in bf16: 8 episodes of prompt and answer at a time, all
# of their logits at once and all of their layers kept.
ON_A_GPU = {"135M": (16, 128, 64, 2759e6), "0.5B": (64, 256, 128, 10_328e6)}


@pytest.mark.parametrize("size", ON_A_GPU)
def test_the_peak_is_that_of_a_gpu(size: str) -> None:
    batch, prompt, answer, measured = ON_A_GPU[size]
    config, found = shape(size), []
    for layers in ledger.DEPTHS:
        with hollow.hollow() as live:
            model = AutoModelForCausalLM.from_config(shape(size, layers), dtype=torch.bfloat16)
            policy = lora.new_adapter(model.eval(), 16)
            ids, before = torch.full((8, prompt + answer), 9), live.now.total()
            rows = tokens.Sequences(ids, torch.ones_like(ids), prompt)
            live.at_peak.clear()
            models.response_logprobs(policy, rows).sum().backward()
        found.append(live.peak - before)
    each_layer = found[1] - found[0]
    peak = found[0] + (config.num_hidden_layers - ledger.DEPTHS[0]) * each_layer
    standing = ledger.ppo_ledger(config, batch, 8, prompt, answer, 16, torch.bfloat16).standing
    assert standing + peak == pytest.approx(measured, rel=0.1)


def test_rows_fit_as_memory_allows(monkeypatch) -> None:
    needed = {0: 100.0, 8: 60.0, 4: 40.0, 2: 30.0, 1: 25.0}  # by `micro_batch`
    monkeypatch.setattr(
        ledger, "learning_bytes", lambda config, rows, *_: {"activations": needed[rows.held]}
    )

    def chosen(free: float) -> int:
        return ledger.fitting_rows(CONFIG, 8, 30, 20, free)

    assert [chosen(free) for free in (100, 60, 40, 39, 25)] == [0, 8, 4, 2, 1]
    with pytest.raises(MemoryError, match="8 rows of 30 . 20 tokens, read one at a time, take"):
        chosen(24)
