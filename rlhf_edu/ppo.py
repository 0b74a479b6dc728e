"""PPO against a reward model, with a KL penalty per token; PPO-ptx (InstructGPT 3.5, C.4)."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_edu.engine.checkpoints import Checkpoint
from rlhf_edu.engine.checks import (
    DROPOUT,
    OnStep,
    Record,
    require_agreement,
    require_between,
    require_finite,
    require_numbers,
    require_positive,
    require_some,
    require_sound,
    require_tokens,
    require_vocabulary,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import economy
from rlhf_edu.engine.parallel import gathered, share, share_of_batch, totals
from rlhf_edu.engine.training import make_optimizer, report, started, update, warmup_constant
from rlhf_edu.generation import generate
from rlhf_edu.losses import (
    gae,
    masked_sum,
    penalise_missing_end,
    policy_loss,
    shaped_rewards,
    value_loss,
    whiten,
)
from rlhf_edu.pretrain import next_token_loss
from rlhf_edu.roles import Roles
from rlhf_edu.sampling import Rollout
from rlhf_edu.tokens import encode_prompt, ending_ids


@dataclass(frozen=True)
class PPOConfig:
    """Settings of `train_ppo`.

    Attributes:
        steps: rollouts; each is learned from and thrown away.
        batch_size: episodes (prompts with answers) per rollout.
        minibatch: episodes per optimiser step.
        epochs: passes over a rollout; InstructGPT made one.
        lr: learning rate of the policy, constant after the warm-up.
        critic_lr: learning rate of the critic, likewise.
        warmup: steps in which the learning rates rise from a tenth.
        beta: price of one nat of KL to the reference, in points of reward.
        clip: how far the ratio may move at once.
        value_clip: how far a value may move at once.
        discount: gamma of generalised advantage estimation; what a reward a token later is worth.
        lam: lambda of generalised advantage estimation.
        missing_eos_penalty: taken from the score of an answer that did not end.
        temperature: of sampling, and of all log-probs.
        max_new_tokens: tokens of the longest answer.
        ptx_coef: gamma of InstructGPT Eq. 2, the weight of pretraining text; 0: plain PPO.
        ptx_blocks: blocks of pretraining text per minibatch.
        max_norm: gradients are clipped to this norm.
        bf16: multiply matrices in bfloat16, see `economy.bf16_products`.
        micro_batch: hold the activations of so many episodes, or blocks of text, at once; the
            backward pass computes them again. 0: of all. See `economy.micro_batches`.
        seed: of the random prompts, samples and minibatches.
        same_start: policy and reference start as the same model, and step 0 checks that they do.
        max_kl: stop when a rollout is more nats per answer from the reference; None: ten for each
            of max_new_tokens, or no limit where beta is 0 and the policy is meant to run away.
        max_constant_steps: stop after so many rollouts in which all answers score the same; 0:
            never.
        checkpoint_every: save the state after so many steps, and after the last one; 0: never.
        checkpoint_folder: where; None: nowhere. A run whose folder holds a checkpoint of it
            goes on from there.
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
    bf16: bool = False
    micro_batch: int = 0
    seed: int = 0
    same_start: bool = True
    max_kl: float | None = None
    max_constant_steps: int = 5
    checkpoint_every: int = 20
    checkpoint_folder: str | Path | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive(self, "steps", "batch_size", "minibatch", "epochs", "lr", "critic_lr")
        require_positive(self, "temperature", "max_new_tokens", "ptx_blocks", "max_norm")
        require_positive(self, "clip", "value_clip")
        require_between(self, 0, float("inf"), "beta", "missing_eos_penalty", "ptx_coef", "warmup")
        require_between(self, 0, float("inf"), "max_constant_steps", "micro_batch")
        require_between(self, 0, float("inf"), "checkpoint_every")
        require_between(self, 0, 1, "discount", "lam")
        if self.max_kl is not None:
            require_positive(self, "max_kl")


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
    with economy(config, roles.policy):
        logprobs, reference, values, scores = _look_at(roles, rollout, config.temperature)
    mask = rollout.mask
    advice = "look at the reward model; a lower learning rate does not help"
    require_finite(scores.sum().item(), "the sum of the reward model's scores", advice)
    require_finite(masked_sum(values, mask).sum().item(), "the sum of the critic's values")
    penalised = penalise_missing_end(scores, rollout.ended, config.missing_eos_penalty)
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


