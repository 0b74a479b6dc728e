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
from rlhf_edu.models import response_logprobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

TOK = tiny.tokenizer()
PROMPTS = ["Is the cat old?", "The dog", "Hen? " * 9, "x", "Yes! Yes!"] * 4


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_recorded_step_samples_what_training_finds(make, temperature, monkeypatch) -> None:
    model, recorded = make().to("cuda"), []
    record = sampling_cuda._recorded
    monkeypatch.setattr(
        sampling_cuda, "_recorded", lambda *step: recorded.append(record(*step)) or recorded[-1]
    )
    rollout = generation.generate(model, TOK, PROMPTS, 40, temperature, batch_size=8)
    assert [one.__name__ for one in recorded] == ["replay"] * 3
    again = response_logprobs(model, rollout, temperature)
    assert ((again - rollout.logprobs) * rollout.mask).abs().max() < 1e-3
    growing = generation.generate(model, TOK, PROMPTS, 40, temperature, batch_size=8, static=False)
    # Two kernels may round a number to either side of a border between two tokens.
    same = [a == b for a, b in zip(rollout.texts(TOK), growing.texts(TOK), strict=True)]
    assert sum(same) >= 0.8 * len(same)


@pytest.mark.parametrize("train", [economy.train_sft, economy.train_reward, economy.train_dpo])
def test_a_gpu_learns_what_a_cpu_learns(train: Callable[..., economy.Trained]) -> None:
    (_, there), (_, here) = train("cuda"), train()
    for one, two in zip(there, here, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-2)


@economy.every_trainer
@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"micro_batch": 2}])
def test_every_trainer_starts_sound_and_its_loss_is_finite(train, settings) -> None:
    model, history = train("cuda", **settings)
    assert history[0]["step_0"].startswith(("ok", "look: no answer ended"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("way", real.WAYS["ppo"])
def test_the_ledger_predicts_the_peak(way: str) -> None:
    sizes = {"batch": 16, "prompt": 128, "tokens": 64, "micro_batch": 8, "warmup": 1, "steps": 1}
    found = worker.run(Job("ours", "ppo", way, "cuda", "135M", **sizes))
    assert found["memory_mb"] == pytest.approx(found["ledger_mb"], rel=0.15)
