"""One process of `python -m rlhf_edu bench`: one side trains one stage for a few steps.

A `Job` comes in as JSON, one line of JSON goes out: how fast it was, and how much memory it took.
Each side has a process of its own, as it may live in another environment, and as memory can only
be measured from a fresh start. Both build the same model from the same seed and read the same data.
"""

import atexit
import contextlib
import json
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from rlhf_edu import __version__, data_folder, dpo, ppo, reward, sft
from rlhf_edu.data import Prompt, Ranking, read_demonstrations, read_prompts, read_rankings
from rlhf_edu.engine.groups import Group, make_group
from rlhf_edu.engine.training import number_of_batches, plan_batches
from rlhf_edu.models import count_parameters, load_tokenizer, scalar_model_from
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.tokens import PROMPT_TEMPLATE, encode_prompt

# Width, layers and heads of a GPT-2 with the course's vocabulary, by its parameters.
SIZES = {
    "2M": (192, 4, 4),
    "4M": (256, 5, 4),
    "8M": (320, 6, 5),
    "17M": (448, 7, 7),
    "87M": (768, 12, 12),
    "309M": (1024, 24, 16),
}
CONTEXT = 512
LR = 1e-4
MB = 1e6


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        side: "ours" or "trl".
        stage: sft, reward, dpo, ppo or rloo; ours has no RLOO, and does PPO instead.
        device: cpu or cuda.
        size: a key of `SIZES`.
        warmup, steps: steps that are not timed, and that are.
        batch: demonstrations, rankings (each with all of its answers) or episodes per step.
        answers: of each ranking, only the first so many; 0: all.
        epochs: passes over a rollout, in one minibatch each.
        tokens: longest answer of a rollout.
        bf16: whether matrices are multiplied in bfloat16.
        seed: of the order of the data and of the samples; the weights have seed 0.
    """

    side: str
    stage: str
    device: str = "cpu"
    size: str = "2M"
    warmup: int = 2
    steps: int = 6
    batch: int = 32
    answers: int = 0
    epochs: int = 2
    tokens: int = 32
    bf16: bool = False
    seed: int = 0

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps


# --- time and memory -----------------------------------------------------------------------------


class Clock:
    """Notes when each step ends, what it did, and how long its parts took.

    Attributes:
        units: what was learned from, for each step: tokens, comparisons or episodes.
        tokens: real tokens of each step: read, or in a rollout written.
        flops: of the matrix products that a step cannot do without.
        before: seconds (wall, CPU) of work before the first step that belongs to all steps.
    """

    def __init__(self, job: Job, every: int = 1) -> None:
        """Measure a job; `every`: optimiser steps that make a step."""
        self.job, self.every, self.calls = job, every, 0
        self.marks: list[tuple[float, float]] = []
        self.parts: dict[str, float] = defaultdict(float)
        self.units: list[int] = []
        self.tokens: list[int] = []
        self.flops: list[float] = []
        self.before, self._inner = (0.0, 0.0), 0.0

    def now(self) -> tuple[float, float]:
        """Seconds of wall and of CPU time, once a GPU has done what it was told."""
        if self.job.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def mark(self, *_: Any) -> None:
        """An optimiser step has ended."""
        self.calls += 1
        if self.calls % self.every == 0:
            self.marks.append(self.now())

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for a part, once warm; parts within it count for themselves."""
        outer, self._inner = self._inner, 0.0
        start = self.now()[0]
        try:
            yield
        finally:
            seconds = self.now()[0] - start
            if self.job.warmup <= len(self.marks) < self.job.total:
                self.parts[name] += seconds - self._inner
            self._inner = outer + seconds

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, as a part."""

        def run(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*args, **options)

        return run

    def result(self) -> dict[str, Any]:
        """Seconds and rates of a timed step, means over all of them; shares of its parts."""
        job, timed = self.job, slice(self.job.warmup, self.job.total)
        first, last = self.marks[job.warmup - 1], self.marks[job.total - 1]
        wall, cpu = (
            (last[i] - first[i]) / job.steps + self.before[i] / job.total for i in range(2)
        )
        parts = {name: seconds / job.steps for name, seconds in self.parts.items()}
        if self.before[0]:
            parts["reference"] = self.before[0] / job.total
        shares = {name: round(seconds / wall, 3) for name, seconds in parts.items()}
        return {
            "seconds": wall,
            "cpu_seconds": cpu,
            "per_second": sum(self.units[timed]) / job.steps / wall,
            "per_cpu_second": sum(self.units[timed]) / job.steps / cpu,
            "tokens_per_second": sum(self.tokens[timed]) / job.steps / wall,
            "flops": sum(self.flops[timed]) / job.steps,
            "phases": shares | {"rest": round(1 - sum(shares.values()), 3)} if shares else {},
        }


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


# --- the same model and the same data for both sides ---------------------------------------------


def make_policy(job: Job) -> PreTrainedModel:
    """A GPT-2 with random weights from seed 0, without dropout, and with the fused GELU."""
    width, layers, heads = SIZES[job.size]
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # the default one takes seven passes
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval().to(job.device)


def tokenizer() -> PreTrainedTokenizerBase:
    """The shipped one."""
    return load_tokenizer(data_folder() / "models" / "sft-1M")


def _enough(records: Sequence[Any], job: Job) -> tuple[list[Any], int]:
    """As many records as the steps need, in full batches, and how often they come."""
    batches = min(len(records) // job.batch, job.total)
    return list(records[: batches * job.batch]), -(-job.total // batches)


def load_pairs(job: Job) -> tuple[list[Any], int]:
    """Demonstrations, and epochs."""
    return _enough(read_demonstrations(data_folder() / "demonstrations.jsonl"), job)


def load_rankings(job: Job) -> tuple[list[Ranking], int]:
    """Rankings that prefer something, and epochs."""
    rankings = read_rankings(data_folder() / "rankings.jsonl")
    if job.answers:
        names = ("answers", "ended", "ranks", "sources")
        cut = slice(job.answers)
        rankings = [replace(r, **{name: getattr(r, name)[cut] for name in names}) for r in rankings]
    return _enough([r for r in rankings if len(set(r.ranks)) > 1], job)


def load_prompts(job: Job) -> list[Prompt]:
    """Prompts for all rollouts."""
    return _enough(read_prompts(data_folder() / "prompts_train.jsonl"), job)[0]


def matrix_flops(model: PreTrainedModel, tokens: float, predicted: float) -> float:
    """Operations of one forward pass in its matrices, attention's own products left out.

    Args:
        model: a GPT-2.
        tokens: read, in all rows.
        predicted: tokens that the output layer is needed for; 0 for a reward model.
    """
    blocks = sum(p.numel() for p in model.base_model.h.parameters() if p.dim() == 2)
    return 2.0 * (blocks * tokens + model.config.vocab_size * model.config.n_embd * predicted)


# --- our side ------------------------------------------------------------------------------------


def _settings(job: Job, epochs: int) -> dict[str, Any]:
    """What all of our trainers are told."""
    shared = {"lr": LR, "batch_size": job.batch, "epochs": epochs}
    return shared | {"bf16": job.bf16, "seed": job.seed}


def ours_sft(job: Job, clock: Clock) -> None:
    """`train_sft`: a unit is a token of prompt or answer."""
    model, (records, epochs) = make_policy(job), load_pairs(job)
    config = sft.SFTConfig(**_settings(job, epochs))
    pairs = sft.encode_demonstrations(tokenizer(), records, config.max_answer_tokens)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    for _, rows in plan_batches(lengths, job.batch, epochs, job.seed):
        read, said = sum(lengths[i] for i in rows), sum(len(pairs[i][1]) for i in rows)
        clock.units.append(read)
        clock.tokens.append(read)
        clock.flops.append(3 * matrix_flops(model, read, said))
    sft.train_sft(model, tokenizer(), records, config, clock.mark)


def _plan_groups(job: Job, clock: Clock, groups: Sequence[Group], epochs: int) -> list[tuple]:
    """Note comparisons and tokens of each step; return what it reads and what it predicts."""
    plan, sizes = [], [group.longest for group in groups]
    for _, rows in plan_batches(sizes, job.batch, epochs, job.seed):
        part = [groups[i] for i in rows]
        read = sum(len(group.tokens) for group in part)
        clock.units.append(sum(len(group.pairs) for group in part))
        clock.tokens.append(read)
        plan.append((read, read - sum(len(group.prompt) for group in part)))
    return plan


def ours_reward(job: Job, clock: Clock) -> None:
    """`train_reward`: a unit is a comparison; every answer is read once."""
    model, (rankings, epochs) = scalar_model_from(make_policy(job)), load_rankings(job)
    words = tokenizer()
    groups = [make_group(words, ranking) for ranking in rankings]
    for read, _ in _plan_groups(job, clock, groups, epochs):
        clock.flops.append(3 * matrix_flops(model, read, 0))
    config = reward.RewardConfig(**_settings(job, epochs))
    reward.train_reward(model, tokenizer(), rankings, config, clock.mark)


def ours_dpo(job: Job, clock: Clock) -> None:
    """`train_dpo`: a unit is a comparison. The reference's pass before training counts too."""
    policy, (rankings, epochs) = make_policy(job), load_rankings(job)
    groups = dpo.make_groups(tokenizer(), rankings)
    for read, said in _plan_groups(job, clock, groups, epochs):
        clock.flops.append((3 + 1) * matrix_flops(policy, read, said))
    sums = dpo.reference_sums

    def reference_sums(*args: Any) -> Any:
        start = clock.now()
        found = sums(*args)
        clock.before = tuple(b - a for a, b in zip(start, clock.now(), strict=True))
        return found

    config = dpo.DPOConfig(**_settings(job, epochs))
    with patch.object(dpo, "reference_sums", reference_sums):
        dpo.train_dpo(policy, policy, tokenizer(), rankings, config, clock.mark)


