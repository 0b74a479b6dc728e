"""What a model of real size costs, and whether the ledger knew: `… bench --stage real`.

Sampling in three ways, and PPO with four networks and with LoRA on one backbone. The weights are
random, of a real model's shape: what they say changes neither speed nor memory.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_edu.bench.machine import machine
from rlhf_edu.bench.plan import Plan, run_ours
from rlhf_edu.bench.speed import range_text, spread
from rlhf_edu.experiments.grid import Cells, run_grid
from rlhf_edu.experiments.tables import text_table

# Left alone the C library keeps what is freed, and a process holds twice what its tensors need.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "200000"}
WAYS = {"sampling": ("static", "growing", "transformers"), "ppo": ("four networks", "LoRA")}
SHOWN = ("device", "size", "batch", "prompt", "tokens", "micro_batch", "warmup", "steps")


def real(plan: Plan, folder: Path | None = None) -> str:
    """Measure what has no result yet; return the table.

    Of the plan, device, steps, warmup, repeats and threads count; sizes are those of `REAL`.
    """
    cells = [{"kind": stage, "setting": way} for stage, ways in WAYS.items() for way in ways]
    name, cell = f"real_{plan.device}", partial(measure, plan)
    return table(run_grid(name, plan.command(), cell, cells, folder))


def measure(plan: Plan, kind: str, setting: str) -> dict[str, Any]:
    """Medians and ranges over the runs, what was run, and where; or why there is no result.

    On a CPU memory has a run of its own, in which freed memory is given back at once: that is
    exact, and slow.
    """
    job = plan.real_job("ours", kind, setting, plan.size)
    try:
        runs = memory = run_ours(plan, job)
        if plan.device == "cpu":
            memory = run_ours(replace(plan, repeats=1), replace(job, steps=1), **EXACT)
    except RuntimeError as error:
        return {"failed": str(error)}
    names = ("seconds", "cpu_seconds", "tokens_per_second", "gbytes", "weights_mb", "ledger_mb")
    found = {name: spread([run[name] for run in runs]) for name in names if name in runs[0]}
    found |= {"phases": runs[0]["phases"], "machine": machine(plan.threads, runs[0]["gpu"])}
    found["memory_mb"] = spread([run["memory_mb"] for run in memory])
    return found | {name: asdict(job)[name] for name in SHOWN} | {"repeats": plan.repeats}


def table(cells: Cells) -> str:
    """What each way of sampling and of PPO came to, beside what could be, and what was foretold."""
    measured = [cell for cell in cells.values() if "failed" not in cell]
    failed = [f"{_name(cell)}: {cell['failed']}" for cell in cells.values() if "failed" in cell]
    if not measured:
        return "\n".join(failed)
    first = measured[0]
    where = first["machine"]
    sizes = f"{first['batch']} episodes of {first['prompt']} + {first['tokens']} tokens"
    head = ("", "tokens/s", "limit", "MB", "ledger", "share")
    return "\n".join(
        [
            where["gpu"] or f"{where['cpu']}, threads: {where['threads']}",
            f"A Llama of {first['size']} parameters, {sizes}",
            *text_table([head, *map(_row, measured)], (23, 24, 9, 8, 8, 6)),
            *failed,
            "limit: if weights had only to be read, once for a token of every row;",
            "tokens/s also pay for products, and for reading the prompts.",
            "share: of sampling, in the time of a step of PPO.",
        ]
    )


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['kind']}, {cell['setting']}"


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    limit, ledger, share = "", "", ""
    if "weights_mb" in cell:
        limit = f"{cell['batch'] * 1000 * cell['gbytes'][0] / cell['weights_mb'][0]:,.0f}"
    if "ledger_mb" in cell:
        ledger, share = f"{cell['ledger_mb'][0]:,.0f}", f"{cell['phases']['rollout']:.0%}"
    rate = range_text(cell["tokens_per_second"], ",.0f")
    return _name(cell), rate, limit, f"{cell['memory_mb'][0]:,.0f}", ledger, share
