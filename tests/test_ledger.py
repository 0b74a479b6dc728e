"""The memory ledger against counted tensors, and against the figures of the literature."""

import pytest
import tiny_models as tiny
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_edu import lora, models, tokens
from rlhf_edu.engine import ledger, training
from rlhf_edu.roles import SeparateRoles

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_keeps(dtype) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=dtype).eval()
    ids = torch.randint(3, 500, (4, 50))
    rows = tokens.Sequences(ids, torch.ones_like(ids), 30)
    with ledger.saved_bytes(model) as sizes:
        models.response_logprobs(model, rows).sum()
    found = ledger.activation_bytes(ledger.empty_model(CONFIG, dtype), 4, 30, 20)
    kept = found["activations"] + 4 * 21 * 512 * 4
    assert kept == pytest.approx(sum(sizes), rel=0.05)


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
    assert one.standing < four.standing / 4 and one.activations == four.activations
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


def test_rollout_and_optimisation_take_turns_at_the_peak() -> None:
    network = {"policy": ledger.Network(trained=1)}  # 4 + 4 + 8 bytes
    assert ledger.Ledger(network, activations=30.0, logits=7.0, cache=20.0).peak == 16 + 37
    assert ledger.Ledger(network, activations=30.0, logits=7.0, cache=90.0).peak == 16 + 90


def test_logits_are_counted_with_their_gradient() -> None:
    kept = ledger.activation_bytes(ledger.empty_model(CONFIG), 4, 30, 20)
    assert kept["logits"] == 2 * 4 * 21 * 512 * 4
    kept = ledger.activation_bytes(ledger.empty_model(CONFIG, torch.bfloat16), 4, 30, 20)
    assert kept["logits"] == (4 + 4 + 2) * 4 * 21 * 512


def test_keys_of_shared_heads_are_cached_once() -> None:
    config = LlamaConfig(**CONFIG.to_dict() | {"num_key_value_heads": 2})
    assert ledger.cache_bytes(config, 3, 11) == ledger.cache_bytes(CONFIG, 3, 11) / 2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    cache = model(input_ids=torch.ones(3, 11, dtype=torch.long), use_cache=True).past_key_values
    assert ledger.cache_bytes(config, 3, 11) == sum(
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers
    )


def test_only_the_rows_held_at_once_have_activations() -> None:
    whole, part = (ledger.ppo_ledger(CONFIG, 8, held, 30, 20) for held in (8, 2))
    assert whole.logits == 4 * part.logits and whole.activations > 3 * part.activations
    assert whole.cache == part.cache
