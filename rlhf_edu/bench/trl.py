"""TRL's side of the benchmark; in its environment, so its imports stand in the functions."""

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainerCallback

from rlhf_edu import sft
from rlhf_edu.bench.job import (
    LR,
    RANK,
    Job,
    load_pairs,
    load_prompts,
    load_rankings,
    make_policy,
    tokenizer,
)  # fmt: skip
from rlhf_edu.bench.machine import Clock
from rlhf_edu.data import Prompt, Ranking
from rlhf_edu.engine.groups import make_group
from rlhf_edu.engine.training import number_of_batches
from rlhf_edu.experiments.exam import ordered_pairs
from rlhf_edu.tokens import PROMPT_TEMPLATE, encode_prompt

HELD = 16
KINDS = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "rloo": "RLOO", "grpo": "GRPO"}


def load_everything(stage: str) -> None:
    """Import all that TRL needs, so that it does not count as memory of training."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import trl

    if stage == "ppo":
        import trl.experimental.ppo
    else:
        getattr(trl, f"{KINDS[stage]}Trainer")  # TRL loads lazily


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


def _arguments(job: Job, batch: int) -> dict[str, Any]:
    """What all of TRL's trainers are told; all else stays as TRL has it.

    At a real model's size gradients are accumulated, over as many rows as one card holds without
    computing activations again, which would be slower.
    """
    held = min(HELD, batch) if job.prompt else batch
    return {
        "output_dir": _folder(),
        "per_device_train_batch_size": held,
        "gradient_accumulation_steps": batch // held,
        "max_steps": job.total,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "bf16": job.bf16 or job.dtype == torch.bfloat16,
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
    with body.device:
        model = AutoModelForSequenceClassification.from_config(config, dtype=body.dtype)
    model.base_model.load_state_dict(body.base_model.state_dict())
    return model.eval()


def _adapter(job: Job, task: str = "CAUSAL_LM") -> dict[str, Any]:
    """TRL's settings for our adapter: on every linear layer of the backbone."""
    if job.way != "LoRA":
        return {}
    from peft import LoraConfig

    options = {"lora_alpha": 2 * RANK, "target_modules": "all-linear"}
    return {"peft_config": LoraConfig(task_type=task, r=RANK, **options)}


def _reference(job: Job) -> PreTrainedModel | None:
    """The policy once more; with LoRA it is what is left when the adapter is turned off."""
    return None if job.way == "LoRA" else make_policy(job)


def answer_tokens(answers: torch.Tensor, eos: int) -> int:
    """Tokens up to the first end-of-text of each answer (B, R), summed over the answers."""
    ends = (answers == eos).long()
    return int((ends.cumsum(1) - ends == 0).sum())


# --- supervised: SFT, reward model, DPO ----------------------------------------------------------


