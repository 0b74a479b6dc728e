"""How fast the trainers are, and how much memory they take, beside TRL's: `… bench --against trl`.

Both sides start from the same random weights, read the same data with the same learning rate and
batch, in fp32, without gradient checkpointing, with the same number of threads. Each run is a
process of its own (`worker`), and the sides take turns, so that a machine that grows busy
slows both. TRL lives in environments of its own: one with the current release, one with 1.12.0, the
last that had PPO.
"""

import atexit
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_edu.bench.job import SHAPES, Job
from rlhf_edu.dpo import PREFERENCES
from rlhf_edu.engine.devices import device_of

STAGES = ("sft", "reward", "dpo", "ppo", "rloo", "grpo")
# Demonstrations, rankings with all of their answers, or episodes per step. The shipped rankings
# have about ten comparisons each; with fewer answers a step takes more rankings.
COMPARISONS = 40
BATCH = {"reward": 4, "dpo": 4}
# What a model of real size is measured at: on a CPU minutes, on a GPU what a user of one has, with
# the whole batch in one part, of which only what goes into each layer is kept.
REAL = {
    "cpu": {"size": "135M", "batch": 8, "prompt": 64, "tokens": 32, "micro_batch": 4},
    "cuda": {"size": "0.5B", "batch": 64, "prompt": 256, "tokens": 128, "micro_batch": 64},
}
TRL, TRL_PPO = "1.16.0", "1.12.0"
WORKER = "rlhf_edu.bench.worker"


@dataclass
class Plan:
    """What to measure.

    Attributes:
        against: "trl", or None for our side alone.
        device: cpu, cuda, or auto: a GPU if there is one.
        stage: one of `STAGES`, or None for all.
        loss: of the stage dpo.
        steps: timed steps of each run.
        repeats: runs of each side.
        warmup: steps before, which are not timed.
        answers: of each ranking, only so many; 0: all.
        size: of the model, from `SIZES`, or from `SHAPES` with LoRA; None: the smallest on a CPU,
            the largest on a GPU.
        threads: of each process.
        bf16: whether both sides multiply in bfloat16; TRL's PPO does not, whatever it is told.
        micro_batch: rows at a time, of a model of real size; None: as many as `REAL` says.
        limit: seconds after which a process is given up; 0: 90 on a GPU, none on a CPU.
        trl_python, trl_ppo_python: where the environments' Pythons are.
    """

    against: str | None = None
    device: str = "cpu"
    stage: str | None = None
    loss: str = "dpo"
    steps: int = 6
    repeats: int = 3
    warmup: int = 2
    answers: int = 0
    size: str | None = None
    threads: int = 1
    bf16: bool = False
    micro_batch: int | None = None
    limit: float = 0
    trl_python: Path | None = None
    trl_ppo_python: Path | None = None

    def __post_init__(self) -> None:
        self.device = device_of(self.device).type
        if min(self.steps, self.repeats, self.warmup, self.threads) < 1 or self.answers < 0:
            raise ValueError("bench: steps, repeats, warmup and threads must be 1 or more")
        if self.answers == 1:
            raise ValueError("bench: a comparison needs two answers; set --answers to 2 or more")
        if self.loss not in PREFERENCES:
            raise ValueError(f"bench: --loss must be one of {', '.join(PREFERENCES)}")
        if self.against and self.loss != "dpo":
            raise ValueError("bench: TRL is measured with the loss dpo; leave out --loss")
        if self.stage in ("growth", "real", "launches") and (
            self.against or self.size or self.bf16 or self.answers
        ):
            raise ValueError(
                f"bench: --stage {self.stage} is of our side alone and has sizes of its own; leave "
                "--against, --size, --bf16 and --answers out"
            )

    @property
    def seconds(self) -> float | None:
        """How long a process may take; None: as long as it likes."""
        return self.limit or (90.0 if self.device == "cuda" else None)

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
        size = self.size or ("0.5B" if self.device == "cuda" else "2M")
        if size in SHAPES:
            return self.real_job(side, stage, "LoRA", size, seed)
        answers = self.answers if stage in ("reward", "dpo") else 0
        batch = BATCH.get(stage, 32)
        if answers:
            batch = max(batch, COMPARISONS // math.comb(answers, 2))
        return Job(side, stage, size=size, batch=batch, answers=answers, **self._given(seed))

    def real_job(
        self, side: str, stage: str, way: str, size: str | None = None, seed: int = 0
    ) -> Job:
        """What one process does with a model of real size."""
        sizes = REAL[self.device] | self._given(seed)
        if size:
            sizes["size"] = size
        if self.micro_batch is not None:
            sizes["micro_batch"] = self.micro_batch
        if stage == "sft":  # rows packed to 1,024 tokens on a GPU, all of them at once
            longer = {"batch": sizes["batch"] // 8, "tokens": 3 * sizes["prompt"]}
            sizes |= longer | {"micro_batch": 0}
        if self.device == "cuda":  # as TRL's trainers do; what is frozen has 16 bits anyway
            sizes["bf16"] = True
        return Job(side, stage, way, answers=self.answers or 4, epochs=1, **sizes)

    def _given(self, seed: int) -> dict[str, Any]:
        """What a job has from the plan, whatever its size."""
        names = ("device", "warmup", "steps", "bf16", "loss")
        return {name: getattr(self, name) for name in names} | {"seed": seed}

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
        RuntimeError: it failed, or took too long; the message has the last line of what it said.
    """
    process = _started(plan, python, module, variables)
    what = f"bench: {job.side} {job.stage} with {python}"
    try:
        said, errors = process.communicate(json.dumps(asdict(job)) + "\n", plan.seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{what} took more than {plan.seconds:g} s") from None
    finally:
        process.kill()
    if process.returncode:
        last = errors.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"{what} failed: {last[-1]}")
    return json.loads(said.strip().splitlines()[-1])


_WAITING: dict[tuple[str, str], subprocess.Popen] = {}


def _started(plan: Plan, python: str, module: str, variables: dict[str, str]) -> subprocess.Popen:
    """A process that waits for its job.

    For a GPU one more is started: it imports its libraries, which takes ten seconds, on a core of
    its own while this one measures.
    """

    def start() -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        text = {"text": True, "encoding": "utf-8", "errors": "replace"}
        return subprocess.Popen(
            [python, "-m", module], env=environment(plan) | variables, **pipes, **text
        )

    if plan.device == "cpu":
        return start()
    process = _WAITING.pop((python, module), None) or start()
    _WAITING[python, module] = start()
    return process


@atexit.register
def end_waiting() -> None:
    """End the processes that still wait for a job."""
    for process in _WAITING.values():
        process.kill()


def run_ours(plan: Plan, job: Job, **variables: str) -> list[dict[str, Any]]:
    """A job of our side, as often as the plan repeats it."""
    jobs = [replace(job, seed=seed) for seed in range(plan.repeats)]
    return [run_worker(plan, sys.executable, WORKER, one, **variables) for one in jobs]


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
