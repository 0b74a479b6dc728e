"""One process of `python -m rlhf_edu bench`: one side trains one stage for a few steps.

A `Job` comes in as a line of JSON, one line of JSON goes out: how fast it was, and how much memory
it took. Each side has a process of its own, as it may live in another environment, and as memory
can only be measured from a fresh start. Both build the same model from the same seed and read the
same data.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from rlhf_edu.bench import ours, trl
from rlhf_edu.bench.job import Job, make_policy
from rlhf_edu.bench.machine import MB, Clock, about, machine_rates, peak_above, resident
from rlhf_edu.models import count_parameters

RUNNERS = {"ours": ours.RUNNERS, "trl": trl.RUNNERS}


def run(job: Job) -> dict[str, Any]:
    """Do a job."""
    if job.side == "trl":
        trl.load_everything(job.stage)
    model = make_policy(job)
    start = {
        "parameters": count_parameters(model),
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()),
    }
    del model
    before, clock = resident("VmRSS"), Clock(job)
    more = RUNNERS[job.side][job.stage](job, clock) or {}
    peak = peak_above(before, job)
    # After the peak was read.
    rates = machine_rates(job) if job.side == "ours" else {}
    return clock.result() | {"memory_mb": peak / MB, **more, **rates, **start, **about(job)}


def answer(run: Callable[[Job], dict[str, Any]]) -> None:
    """The command of a process: a job from its input, its result as the last line."""
    torch.backends.cuda.matmul.allow_tf32 = False
    line = sys.stdin.readline()
    if line:  # else nobody needs this process any more
        print("\n" + json.dumps(run(Job(**json.loads(line)))))


if __name__ == "__main__":
    answer(run)
