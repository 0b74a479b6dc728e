"""PPO against a reward model, with a KL penalty per token; PPO-ptx (InstructGPT 3.5, C.4)."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_edu.generation import Rollout, generate
from rlhf_edu.losses import (
    gae,
    masked_sum,
    policy_loss,
    shaped_rewards,
    value_loss,
    whiten,
)
from rlhf_edu.models import Roles, encode_prompt
from rlhf_edu.pretrain import next_token_loss
from rlhf_edu.training import (
    OnStep,
    Record,
    make_optimizer,
    require_between,
    require_positive,
    require_some,
    update,
    warmup_constant,
    write_checkpoint,
)

STEP_0_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PPOConfig:
    """Settings of `train_ppo`.

    Attributes:
        steps: rollouts; each is learned from and thrown away.
        batch_size: episodes (prompts with answers) per rollout.
        minibatch: episodes per optimiser step.
        epochs: passes over a rollout; InstructGPT made one.
        lr, critic_lr: of policy and critic, constant after the warm-up.
        warmup: steps in which the learning rates rise from a tenth.
        beta: price of one nat of KL to the reference, in points of reward.
        clip, value_clip: how far the ratio, and the value, may move at once.
        discount, lam: of generalised advantage estimation.
        missing_eos_penalty: taken off the score of an answer that did not end.
        temperature: of sampling, and of all log-probs.
        max_new_tokens: longest answer.
        ptx_coef: gamma of InstructGPT Eq. 2, the weight of pretraining text; 0: plain PPO.
        ptx_blocks: blocks of pretraining text per minibatch.
        max_norm: of gradient clipping.
        seed: of prompts, samples and minibatches.
        checkpoint_every, checkpoint_folder: write policy and history every so many steps.
    """

    steps: int = 60
    batch_size: int = 64
    minibatch: int = 64
    epochs: int = 2
    lr: float = 2e-4
    critic_lr: float = 3e-4
    warmup: int = 5
    beta: float = 0.05
    clip: float = 0.2
    value_clip: float = 0.2
    discount: float = 1.0
    lam: float = 0.95
    missing_eos_penalty: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 48
    ptx_coef: float = 0.0
    ptx_blocks: int = 4
    max_norm: float = 1.0
    seed: int = 0
    checkpoint_every: int = 20
    checkpoint_folder: str | Path | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "minibatch", "epochs", "lr", "critic_lr")
        require_positive(self, "temperature", "max_new_tokens", "ptx_blocks", "checkpoint_every")
        require_between(self, 0, float("inf"), "beta", "missing_eos_penalty", "ptx_coef", "warmup")
        require_between(self, 0, 1, "discount", "lam")


@dataclass(frozen=True)
class Experience:
    """What a rollout is worth, computed once, before learning from it. All without gradient.

    Attributes:
        rollout: prompts and answers.
        logprobs: (B, R) under the policy that answered, nats.
        values: (B, R) of the critic, before each token.
        advantages, returns: (B, R).
        scores: (B,) of the reward model, without penalties.
        kl: (B,) estimates of the KL to the reference, nats per answer.
    """

    rollout: Rollout
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor
    kl: Tensor


@torch.no_grad()
def evaluate_rollout(roles: Roles, rollout: Rollout, config: PPOConfig) -> Experience:
    """Phase two of a PPO step: reward, KL penalty, value and advantage of every token."""
    logprobs = roles.response_logprobs(rollout, config.temperature)
    reference = roles.reference_logprobs(rollout, config.temperature)
    values, scores = roles.values(rollout), roles.rewards(rollout)
    penalised = scores - config.missing_eos_penalty * (~rollout.ended).float()
    mask = rollout.mask
    rewards = shaped_rewards(penalised, logprobs, reference, mask, config.beta)
    advantages, returns = gae(rewards, values, mask, config.discount, config.lam)
    return Experience(
        rollout=rollout,
        logprobs=logprobs,
        values=values,
        # Returns are the critic's target: computed before the advantages are whitened.
        advantages=whiten(advantages, mask),
        returns=returns,
        scores=scores,
        kl=masked_sum(logprobs - reference, mask),
    )


def check_step_0(experience: Experience) -> None:
    """On a fresh start the policy is the reference and has just answered: KL 0 and ratio 1.

    Raises:
        RuntimeError: it is not so; the message names likely causes.
    """
    drift = (experience.logprobs - experience.rollout.logprobs) * experience.rollout.mask
    if drift.abs().max() > STEP_0_TOLERANCE:
        raise RuntimeError(
            f"step 0: sampling and training disagree by {drift.abs().max():.3g} nats on a token; "
            "look for dropout, another temperature, positions without the mask, or a shift by one"
        )
    if experience.kl.abs().max() > STEP_0_TOLERANCE:
        raise RuntimeError(
            f"step 0: KL to the reference is {experience.kl.abs().max():.3g} nats, not 0; policy "
            "and reference must start as the same model, with dropout off in both"
        )


def learn(
    roles: Roles,
    experience: Experience,
    rows: Tensor,
    optimizers: dict[str, torch.optim.Optimizer],
    scale: float,
    config: PPOConfig,
    text: Tensor | None,
) -> dict[str, float]:
    """One optimiser step of policy and critic on some rows of a rollout.

    `text` (n, T) are pretraining blocks, or None; `scale` multiplies the learning rates.
    """
    part = experience.rollout.rows(rows)  # without the columns that are padding in all of them
    width = part.response.shape[1]
    old, advantages = experience.logprobs[rows, :width], experience.advantages[rows, :width]
    # The policy: clipped objective, plus gamma times the loss on web pages, in one gradient.
    logprobs = roles.response_logprobs(part, config.temperature)
    ppo, seen = policy_loss(logprobs, old, advantages, part.mask, config.clip)
    ptx = next_token_loss(roles.policy, text) if text is not None else ppo.new_zeros(())
    loss = ppo + config.ptx_coef * ptx
    norm = update(optimizers["policy"], loss, config.lr * scale, config.max_norm)
    # The critic: nearer to the returns.
    values = roles.values(part)
    old_values, returns = experience.values[rows, :width], experience.returns[rows, :width]
    critic = value_loss(values, old_values, returns, part.mask, config.value_clip)
    update(optimizers["critic"], critic, config.critic_lr * scale, config.max_norm)
    numbers = {"policy_loss": ppo, "value_loss": critic, "ptx_loss": ptx, **seen}
    return {name: number.item() for name, number in numbers.items()} | {"norm": norm}


def summarise(experience: Experience, updates: list[dict[str, float]]) -> dict[str, Any]:
    """What a step's record says about its rollout and its updates."""
    rollout = experience.rollout
    means = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
    return {
        "reward": experience.scores.mean().item(),
        "kl": experience.kl.mean().item(),
        "length": rollout.lengths.float().mean().item(),
        "ended": rollout.ended.float().mean().item(),
        "surprise": -(experience.logprobs * rollout.mask).sum().item() / int(rollout.mask.sum()),
        "ratio_first": updates[0]["ratio_mean"],
        **means,
    }