def _look_at(roles: Roles, rollout: Rollout, temperature: float) -> list[Tensor]:
    """Log-probs of policy and reference, values (B, R), and scores (B,)."""
    mine, width = share(range(len(rollout))), rollout.response.shape[1]
    found: list[Tensor] = []
    if mine:
        part = rollout.rows(slice(mine.start, mine.stop))
        logprobs = roles.response_logprobs(part, temperature)
        found = [logprobs, roles.reference_logprobs(part, temperature), roles.values(part)]
        found = [F.pad(x, (0, width - x.shape[1])) for x in found] + [roles.rewards(part)]
    every = gathered(found, rollout.tokens.device)
    return [torch.cat(every[i::4]) for i in range(4)]


def check_step_0(
    roles: Roles, rollout: Rollout, config: PPOConfig, ends: int | list[int]
) -> Record:
    """On a fresh start the policy is the reference and has just answered: KL 0 and ratio 1.

    Args:
        rollout: the first, before any update.
        ends: ids of the tokens that end an answer, see `models.ending_ids`.

    Raises:
        RuntimeError: it is not so; the message names likely causes.
    """
    # 1. Does an answer that ended count its end-of-text, once and last, and no padding?
    ending = torch.isin(rollout.response, torch.tensor(ends, device=rollout.response.device))
    ending = ending & rollout.mask.bool()
    last = ending.gather(1, rollout.lengths[:, None].clamp(min=1) - 1).squeeze(1)
    if (ending.sum(1) != rollout.ended.long()).any() or not last[rollout.ended].all():
        raise RuntimeError(
            "step 0: answers do not end at their first end-of-text; padding is scored, or "
            "end-of-text is taken for padding (pad = EOS confusion): make masks from lengths"
        )
    verdict = "ok: "
    if not rollout.ended.any():
        verdict = (
            f"look: no answer ended within {config.max_new_tokens} tokens; raise max_new_tokens, "
            "or train the policy to end its answers (SFT); "
        )
    # 2. Who learns, and does it agree with itself?
    experience = evaluate_rollout(roles, rollout, config)
    part = rollout.rows(slice(0, config.minibatch))
    with economy(config, roles.policy):
        limit, real = step_0_tolerance(roles.policy), part.mask.bool()
        again = roles.response_logprobs(part, config.temperature)
        reference = roles.reference_logprobs(part, config.temperature)
    if reference.requires_grad or not again.requires_grad:
        raise RuntimeError(
            "step 0: the gradient does not reach the policy, or reaches the reference; are policy "
            "and reference swapped?"
        )
    before = experience.logprobs[: len(part), : part.response.shape[1]]
    require_agreement(before[real], again.detach()[real], limit, "two passes", DROPOUT)
    # 3. Sampling and training: the ratio of the first minibatch is 1.
    real = rollout.mask.bool()
    why = (
        "sampling and training disagree: look for dropout, another temperature, positions counted "
        "without the mask, or a shift by one"
    )
    what = "log-probs of the sampled tokens, then and now,"
    require_agreement(experience.logprobs[real], rollout.logprobs[real], limit, what, why)
    if not config.same_start:
        return {"step_0": f"{verdict}ratio 1; KL {experience.kl.mean().item():.3g}, need not be 0"}
    # 4. Policy and reference.
    if not experience.kl.abs().max() <= limit:
        raise RuntimeError(
            f"step 0: KL to the reference is {experience.kl.abs().max():.3g} nats, not 0; policy "
            "and reference must start as the same model, with dropout off in both and the same "
            "temperature; if they are meant to differ, set PPOConfig.same_start=False"
        )
    return {"step_0": f"{verdict}ratio 1, KL 0"}


