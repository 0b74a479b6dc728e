"""What a model of real size costs, and whether the ledger knew: `… bench --stage real`.

Sampling in three ways, and PPO with four networks and with LoRA on one backbone. The weights are
random, of a real model's shape: what they say changes neither speed nor memory.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu import data_folder, lora
from rlhf_edu.bench.job import Job, tokenizer
from rlhf_edu.bench.machine import (
    MB,
    Clock,
    about,
    forget_peak,
    machine,
    machine_rates,
    peak_above,
    resident,
)
from rlhf_edu.bench.plan import Plan, run_ours
from rlhf_edu.bench.speed import range_text, spread
from rlhf_edu.bench.trl import answer_tokens
from rlhf_edu.bench.worker import answer
from rlhf_edu.engine.ledger import ppo_ledger
from rlhf_edu.experiments.grid import Cells, run_grid
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.generation import generate
from rlhf_edu.models import scalar_model_from
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.roles import LoraRoles, Roles, SeparateRoles
from rlhf_edu.tokens import limit_prompts

# Width, layers, heads, heads of keys and values, inner width, vocabulary: the shapes of
# SmolLM2-135M and of Qwen2.5-0.5B.
SHAPES = {"135M": (576, 30, 9, 3, 1536, 49_152), "0.5B": (896, 24, 14, 2, 4864, 151_936)}
WORKER = "rlhf_edu.bench.real"
RANK = 16
# Left alone the C library keeps what is freed, and a process holds twice what its tensors need.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "200000"}


# A step of PPO in minutes on a CPU; on a GPU what the course promises for 16 GB.
SETTINGS = {
    "cpu": {"size": "135M", "batch": 8, "prompt": 64, "tokens": 32, "micro_batch": 4},
    "cuda": {"size": "0.5B", "batch": 64, "prompt": 256, "tokens": 128, "micro_batch": 8},
}
WAYS = {"sampling": ("static", "growing", "transformers"), "ppo": ("four networks", "LoRA")}


def config_of(job: Job) -> LlamaConfig:
    """A Llama of the job's shape, embeddings tied."""
    width, layers, heads, key_heads, inner, words = SHAPES[job.size]
    return LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        vocab_size=words,
        max_position_embeddings=job.prompt + job.tokens,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def frozen_dtype(job: Job) -> torch.dtype:
    """Of weights that do not learn: 16 bits where the device is quick with them."""
    return torch.bfloat16 if job.device == "cuda" else torch.float32


def make_model(job: Job, dtype: torch.dtype) -> PreTrainedModel:
    """The shape with random weights."""
    torch.manual_seed(0)
    with torch.device(job.device):
        return LlamaForCausalLM(config_of(job)).to(dtype).eval()


# --- one process ---------------------------------------------------------------------------------


def sample(job: Job, clock: Clock) -> dict[str, float]:
    """Rollouts alone; also the bytes of the weights."""
    model, words = make_model(job, frozen_dtype(job)), tokenizer()
    forget_peak(job)
    random = torch.Generator().manual_seed(job.seed)
    ids = torch.randint(3, len(words), (job.batch, job.prompt), generator=random)
    write = _transformers if job.way == "transformers" else _ours
    for _ in range(job.total):
        clock.note(job.batch, write(model, words, ids, job))
        clock.mark()
    return {"weights_mb": sum(p.nbytes for p in model.parameters()) / MB}


def _ours(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, ids: torch.Tensor, job: Job
) -> int:
    static = job.way == "static"
    rollout = generate(model, words, ids.tolist(), job.tokens, seed=job.seed, static=static)
    return int(rollout.lengths.sum())


@torch.no_grad()
def _transformers(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, ids: torch.Tensor, job: Job
) -> int:
    """`model.generate` as it comes, sampling from the whole distribution."""
    ids = ids.to(model.device)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": job.tokens}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return answer_tokens(found[:, ids.shape[1] :], words.eos_token_id)


def train(job: Job, clock: Clock) -> dict[str, float]:
    """PPO; also the peak of memory that the ledger predicts."""
    words = tokenizer()
    limit_prompts(words, job.prompt)
    config = PPOConfig(
        steps=job.total,
        batch_size=job.batch,
        minibatch=job.batch,
        epochs=1,
        max_new_tokens=job.tokens,
        micro_batch=job.micro_batch,
        seed=job.seed,
    )
    rank = RANK if job.way == "LoRA" else 0
    dtype = frozen_dtype(job) if rank else torch.float32
    roles = _roles(job, rank, dtype)
    forget_peak(job)

    def on_step(record: dict[str, Any]) -> None:
        clock.note(job.batch, round(job.batch * record["length"]))
        clock.mark()

    train_ppo(roles, words, _prompts(job), config, on_step, on_phase=clock.phase)
    sizes = (job.batch, job.micro_batch, job.prompt, job.tokens)
    return {"ledger_mb": ppo_ledger(config_of(job), *sizes, rank, dtype).peak / MB}


