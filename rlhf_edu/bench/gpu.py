"""All that a GPU can tell in eight minutes: `python -m rlhf_edu gpu-check`.

The tests that need one, sampling and PPO at a user's size, every trainer beside TRL's where that is
installed, launches, and the ladder in miniature, in the order of their worth. After every row
`data/results/gpu_<card>.json` is written anew, so that a run that is cut off leaves what it found.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import torch

from rlhf_edu import data_folder
from rlhf_edu.bench import real, speed
from rlhf_edu.bench.job import Job
from rlhf_edu.bench.plan import Plan, environment, run_worker
from rlhf_edu.bench.worker import answer
from rlhf_edu.experiments.grid import versions
from rlhf_edu.experiments.ladder import Ladder, Recipe
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.files import write_text

TESTS = "tests/test_cuda.py"
LIMIT, LEAST = 90, 15  # seconds of one process, and those without which it need not start
Report = dict[str, Any]


class Check:
    """One run: what it found, and how much time is left.

    Attributes:
        plan: how the rows are measured.
        path: of the file.
        report: what it holds.
    """

    def __init__(self, plan: Plan, minutes: float, folder: Path) -> None:
        self.plan, self.end = plan, time.monotonic() + 60 * minutes
        card = torch.cuda.get_device_name() if plan.device == "cuda" else "CPU"
        name = re.sub(r"[^a-z0-9]+", "_", card.lower().removeprefix("nvidia ")).strip("_")
        self.path = folder / f"gpu_{name}.json"
        there = self.path.is_file()
        self.report = json.loads(self.path.read_text(encoding="utf-8")) if there else {}
        about = {"card": card, "driver": driver(), "date": time.strftime("%Y-%m-%d")}
        self.report |= about | {"versions": versions() | {"peft": peft.__version__}}

    def left(self) -> float:
        """Seconds for the next process.

        Raises:
            RuntimeError: too few.
        """
        left = min(LIMIT, self.end - time.monotonic())
        if left < LEAST:
            raise RuntimeError("no time was left")
        return left

    def keep(self, group: str, name: str, found: Any) -> None:
        """Add a result to a group of them, and write the file."""
        self.report.setdefault(group, {})[name] = found
        write_text(self.path, json.dumps(self.report, indent=1) + "\n")

    def do(self, name: str) -> None:
        """One part; if it fails, its row says why."""
        start = time.monotonic()
        try:
            self.plan.limit = self.left()
            PARTS[name](self)
        except (RuntimeError, OSError, ValueError) as error:
            self.keep("failed", name, str(error))
        else:
            self.report.get("failed", {}).pop(name, None)
        self.keep("seconds", name, round(time.monotonic() - start, 1))
        print(f"{name}: {self.report['seconds'][name]} s", file=sys.stderr)


def driver() -> str:
    """The version of NVIDIA's driver, if there is one."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.strip().split("\n")[0] or "unknown"


# --- the parts -----------------------------------------------------------------------------------


def said(check: Check, *module: str) -> list[str]:
    """What a Python module prints, line by line, as far as it comes in the time there is."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module],
            cwd=Path(__file__).parent.parent.parent,
            env=environment(check.plan),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=check.plan.limit,
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"took more than {late.timeout:.0f} s") from None
    return done.stdout.strip().splitlines() or ["nothing was said"]


def tests(check: Check) -> None:
    """The tests that need a GPU: how many passed, and each that did not."""
    at_once = ["-n", "4"] if find_spec("xdist") else []
    options = ["-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *at_once]
    lines = said(check, "pytest", TESTS, *options)
    failed = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
    check.keep("tests", "summary", lines[-1].strip("= "))
    check.keep("tests", "failed", failed)


def cell(kind: str, setting: str) -> Callable[[Check], None]:
    """A row of the real table."""

    def measure(check: Check) -> None:
        fields = {"kind": kind, "setting": setting}
        found = real.measure(check.plan, **fields)
        check.keep("cells", f"{kind} {setting}", fields | found)

    return measure


def stage(name: str) -> Callable[[Check], None]:
    """A trainer, with LoRA, beside TRL's."""

    def measure(check: Check) -> None:
        check.keep("stages", name, speed.measure(check.plan, name))

    return measure


