"""What a model of real size costs, and whether the ledger knew: `… bench --stage real`.

Sampling in three ways, and PPO with four networks and with LoRA on one backbone. The weights are
random, of a real model's shape: what they say changes neither speed nor memory.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_edu import data_folder, lora, ppo
from rlhf_edu.bench.plan import Plan, machine, range_text, run_worker, spread
from rlhf_edu.bench.worker import (
    MB,
    Clock,
    about,
    answer_tokens,
    forget_peak,
    machine_rates,
    peak_above,
    ppo_phases,
    resident,
    tokenizer,
)
from rlhf_edu.engine.ledger import ppo_ledger
from rlhf_edu.experiments.grid import Cells, run_grid
from rlhf_edu.generation import generate
from rlhf_edu.models import scalar_model_from
from rlhf_edu.roles import LoraRoles, Roles, SeparateRoles
from rlhf_edu.tokens import limit_prompts

# Width, layers, heads, heads of keys and values, inner width, vocabulary: the shapes of
# SmolLM2-135M and of Qwen2.5-0.5B.
SHAPES = {
    "135M": (576, 30, 9, 3, 1536, 49_152),
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
}
WORKER = "rlhf_edu.bench.real"
RANK = 16
# Left alone the C library keeps what is freed, and a process holds twice what its tensors need.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "200000"}


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        stage: "sampling" or "ppo".
        way: of sampling, "static", "growing" or "transformers"; of PPO, "four networks" or "LoRA".
        device: cpu or cuda.
        shape: a key of `SHAPES`.
        batch, prompt, answer: episodes, and tokens of each.
        micro_batch: episodes whose activations are held at once.
        warmup, steps: rollouts, or steps of PPO, that are not timed, and that are.
        seed: of samples and prompts.
        side: whose code it is, as `bench_worker.about` wants to know.
    """

    stage: str
    way: str
    device: str
    shape: str
    batch: int
    prompt: int
    answer: int
    micro_batch: int
    warmup: int
    steps: int
    seed: int = 0
    side: str = "ours"

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps


# A step of PPO in minutes on a CPU; on a GPU what the course promises for 16 GB.
SETTINGS = {
    "cpu": {"shape": "135M", "batch": 8, "prompt": 64, "answer": 32, "micro_batch": 4},
    "cuda": {"shape": "0.5B", "batch": 64, "prompt": 256, "answer": 128, "micro_batch": 8},
}
WAYS = {"sampling": ("static", "growing", "transformers"), "ppo": ("four networks", "LoRA")}


def config_of(job: Job) -> LlamaConfig:
    """A Llama of the job's shape, embeddings tied."""
    width, layers, heads, key_heads, inner, words = SHAPES[job.shape]
    return LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        vocab_size=words,
        max_position_embeddings=job.prompt + job.answer,
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
        _note(clock, write(model, words, ids, job))
    return {"weights_mb": sum(p.nbytes for p in model.parameters()) / MB}


def _note(clock: Clock, tokens: int) -> None:
    """A step has ended, with so many tokens written."""
    clock.units.append(clock.job.batch)
    clock.tokens.append(tokens)
    clock.mark()


def _ours(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, ids: torch.Tensor, job: Job
) -> int:
    static = job.way == "static"
    rollout = generate(model, words, ids.tolist(), job.answer, seed=job.seed, static=static)
    return int(rollout.lengths.sum())


@torch.no_grad()
def _transformers(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, ids: torch.Tensor, job: Job
) -> int:
    """`model.generate` as it comes, sampling from the whole distribution."""
    ids = ids.to(model.device)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": job.answer}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return answer_tokens(found[:, ids.shape[1] :], words.eos_token_id)


def train(job: Job, clock: Clock) -> dict[str, float]:
    """PPO; also the peak of memory that the ledger predicts."""
    words, dtype = tokenizer(), frozen_dtype(job) if job.way == "LoRA" else torch.float32
    limit_prompts(words, job.prompt)
    text = (data_folder() / "prompts_train.jsonl").read_text(encoding="utf-8")
    # More than enough text for each prompt; what is too much is cut off.
    prompts = [text[1000 * i :][: 20 * job.prompt] for i in range(job.batch)]
    config = ppo.PPOConfig(
        steps=job.total,
        batch_size=job.batch,
        minibatch=job.batch,
        epochs=1,
        max_new_tokens=job.answer,
        micro_batch=job.micro_batch,
        seed=job.seed,
    )
    roles = _roles(job, dtype)
    forget_peak(job)
    with ppo_phases(clock):
        ppo.train_ppo(
            roles,
            words,
            prompts,
            config,
            lambda record: _note(clock, round(job.batch * record["length"])),
        )
    rank = RANK if job.way == "LoRA" else 0
    sizes = job.batch, job.micro_batch, job.prompt, job.answer
    return {"ledger_mb": ppo_ledger(config_of(job), *sizes, rank, dtype).peak / MB}


