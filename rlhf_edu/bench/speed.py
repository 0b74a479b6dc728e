"""How fast each trainer is, and how much memory it takes, in a table, TRL's beside it."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_edu import data_folder
from rlhf_edu.bench.job import SHAPES, Job
from rlhf_edu.bench.machine import machine
from rlhf_edu.bench.plan import WORKER, Plan, how_to_get_trl, run_worker
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.files import write_text

UNITS = {
    "sft": "tokens",
    "reward": "comparisons",
    "dpo": "comparisons",
    "ppo": "episodes",
    "rloo": "episodes",
    "grpo": "episodes",
}
Run = dict[str, Any]


def bench(plan: Plan, folder: Path | None = None) -> str:
    """Measure, keep the result of each stage as soon as it is there, and return the table.

    Args:
        plan: what to measure.
        folder: for `bench_<device>.json`; None: `data/results`.
    """
    missing = how_to_get_trl(plan)
    if missing:
        print(missing, file=sys.stderr)
    path = (folder or data_folder(create=True) / "results") / f"bench_{plan.device}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"stages": {}}
    found = {}
    for stage in plan.stages:
        name = _stage_name(plan, stage)
        found[name] = stored["stages"][name] = measure(plan, stage)
        write_text(path, json.dumps(stored, indent=1) + "\n")
    return table(found)


def _stage_name(plan: Plan, stage: str) -> str:
    pairs = stage in ("reward", "dpo")
    loss = f", {plan.loss}" if stage == "dpo" and plan.loss != "dpo" else ""
    answers = f", {plan.answers} answers" if pairs and plan.answers else ""
    return f"{stage}{loss}{answers}{', bf16' if plan.bf16 else ''}"


def measure(plan: Plan, stage: str) -> dict[str, Any]:
    """All runs of a stage, sides taking turns, and what they come to; a side may fail alone."""
    sides = {side: plan.python(side, stage) for side in ("ours", "trl")}
    sides = {side: python for side, python in sides.items() if python}
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    for seed in range(plan.repeats):
        for side in [side for side in sides if side not in failed]:
            try:
                run = run_worker(plan, sides[side], WORKER, plan.job(side, stage, seed))
            except RuntimeError as error:
                failed[side] = str(error)
                print(error, file=sys.stderr)
                continue
            runs[side].append(run)
            print(f"{stage} {side}: {run['seconds']:.3f} s a step", file=sys.stderr)
    done = {side: found for side, found in runs.items() if side not in failed}
    return stage_report(plan, stage, done) | ({"failed": failed} if failed else {})


def stage_report(plan: Plan, stage: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """The part of the file about one stage.

    Raises:
        RuntimeError: the two sides did not start from the same weights.
    """
    every = [run for found in runs.values() for run in found]
    start = [run["weights"] for run in every]
    if start and max(start) - min(start) > 1e-6 * max(start):
        raise RuntimeError(
            "bench: the two sides did not start from the same weights; both environments need the "
            "same torch"
        )
    job = plan.job("ours", stage)
    settings = {k: v for k, v in asdict(job).items() if k not in ("side", "stage", "seed")}
    found = {
        "stage": stage,
        "command": plan.command(),
        "machine": machine(plan.threads, every[0]["gpu"] if every else None),
        "versions": {side: found[0]["versions"] for side, found in runs.items()},
        "settings": settings | {"repeats": plan.repeats},
        "unit": UNITS[stage],
        **summary(runs),
        "runs": {side: [_short(run) for run in found] for side, found in runs.items()},
    }
    if "ours" in runs:
        found |= {"parameters": every[0]["parameters"], "floor": _floor(runs["ours"], job)}
    return found


def _short(run: Run) -> Run:
    known = ("versions", "parameters", "weights", "threads", "gpu")
    rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in run.items()}
    return {k: v for k, v in rounded.items() if k not in known}


# --- what they come to ---------------------------------------------------------------------------


def spread(numbers: Sequence[float]) -> list[float]:
    """Median, least and most."""
    found = [statistics.median(numbers), min(numbers), max(numbers)]
    return [float(f"{number:.5g}") for number in found]


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians and ranges of each side, and ratios of runs that followed each other."""
    found = {side: _of_side(side_runs) for side, side_runs in runs.items()}
    if len(runs) == 2:
        turns = list(zip(runs["ours"], runs["trl"], strict=True))
        found["ratio"] = {
            key: spread([ours[key] / theirs[key] for ours, theirs in turns])
            for key in ("per_second", "per_cpu_second", "memory_mb")
        }
    return found


def _of_side(runs: Sequence[Run]) -> dict[str, Any]:
    keys = ("seconds", "cpu_seconds", "per_second", "per_cpu_second", "memory_mb")
    numbers = {key: spread([run[key] for run in runs]) for key in (*keys, "tokens_per_second")}
    names = runs[0]["phases"]
    phases = {name: statistics.median(run["phases"][name] for run in runs) for name in names}
    return numbers | {"phases": phases}