def ours_ppo(job: Job, clock: Clock) -> None:
    """`train_ppo` with four networks: a unit is an episode, a token one of an answer."""
    policy = make_policy(job)
    roles = SeparateRoles(policy, scalar_model_from(policy))
    texts = [prompt.text for prompt in load_prompts(job)]
    words = tokenizer()
    asked = sum(len(encode_prompt(words, text)) for text in texts) / len(texts)

    def on_step(record: dict[str, Any]) -> None:
        said = job.batch * record["length"]
        read = said + job.batch * asked
        whole, scalar = matrix_flops(policy, read, said), matrix_flops(policy, read, 0)
        # Generation and reference, reward model and critic; then the epochs.
        clock.flops.append(2 * (whole + scalar) + 3 * job.epochs * (whole + scalar))
        clock.units.append(job.batch)
        clock.tokens.append(round(said))
        clock.mark()

    with ppo_phases(clock):
        ppo.train_ppo(roles, words, texts, _ppo_config(job), on_step)


@contextlib.contextmanager
def ppo_phases(clock: Clock) -> Iterator[None]:
    """A context in which the clock also times the three phases of our PPO."""
    names = {"generate": "generation", "evaluate_rollout": "evaluation", "learn": "learning"}
    with contextlib.ExitStack() as stack:
        for name, part in names.items():
            stack.enter_context(patch.object(ppo, name, clock.timed(part, getattr(ppo, name))))
        yield