def _prompts(job: Job) -> list[str]:
    """More than enough text for each prompt; what is too much is cut off."""
    text = (data_folder() / "prompts_train.jsonl").read_text(encoding="utf-8")
    return [text[1000 * i :][: 20 * job.prompt] for i in range(job.batch)]


def _roles(job: Job, rank: int, dtype: torch.dtype) -> Roles:
    model = make_model(job, dtype)
    if not rank:
        return SeparateRoles(model, scalar_model_from(model))
    reward_model = lora.take_off(lora.new_adapter(scalar_model_from(model), rank))
    policy = lora.take_off(lora.new_adapter(model, rank))
    return LoraRoles(make_model(job, dtype), policy, reward_model)


def run(job: Job) -> dict[str, Any]:
    """Do a job."""
    before, clock = resident("VmRSS"), Clock(job)
    found = sample(job, clock) if job.stage == "sampling" else train(job, clock)
    found |= {"memory_mb": peak_above(before, job) / MB}
    # After the peak was read.
    found["gbytes"] = machine_rates(job, SHAPES[job.size][0])["gbytes"]
    return clock.result() | found | about(job)


# --- the table -----------------------------------------------------------------------------------


def real(plan: Plan, folder: Path | None = None) -> str:
    """Measure what has no result yet; return the table.

    Of the plan, device, steps, warmup, repeats and threads count; sizes are those of `SETTINGS`.
    """
    cells = [{"kind": stage, "setting": way} for stage, ways in WAYS.items() for way in ways]
    name, cell = f"real_{plan.device}", partial(measure, plan)
    return table(run_grid(name, plan.command(), cell, cells, folder))


def measure(plan: Plan, kind: str, setting: str) -> dict[str, Any]:
    """Medians and ranges over the runs, what was run, and where.

    On a CPU memory has a run of its own, in which freed memory is given back at once: that is
    exact, and slow.
    """
    sizes = SETTINGS[plan.device] | {"warmup": plan.warmup, "steps": plan.steps}
    job = Job("ours", kind, setting, plan.device, **sizes)
    runs = run_ours(plan, WORKER, job)
    names = ("seconds", "cpu_seconds", "tokens_per_second", "gbytes", "weights_mb", "ledger_mb")
    found = {name: spread([run[name] for run in runs]) for name in names if name in runs[0]}
    found |= {"phases": runs[0]["phases"], "machine": machine(plan.threads, runs[0]["gpu"])}
    if plan.device == "cpu":
        runs = run_ours(replace(plan, repeats=1), WORKER, replace(job, steps=1), **EXACT)
    found["memory_mb"] = spread([run["memory_mb"] for run in runs])
    return found | {"device": plan.device, **sizes, "repeats": plan.repeats}


def table(cells: Cells) -> str:
    """What each way of sampling and of PPO came to, beside what could be, and what was foretold."""
    first = next(iter(cells.values()))
    where = first["machine"]
    sizes = f"{first['batch']} episodes of {first['prompt']} + {first['tokens']} tokens"
    head = ("", "tokens/s", "limit", "MB", "ledger", "share")
    return "\n".join(
        [
            where["gpu"] or f"{where['cpu']}, threads: {where['threads']}",
            f"A Llama of {first['size']} parameters, {sizes}",
            *text_table([head, *map(_row, cells.values())], (22, 20, 7, 7, 7, 6)),
            "limit: if weights had only to be read, once for a token of every row;",
            "tokens/s also pay for products, and for reading the prompts.",
            "share: of sampling, in the time of a step of PPO.",
        ]
    )


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    limit, ledger, share = "", "", ""
    if "weights_mb" in cell:
        limit = f"{cell['batch'] * 1000 * cell['gbytes'][0] / cell['weights_mb'][0]:,.0f}"
    if "ledger_mb" in cell:
        ledger, share = f"{cell['ledger_mb'][0]:,.0f}", f"{cell['phases']['rollout']:.0%}"
    rate = range_text(cell["tokens_per_second"], ",.0f")
    memory = f"{cell['memory_mb'][0]:,.0f}"
    return f"{cell['kind']}, {cell['setting']}", rate, limit, memory, ledger, share


if __name__ == "__main__":
    answer(run)