def launches(check: Check) -> None:
    """Operations dispatched in each phase, counted on the CPU."""
    check.keep("launches", "table", said(check, "rlhf_edu", "bench", "--stage", "launches"))


def ladder(check: Check) -> None:
    """All stages in the tiny web, a few steps each."""
    job = Job("ours", "ladder", device=check.plan.device)
    check.keep("ladder", "gold", run_worker(check.plan, sys.executable, __spec__.name, job))


def run_ladder(job: Job) -> dict[str, float]:
    """The process of `ladder`: gold of every stage."""
    start = Recipe()
    recipe = replace(
        start,
        ranked_prompts=48,
        ppo_prompts=128,
        best_of=4,
        test_prompts=64,
        per_use_case=2,
        ppo=replace(start.ppo, steps=5),
    )
    report = Ladder(recipe=recipe, device=job.device, quiet=True).run()
    return {row["stage"]: round(row["gold"], 2) for row in report["stages"]}


PARTS = {
    "tests": tests,
    "sampling": cell("sampling", "static"),
    "ppo": stage("ppo"),
    "generate": cell("sampling", "transformers"),
    "dpo": stage("dpo"),
    "sft": stage("sft"),
    "rloo": stage("rloo"),
    "grpo": stage("grpo"),
    "four-networks": cell("ppo", "four networks"),
    "growing": cell("sampling", "growing"),
    "reward": stage("reward"),
    "launches": launches,
    "ladder": ladder,
}


# --- all of it -----------------------------------------------------------------------------------


def gpu_check(
    device: str = "cuda",
    minutes: float = 8.0,
    only: list[str] | None = None,
    folder: Path | None = None,
    trl_python: Path | None = None,
    trl_ppo_python: Path | None = None,
) -> str:
    """Do the parts as long as there is time; return the table.

    Args:
        device: "cpu" goes through all of it with a model of no size, to see that it works.
        only: of `PARTS`; results of the others that are in the file stay.
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
        threads=4 if device == "cuda" else 1,
        trl_python=trl_python,
        trl_ppo_python=trl_ppo_python,
    )
    check = Check(plan, minutes, folder or data_folder(create=True) / "results")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for name in only or PARTS:
            check.do(name)
    except SystemExit:
        print(table(check.report))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return table(check.report)


# --- the table -----------------------------------------------------------------------------------


def table(report: Report) -> str:
    """What a file `gpu_<card>.json` says, at most 79 columns wide."""
    known = ", ".join(f"{name} {report['versions'][name]}" for name in VERSIONS)
    lines = [f"{report['card']}, driver {report['driver']}; {known}; {report['date']}"]
    if "tests" in report:
        lines += [f"tests: {report['tests']['summary']}", *report["tests"]["failed"]]
    if "cells" in report:
        lines += ["", real.table(report["cells"])]
    if "stages" in report:
        lines += ["", *_trainers(report["stages"])]
    if "launches" in report:
        lines += ["", *report["launches"]["table"]]
    if "ladder" in report:
        gold = ", ".join(f"{name} {score}" for name, score in report["ladder"]["gold"].items())
        lines += ["", f"The ladder in miniature, gold: {gold}"]
    lines += [f"{name}: {why}" for name, why in report.get("failed", {}).items()]
    return "\n".join(lines)


VERSIONS = ("torch", "transformers", "peft")
HEAD = ("with LoRA", "unit", "a second", "s a step", "MB", "TRL", "MB", "times")


def _trainers(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [_trainer(name, part) for name, part in stages.items()]
    lines = text_table([HEAD, *rows], (11, 13, 10, 9, 8, 10, 8, 7), left=2)
    for name, part in stages.items():
        lines += speed.phase_lines(name, part)
        lines += [f"{name}: {why}" for why in part.get("failed", {}).values()]
    return lines


def _trainer(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    rate, seconds, memory = speed.side_numbers(part.get("ours"), "seconds")
    theirs, _, their_memory = speed.side_numbers(part.get("trl"), "seconds")
    times = f"{part['ratio']['per_second'][0]:.2f}" if "ratio" in part else "–"
    return name, part["unit"], rate, seconds, memory, theirs, their_memory, times


if __name__ == "__main__":
    answer(run_ladder)
