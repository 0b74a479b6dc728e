"""Tensors without numbers: code runs as it does with them, and their bytes are those of others."""

import pytest
import tiny_models as tiny
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_edu import models, tokens
from rlhf_edu.engine import training
from rlhf_edu.engine.hollow import Hollow, Live, hollow

IDS = torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(0))
ROWS = tokens.Sequences(IDS, torch.ones_like(IDS), 10)


def step(model: torch.nn.Module) -> None:
    optimizer = training.make_optimizer(model.parameters(), 1e-3)
    training.update(optimizer, models.response_logprobs(model, ROWS).mean(), 1e-3, 1.0)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_the_bytes_of_a_step_are_those_that_torch_tracks(make) -> None:
    real, tracker = make(), MemTracker()
    tracker.track_external(real)
    with tracker:
        step(real)
    found = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    with hollow() as live:
        empty = make()
        before = live.now.copy()
        live.at_peak.clear()
        step(empty)
    assert live.peak == pytest.approx(found, rel=0.1)
    real = make()
    with Live() as counted:
        step(real)
    assert counted.peak == pytest.approx((live.at_peak - before).total(), rel=0.05)


def test_what_was_there_before_is_not_counted() -> None:
    before = torch.ones(1000)
    with Live(lambda tensor: "wide" if tensor.dim() > 1 else "flat") as live:
        kept = [before.view(10, 100), before + 1, before.view(10, 100) * 2]
        del kept[1]
        assert live.now == {"flat": 0, "wide": 4096}
    assert live.at_peak == {"flat": 4096, "wide": 4096} and len(kept) == 2


def test_a_model_of_any_size_costs_nothing_and_knows_its_shapes() -> None:
    config = LlamaConfig(hidden_size=12288, num_attention_heads=96, num_hidden_layers=1)
    with hollow() as live:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        logits = model(IDS).logits
    assert logits.shape == (4, 24, config.vocab_size) and logits.dtype == torch.bfloat16
    weights = sum(weight.numel() for weight in model.parameters())
    assert live.now.total() > 2 * weights > 2e9


def test_numbers_that_were_given_are_real_and_others_are_1() -> None:
    with hollow():
        weights = torch.randn(3, 4)
        assert isinstance(weights, Hollow) and isinstance(weights[0] > 0, Hollow)
        assert not isinstance(torch.arange(5), Hollow) and IDS.max() == int(IDS.flatten().max())
        assert weights.sum().item() == 1 and weights[:2, :1].tolist() == [[1], [1]]
        weights.zero_().add_(torch.ones(4))
        assert weights.bfloat16().dtype == torch.bfloat16 and weights.device.type == "cpu"
    assert not isinstance(torch.randn(3), Hollow)
