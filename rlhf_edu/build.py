"""Rebuild everything in `data/` from nothing: `python -m rlhf_edu build [--only bases|stages]`.

`bases` pretrains the family of base models; `stages` runs the ladder from the 1M base and keeps
its checkpoints and the data it was trained on. Every folder is written whole or not at all.
"""

import time
from pathlib import Path

from rlhf_edu import data_folder
from rlhf_edu.data import write_jsonl
from rlhf_edu.ladder import Ladder, table
from rlhf_edu.models import (
    count_parameters,
    load_policy,
    new_llama,
    round_weights,
    save_model,
)
from rlhf_edu.pretrain import PretrainConfig, lm_loss, pack, pretrain, train_tokenizer
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.pages import web
from rlhf_edu.tinyweb.prompts import probe_sets

PAGES = {"0.05M": 100_000, "1M": 150_000, "6M": 100_000}
LEARNING_RATES = {"0.05M": 1e-2, "1M": 3e-3, "6M": 1.5e-3}
LOSS_TOLERANCE = 0.02  # nats per token, between machines
STAGE_FOLDERS = {
    "sft": "sft-1M",
    "reward_model": "reward-model-1M",
    "critic": "critic-1M",
    "ppo": "ppo-1M",
    "ppo_ptx": "ppo-ptx-1M",
    "dpo": "dpo-1M",
}


def build(only: str | None = None) -> None:
    """Make the bases, the stages and the written data, and say how each compares with what was
    there before. `only` is `bases`, `stages` or None for both."""
    folder = data_folder(create=True)
    if only in (None, "bases"):
        texts = web(World(0), max(PAGES.values()))
        for size in PAGES:
            build_base(size, texts, folder / "models" / f"base-{size}")
    if only in (None, "stages"):
        build_stages(folder)


def build_base(size: str, texts: list[str], folder: Path) -> None:
    """Pretrain one base model on the first pages of the tiny web, and save it in 16 bits."""
    start = time.perf_counter()
    # One tokenizer for all sizes, so that they can score each other's tokens.
    tokenizer = train_tokenizer(texts[:20_000])
    blocks = pack(tokenizer, texts[: PAGES[size]])
    test = pack(tokenizer, web(World(0), 1500, seed=10_001))
    model = new_llama(size, len(tokenizer))
    config = PretrainConfig(lr=LEARNING_RATES[size], bf16=True)
    print(f"base-{size}: {count_parameters(model):,} parameters, {blocks.numel():,} tokens")
    model, _ = pretrain(model, blocks, config, _print_progress)
    loss = lm_loss(round_weights(model), test)
    minutes = (time.perf_counter() - start) / 60
    print(f"base-{size}: web loss {loss:.3f} after {minutes:.1f} minutes")
    if folder.exists():
        before = lm_loss(load_policy(folder), test)
        print(f"base-{size}: {_verdict(loss, before)} (shipped: {before:.3f})")
    save_model(model, tokenizer, folder)


def _verdict(loss: float, before: float) -> str:
    if loss == before:
        return "the same as the shipped one"
    return "within tolerance" if abs(loss - before) < LOSS_TOLERANCE else "NOT within tolerance"


def _print_progress(record: dict) -> None:
    if record["step"] % 200 == 0:
        print(f"  step {record['step']}: loss {record['loss']:.3f}, {record['seconds']:.0f} s")


def build_stages(folder: Path) -> None:
    """Run the ladder from the shipped base, and save its models and the data they learned from."""
    ladder = Ladder()
    report = ladder.run()
    print(table(report))
    for name, target in STAGE_FOLDERS.items():
        save_model(ladder.models[name], ladder.tokenizer, folder / "models" / target)
    write_jsonl(folder / "demonstrations.jsonl", ladder.demonstrations)
    write_jsonl(folder / "rankings.jsonl", ladder.rankings)
    write_jsonl(folder / "prompts_train.jsonl", ladder.train["ppo"])
    write_jsonl(folder / "prompts_test.jsonl", ladder.test)
    for name, prompts in probe_sets(ladder.world).items():
        write_jsonl(folder / f"probe_{name}.jsonl", prompts)