def _floor(runs: Sequence[Run], job: Job) -> dict[str, float]:
    """What no code can go below on this machine: rates, and seconds of one of our steps.

    `reading` is for a rollout: the weights come from memory once for each token of its answers.
    """
    found = {name: max(run[name] for run in runs) for name in ("gflops", "gbytes")}
    found["products"] = statistics.median(run["flops"] for run in runs) / found["gflops"] / 1e9
    weights = job.dtype.itemsize * runs[0]["parameters"]
    found["reading"] = weights * job.tokens / found["gbytes"] / 1e9
    return {name: float(f"{number:.4g}") for name, number in found.items()}


def table(stages: dict[str, dict[str, Any]]) -> str:
    """Rates, ratios, seconds, memory and the floor, as text; ratios above 1 are in our favour."""
    head = ("stage", "unit", "ours/s", "TRL/s", "ratio", "by CPU time")
    head += ("s a step", "TRL", "floor", "MB", "TRL")
    rows = [head, *(_row(name, part) for name, part in stages.items() if "settings" in part)]
    if not any(_on_cpu(part) for part in stages.values()):
        rows = [(*row[:5], *row[6:]) for row in rows]
    lines = text_table(rows, left=2)
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *_notes(stages)])


def _on_cpu(part: dict[str, Any]) -> bool:
    return part.get("settings", {}).get("device") == "cpu"


def _row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
    # What others made us wait for on a busy machine is no part of a step.
    clock = "cpu_seconds" if _on_cpu(part) else "seconds"
    rate, seconds, memory = _numbers(part.get("ours"), clock)
    trl_rate, trl_seconds, trl_memory = _numbers(part.get("trl"), clock)
    once = part["settings"]["repeats"] == 1
    ratios = part.get("ratio", {}).items()
    ratio = {key: f"{found[0]:.2f}" if once else range_text(found) for key, found in ratios}
    floor = f"{part['floor']['products']:.2g}" if "floor" in part else "–"
    return (
        *(name, part["unit"], rate, trl_rate),
        *(ratio.get(key, "–") for key in ("per_second", "per_cpu_second")),
        *(seconds, trl_seconds, floor, memory, trl_memory),
    )


def _numbers(side: dict[str, Any] | None, clock: str) -> tuple[str, str, str]:
    """Rate, seconds and memory of a side, if it was there."""
    if side is None:
        return "–", "–", "–"
    rate, seconds, memory = (side[key][0] for key in ("per_second", clock, "memory_mb"))
    return f"{rate:,.4g}", f"{seconds:.3g}", f"{memory:.0f}"


def range_text(numbers: Sequence[float], style: str = ".2f") -> str:
    """Median, least and most in one text."""
    middle, low, high = (format(number, style) for number in numbers)
    return f"{middle} [{low}, {high}]"


def _notes(stages: dict[str, dict[str, Any]]) -> list[str]:
    lines = _about([part for part in stages.values() if "floor" in part])
    for name, part in stages.items():
        lines += _phase_lines(name, part)
        failed = part.get("failed", {})
        failed = failed.values() if isinstance(failed, dict) else [failed]
        lines += [f"{name}: {why}" for why in failed]
    return lines


def _about(parts: Sequence[dict[str, Any]]) -> list[str]:
    """The machine, the model, and what the columns mean."""
    if not parts:
        return []
    where, settings = parts[0]["machine"], parts[0]["settings"]
    gflops, gbytes = (max(part["floor"][name] for part in parts) for name in ("gflops", "gbytes"))
    kind = "Llama" if settings["size"] in SHAPES else "GPT-2"
    how = f"{settings['way']} over bf16" if settings.get("way") and where["gpu"] else "fp32"
    lines = [
        f"{where['gpu'] or where['cpu']}, threads: {where['threads']}; matrix products "
        f"{gflops:.0f} GFLOP/s, memory {gbytes:.0f} GB/s.",
        f"A {kind} of {parts[0]['parameters']:,} parameters, {how}. Medians [least, most]. s a "
        f"step: {'wall' if where['gpu'] else 'CPU'} seconds; floor: those of",
        "its matrix products alone. MB: peak above what the process had after its imports.",
    ]
    if any(part["settings"].get("bf16") for part in parts):
        lines.append("bf16: products in bfloat16 on both sides, but TRL's PPO; floor: in fp32.")
    return lines


def _phase_lines(name: str, part: dict[str, Any]) -> list[str]:
    """What each side spends a step on."""
    lines = []
    for side, title in (("ours", "ours"), ("trl", "TRL")):
        shares = part.get(side, {}).get("phases", {})
        if shares:
            words = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
            lines.append(f"{name}, {title}: {words}")
    ours = part.get("runs", {}).get("ours", [])
    if ours and "ledger_mb" in ours[0]:
        lines.append(f"{name}: the ledger predicted {ours[0]['ledger_mb']:,.0f} MB")
    if part.get("unit") == "episodes" and "floor" in part:
        reading = part["floor"]["reading"]
        lines.append(f"{name}: to read the weights for every new token takes {reading:.2g} s")
    return lines