def _roles(job: Job, dtype: torch.dtype) -> Roles:
    model = make_model(job, dtype)
    if job.way == "four networks":
        return SeparateRoles(model, scalar_model_from(model))
    reward_model = lora.take_off(lora.new_adapter(scalar_model_from(model), RANK))
    policy = lora.take_off(lora.new_adapter(model, RANK))
    return LoraRoles(make_model(job, dtype), policy, reward_model)


def run(job: Job) -> dict[str, Any]:
    """Do a job."""
    before, clock = resident("VmRSS"), Clock(job)
    found = (sample if job.stage == "sampling" else train)(job, clock)
    found |= {"memory_mb": peak_above(before, job) / MB}
    # After the peak was read.
    found["gbytes"] = machine_rates(job, SHAPES[job.shape][0])["gbytes"]
    return clock.result() | found | about(job)


# --- the table -----------------------------------------------------------------------------------


def real(plan: Plan, folder: Path | None = None) -> str:
    """Measure what has no result yet; return the table.

    Of the plan, device, steps, warmup, repeats and threads count; sizes are those of `SETTINGS`.
    """
    cells, times = {}, {"warmup": plan.warmup, "steps": plan.steps}
    for stage, ways in WAYS.items():
        for way in ways:
            job = Job(stage, way, plan.device, **SETTINGS[plan.device], **times)
            cells[f"{stage}, {way}"] = lambda job=job: measure(plan, job)
    return table(run_grid(f"real_{plan.device}", plan.command(), cells, folder))


def measure(plan: Plan, job: Job) -> dict[str, Any]:
    """Medians and ranges over the runs, what was run, and where.

    On a CPU memory has a run of its own, in which freed memory is given back at once: that is
    exact, and slow.
    """
    jobs = [asdict(job) | {"seed": seed} for seed in range(plan.repeats)]
    runs = [run_worker(plan, sys.executable, WORKER, one) for one in jobs]
    names = ("seconds", "cpu_seconds", "tokens_per_second", "gbytes", "weights_mb", "ledger_mb")
    found = {name: spread([run[name] for run in runs]) for name in names if name in runs[0]}
    found |= {"phases": runs[0]["phases"], "machine": machine(runs[0], plan)}
    if plan.device == "cpu":
        runs = [run_worker(plan, sys.executable, WORKER, asdict(job) | {"steps": 1}, **EXACT)]
    found["memory_mb"] = spread([run["memory_mb"] for run in runs])
    return found | asdict(job) | {"repeats": plan.repeats}


def table(cells: Cells) -> str:
    """What each way of sampling and of PPO came to, beside what could be, and what was foretold."""
    first = next(iter(cells.values()))
    where = "{cpu}, threads: {threads}".format(**first["machine"])
    sizes = (first[name] for name in ("shape", "batch", "prompt", "answer"))
    lines = [first["machine"]["gpu"] or where]
    lines.append("A Llama of {} parameters, {} episodes of {} + {} tokens".format(*sizes))
    lines.append(f"{'':22}{'tokens/s':>20}{'limit':>7}{'MB':>7}{'ledger':>7}{'share':>6}")
    for name, cell in cells.items():
        limit, ledger, share = "", "", ""
        if "weights_mb" in cell:
            most = cell["batch"] * 1000 * cell["gbytes"][0] / cell["weights_mb"][0]
            limit = f"{most:,.0f}"
        if "ledger_mb" in cell:
            ledger, share = f"{cell['ledger_mb'][0]:,.0f}", f"{cell['phases']['generation']:.0%}"
        rate = range_text(cell["tokens_per_second"], ",.0f")
        memory = f"{cell['memory_mb'][0]:,.0f}"
        row = f"{name:<22}{rate:>20}{limit:>7}{memory:>7}{ledger:>7}{share:>6}"
        lines.append(row.rstrip())
    lines.append("limit: if weights had only to be read, once for a token of every row;")
    lines.append("tokens/s also pay for products, and for reading the prompts.")
    lines.append("share: of sampling, in the time of a step of PPO.")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n" + json.dumps(run(Job(**json.loads(sys.argv[1])))))
