"""Our side of the benchmark: what a process of it does, and what each of its steps learns from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_edu import dpo, lora, ppo, reward, sft
from rlhf_edu.bench.job import (
    LR,
    RANK,
    Job,
    llama_config,
    load_pairs,
    load_prompts,
    load_rankings,
    make_policy,
    tokenizer,
)
from rlhf_edu.bench.machine import MB, Clock
from rlhf_edu.bench.trl import answer_tokens
from rlhf_edu.engine.groups import Group, make_group
from rlhf_edu.engine.ledger import ppo_ledger
from rlhf_edu.engine.training import plan_batches
from rlhf_edu.generation import generate
from rlhf_edu.models import scalar_model_from
from rlhf_edu.roles import LoraRoles, Roles, SeparateRoles
from rlhf_edu.tokens import encode_prompt

Found = dict[str, float]


def matrix_flops(model: PreTrainedModel, tokens: float, predicted: float) -> float:
    """Operations of one forward pass in its matrices, attention's own products left out.

    Counted for real tokens: what a trainer does for padding is its own affair.

    Args:
        model: a language model without adapters.
        tokens: read, in all rows.
        predicted: tokens that the output layer is needed for; 0 for a reward model.
    """
    matrices = [p for p in model.base_model.parameters() if p.dim() == 2]
    tables = [m.weight for m in model.base_model.modules() if isinstance(m, nn.Embedding)]
    blocks = sum(p.numel() for p in matrices) - sum(p.numel() for p in tables)
    head = model.config.vocab_size * model.config.hidden_size
    return 2.0 * (blocks * tokens + head * predicted)


def _passes(job: Job) -> int:
    """Forward passes that forward and backward are worth: a frozen weight has no gradient."""
    return 2 if job.way == "LoRA" else 3


def _learner(job: Job, model: PreTrainedModel) -> nn.Module:
    """The model, or what trains in its place."""
    return lora.new_adapter(model, RANK) if job.way == "LoRA" else model


def _settings(job: Job, epochs: int) -> dict[str, Any]:
    """What all of our trainers are told."""
    shared = {"lr": LR, "batch_size": job.batch, "epochs": epochs}
    return shared | {"bf16": job.bf16, "micro_batch": job.micro_batch, "seed": job.seed}


def _longest(job: Job) -> int:
    """Tokens of the longest answer that trainers read."""
    return job.tokens if job.prompt else 64


def run_sft(job: Job, clock: Clock) -> None:
    """`train_sft`: a unit is a token of prompt or answer."""
    model, words, (records, epochs) = make_policy(job), tokenizer(job), load_pairs(job)
    pairs = sft.encode_demonstrations(words, records, _longest(job))
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    for _, rows in plan_batches(lengths, job.batch, epochs, job.seed):
        read, said = sum(lengths[i] for i in rows), sum(len(pairs[i][1]) for i in rows)
        clock.note(read, read, _passes(job) * matrix_flops(model, read, said))
    config = sft.SFTConfig(max_answer_tokens=_longest(job), **_settings(job, epochs))
    learner = _learner(job, model)
    clock.begin()
    sft.train_sft(learner, words, records, config, clock.mark)


def _note_groups(
    job: Job, clock: Clock, groups: Sequence[Group], epochs: int, flops: Callable[[int, int], float]
) -> None:
    """Note what each step reads; `flops` of so many tokens read, and of so many in answers."""
    for _, rows in plan_batches([group.longest for group in groups], job.batch, epochs, job.seed):
        batch = [groups[i] for i in rows]
        read = sum(len(group.tokens) for group in batch)
        said = read - sum(len(group.prompt) for group in batch)
        clock.note(sum(len(group.pairs) for group in batch), read, flops(read, said))


def run_reward(job: Job, clock: Clock) -> None:
    """`train_reward`: a unit is a comparison; every answer is read once."""
    model, words = scalar_model_from(make_policy(job)), tokenizer(job)
    rankings, epochs = load_rankings(job)
    groups = [make_group(words, ranking) for ranking in rankings]
    each = _passes(job)
    _note_groups(job, clock, groups, epochs, lambda read, _: each * matrix_flops(model, read, 0))
    config = reward.RewardConfig(max_answer_tokens=_longest(job), **_settings(job, epochs))
    learner = _learner(job, model)
    clock.begin()
    reward.train_reward(learner, words, rankings, config, clock.mark)


def run_dpo(job: Job, clock: Clock) -> None:
    """`train_dpo`: a unit is a comparison. The reference's pass before training counts too."""
    model, words, (rankings, epochs) = make_policy(job), tokenizer(job), load_rankings(job)
    groups, each = dpo.make_groups(words, rankings), _passes(job) + 1
    _note_groups(job, clock, groups, epochs, lambda *read: each * matrix_flops(model, *read))
    settings = _settings(job, epochs) | {"loss": job.loss, "max_answer_tokens": _longest(job)}
    policy = _learner(job, model)
    clock.begin()
    config = dpo.DPOConfig(**settings)
    dpo.train_dpo(policy, policy, words, rankings, config, clock.mark, on_phase=clock.phase)