def train_ppo(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: PPOConfig | None = None,
    on_step: OnStep | None = None,
    ptx_blocks: Tensor | None = None,
) -> tuple[Roles, list[Record]]:
    """Train the policy and the critic of `roles`, in place: rollout, evaluation, optimisation.

    Args:
        roles: policy, reference, reward model and critic.
        tokenizer: of all of them.
        prompts: texts to answer; drawn at random, each once before any comes again.
        config: settings; None: the defaults.
        on_step: called with the record of each step.
        ptx_blocks: (N, T) pretraining text, needed if `config.ptx_coef` is not 0.

    Returns:
        The roles, and one record per step: step, reward (mean score), kl (nats per answer),
        length (tokens), ended (share), surprise (nats per token), the losses, clip_fraction,
        approx_kl, ratio_mean, ratio_first, norm, lr, beta, seconds. Ctrl-C returns what there is.

    Raises:
        ValueError: no prompts, or ptx_coef without ptx_blocks.
        RuntimeError: NaN or infinite loss, or step 0 is not what it must be (`check_step_0`).
    """
    config = config or PPOConfig()
    require_some(prompts, "train_ppo", "prompts")
    if config.ptx_coef and ptx_blocks is None:
        raise ValueError("train_ppo: ptx_coef is not 0, so give ptx_blocks, text to mix in")
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    random = torch.Generator().manual_seed(config.seed)
    optimizers = {
        "policy": make_optimizer(roles.policy_parameters(), config.lr, eps=1e-5),
        "critic": make_optimizer(roles.critic_parameters(), config.critic_lr, eps=1e-5),
    }
    queue = torch.empty(0, dtype=torch.long)
    history: list[Record] = []
    start = time.perf_counter()
    with contextlib.suppress(KeyboardInterrupt):
        for step in range(config.steps):
            # 1. Rollout: the policy answers a batch of prompts.
            while len(queue) < config.batch_size:
                queue = torch.cat([queue, torch.randperm(len(ids), generator=random)])
            chosen, queue = queue[: config.batch_size].tolist(), queue[config.batch_size :]
            rollout = generate(
                roles.policy,
                tokenizer,
                [ids[i] for i in chosen],
                config.max_new_tokens,
                config.temperature,
                random,
            )

            # 2. Evaluation: reward model, reference and critic say what each token was worth.
            experience = evaluate_rollout(roles, rollout, config)
            if step == 0:
                check_step_0(experience)

            # 3. Optimisation: a few careful steps uphill.
            scale, updates = warmup_constant(step, config.warmup), []
            for _ in range(config.epochs):
                for rows in torch.randperm(len(rollout), generator=random).split(config.minibatch):
                    text = _pretraining_text(ptx_blocks, config, random)
                    updates.append(learn(roles, experience, rows, optimizers, scale, config, text))

            # 4. Report.
            record = {"step": step, **summarise(experience, updates), "beta": config.beta}
            record |= {"lr": config.lr * scale, "seconds": time.perf_counter() - start}
            history.append(record)
            if on_step is not None:
                on_step(record)
            if config.checkpoint_folder is not None and (step + 1) % config.checkpoint_every == 0:
                write_checkpoint(roles.policy, tokenizer, history, config.checkpoint_folder)
    return roles, history


def _pretraining_text(
    blocks: Tensor | None, config: PPOConfig, random: torch.Generator
) -> Tensor | None:
    """Some random blocks (n, T), or None if nothing is mixed in."""
    if blocks is None or not config.ptx_coef:
        return None
    return blocks[torch.randint(len(blocks), (config.ptx_blocks,), generator=random)]
