"""How fast the trainers are, and how much memory they take, beside TRL's: `… bench --against trl`.

Both sides start from the same random weights, read the same data with the same learning rate and
batch, in fp32, without gradient checkpointing, with the same number of threads. Each run is a
process of its own (`bench_worker`), and the sides take turns, so that a machine that grows busy
slows both. TRL lives in environments of its own: one with the current release, one with 1.12.0, the
last that had PPO.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_edu import data_folder
from rlhf_edu.bench.worker import SIZES, Job
from rlhf_edu.files import write_text

STAGES = ("sft", "reward", "dpo", "ppo", "rloo")
# Demonstrations, rankings with all of their answers, or episodes per step. The shipped rankings
# have about ten comparisons each; with fewer answers a step takes more rankings.
COMPARISONS = 40
BATCH = {"sft": 32, "reward": 4, "dpo": 4, "ppo": 32, "rloo": 32}
UNITS = {
    "sft": "tokens",
    "reward": "comparisons",
    "dpo": "comparisons",
    "ppo": "episodes",
    "rloo": "episodes",
}
TRL, TRL_PPO = "1.16.0", "1.12.0"
WORKER = "rlhf_edu.bench.worker"
Run = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        against: "trl", or None for our side alone.
        device: cpu or cuda.
        stage: one of `STAGES`, or None for all.
        steps: timed steps of each run.
        repeats: runs of each side.
        warmup: steps before, which are not timed.
        answers: of each ranking, only so many; 0: all.
        size: of the model, from `SIZES`; None: the smallest on a CPU, the largest on a GPU.
        threads: of each process.
        bf16: whether both sides multiply in bfloat16; TRL's PPO does not, whatever it is told.
        trl_python, trl_ppo_python: where the environments' Pythons are.
    """

    against: str | None = None
    device: str = "cpu"
    stage: str | None = None
    steps: int = 6
    repeats: int = 3
    warmup: int = 2
    answers: int = 0
    size: str | None = None
    threads: int = 1
    bf16: bool = False
    trl_python: Path | None = None
    trl_ppo_python: Path | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.repeats, self.warmup, self.threads) < 1 or self.answers < 0:
            raise ValueError("bench: steps, repeats, warmup and threads must be 1 or more")
        if self.answers == 1:
            raise ValueError("bench: a comparison needs two answers; set --answers to 2 or more")
        if self.stage in ("growth", "real") and (
            self.against or self.size or self.bf16 or self.answers
        ):
            raise ValueError(
                f"bench: --stage {self.stage} is of our side alone and has sizes of its own; leave "
                "--against, --size, --bf16 and --answers out"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """What to measure, in order."""
        return (self.stage,) if self.stage else STAGES

    def python(self, side: str, stage: str) -> str | None:
        """The Python that runs a side's stage; None: there is none."""
        if side != "trl":
            return sys.executable
        found = self.trl_ppo_python if stage == "ppo" else self.trl_python
        return str(found) if self.against == "trl" and found else None

    def job(self, side: str, stage: str, seed: int = 0) -> Job:
        """What one process does."""
        size = self.size or list(SIZES)[-1 if self.device == "cuda" else 0]
        batch, answers = BATCH[stage], self.answers if stage in ("reward", "dpo") else 0
        if answers:
            batch = max(batch, COMPARISONS // math.comb(answers, 2))
        return Job(
            side=side,
            stage=stage,
            device=self.device,
            size=size,
            warmup=self.warmup,
            steps=self.steps,
            batch=batch,
            answers=answers,
            bf16=self.bf16,
            seed=seed,
        )

    def command(self) -> str:
        """What the reader types to get the same, with places of their own for the environments."""
        shown, start = [], asdict(Plan())
        for name, value in asdict(self).items():
            if value != start[name]:
                paths = {"trl_python": ".trl", "trl_ppo_python": ".trl-ppo"}
                value = f"{paths[name]}/bin/python" if name in paths else value
                flag = f"--{name.replace('_', '-')}"
                shown.append(flag if value is True else f"{flag} {value}")
        return " ".join(["python -m rlhf_edu bench", *shown])


# --- runs ----------------------------------------------------------------------------------------


def environment(plan: Plan) -> dict[str, str]:
    """Variables of every process: the same number of threads, and no GPU that is not asked for."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    policy = {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if plan.device == "cpu" else {}
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1"}
    return {**os.environ, "PYTHONPATH": path, **policy, **hidden, **quiet}


def run_worker(plan: Plan, python: str, module: str, job: dict[str, Any], **variables: str) -> Run:
    """Do a job, which a module takes as JSON, in a process of its own.

    `variables` are more of its environment.

    Raises:
        RuntimeError: it failed; the message has the last line of what it said.
    """
    command = [python, "-m", module, json.dumps(job)]
    done = subprocess.run(
        command,
        env=environment(plan) | variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        what = " ".join(str(job[name]) for name in ("side", "stage") if name in job)
        raise RuntimeError(f"bench: {what} with {python} failed: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(plan: Plan, stage: str) -> dict[str, Any]:
    """All runs of a stage, sides taking turns, and what they come to."""
    sides = {side: plan.python(side, stage) for side in ("ours", "trl")}
    runs: dict[str, list[Run]] = {side: [] for side, python in sides.items() if python}
    for seed in range(plan.repeats):
        for side in runs:
            job = asdict(plan.job(side, stage, seed))
            runs[side].append(run_worker(plan, sides[side], WORKER, job))
            print(f"{stage} {side}: {runs[side][-1]['seconds']:.3f} s a step", file=sys.stderr)
    return stage_report(plan, stage, runs)


def stage_report(plan: Plan, stage: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """The part of the file about one stage.

    Raises:
        RuntimeError: the two sides did not start from the same weights.
    """
    start = [run["weights"] for found in runs.values() for run in found]
    if max(start) - min(start) > 1e-6 * max(start):
        raise RuntimeError(
            "bench: the two sides did not start from the same weights; both environments need the "
            "same torch"
        )
    job = asdict(plan.job("ours", stage))
    settings = {k: v for k, v in job.items() if k not in ("side", "stage", "seed")}
    return {
        "command": plan.command(),
        "machine": machine(runs["ours"][0], plan),
        "versions": {side: found[0]["versions"] for side, found in runs.items()},
        "settings": settings | {"repeats": plan.repeats},
        "parameters": runs["ours"][0]["parameters"],
        "unit": UNITS[stage],
        **summary(runs),
        "floor": _floor(runs["ours"], settings),
        "runs": {side: [_short(run) for run in found] for side, found in runs.items()},
    }


def machine(run: Run, plan: Plan) -> dict[str, Any]:
    """What it was measured on."""
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        lines = cpus.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "threads": plan.threads, "gpu": run["gpu"]}


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
    keys = ("seconds", "cpu_seconds", "per_second", "per_cpu_second", "memory_mb")
    keys += ("tokens_per_second",)
    found: dict[str, Any] = {
        side: {key: spread([run[key] for run in runs[side]]) for key in keys}
        | {"phases": _phases(runs[side])}
        for side in runs
    }
    if "trl" in runs:
        found["ratio"] = {
            key: spread([a[key] / b[key] for a, b in zip(runs["ours"], runs["trl"], strict=True)])
            for key in ("per_second", "per_cpu_second", "memory_mb")
        }
    return found


def _phases(runs: Sequence[Run]) -> dict[str, float]:
    names = runs[0]["phases"]
    return {name: statistics.median(run["phases"][name] for run in runs) for name in names}


def _floor(runs: Sequence[Run], settings: dict[str, Any]) -> dict[str, float]:
    """What no code can go below on this machine: rates, and seconds of one of our steps.

    `reading` is for a rollout: the weights come from memory once for each token of its answers.
    """
    found = {name: max(run[name] for run in runs) for name in ("gflops", "gbytes")}
    found["products"] = statistics.median(run["flops"] for run in runs) / found["gflops"] / 1e9
    weights = 4 * runs[0]["parameters"]
    found["reading"] = weights * settings["tokens"] / found["gbytes"] / 1e9
    return {name: float(f"{number:.4g}") for name, number in found.items()}


def table(stages: dict[str, dict[str, Any]]) -> str:
    """Rates, ratios, seconds, memory and the floor, as text; ratios above 1 are in our favour."""
    head = ("stage", "unit", "ours/s", "TRL/s", "ratio", "by CPU time")
    head += ("s a step", "TRL", "floor", "MB", "TRL")
    rows = [head] + [_row(name, part) for name, part in stages.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", *_notes(stages)])


def _row(name: str, part: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs, ratio = part["ours"], part.get("trl"), part.get("ratio")
    on_cpu = part["settings"]["device"] == "cpu"
    # What others made us wait for on a busy machine is no part of a step.
    seconds = "cpu_seconds" if on_cpu else "seconds"
    return (
        name,
        part["unit"],
        f"{ours['per_second'][0]:,.4g}",
        f"{theirs['per_second'][0]:,.4g}" if theirs else "–",
        range_text(ratio["per_second"]) if ratio else "–",
        range_text(ratio["per_cpu_second"]) if ratio and on_cpu else "–",
        f"{ours[seconds][0]:.3g}",
        f"{theirs[seconds][0]:.3g}" if theirs else "–",
        f"{part['floor']['products']:.2g}",
        f"{ours['memory_mb'][0]:.0f}",
        f"{theirs['memory_mb'][0]:.0f}" if theirs else "–",
    )


def range_text(numbers: Sequence[float], style: str = ".2f") -> str:
    """Median, least and most in one text."""
    middle, low, high = (format(number, style) for number in numbers)
    return f"{middle} [{low}, {high}]"


def _notes(stages: dict[str, dict[str, Any]]) -> list[str]:
    part = next(iter(stages.values()))
    where, floors = part["machine"], [part["floor"] for part in stages.values()]
    gflops, gbytes = (max(floor[name] for floor in floors) for name in ("gflops", "gbytes"))
    seconds = "wall" if where["gpu"] else "CPU"
    lines = [
        f"{where['gpu'] or where['cpu']}, threads: {where['threads']}; matrix products "
        f"{gflops:.0f} GFLOP/s, memory {gbytes:.0f} GB/s.",
        f"A GPT-2 of {part['parameters']:,} parameters, fp32. Medians [least, most]. s a step: "
        f"{seconds} seconds; floor: those of",
        "its matrix products alone. MB: peak above what the process had after its imports.",
    ]
    if any(found["settings"].get("bf16") for found in stages.values()):
        lines.append("bf16: products in bfloat16 on both sides, but TRL's PPO; floor: in fp32.")
    if any(name.startswith("rloo") for name in stages):
        lines.append("rloo: TRL's RLOO, which has no critic, beside our PPO, which has one.")
    for name, found in stages.items():
        for side in ("ours", "trl"):
            if found.get(side, {}).get("phases"):
                shares = found[side]["phases"].items()
                parts = ", ".join(f"{what} {share:.0%}" for what, share in shares)
                lines.append(f"{name}, {'TRL' if side == 'trl' else side}: {parts}")
        if found["unit"] == "episodes":
            reading = found["floor"]["reading"]
            lines.append(f"{name}: to read the weights for every new token takes {reading:.2g} s")
    return lines


# --- the command ---------------------------------------------------------------------------------


def how_to_get_trl(plan: Plan) -> str:
    """What to type for the environments that are missing; empty if none is."""
    missing = [stage for stage in plan.stages if not plan.python("trl", stage)]
    lines = []
    for folder, version, option, stages in (
        (".trl", TRL, "--trl-python", [stage for stage in missing if stage != "ppo"]),
        (".trl-ppo", TRL_PPO, "--trl-ppo-python", [stage for stage in missing if stage == "ppo"]),
    ):
        if stages and plan.against == "trl":
            wanted = f'-c constraints.txt -e . "trl=={version}"'
            lines += [
                f"TRL is not measured for {', '.join(stages)}; it wants an environment of its own:",
                f"    python -m venv {folder}",
                f"    {folder}/bin/pip install {wanted}",
                f"    python -m rlhf_edu bench --against trl {option} {folder}/bin/python",
            ]
    return "\n".join(lines)


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
        limited = plan.answers if stage in ("reward", "dpo") else 0
        name = f"{stage}, {limited} answers" if limited else stage
        name += ", bf16" if plan.bf16 else ""
        found[name] = stored["stages"][name] = measure(plan, stage)
        write_text(path, json.dumps(stored, indent=1) + "\n")
    return table(found)