def run_ppo(job: Job, clock: Clock) -> Found:
    """`train_ppo`, with a critic or without: a unit is an episode, a token one of an answer.

    Returns the peak of memory that the ledger predicts, where it knows the shape.
    """
    model, words, texts = make_policy(job), tokenizer(job), [p.text for p in load_prompts(job)]
    asked = sum(len(encode_prompt(words, text)) for text in texts) / len(texts)
    critic = job.stage == "ppo"
    body = matrix_flops(model, 1, 0)
    head = matrix_flops(model, 0, 1)

    def on_step(record: dict[str, Any]) -> None:
        said = job.batch * record["length"]
        read = said + job.batch * asked
        once = read * body + said * head
        # Generation and reference, then the epochs; the reward model, and the critic as well.
        times = _passes(job) * job.epochs
        flops = (2 + times) * once + (1 + critic * (1 + times)) * read * body
        clock.note(job.batch, round(said), flops)
        clock.mark()

    against = {} if critic else {"baseline": job.stage, "answers_per_prompt": 4}
    config = ppo.PPOConfig(
        steps=job.total,
        minibatch=job.batch,
        max_new_tokens=job.tokens,
        critic_lr=LR,
        **_settings(job, job.epochs),
        **against,
    )
    del model
    roles = roles_of(lambda: make_policy(job), RANK if job.way == "LoRA" else 0, critic)
    clock.begin()
    ppo.train_ppo(roles, words, texts, config, on_step, on_phase=clock.phase)
    return {"ledger_mb": _ledger_mb(job)} if job.prompt and critic else {}


def roles_of(make: Callable[[], PreTrainedModel], rank: int, critic: bool = True) -> Roles:
    """The roles of PPO from new models: four networks, or with a rank one backbone with LoRA."""
    policy = make()
    judge = scalar_model_from(policy)
    if not rank:
        return SeparateRoles(policy, judge, use_critic=critic)
    adapters = (lora.take_off(lora.new_adapter(model, rank)) for model in (policy, judge))
    return LoraRoles(make(), *adapters, use_critic=critic)


def _ledger_mb(job: Job) -> float:
    rank = RANK if job.way == "LoRA" else 0
    sizes = (job.batch, job.micro_batch, job.prompt, job.tokens, rank)
    return ppo_ledger(llama_config(job), *sizes, job.dtype).peak / MB


def run_sampling(job: Job, clock: Clock) -> Found:
    """Rollouts alone; returns the bytes of the weights."""
    model, words = make_policy(job), tokenizer(job)
    ids = [encode_prompt(words, prompt.text) for prompt in load_prompts(job)]
    clock.begin()
    for step in range(job.total):
        asked = ids[step * job.batch : (step + 1) * job.batch]
        if job.way == "transformers":
            tokens = _by_transformers(model, torch.tensor(asked, device=model.device), job)
        else:
            static = job.way == "static"
            rollout = generate(model, words, asked, job.tokens, seed=job.seed, static=static)
            tokens = int(rollout.lengths.sum())
        clock.note(job.batch, tokens)
        clock.mark()
    return {"weights_mb": sum(p.nbytes for p in model.parameters()) / MB}


@torch.no_grad()
def _by_transformers(model: PreTrainedModel, ids: torch.Tensor, job: Job) -> int:
    """`model.generate` as it comes, sampling from the whole distribution."""
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": job.tokens}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return answer_tokens(found[:, ids.shape[1] :], model.config.eos_token_id)


RUNNERS = {"sft": run_sft, "reward": run_reward, "dpo": run_dpo, "sampling": run_sampling}
RUNNERS |= dict.fromkeys(("ppo", "rloo", "grpo"), run_ppo)
