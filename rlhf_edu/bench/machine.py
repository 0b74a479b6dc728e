"""Time, memory and the rates of this machine."""

import contextlib
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rlhf_edu.bench.job import Job
from rlhf_edu.engine.devices import versions

MB = 1e6


class Clock:
    """Notes when each step ends, what it did, and how long its phases took.

    Attributes:
        parts: notes that make a step, where a side reads its batch in parts.
        units: what was learned from, in each note: tokens, comparisons or episodes.
        tokens: real tokens, as often: read, or in a rollout written.
        flops: of the matrix products that they cannot do without.
        before: seconds (wall, CPU) of work before the first step that belongs to all steps.
    """

    def __init__(self, job: Job, every: int = 1) -> None:
        """Measure a job; `every`: optimiser steps that make a step."""
        self.job, self.every, self.calls = job, every, 0
        self.parts = 1
        self.marks: list[tuple[float, float]] = []
        self.phases: dict[str, float] = defaultdict(float)
        self.units: list[int] = []
        self.tokens: list[int] = []
        self.flops: list[float] = []
        self.before = (0.0, 0.0)
        self._phase: str | None = None
        self._since = self.now()

    def now(self) -> tuple[float, float]:
        """Seconds of wall and of CPU time, once a GPU has done what it was told."""
        if self.job.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def note(self, units: int, tokens: int, flops: float = 0.0) -> None:
        """What a step, or a part of one, learns from."""
        self.units.append(units)
        self.tokens.append(tokens)
        self.flops.append(flops)

    def begin(self) -> None:
        """Models and data are made; what they took is not the peak."""
        forget_peak(self.job)

    def mark(self, *_: Any) -> None:
        """An optimiser step has ended; the phase goes on."""
        self.calls += 1
        if self.calls % self.every == 0:
            self.phase(self._phase)
            self.marks.append(self._since)

    def phase(self, name: str | None) -> str | None:
        """A phase begins, and the one before it, which is returned, ends: a trainer's `on_phase`.

        Phases count in timed steps. "reference" comes before all steps, and belongs to all.
        """
        last, start, self._since = self._phase, self._since, self.now()
        wall, cpu = (end - begin for begin, end in zip(start, self._since, strict=True))
        if last == "reference":
            self.before = (wall, cpu)
        elif last and self.job.warmup <= len(self.marks) < self.job.total:
            self.phases[last] += wall
        self._phase = name
        return last

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context that is a phase; the phase around it goes on behind it."""
        outer = self.phase(name)
        try:
            yield
        finally:
            self.phase(outer)

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, as a phase."""
        return self.part(name)(function)

    def result(self) -> dict[str, Any]:
        """Seconds and rates of a timed step, means over all of them; shares of its phases."""
        job = self.job
        timed = slice(job.warmup * self.parts, job.total * self.parts)
        first, last = self.marks[job.warmup - 1], self.marks[job.total - 1]
        wall, cpu = (
            (end - start) / job.steps + before / job.total
            for start, end, before in zip(first, last, self.before, strict=True)
        )
        return {
            "seconds": wall,
            "cpu_seconds": cpu,
            "per_second": sum(self.units[timed]) / job.steps / wall,
            "per_cpu_second": sum(self.units[timed]) / job.steps / cpu,
            "tokens_per_second": sum(self.tokens[timed]) / job.steps / wall,
            "flops": sum(self.flops[timed]) / job.steps,
            "phases": self._shares(wall),
        }

    def _shares(self, wall: float) -> dict[str, float]:
        """Each phase's share of a step of so many seconds, and what is left."""
        seconds = {name: spent / self.job.steps for name, spent in self.phases.items()}
        if self.before[0]:
            seconds = {"reference": self.before[0] / self.job.total, **seconds}
        shares = {name: round(spent / wall, 3) for name, spent in seconds.items()}
        return shares | {"rest": round(1 - sum(shares.values()), 3)} if shares else {}


# --- memory --------------------------------------------------------------------------------------


def resident(what: str = "VmHWM") -> float:
    """Memory of this process, in bytes: "VmHWM" at its peak, "VmRSS" now; NaN if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what):
                return 1024.0 * int(line.split()[1])
    return float("nan")


def forget_peak(job: Job) -> None:
    """Let the peak be that of what comes from now on."""
    if job.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_above(before: float, job: Job) -> float:
    """Bytes at the peak so far: of a GPU's tensors, or of this process above `before`."""
    return torch.cuda.max_memory_allocated() if job.device == "cuda" else resident() - before


# --- the machine ---------------------------------------------------------------------------------


def machine_rates(job: Job, seconds: float = 1.0) -> dict[str, float]:
    """The best rates of this machine: `gflops` of matrix products, `gbytes` read from memory.

    The products are those of the job's model, each rate the best within so many seconds.
    """
    like = {"device": job.device, "dtype": job.dtype}
    larger = 16 if job.device == "cuda" else 1  # or it would be the time to start them
    left = torch.randn(2048 * larger, job.width, **like)
    right = torch.randn(job.width, 4 * job.width, **like)
    numbers = torch.randn(32_000_000 * larger, device=job.device)
    flops = 2 * left.numel() * right.shape[1]
    return {
        "gflops": flops / _least_seconds(lambda: left @ right, job, seconds) / 1e9,
        "gbytes": numbers.nbytes / _least_seconds(numbers.sum, job, seconds) / 1e9,
    }


def _least_seconds(function: Callable[[], Any], job: Job, budget: float) -> float:
    """Of five calls or more; on a CPU without the time in which other programs had it."""
    clock, times = Clock(job), []
    start = clock.now()[0]
    while len(times) < 5 or clock.now()[0] - start < budget:
        before = clock.now()
        function()
        wall, cpu = (b - a for a, b in zip(before, clock.now(), strict=True))
        times.append(cpu / torch.get_num_threads() if job.device == "cpu" else wall)
    return min(times)


def about(job: Job) -> dict[str, Any]:
    """Versions, threads and device of this process."""
    found = versions()
    if job.side == "trl":
        import trl

        found["trl"] = trl.__version__
    gpu = torch.cuda.get_device_name() if job.device == "cuda" else None
    return {"versions": found, "threads": torch.get_num_threads(), "gpu": gpu}


def machine(threads: int, gpu: str | None) -> dict[str, Any]:
    """What it was measured on."""
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        lines = cpus.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "threads": threads, "gpu": gpu}