def check_progress(history: list[Record], config: PPOConfig) -> None:
    """After a step: is there something to learn from, and is the policy still near the reference?

    Raises:
        RuntimeError: all answers have scored the same for some steps, or the KL has run away.
    """
    n = config.max_constant_steps if config.batch_size > 1 else 0
    if n and len(history) >= n and not any(record["reward_spread"] for record in history[-n:]):
        raise RuntimeError(
            f"PPO stopped: all answers of the last {n} rollouts scored "
            f"{history[-1]['reward']:.4g}, so there is nothing to learn; look at the reward model, "
            "and whether the answers differ at all (temperature, prompts)"
        )
    limit = config.max_kl
    if limit is None:
        limit = 10.0 * config.max_new_tokens if config.beta else float("inf")
    if history[-1]["kl"] > limit:
        raise RuntimeError(
            f"PPO stopped: KL to the reference is {history[-1]['kl']:.4g} nats per answer, above "
            f"{limit:.4g}; raise beta, lower lr or epochs, or raise PPOConfig.max_kl"
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
    lengths = experience.rollout.lengths
    rows, weight = share_of_batch(rows, lambda row: int(lengths[row]))
    part = experience.rollout.rows(rows)  # without the columns that are padding in all of them
    width = part.response.shape[1]
    old, advantages = experience.logprobs[rows, :width], experience.advantages[rows, :width]
    # The policy: clipped objective, plus gamma times the loss on web pages, in one gradient.
    with economy(config, roles.policy):
        logprobs = roles.response_logprobs(part, config.temperature)
        ppo, seen = policy_loss(logprobs, old, advantages, part.mask, config.clip)
        numbers = {"policy_loss": ppo, "ptx_loss": ppo.new_zeros(()), **seen}
        numbers = {name: weight * number for name, number in numbers.items()}
        if text is not None:
            text, part_of_text = share_of_batch(text, lambda block: 1)
            numbers["ptx_loss"] = part_of_text * next_token_loss(roles.policy, text)
        loss = numbers["policy_loss"] + config.ptx_coef * numbers["ptx_loss"]
    norm = update(optimizers["policy"], loss, config.lr * scale, config.max_norm)
    # The critic: nearer to the returns.
    with economy(config, roles.policy):
        values = roles.values(part)
    old_values, returns = experience.values[rows, :width], experience.returns[rows, :width]
    critic = weight * value_loss(values, old_values, returns, part.mask, config.value_clip)
    update(optimizers["critic"], critic, config.critic_lr * scale, config.max_norm)
    return totals(**numbers, value_loss=critic) | {"norm": norm}


def summarise(experience: Experience, updates: list[dict[str, float]]) -> dict[str, Any]:
    """What a step's record says about its rollout and its updates."""
    rollout = experience.rollout
    means = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
    return {
        "reward": experience.scores.mean().item(),
        "reward_spread": (experience.scores.max() - experience.scores.min()).item(),
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
        config, on_step: settings, and what is called with the record of each step.
        ptx_blocks: (N, T) pretraining text, needed if `config.ptx_coef` is not 0.

    Returns:
        The roles, and one record per step, until the end or Ctrl-C: step, reward (mean score),
        reward_spread (best less worst), kl (nats per answer), length (tokens), ended (share),
        surprise (nats per token), the losses, clip_fraction, approx_kl, ratio_mean, ratio_first,
        norm, lr, beta, seconds, and on the first step_0, what `check_step_0` found.

    Raises:
        ValueError: no prompts, a prompt too long, or ptx_coef without ptx_blocks.
        RuntimeError: NaN or infinity somewhere, or `check_step_0`, `check_progress` or
            `training.require_progress` stopped the run.
    """
    config = config or PPOConfig()
    ids = _prepare(roles, tokenizer, prompts, config, ptx_blocks)
    optimizers, ends = _make_optimizers(roles, config), ending_ids(roles.policy, tokenizer)
    random, queue = torch.Generator().manual_seed(config.seed), []
    saved = _checkpoint(roles, tokenizer, config, optimizers, [ids, ptx_blocks], random, queue)
    history = saved.resume()
    start = started(history)
    with contextlib.suppress(KeyboardInterrupt):
        for step in range(len(history), config.steps):
            # 1. Rollout: the policy answers a batch of prompts.
            chosen = [ids[i] for i in _draw_prompts(queue, len(ids), config.batch_size, random)]
            limits = config.max_new_tokens, config.temperature
            with economy(config, roles.policy):
                rollout = generate(roles.policy, tokenizer, chosen, *limits, random)

            # 2. Evaluation: reward model, reference and critic say what each token was worth.
            note = saved.note(step) if step else check_step_0(roles, rollout, config, ends)
            experience = evaluate_rollout(roles, rollout, config)

            # 3. Optimisation: a few careful steps uphill.
            scale, updates = warmup_constant(step, config.warmup), []
            for _ in range(config.epochs):
                for rows in torch.randperm(len(rollout), generator=random).split(config.minibatch):
                    text = _pretraining_text(ptx_blocks, config, random)
                    updates.append(learn(roles, experience, rows, optimizers, scale, config, text))

            # 4. Report and save; stop if there is no use in going on.
            record = {"step": step, **summarise(experience, updates), "beta": config.beta}
            record |= {"lr": config.lr * scale, "seconds": time.perf_counter() - start, **note}
            report(history, record, on_step)
            check_progress(history, config)
            saved.save_if_due(history, last=step + 1 == config.steps)
    return roles, history


def _prepare(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: PPOConfig,
    ptx_blocks: Tensor | None,
) -> list[list[int]]:
    """Token ids of the prompts, once it is sure that nothing is missing and that they fit."""
    require_tokens(tokenizer, "train_ppo")
    require_some(prompts, "train_ppo", "prompts")
    if config.ptx_coef and ptx_blocks is None:
        raise ValueError("train_ppo: ptx_coef is not 0, so give ptx_blocks, text to mix in")
    for name in ("policy", "reference", "reward_model", "critic"):
        if hasattr(roles, name):
            require_vocabulary(getattr(roles, name), tokenizer, f"train_ppo: the {name}")
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for name in ("reference", "reward_model", "critic", "policy"):
        model = getattr(roles, name, None)
        if isinstance(model, torch.nn.Module):
            longest = max(map(len, ids)) + config.max_new_tokens
            require_sound(model, f"train_ppo, {name}", longest)
    return ids


def _make_optimizers(roles: Roles, config: PPOConfig) -> dict[str, torch.optim.Optimizer]:
    # An epsilon of 1e-5 keeps the first steps small, as in the original code.
    return {
        "policy": make_optimizer(roles.policy_parameters(), config.lr, eps=1e-5),
        "critic": make_optimizer(roles.critic_parameters(), config.critic_lr, eps=1e-5),
    }


def _draw_prompts(
    queue: list[int], count: int, batch_size: int, random: torch.Generator
) -> list[int]:
    """Take the next row numbers from the queue, in place; shuffle all `count` in as it runs out."""
    while len(queue) < batch_size:
        queue += torch.randperm(count, generator=random).tolist()
    chosen, queue[:] = queue[:batch_size], queue[batch_size:]
    return chosen


def _checkpoint(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    config: PPOConfig,
    optimizers: dict[str, torch.optim.Optimizer],
    data: Any,
    random: torch.Generator,
    queue: list[int],
) -> Checkpoint:
    """All that a PPO run consists of; reference and reward model too, where they are networks."""
    others = [getattr(roles, name, None) for name in ("reference", "reward_model")]
    return Checkpoint(
        config,
        roles.policy,
        optimizers,
        data,
        tokenizer,
        frozen=[model for model in others if isinstance(model, torch.nn.Module)],
        generator=random,
        queue=queue,
    )


def _pretraining_text(
    blocks: Tensor | None, config: PPOConfig, random: torch.Generator
) -> Tensor | None:
    """Some random blocks (n, T), or None if nothing is mixed in."""
    if blocks is None or not config.ptx_coef:
        return None
    return blocks[torch.randint(len(blocks), (config.ptx_blocks,), generator=random)]
