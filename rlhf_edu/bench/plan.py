"""How fast the trainers are, and how much memory they take, beside TRL's: `… bench --against trl`.

Both sides start from the same random weights, read the same data with the same learning rate and
batch, in fp32, without gradient checkpointing, with the same number of threads. Each run is a
process of its own (`worker`), and the sides take turns, so that a machine that grows busy
slows both. TRL lives in environments of its own: one with the current release, one with 1.12.0, the
last that had PPO.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_edu.bench.job import SIZES, Job
from rlhf_edu.engine.devices import device_of

STAGES = ("sft", "reward", "dpo", "ppo", "rloo")
# Demonstrations, rankings with all of their answers, or episodes per step. The shipped rankings
# have about ten comparisons each; with fewer answers a step takes more rankings.
COMPARISONS = 40
BATCH = {"sft": 32, "reward": 4, "dpo": 4, "ppo": 32, "rloo": 32}
TRL, TRL_PPO = "1.16.0", "1.12.0"
WORKER = "rlhf_edu.bench.worker"


@dataclass
class Plan:
    """What to measure.

    Attributes:
        against: "trl", or None for our side alone.
        device: cpu, cuda, or auto: a GPU if there is one.
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
        self.device = device_of(self.device).type
        if min(self.steps, self.repeats, self.warmup, self.threads) < 1 or self.answers < 0:
            raise ValueError("bench: steps, repeats, warmup and threads must be 1 or more")
        if self.answers == 1:
            raise ValueError("bench: a comparison needs two answers; set --answers to 2 or more")
        if self.stage in ("growth", "real", "launches") and (
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
        batch = BATCH[stage]
        answers = self.answers if stage in ("reward", "dpo") else 0
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
        start = vars(Plan())
        given = {name: value for name, value in vars(self).items() if value != start[name]}
        if "trl_python" in given:
            given["trl_python"] = ".trl/bin/python"
        if "trl_ppo_python" in given:
            given["trl_ppo_python"] = ".trl-ppo/bin/python"
        shown = ["python -m rlhf_edu bench"]
        for name, value in given.items():
            flag = f"--{name.replace('_', '-')}"
            shown.append(flag if value is True else f"{flag} {value}")
        return " ".join(shown)


def environment(plan: Plan) -> dict[str, str]:
    """Variables of every process: the same number of threads, and no GPU that is not asked for."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    policy = {"OMP_NUM_THREADS": str(plan.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if plan.device == "cpu" else {}
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1"}
    return {**os.environ, "PYTHONPATH": path, **policy, **hidden, **quiet}


def run_worker(plan: Plan, python: str, module: str, job: Job, **variables: str) -> dict[str, Any]:
    """Do a job, which a module takes as JSON, in a process of its own.

    `variables` are more of its environment.

    Raises:
        RuntimeError: it failed; the message has the last line of what it said.
    """
    command = [python, "-m", module, json.dumps(asdict(job))]
    done = subprocess.run(
        command, env=environment(plan) | variables, capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"bench: {job.side} {job.stage} with {python} failed: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_ours(plan: Plan, module: str, job: Job, **variables: str) -> list[dict[str, Any]]:
    """A job of our side, as often as the plan repeats it."""
    jobs = [replace(job, seed=seed) for seed in range(plan.repeats)]
    return [run_worker(plan, sys.executable, module, one, **variables) for one in jobs]


def how_to_get_trl(plan: Plan) -> str:
    """What to type for the environments that are missing; empty if none is."""
    if plan.against != "trl":
        return ""
    missing = [stage for stage in plan.stages if not plan.python("trl", stage)]
    others = [stage for stage in missing if stage != "ppo"]
    lines = _how_to_get(TRL, ".trl", "--trl-python", others) if others else []
    if "ppo" in missing:
        lines += _how_to_get(TRL_PPO, ".trl-ppo", "--trl-ppo-python", ["ppo"])
    return "\n".join(lines)


def _how_to_get(version: str, folder: str, option: str, stages: Sequence[str]) -> list[str]:
    return [
        f"TRL is not measured for {', '.join(stages)}; it wants an environment of its own:",
        f"    python -m venv {folder}",
        f'    {folder}/bin/pip install -c constraints.txt -e . "trl=={version}"',
        f"    python -m rlhf_edu bench --against trl {option} {folder}/bin/python",
    ]
