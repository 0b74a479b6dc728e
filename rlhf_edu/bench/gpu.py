"""All that a GPU can tell in eight minutes: `python -m rlhf_edu gpu-check`.

The tests that need one, sampling and PPO at a user's size, every trainer beside TRL's where that is
installed, launches, and the ladder in miniature, in the order of their worth. After each of them
`data/results/gpu_<card>.json` is written, so that a run that is cut off leaves what it found; the
next one goes on from there.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rlhf_edu import data_folder
from rlhf_edu.bench import real, speed
from rlhf_edu.bench.job import Job
from rlhf_edu.bench.plan import Plan, environment, run_worker
from rlhf_edu.bench.worker import answer
from rlhf_edu.engine.devices import versions
from rlhf_edu.experiments.grid import Fields, run_grid
from rlhf_edu.experiments.ladder import Ladder, Recipe

LIMIT, LEAST = 90, 15  # seconds of one process, and those without which it need not start
PARTS: dict[str, Fields] = {
    "tests": {"kind": "tests"},
    "sampling": {"kind": "sampling", "setting": "static"},
    "ppo": {"kind": "trainer", "setting": "ppo"},
    "generate": {"kind": "sampling", "setting": "transformers"},
    "dpo": {"kind": "trainer", "setting": "dpo"},
    "sft": {"kind": "trainer", "setting": "sft"},
    "rloo": {"kind": "trainer", "setting": "rloo"},
    "grpo": {"kind": "trainer", "setting": "grpo"},
    "four-networks": {"kind": "ppo", "setting": "four networks"},
    "growing": {"kind": "sampling", "setting": "growing"},
    "reward": {"kind": "trainer", "setting": "reward"},
    "launches": {"kind": "launches"},
    "ladder": {"kind": "ladder"},
}


def gpu_check(
    device: str = "cuda",
    minutes: float = 8.0,
    only: list[str] | None = None,
    again: bool = False,
    folder: Path | None = None,
    trl_python: Path | None = None,
    trl_ppo_python: Path | None = None,
) -> None:
    """Do what has no result yet, as long as there is time, and print the table.

    Args:
        device: "cpu" goes through all of it with a model of no size, to see that it works.
        only: of `PARTS`.
        again: forget the results that are there.
        folder: for the file; None: `data/results`.
        trl_python, trl_ppo_python: Pythons that have TRL; None: this one, if it has it.

    Raises:
        ValueError: there is no GPU, or no such part.
    """
    unknown = set(only or ()) - set(PARTS)
    if unknown:
        raise ValueError(f"gpu-check: --only knows {', '.join(PARTS)}, not {unknown.pop()!r}")
    if find_spec("trl"):
        trl_python = trl_python or Path(sys.executable)
    plan = Plan(
        device=device,
        size="tiny" if device == "cpu" else None,
        against="trl" if trl_python or trl_ppo_python else None,
        steps=2,
        warmup=1,
        repeats=1,
        threads=1 if device == "cpu" else 4,
        trl_python=trl_python,
        trl_ppo_python=trl_ppo_python,
    )
    name, folder = f"gpu_{short_name(plan)}", folder or data_folder(create=True) / "results"
    path = folder / f"{name}.json"
    if again:
        path.unlink(missing_ok=True)
    cell = partial(measure, plan, time.monotonic() + 60 * minutes)
    cells = [{"kind": "card"}, *(PARTS[part] for part in only or PARTS)]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_grid(name, "python -m rlhf_edu gpu-check", cell, cells, folder)
    finally:
        signal.signal(signal.SIGTERM, before)
        print(table(json.loads(path.read_text(encoding="utf-8"))))


def measure(plan: Plan, end: float, kind: str, setting: str | None = None) -> dict[str, Any]:
    """One part; or why there is no result.

    Args:
        end: when nothing more is begun, on the monotonic clock.
    """
    plan.limit = min(LIMIT, end - time.monotonic())
    if plan.limit < LEAST and kind != "card":
        return {"failed": "no time was left"}
    try:
        if kind in real.WAYS:
            return real.measure(plan, kind, setting)
        if kind == "trainer":
            return speed.measure(plan, setting)
        return {"card": card, "tests": tests, "launches": launches, "ladder": ladder}[kind](plan)
    except RuntimeError as error:
        return {"failed": str(error)}


# --- the parts -----------------------------------------------------------------------------------


def _card_name(plan: Plan) -> str:
    return torch.cuda.get_device_name() if plan.device == "cuda" else "CPU"


def short_name(plan: Plan) -> str:
    """The card's name as a part of a file's: "h200" for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "_", _card_name(plan).lower().removeprefix("nvidia ")).strip("_")


