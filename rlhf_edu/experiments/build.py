"""Rebuild everything in `data/` from nothing: `python -m rlhf_edu build [--only bases|stages]`.

`bases` pretrains the family of base models; `stages` runs the ladder from the 1M base and keeps
its checkpoints and the data it was trained on. Every folder is written whole or not at all.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_edu import data_folder
from rlhf_edu.data import write_jsonl
from rlhf_edu.engine.devices import device_of
from rlhf_edu.experiments.bases import BASES, make_base
from rlhf_edu.experiments.cards import data_card, model_card
from rlhf_edu.experiments.ladder import Ladder
from rlhf_edu.experiments.plots import STAGES
from rlhf_edu.experiments.report import plot_ladder, table
from rlhf_edu.files import write_text
from rlhf_edu.models import count_parameters, load_policy, load_scalar_model, save_model
from rlhf_edu.pretrain import lm_loss, pack
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.pages import web
from rlhf_edu.tinyweb.prompts import probe_sets

# Between machines and versions; on one machine with one set of versions nothing differs.
LOSS_TOLERANCE = 0.02  # nats per token
GOLD_TOLERANCE = 0.4
# What the ladder trains, and what it is kept as.
STAGE_FOLDERS = {name: s.folder for name, s in STAGES.items() if s.folder and name != "base"}
STAGE_FOLDERS |= {"reward_model": "reward-model", "critic": "critic"}


def build(only: str | None = None, device: str = "cpu") -> None:
    """Make the bases, the stages and the written data, and say how each compares with what was
    there before. `only` is `bases`, `stages` or None for both; the shipped ones are of a CPU."""
    folder = data_folder(create=True)
    if only in (None, "bases"):
        for size in BASES:
            build_base(size, folder / "models" / f"base-{size}", device)
    if only in (None, "stages"):
        build_stages(folder, device)


def build_base(size: str, folder: Path, device: str = "cpu") -> None:
    """Pretrain one base model, compare it with the shipped one, and save it in 16 bits."""
    start, world, place = time.perf_counter(), World(0), device_of(device)
    model, tokenizer = make_base(size, world, on_step=_print_progress, device=place)
    test = pack(tokenizer, web(world, 1500, seed=10_001)).to(place)
    loss, minutes = lm_loss(model, test), (time.perf_counter() - start) / 60
    parameters = f"{count_parameters(model):,} parameters"
    print(f"base-{size}: {parameters}, web loss {loss:.3f} after {minutes:.1f} minutes")
    if folder.exists():
        before = lm_loss(load_policy(folder).to(place), test)
        print(f"base-{size}: {_verdict(loss, before)} (shipped: {before:.3f})")
    card = model_card(
        folder.name, count_parameters(model), {"web loss": f"{loss:.3f} nats per token"}
    )
    save_model(model, tokenizer, folder, torch.bfloat16, card)


def _verdict(loss: float, before: float) -> str:
    if loss == before:
        return "the same as the shipped one"
    return "within tolerance" if abs(loss - before) < LOSS_TOLERANCE else "NOT within tolerance"


def _print_progress(record: dict) -> None:
    if record["step"] % 200 == 0:
        print(f"  step {record['step']}: loss {record['loss']:.3f}, {record['seconds']:.0f} s")


def build_stages(folder: Path, device: str = "cpu") -> None:
    """Run the ladder from the shipped base, and save what it made."""
    ladder = Ladder(device=device)
    report = ladder.run()
    print(table(report))
    save_stages(ladder, report, folder)


def save_stages(ladder: Ladder, report: dict[str, Any], folder: Path) -> None:
    """Save a ladder's models, data and table; compare each with what was there before."""
    for name, kind in STAGE_FOLDERS.items():
        target, model = f"{kind}-1M", ladder.models[name]
        path = folder / "models" / target
        if path.exists():
            print(f"{target}: {_same_weights(model, path)}")
        card = model_card(target, count_parameters(model), _measured(report, name))
        save_model(model, ladder.tokenizer, path, torch.bfloat16, card)
    results = folder / "results" / "ladder.json"
    if results.exists():
        _compare_gold(report, json.loads(results.read_text(encoding="utf-8")))
    write_text(results, json.dumps(report, indent=1) + "\n")
    plot_ladder(report).savefig(results.with_suffix(".png"), dpi=110)
    _write_data(ladder, report, folder)


def _write_data(ladder: Ladder, report: dict[str, Any], folder: Path) -> None:
    """Write what the ladder's stages learned from and were tested on, and the data card."""
    files: dict[str, list[Any]] = {
        "demonstrations": ladder.demonstrations,
        "rankings": ladder.rankings,
        "prompts_train": ladder.train["ppo"],
        "prompts_validation": ladder.validation,
        "prompts_test": ladder.test,
        "prompts_test_stratified": ladder.test_stratified,
    }
    files |= {f"probe_{name}": found for name, found in probe_sets(ladder.world).items()}
    for name, records in files.items():
        write_jsonl(folder / f"{name}.jsonl", records)
    found = report["reward_model"]
    low, high = found["agreement_low"], found["agreement_high"]
    facts = {
        "labelers": f"{len(ladder.population.labelers)}, of whom one in three is held out",
        "agreement of two labelers": f"{found['agreement']:.1%} [{low:.1%}, {high:.1%}] of pairs",
        "accuracy ceiling that this noise implies": f"{found['ceiling']:.1%}",
        "never asked in training": ", ".join(sorted(ladder.world.never_asked)),
    }
    counts = {f"{name}.jsonl": len(records) for name, records in files.items()}
    write_text(folder / "README.md", data_card(counts, facts))


def _measured(report: dict[str, Any], name: str) -> dict[str, str]:
    """What the report says about a model, for its card."""
    if name in ("reward_model", "critic"):
        found = report["reward_model"]
        return {
            "agrees with a labeler on new pairs": f"{found['label_accuracy']:.1%}",
            "agrees with gold on new pairs": f"{found['gold_accuracy']:.1%}",
        }
    r = next(row for row in report["stages"] if row["stage"] == name)
    interval = f"[{r['gold_low']:.2f}, {r['gold_high']:.2f}]"
    return {
        "gold score on test prompts": f"{r['gold']:.2f} {interval}",
        "KL to the SFT model": f"{r['kl']:.1f} nats per answer",
        "web loss": f"{r['web_loss']:.3f} nats per token",
    }


def _same_weights(model: PreTrainedModel, folder: Path) -> str:
    """Whether a model equals a saved one, bit for bit."""
    load = load_policy if model.can_generate() else load_scalar_model
    pairs = zip(model.parameters(), load(folder).parameters(), strict=True)
    same = all(torch.equal(ours.cpu(), theirs) for ours, theirs in pairs)
    return "the same weights as the shipped one" if same else "other weights than the shipped one"


def _compare_gold(report: dict[str, Any], shipped: dict[str, Any]) -> None:
    before = {row["stage"]: row["gold"] for row in shipped["stages"]}
    for r in report["stages"]:
        near = abs(r["gold"] - before[r["stage"]]) < GOLD_TOLERANCE
        verdict = "within tolerance" if near else "NOT within tolerance"
        print(f"{r['stage']}: gold {r['gold']:.2f} (shipped: {before[r['stage']]:.2f}), {verdict}")
