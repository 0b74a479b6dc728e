"""Two processes, each with its share of a batch, do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import dpo, models, ppo, pretrain, reward, sft
from rlhf_edu.engine import parallel
from rlhf_edu.roles import LoraRoles

TOK = tiny.tokenizer()
HERE = Path(__file__).resolve()


def everything() -> dict[str, list[float]]:
    """Loss and gradient norm of a few steps of every trainer, and what they end with."""
    found, ended = {}, {}
    trained = sft.train_sft(tiny.llama(), TOK, tiny.demonstrations(9), sft.SFTConfig(batch_size=4))
    ended["sft"], found["sft"] = trained
    config = reward.RewardConfig(batch_size=4)
    model = models.scalar_model_from(tiny.llama())
    ended["reward"], found["reward"] = reward.train_reward(model, TOK, tiny.rankings(9), config)
    config = dpo.DPOConfig(batch_size=4)
    trained = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, tiny.rankings(9), config)
    ended["dpo"], found["dpo"] = trained
    blocks = pretrain.pack(TOK, tiny.TEXTS * 8, block=16)
    config = pretrain.PretrainConfig(batch_size=3, steps=3)
    ended["pretrain"], found["pretrain"] = pretrain.pretrain(tiny.llama(), blocks, config)
    for name, text in (("ppo", None), ("ppo_ptx", blocks)):
        roles, found[name] = train_ppo(tiny.lora_roles(), text)
        ended[name] = roles.policy
    numbers = {
        name: [number for record in history for number in numbers_of(record)]
        for name, history in found.items()
    }
    for name, model in ended.items():
        numbers[name] += [sum(p.detach().double().abs().sum().item() for p in model.parameters())]
    return numbers


def train_ppo(roles: LoraRoles, text: torch.Tensor | None):
    settings = {"batch_size": 7, "minibatch": 4, "max_new_tokens": 6, "ptx_blocks": 1}
    config = ppo.PPOConfig(steps=3, ptx_coef=0.0 if text is None else 0.5, **settings)
    prompts = [tiny.prompt(i).text for i in range(8)]
    return ppo.train_ppo(roles, TOK, prompts, config, ptx_blocks=text)


def numbers_of(record: dict) -> list[float]:
    names = "loss policy_loss value_loss ptx_loss clip_fraction approx_kl reward kl length norm"
    return [record[name] for name in names.split() if name in record]


def launch(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0", *arguments]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    environment = os.environ | {"PYTHONPATH": path, "HF_HOME": str(place)}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    done = launch(tmp_path, str(HERE), str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for name, numbers in everything().items():
        assert found[name] == pytest.approx(numbers, rel=1e-3, abs=1e-5), name


def test_a_command_runs_in_two_processes_and_one_of_them_writes(tmp_path: Path) -> None:
    models.save_model(tiny.llama(), TOK, tmp_path / "base")
    rows = [{"prompt": d.prompt.text, "answer": d.answer} for d in tiny.demonstrations(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        f"--model {tmp_path}/base --data {tmp_path}/data.jsonl --out {tmp_path}/run --epochs 1"
    )
    done = launch(
        tmp_path, "-m", "rlhf_edu", "sft", *options.split(), "--batch-size", "2", "--epochs", "1"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("step 0:") == 1 and done.stdout.count("done:") == 1
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_shares_are_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 3)
    shares, weights = [], []
    for rank in range(3):
        monkeypatch.setattr(parallel.dist, "get_rank", lambda rank=rank: rank)
        shares += parallel.share([1, 2, 3, 4, 5])
        weights.append(parallel.share_of_batch([7, 1], lambda row: row)[1])
    assert shares == [1, 2, 3, 4, 5]
    assert weights == [0.0, 0.875, 0.125]  # one of three has no row, and counts for nothing


if __name__ == "__main__":
    parallel.join_others()
    result = everything()
    if parallel.is_main():
        Path(sys.argv[1]).write_text(json.dumps(result))