def _trainer(
    job: Job, clock: Clock, arguments: dict[str, Any], rows: Sequence[dict[str, Any]], **more: Any
) -> Any:
    """TRL's trainer of the job's stage, with these arguments and rows of data."""
    import trl
    from datasets import Dataset

    kind = KINDS[job.stage]
    return getattr(trl, f"{kind}Trainer")(
        args=getattr(trl, f"{kind}Config")(**arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer(job),
        callbacks=[_OnStep(clock)],
        **more,
    )


def _train(trainer: Any, clock: Clock, units: Callable[[Sequence[Any], Any], int]) -> None:
    """Train, and note for each batch its units, and its tokens by its mask."""
    collate = trainer.data_collator

    def count(examples: Sequence[Any]) -> Any:
        batch = collate(examples)
        clock.note(units(examples, batch), int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator, clock.parts = count, trainer.args.gradient_accumulation_steps
    clock.begin()
    trainer.train()


def run_sft(job: Job, clock: Clock) -> None:
    """SFTTrainer on the same tokens, with the loss on the answers alone."""
    records, _ = load_pairs(job)
    pairs = sft.encode_demonstrations(tokenizer(job), records, max(64, job.tokens))
    rows = [
        {"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        for prompt, answer in pairs
    ]
    arguments = _arguments(job, job.batch) | {"completion_only_loss": True}
    trainer = _trainer(job, clock, arguments, rows, model=make_policy(job), **_adapter(job))
    _train(trainer, clock, lambda examples, batch: int(batch["attention_mask"].sum()))


def _pair_arguments(job: Job, pairs: Sequence[Any], rankings: Sequence[Ranking]) -> dict[str, Any]:
    """As many comparisons in a step as we have, on average."""
    return _arguments(job, len(pairs) // number_of_batches(len(rankings), job.batch))


def run_reward(job: Job, clock: Clock) -> None:
    """RewardTrainer on the same rankings, as pairs, and on as many of them a step."""
    (rankings, _), words = load_rankings(job), tokenizer(job)
    groups = [make_group(words, ranking) for ranking in rankings]
    rows = [
        {"chosen_ids": g.prompt + g.answers[i], "rejected_ids": g.prompt + g.answers[j]}
        for g in groups
        for i, j in g.pairs
    ]
    arguments = _pair_arguments(job, rows, rankings)
    model, adapter = classifier(make_policy(job)), _adapter(job, "SEQ_CLS")
    trainer = _trainer(job, clock, arguments, rows, model=model, **adapter)
    _train(trainer, clock, lambda examples, batch: len(examples))


def _prompt_texts(job: Job, prompts: Sequence[Prompt]) -> list[str]:
    start = tokenizer(job).bos_token
    return [start + PROMPT_TEMPLATE.format(prompt=prompt.text) for prompt in prompts]


def run_dpo(job: Job, clock: Clock) -> None:
    """DPOTrainer on the same rankings, as pairs, and on as many of them a step."""
    rankings, _ = load_rankings(job)
    asked = _prompt_texts(job, [ranking.prompt for ranking in rankings])
    rows = [
        {"prompt": text, "chosen": r.answers[i], "rejected": r.answers[j]}
        for text, r in zip(asked, rankings, strict=True)
        for i, j in ordered_pairs(r.ranks)
    ]
    arguments = _pair_arguments(job, rows, rankings)
    models = {"model": make_policy(job), "ref_model": _reference(job)}
    trainer = _trainer(job, clock, arguments, rows, **models, **_adapter(job))
    _train(trainer, clock, lambda examples, batch: len(examples))


# --- reinforcement learning ----------------------------------------------------------------------


def run_ppo(job: Job, clock: Clock) -> None:
    """PPOTrainer of `trl==1.12.0`, the last release that had one."""
    from trl.experimental.ppo import ppo_trainer

    models = {"model": make_policy(job), "ref_model": _reference(job), **_adapter(job)}
    models |= {name: classifier(make_policy(job)) for name in ("reward_model", "value_model")}
    trainer = make_ppo_trainer(job, load_prompts(job), models, _OnStep(clock))
    generate = clock.timed("rollout", ppo_trainer.batch_generation)
    accumulate, eos = trainer.accelerator.accumulate, trainer.processing_class.eos_token_id

    def counted(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        found = generate(model, queries, *rest)
        clock.note(job.batch, answer_tokens(found[0][:, queries.shape[1] :], eos))
        return found

    @contextlib.contextmanager
    def learning(*models: Any) -> Iterator[None]:
        with clock.part("optimisation"), accumulate(*models):
            yield

    trainer.accelerator.accumulate = learning
    # TRL's function, in a process that ends with this training.
    ppo_trainer.batch_generation = counted
    clock.begin()
    trainer.train()


def make_ppo_trainer(
    job: Job,
    prompts: Sequence[Prompt],
    models: dict[str, Any],
    callback: TrainerCallback,
    **more: Any,
) -> Any:
    """TRL's, told what our PPO is told; `more` settings of its own come last.

    `models` by the names that TRL has for them, an adapter's settings among them. With LoRA its
    critic is a whole network nonetheless.
    """
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words = tokenizer(job)
    words.padding_side = "left"
    ids = [encode_prompt(words, prompt.text) for prompt in prompts]
    arguments = _arguments(job, job.batch) | {
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


def run_groups(job: Job, clock: Clock) -> None:
    """RLOOTrainer or GRPOTrainer, TRL's RL of today: no critic, four answers to each prompt."""
    trainer = _group_trainer(job, clock)
    clock.every = job.epochs  # each pass over a rollout is a step of the trainer
    generate = clock.timed("rollout", trainer._generate_single_turn)

    def counted(*arguments: Any) -> Any:
        found = generate(*arguments)
        answers = found if job.stage == "rloo" else found[0]  # GRPO's come with log-probs
        clock.note(job.batch, sum(map(len, answers)))
        return found

    trainer._generate_single_turn = counted
    evaluate = clock.timed("evaluation", trainer._generate_and_score_completions)
    trainer._generate_and_score_completions = evaluate
    clock.begin()
    trainer.train()


def _group_trainer(job: Job, clock: Clock) -> Any:
    policy = make_policy(job)
    if job.way != "LoRA":
        policy.config._name_or_path = _folder()  # where it finds the reference
        policy.save_pretrained(policy.config._name_or_path)
    arguments = _arguments(job, job.batch)
    arguments |= {
        "max_steps": job.total * job.epochs,
        "num_iterations": job.epochs,
        "num_generations": min(4, job.batch),
        "steps_per_generation": arguments["gradient_accumulation_steps"],
        "max_completion_length": job.tokens,
        "temperature": 1.0,
        "beta": 0.05,
    }
    return _trainer(
        job,
        clock,
        arguments,
        [{"prompt": text} for text in _prompt_texts(job, load_prompts(job))],
        model=policy,
        reward_funcs=classifier(make_policy(job)),
        reward_processing_classes=tokenizer(job),
        **_adapter(job),
    )


RUNNERS = {"sft": run_sft, "reward": run_reward, "dpo": run_dpo, "ppo": run_ppo}
RUNNERS |= dict.fromkeys(("rloo", "grpo"), run_groups)