def _ppo_config(job: Job) -> ppo.PPOConfig:
    sizes = {"minibatch": job.batch, "max_new_tokens": job.tokens, "critic_lr": LR}
    return ppo.PPOConfig(steps=job.total, **sizes, **_settings(job, job.epochs))


# --- TRL -----------------------------------------------------------------------------------------


class _OnStep(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.mark()


def _folder() -> str:
    """A new folder that goes when the process does."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def trl_arguments(job: Job, batch: int) -> dict[str, Any]:
    """What all of TRL's trainers are told; all else stays as TRL has it."""
    return {
        "output_dir": _folder(),
        "per_device_train_batch_size": batch,
        "max_steps": job.total,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "bf16": job.bf16,
        "gradient_checkpointing": False,
        "use_cpu": job.device == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": job.seed,
        "dataloader_pin_memory": job.device == "cuda",
    }


def classifier(body: PreTrainedModel) -> PreTrainedModel:
    """A reward model or critic as TRL wants it: a model's backbone with one new output."""
    config = type(body.config)(**body.config.to_dict() | {"num_labels": 1})
    model = AutoModelForSequenceClassification.from_config(config, dtype=body.dtype)
    model.base_model.load_state_dict(body.base_model.state_dict())
    return model.eval().to(body.device)


def _run_trl(trainer: Any, clock: Clock, units: Callable[[Sequence[Any], Any], int]) -> None:
    """Train, and note for each batch its units, and its tokens by its mask."""
    collate = trainer.data_collator

    def count(examples: Sequence[Any]) -> Any:
        batch = collate(examples)
        clock.units.append(units(examples, batch))
        clock.tokens.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = count
    trainer.train()


def trl_sft(job: Job, clock: Clock) -> None:
    """SFTTrainer on the same tokens, with the loss on the answers alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    records, _ = load_pairs(job)
    pairs = sft.encode_demonstrations(tokenizer(), records, max_answer_tokens=64)
    masks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in pairs]
    columns = {"input_ids": [p + a for p, a in pairs], "completion_mask": masks}
    arguments = trl_arguments(job, job.batch) | {"completion_only_loss": True}
    trainer = SFTTrainer(
        model=make_policy(job),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer(),
        callbacks=[_OnStep(clock)],
    )
    _run_trl(trainer, clock, lambda examples, batch: int(batch["attention_mask"].sum()))


def _pairs_per_step(pairs: Sequence[Any], rankings: Sequence[Ranking], job: Job) -> int:
    """As many comparisons as we have in a step, on average."""
    return len(pairs) // number_of_batches(len(rankings), job.batch)


def trl_reward(job: Job, clock: Clock) -> None:
    """RewardTrainer on the same rankings, as pairs, and on as many of them a step."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rankings, _ = load_rankings(job)
    words = tokenizer()
    groups = [make_group(words, ranking) for ranking in rankings]
    rows = [
        {"chosen_ids": g.prompt + g.answers[i], "rejected_ids": g.prompt + g.answers[j]}
        for g in groups
        for i, j in g.pairs
    ]
    trainer = RewardTrainer(
        model=classifier(make_policy(job)),
        args=RewardConfig(**trl_arguments(job, _pairs_per_step(rows, rankings, job))),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[_OnStep(clock)],
    )
    _run_trl(trainer, clock, lambda examples, batch: len(examples))


def _prompt_texts(prompts: Sequence[Prompt]) -> list[str]:
    start = tokenizer().bos_token
    return [start + PROMPT_TEMPLATE.format(prompt=prompt.text) for prompt in prompts]


def trl_dpo(job: Job, clock: Clock) -> None:
    """DPOTrainer on the same rankings, as pairs, and on as many of them a step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rankings, _ = load_rankings(job)
    asked = _prompt_texts([ranking.prompt for ranking in rankings])
    rows = [
        {"prompt": text, "chosen": r.answers[i], "rejected": r.answers[j]}
        for text, r in zip(asked, rankings, strict=True)
        for i, j in Group([], [[]] * len(r.answers), r.ranks).pairs
    ]
    trainer = DPOTrainer(
        model=make_policy(job),
        ref_model=make_policy(job),
        args=DPOConfig(**trl_arguments(job, _pairs_per_step(rows, rankings, job))),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[_OnStep(clock)],
    )
    _run_trl(trainer, clock, lambda examples, batch: len(examples))


def trl_ppo(job: Job, clock: Clock) -> None:
    """PPOTrainer of `trl==1.12.0`, the last release that had one."""
    from trl.experimental.ppo import ppo_trainer

    models = {"model": make_policy(job), "ref_model": make_policy(job)}
    models |= {name: classifier(make_policy(job)) for name in ("reward_model", "value_model")}
    trainer = make_ppo_trainer(job, load_prompts(job), models, _OnStep(clock))
    clock.units = [job.batch] * job.total
    generate = clock.timed("generation", ppo_trainer.batch_generation)
    accumulate, eos = trainer.accelerator.accumulate, trainer.processing_class.eos_token_id

    def counted(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        found = generate(model, queries, *rest)
        clock.tokens.append(answer_tokens(found[0][:, queries.shape[1] :], eos))
        return found

    @contextlib.contextmanager
    def learning(*models: Any) -> Iterator[None]:
        with clock.part("learning"), accumulate(*models):
            yield

    trainer.accelerator.accumulate = learning
    with patch.object(ppo_trainer, "batch_generation", counted):
        trainer.train()


def make_ppo_trainer(
    job: Job,
    prompts: Sequence[Prompt],
    models: dict[str, PreTrainedModel],
    callback: TrainerCallback,
    **more: Any,
) -> Any:
    """TRL's, told what our PPO is told; `more` settings of its own come last."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words = tokenizer()
    words.padding_side = "left"
    ids = [encode_prompt(words, prompt.text) for prompt in prompts]
    arguments = trl_arguments(job, job.batch) | {
        "total_episodes": job.total * job.batch,
        "num_ppo_epochs": job.epochs,
        "response_length": job.tokens,
        "temperature": 1.0,
        "stop_token": "eos",
        "missing_eos_penalty": 1.0,
        "local_rollout_forward_batch_size": job.batch,
        "num_sample_generations": 0,
    }
    return PPOTrainer(
        args=PPOConfig(**arguments | more),
        processing_class=words,
        **models,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        callbacks=[callback],
    )


def answer_tokens(answers: torch.Tensor, eos: int) -> int:
    """Tokens up to the first end-of-text of each answer (B, R), summed over the answers."""
    ends = (answers == eos).long()
    return int((ends.cumsum(1) - ends == 0).sum())


def trl_rloo(job: Job, clock: Clock) -> None:
    """RLOOTrainer, TRL's way to do RL today: no critic, four answers to each prompt."""
    trainer = _rloo_trainer(job, clock)
    clock.every = job.epochs  # each pass over a rollout is a step of the trainer
    clock.units = [job.batch] * job.total
    generate = clock.timed("generation", trainer._generate_single_turn)

    def counted(*args: Any) -> Any:
        found = generate(*args)
        clock.tokens.append(sum(map(len, found)))
        return found

    trainer._generate_single_turn = counted
    evaluate = clock.timed("evaluation", trainer._generate_and_score_completions)
    trainer._generate_and_score_completions = evaluate
    trainer.train()


def _rloo_trainer(job: Job, clock: Clock) -> Any:
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    policy = make_policy(job)
    policy.config._name_or_path = _folder()  # where it finds the reference
    policy.save_pretrained(policy.config._name_or_path)
    arguments = trl_arguments(job, job.batch) | {
        "max_steps": job.total * job.epochs,
        "num_iterations": job.epochs,
        "num_generations": min(4, job.batch),
        "steps_per_generation": 1,
        "max_completion_length": job.tokens,
        "temperature": 1.0,
        "beta": 0.05,
    }
    return RLOOTrainer(
        model=policy,
        reward_funcs=classifier(make_policy(job)),
        args=RLOOConfig(**arguments),
        train_dataset=Dataset.from_dict({"prompt": _prompt_texts(load_prompts(job))}),
        processing_class=tokenizer(),
        reward_processing_classes=tokenizer(),
        callbacks=[_OnStep(clock)],
    )


# --- the machine, and the command ----------------------------------------------------------------


def machine_rates(job: Job, width: int, seconds: float = 1.0) -> dict[str, float]:
    """The best rates of this machine: `gflops` of matrix products, `gbytes` read from memory.

    The products are those of a model of this width, each rate the best within so many seconds.
    """
    clock = Clock(job)
    left, right = torch.randn(2048, width), torch.randn(width, 4 * width)
    left, right = left.to(job.device), right.to(job.device)
    numbers = torch.randn(32_000_000, device=job.device)

    def best(function: Callable[[], Any]) -> float:
        times, start = [], clock.now()
        while len(times) < 5 or clock.now()[0] - start[0] < seconds:
            before = clock.now()
            function()
            times.append(_busy_seconds(before, clock.now(), job))
        return min(times)

    flops = 2 * left.numel() * right.shape[1]
    return {
        "gflops": flops / best(lambda: left @ right) / 1e9,
        "gbytes": numbers.nbytes / best(numbers.sum) / 1e9,
    }


def _busy_seconds(start: tuple[float, float], end: tuple[float, float], job: Job) -> float:
    """Seconds between two times; on a CPU without those in which other programs had it."""
    if job.device == "cpu":
        return (end[1] - start[1]) / torch.get_num_threads()
    return end[0] - start[0]


RUNNERS = {
    "ours": {"sft": ours_sft, "reward": ours_reward, "dpo": ours_dpo, "ppo": ours_ppo}
    | {"rloo": ours_ppo},
    "trl": {"sft": trl_sft, "reward": trl_reward, "dpo": trl_dpo, "ppo": trl_ppo}
    | {"rloo": trl_rloo},
}


def about(job: Job) -> dict[str, Any]:
    """Versions, threads and device of this process."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    found["transformers"] = transformers.__version__
    if job.side == "trl":
        import trl

        found["trl"] = trl.__version__
    else:
        found["rlhf_edu"] = __version__
    gpu = torch.cuda.get_device_name() if job.device == "cuda" else None
    return {"versions": found, "threads": torch.get_num_threads(), "gpu": gpu}


def _import_trl(stage: str) -> None:
    """Load all that TRL needs, so that it does not count as memory of training."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import trl

    if stage == "ppo":
        import trl.experimental.ppo
    else:
        names = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "rloo": "RLOO"}
        getattr(trl, f"{names[stage]}Trainer")  # TRL loads lazily


def run(job: Job) -> dict[str, Any]:
    """Do a job."""
    if job.side == "trl":
        _import_trl(job.stage)
    model = make_policy(job)
    start = {
        "parameters": count_parameters(model),
        "weights": sum(p.double().abs().sum().item() for p in model.parameters()),
    }
    del model
    before, clock = resident("VmRSS"), Clock(job)
    RUNNERS[job.side][job.stage](job, clock)
    peak = peak_above(before, job)
    # After the peak was read.
    rates = machine_rates(job, SIZES[job.size][0]) if job.side == "ours" else {}
    return clock.result() | {"memory_mb": peak / MB, **rates, **start, **about(job)}


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    print("\n" + json.dumps(run(Job(**json.loads(sys.argv[1])))))
