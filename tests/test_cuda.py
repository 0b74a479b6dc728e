"""What only a GPU can show: `pytest tests/test_cuda.py` where there is one; skipped elsewhere."""

from collections.abc import Callable

import pytest
import test_economy as economy
import tiny_models as tiny
import torch

from rlhf_edu import generation
from rlhf_edu.bench import real, worker
from rlhf_edu.bench.job import Job
from rlhf_edu.engine import sampling_cuda
from rlhf_edu.engine.economy import bf16_products
from rlhf_edu.models import response_logprobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

TOK = tiny.tokenizer()
PROMPTS = ["Is the cat old?", "The dog", "Hen? " * 9, "x", "Yes! Yes!"] * 4


def grouped() -> torch.nn.Module:
    return tiny.llama(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)


def adapted() -> torch.nn.Module:
    return tiny.lora_roles(grouped).policy


@pytest.fixture
def recorded(monkeypatch) -> list:
    """What has been recorded, beginning with nothing."""
    found, record = [], sampling_cuda._recorded
    monkeypatch.setattr(
        sampling_cuda, "_recorded", lambda *step: found.append(record(*step)) or found[-1]
    )
    sampling_cuda.forget_recordings()
    yield found
    sampling_cuda.forget_recordings()


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, grouped, adapted])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_recorded_step_samples_what_training_finds(make, temperature, recorded) -> None:
    model = make().to("cuda")
    for seed in (0, 1):
        with torch.no_grad():  # the second time the weights are others, in the same places
            for parameter in model.parameters():
                parameter.mul_(1 + 0.05 * seed)
        options = {"temperature": temperature, "seed": seed, "batch_size": 8}
        rollout = generation.generate(model, TOK, PROMPTS, 40, **options)
        again = response_logprobs(model, rollout, temperature)
        assert ((again - rollout.logprobs) * rollout.mask).abs().max() < 1e-3
        growing = generation.generate(model, TOK, PROMPTS, 40, **options, static=False)
        # Two kernels may round a number to either side of a border between two tokens.
        same = [a == b for a, b in zip(rollout.texts(TOK), growing.texts(TOK), strict=True)]
        assert sum(same) >= 0.8 * len(same)
    # Once for all three batches of both times.
    assert [one.__name__ for one in recorded] == ["replay"]


def test_under_autocast_each_batch_is_recorded(recorded) -> None:
    model = tiny.llama().to("cuda")
    for _ in range(2):
        with bf16_products(model):
            rollout = generation.generate(model, TOK, PROMPTS, 20)
        again = response_logprobs(model, rollout)
        assert ((again - rollout.logprobs) * rollout.mask).abs().max() < 0.3
    assert len(recorded) == 2 and not sampling_cuda._KEPT


def test_recordings_give_their_memory_back(recorded) -> None:
    model = tiny.llama().to("cuda")
    left = []
    for _ in range(3):  # the first time libraries take room of their own
        generation.generate(model, TOK, PROMPTS, 40)
        held = torch.cuda.memory_allocated()
        recorded.clear()
        sampling_cuda.forget_recordings()
        left.append(torch.cuda.memory_allocated())
    assert left[1] == left[2] < held


@pytest.mark.parametrize("train", [economy.train_sft, economy.train_reward, economy.train_dpo])
def test_a_gpu_learns_what_a_cpu_learns(train: Callable[..., economy.Trained]) -> None:
    (_, there), (_, here) = train("cuda"), train()
    for one, two in zip(there, here, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-2)


@economy.every_trainer
@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"micro_batch": 2}])
def test_every_trainer_starts_sound_and_its_loss_is_finite(train, settings) -> None:
    model, history = train("cuda", **settings)
    assert history[0]["step_0"].startswith(("ok", "look:"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("way", real.WAYS["ppo"])
def test_the_ledger_predicts_the_peak(way: str) -> None:
    sizes = {"batch": 16, "prompt": 128, "tokens": 64, "micro_batch": 8, "warmup": 1, "steps": 1}
    found = worker.run(Job("ours", "ppo", way, "cuda", "135M", **sizes))
    assert found["memory_mb"] == pytest.approx(found["ledger_mb"], rel=0.15)