def card(plan: Plan) -> dict[str, Any]:
    """The card, its driver, versions, and the day."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    found = {"card": _card_name(plan), "driver": said.split("\n")[0] or "unknown"}
    day = time.strftime("%Y-%m-%d")
    return found | {"day": day, "versions": versions()}


def _said(plan: Plan, *module: str) -> list[str]:
    """What a Python module prints, line by line.

    Raises:
        RuntimeError: it takes too long.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=data_folder().parent,
            env=environment(plan),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=plan.seconds,
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"took more than {late.timeout:.0f} s") from None
    return done.stdout.strip().splitlines() or ["nothing was said"]


def tests(plan: Plan) -> dict[str, Any]:
    """The tests that need a GPU: how many passed, and each that did not."""
    at_once = ["-n", "4"] if find_spec("xdist") else []
    options = ["-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *at_once]
    lines = _said(plan, "pytest", "tests/test_cuda.py", *options)
    wrong = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    return {"lines": [lines[-1].strip("= "), *wrong]}


def launches(plan: Plan) -> dict[str, Any]:
    """Operations dispatched in each phase, counted on the CPU."""
    return {"lines": _said(plan, "rlhf_edu", "bench", "--stage", "launches")}


def ladder(plan: Plan) -> dict[str, Any]:
    """All stages in the tiny web, a few steps each: gold of every one."""
    job = Job("ours", "ladder", device=plan.device)
    gold = run_worker(plan, sys.executable, "rlhf_edu.bench.gpu", job)
    return {"lines": [", ".join(f"{name} {score}" for name, score in gold.items())]}


def run_ladder(job: Job) -> dict[str, float]:
    """The process of `ladder`."""
    usual = Recipe()
    recipe = replace(
        usual,
        ranked_prompts=24,
        answers_per_prompt=(4, 5),
        ppo_prompts=64,
        best_of=2,
        test_prompts=32,
        per_use_case=1,
        sft=replace(usual.sft, epochs=4),
        ppo=replace(usual.ppo, steps=3),
    )
    report = Ladder(recipe=recipe, device=job.device, quiet=True).run()
    return {row["stage"]: round(row["gold"], 2) for row in report["stages"]}


# --- the table -----------------------------------------------------------------------------------


def table(stored: Mapping[str, Any]) -> str:
    """What a file `gpu_<card>.json` says."""
    cells = stored["cells"]
    about = cells["card"]
    known = ", ".join(f"{name} {about['versions'][name]}" for name in VERSIONS)
    lines = [f"{about['card']}, driver {about['driver']}, {known}, {about['day']}"]
    ways = {name: cell for name, cell in cells.items() if cell["kind"] in real.WAYS}
    trainers = {c["setting"]: c for c in cells.values() if c["kind"] == "trainer"}
    if ways:
        lines += ["", real.table(ways)]
    if trainers:
        lines += ["", speed.table(trainers)]
    for name, title in TITLES.items():
        if name in cells:
            said = cells[name].get("lines") or [cells[name]["failed"]]
            lines += ["", f"{title}: {said[0]}", *said[1:]]
    return "\n".join(lines)


VERSIONS = ("torch", "transformers", "peft")
TITLES = {
    "tests": "Tests that need a GPU",
    "launches": "Launches",
    "ladder": "The ladder in miniature, gold",
}

if __name__ == "__main__":
    answer(run_ladder)
