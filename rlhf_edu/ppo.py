"""PPO against a reward model, with a KL penalty per token; PPO-ptx (InstructGPT 3.5, C.4)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_edu.engine.checks import (
    DROPOUT,
    OnStep,
    Record,
    require_agreement,
    require_between,
    require_finite,
    require_positive,
    require_some,
    require_sound,
    require_tokens,
    require_vocabulary,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import bf16_products, economy
from rlhf_edu.engine.loop import Loop, OnPhase, Optimizers, TrainConfig, begin
from rlhf_edu.engine.parallel import fetched, share_of_batch, together, totals
from rlhf_edu.engine.training import make_optimizer, update, warmup_constant
from rlhf_edu.generation import generate
from rlhf_edu.losses import (
    gae,
    group_advantages,
    kl_k3,
    leave_one_out,
    masked_mean,
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

Baseline = Literal["critic", "rloo", "grpo"]
Reward = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class PPOConfig(TrainConfig):
    """Settings of `train_ppo`. Taught in chapter 06."""

    steps: int = 60
    """Rollouts; each is learned from and thrown away."""
    batch_size: int = 64
    """Episodes, that is prompts with answers, per rollout."""
    minibatch: int = 64
    """Episodes per optimiser step."""
    epochs: int = 2
    """Passes over a rollout; InstructGPT made one."""
    lr: float = 2e-4
    """Learning rate of the policy, constant after the warm-up."""
    critic_lr: float = 3e-4
    """Learning rate of the critic, constant after the warm-up."""
    warmup: int = 5
    """Steps in which the learning rates rise from a tenth."""
    baseline: Baseline = "critic"
    """What an answer is compared with: the critic's values, or the other answers to its prompt, as
    in RLOO or GRPO, which have no critic."""
    answers_per_prompt: int = 1
    """How many episodes of a rollout answer the same prompt; 2 or more for rloo and grpo."""
    beta: float = 0.05
    """Price of one nat of KL to the reference, in points of reward."""
    clip: float = 0.2
    """How far the ratio of new to old probability may move from 1 at once."""
    value_clip: float = 0.2
    """How far a value of the critic may move at once."""
    discount: float = 1.0
    """Gamma of generalised advantage estimation."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    missing_eos_penalty: float = 1.0
    """What an answer pays that did not end, see `losses.penalise_missing_end`."""
    temperature: float = 1.0
    """Temperature of sampling, and of all log-probs."""
    max_new_tokens: int = 48
    """Tokens of the longest answer."""
    ptx_coef: float = 0.0
    """Weight of pretraining text, gamma of InstructGPT Eq. 2; 0: plain PPO."""
    ptx_blocks: int = 4
    """Blocks of pretraining text per minibatch."""
    same_start: bool = True
    """Policy and reference start as the same model, and step 0 checks that they do."""
    max_kl: float | None = None
    """Stop when a rollout is more nats per answer from the reference; None: ten for each of
    max_new_tokens, or no limit where beta is 0 and the policy is meant to run away."""
    max_constant_steps: int = 5
    """Stop after so many rollouts in which all answers score the same; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps", "minibatch", "critic_lr", "answers_per_prompt")
        require_positive(self, "temperature", "max_new_tokens", "ptx_blocks", "clip", "value_clip")
        require_between(self, 0, float("inf"), "beta", "missing_eos_penalty", "ptx_coef")
        require_between(self, 0, float("inf"), "max_constant_steps")
        require_between(self, 0, 1, "discount", "lam")
        if self.max_kl is not None:
            require_positive(self, "max_kl")
        if self.batch_size % self.answers_per_prompt:
            raise ValueError(
                f"PPOConfig: batch_size {self.batch_size} must be a multiple of answers_per_prompt "
                f"{self.answers_per_prompt}"
            )
        if self.baseline not in get_args(Baseline):
            known = ", ".join(get_args(Baseline))
            raise ValueError(f"PPOConfig: baseline must be one of {known}, not {self.baseline!r}")
        if self.baseline != "critic" and self.answers_per_prompt < 2:
            raise ValueError(
                f"PPOConfig: baseline {self.baseline!r} compares answers to one prompt, so set "
                "answers_per_prompt to 2 or more"
            )


@dataclass(frozen=True)
class Formulas:
    """The four formulas of PPO; give `train_ppo` your own for any of them. Taught in chapter 06.

    Attributes:
        token_rewards: (scores (B,), logprobs, ref_logprobs, mask (B, R), beta) -> rewards (B, R).
        advantages: (rewards, values, mask (B, R), discount, lam) -> advantages, returns (B, R).
        policy_loss: (logprobs, old_logprobs, advantages, mask (B, R), clip) -> a scalar, or that
            and a dict of scalars to log.
        value_loss: (values, old_values, returns, mask (B, R), clip) -> a scalar.
    """

    token_rewards: Callable[..., Tensor] = shaped_rewards
    advantages: Callable[..., tuple[Tensor, Tensor]] = gae
    policy_loss: Callable[..., Any] = policy_loss
    value_loss: Callable[..., Tensor] = value_loss


FORMULAS = Formulas()


@dataclass(frozen=True)
class Experience:
    """What a rollout is worth, computed once, before learning from it. All without gradient.

    Taught in chapter 06.

    Attributes:
        rollout: prompts and answers.
        logprobs: (B, R) under the policy that answered, nats.
        ref_logprobs: (B, R) under the reference, nats.
        values: (B, R) of the critic, before each token; 0 without a critic.
        advantages: (B, R).
        returns: (B, R), the critic's target; 0 without a critic.
        scores: (B,) of the reward model, without penalties.
        kl: (B,) estimates of the KL to the reference, nats per answer.
    """

    rollout: Rollout
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor
    kl: Tensor


@torch.no_grad()
def evaluate_rollout(
    roles: Roles,
    rollout: Rollout,
    config: PPOConfig,
    scores: Tensor | None = None,
    formulas: Formulas = FORMULAS,
) -> Experience:
    """Phase two of a PPO step: what was every token worth? Taught in chapter 06.

    Args:
        scores: (B,) of the answers; None: the reward model's.
    """
    # What reference, critic and reward model say, and the policy itself.
    seen = _look_at(roles, rollout, config, scores)
    logprobs, reference, mask = seen["logprobs"], seen["reference"], rollout.mask
    kl = masked_sum(logprobs - reference, mask)
    advice = "look at the reward model; a lower learning rate does not help"
    sums = fetched(scores=seen["scores"].sum(), values=masked_sum(seen["values"], mask).sum())
    require_finite(sums["scores"], "the sum of the reward model's scores", advice)
    require_finite(sums["values"], "the sum of the critic's values")
    # An answer that did not end pays for it, before anything is compared.
    penalised = penalise_missing_end(seen["scores"], rollout.ended, config.missing_eos_penalty)
    if config.baseline == "critic":
        # Each token pays for its KL, and the last one earns the score; the critic's values say how
        # much of it was to be expected.
        rewards = formulas.token_rewards(penalised, logprobs, reference, mask, config.beta)
        advantages, returns = formulas.advantages(
            rewards, seen["values"], mask, config.discount, config.lam
        )
        # Returns are the critic's target: computed before the advantages are whitened.
        advantages = whiten(advantages, mask)
    else:
        advantages = _compared_with_others(penalised, kl, config)[:, None] * mask
        returns = torch.zeros_like(logprobs)
    return Experience(
        rollout=rollout,
        logprobs=logprobs,
        ref_logprobs=reference,
        values=seen["values"],
        advantages=advantages,
        returns=returns,
        scores=seen["scores"],
        kl=kl,
    )


def _compared_with_others(scores: Tensor, kl: Tensor, config: PPOConfig) -> Tensor:
    """Advantages (B,) of whole answers over the other answers to their prompts."""
    answers = (-1, config.answers_per_prompt)
    if config.baseline == "rloo":
        # An answer's price in KL is part of what it is worth.
        return leave_one_out((scores - config.beta * kl).view(answers)).flatten()
    # GRPO takes the KL into the loss, and not into the reward.
    return group_advantages(scores.view(answers)).flatten()


def _look_at(
    roles: Roles, rollout: Rollout, config: PPOConfig, scores: Tensor | None
) -> dict[str, Tensor]:
    """Log-probs of policy and reference and the critic's values (B, R), and scores (B,)."""
    width = rollout.response.shape[1]

    def look(rows: range) -> dict[str, Tensor]:
        part = rollout.rows(slice(rows.start, rows.stop))
        logprobs = roles.response_logprobs(part, config.temperature)
        reference = roles.reference_logprobs(part, config.temperature)
        critic = config.baseline == "critic"
        tokens = {
            "logprobs": logprobs,
            "reference": reference,
            "values": roles.values(part) if critic else torch.zeros_like(logprobs),
        }
        found = {name: F.pad(x, (0, width - x.shape[1])) for name, x in tokens.items()}
        found["scores"] = roles.rewards(part) if scores is None else scores[rows.start : rows.stop]
        return found

    with economy(config, roles.policy):
        return together(look, len(rollout), rollout.tokens.device)


def check_step_0(
    roles: Roles,
    rollout: Rollout,
    config: PPOConfig,
    ends: int | list[int],
    scores: Tensor | None = None,
) -> Record:
    """On a fresh start the policy is the reference and has just answered: KL 0 and ratio 1.

    Taught in chapter 06.

    Args:
        rollout: the first, before any update.
        ends: ids of the tokens that end an answer, see `tokens.ending_ids`.
        scores: (B,) of the answers; None: the reward model's.

    Raises:
        RuntimeError: it is not so; the message names likely causes.
    """
    # 1. Does an answer that ended count its end-of-text, once and last, and no padding?
    verdict = _about_ends(rollout, ends, config)
    # 2. Who learns, and does it agree with itself?
    experience = evaluate_rollout(roles, rollout, config, scores)
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


def _about_ends(rollout: Rollout, ends: int | list[int], config: PPOConfig) -> str:
    """The words "ok: ", or a remark if no answer ended.

    Raises:
        RuntimeError: an end is not where an answer ends.
    """
    ending = torch.isin(rollout.response, torch.tensor(ends, device=rollout.response.device))
    ending = ending & rollout.mask.bool()
    last = ending.gather(1, rollout.lengths[:, None].clamp(min=1) - 1).squeeze(1)
    if (ending.sum(1) != rollout.ended.long()).any() or not last[rollout.ended].all():
        raise RuntimeError(
            "step 0: answers do not end at their first end-of-text; padding is scored, or "
            "end-of-text is taken for padding (pad = EOS confusion): make masks from lengths"
        )
    if rollout.ended.any():
        return "ok: "
    return (
        f"look: no answer ended within {config.max_new_tokens} tokens; raise max_new_tokens, or "
        "train the policy to end its answers (SFT); "
    )


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
    optimizers: Optimizers,
    scale: float,
    config: PPOConfig,
    text: Tensor | None,
    formulas: Formulas = FORMULAS,
) -> dict[str, float]:
    """One optimiser step of policy and critic on some rows of a rollout. Taught in chapter 06.

    Args:
        rows: (n,) row numbers.
        scale: multiplies the learning rates.
        text: (n, T) pretraining blocks, or None.
    """
    lengths = experience.rollout.lengths
    rows, weight = share_of_batch(rows, lambda row: int(lengths[row]))
    part = experience.rollout.rows(rows)  # without the columns that are padding in all of them
    # What was computed for the whole rollout, in the columns that are left.
    width = part.response.shape[1]
    old, advantages = experience.logprobs[rows, :width], experience.advantages[rows, :width]
    # 1. The policy's objective: the clipped surrogate; for GRPO, the KL; for PPO-ptx, gamma times
    # the loss on web pages; in one gradient.
    with economy(config, roles.policy):
        logprobs = roles.response_logprobs(part, config.temperature)
        found = formulas.policy_loss(logprobs, old, advantages, part.mask, config.clip)
        surrogate, seen = found if isinstance(found, tuple) else (found, {})
        numbers = {"policy_loss": surrogate, "ptx_loss": surrogate.new_zeros(()), **seen}
        numbers = {name: weight * number for name, number in numbers.items()}
        if text is not None:
            text, part_of_text = share_of_batch(text, lambda block: 1)
            numbers["ptx_loss"] = part_of_text * next_token_loss(roles.policy, text)
        objective = numbers["policy_loss"] + config.ptx_coef * numbers["ptx_loss"]
        if config.baseline == "grpo":
            away = kl_k3(logprobs, experience.ref_logprobs[rows, :width])
            objective = objective + config.beta * weight * masked_mean(away, part.mask)
    norm = update(optimizers["policy"], objective, config.lr * scale, config.max_norm)
    # 2. The critic's loss: nearer to the returns.
    if "critic" in optimizers:
        with economy(config, roles.policy):
            values = roles.values(part)
        before, returns = experience.values[rows, :width], experience.returns[rows, :width]
        loss = formulas.value_loss(values, before, returns, part.mask, config.value_clip)
        numbers["value_loss"] = weight * loss
        critic_lr = config.critic_lr * scale
        update(optimizers["critic"], numbers["value_loss"], critic_lr, config.max_norm)
    return totals(**numbers) | {"norm": norm}


def summarise(experience: Experience, updates: list[dict[str, float]]) -> dict[str, Any]:
    """What a step's record says: its rollout, and the means over its updates.

    reward (mean score), reward_spread (best less worst), kl (nats per answer), length (tokens),
    ended (share), surprise (nats per token), policy_loss, ptx_loss, value_loss, clip_fraction,
    approx_kl, ratio_mean, ratio_first (of the first update), norm; the record has step, beta, lr
    and seconds besides, and the first one step_0, what `check_step_0` found.
    """
    rollout, scores = experience.rollout, experience.scores
    means = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
    first = {"ratio_first": updates[0]["ratio_mean"]} if "ratio_mean" in means else {}
    seen = fetched(
        reward=scores.mean(),
        reward_spread=scores.max() - scores.min(),
        kl=experience.kl.mean(),
        length=rollout.lengths.float().mean(),
        ended=rollout.ended.float().mean(),
        surprise=-(experience.logprobs * rollout.mask).sum().double() / rollout.mask.sum(),
    )
    return seen | first | means


def train_ppo(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: PPOConfig | None = None,
    on_step: OnStep | None = None,
    ptx_blocks: Tensor | None = None,
    reward: Reward | None = None,
    formulas: Formulas = FORMULAS,
    on_phase: OnPhase | None = None,
) -> tuple[Roles, list[Record]]:
    """Train policy and critic, in place: rollout, evaluation, optimisation. Taught in chapter 06.

    Args:
        roles: policy, reference, reward model and critic.
        prompts: texts to answer; drawn at random, each once before any comes again.
        config, on_step: settings, and what is called with the record of each step.
        ptx_blocks: (N, T) pretraining text, needed if `config.ptx_coef` is not 0.
        reward: from n prompts and n answers, as texts, to n scores, instead of the reward model.
        formulas: your own, as `Formulas(policy_loss=mine)`.
        on_phase: called with "rollout", "evaluation" and "optimisation" as each begins.

    Returns:
        The roles, and one record per step, until the end or Ctrl-C; see `summarise`.

    Raises:
        ValueError: a role, prompts or ptx_blocks are missing, or a prompt is too long.
        RuntimeError: NaN or infinity somewhere, or a check stopped the run.
    """
    config = config or PPOConfig()
    ids = _prepare(roles, tokenizer, prompts, config, ptx_blocks, reward)
    optimizers, ends = _make_optimizers(roles, config), ending_ids(roles.policy, tokenizer)
    random, queue, data = torch.Generator().manual_seed(config.seed), [], [ids, ptx_blocks]
    loop, config = _loop(roles, tokenizer, config, optimizers, data, random, queue, on_step)
    with loop:
        for step in loop.steps(config.steps):
            # 1. Rollout: the policy answers a batch of prompts.
            begin(on_phase, "rollout")
            drawn = _draw_prompts(queue, len(ids), config, random)
            rollout = _answer(roles, tokenizer, [ids[i] for i in drawn], config, random)

            # 2. Evaluation: reward model, reference and critic say what each token was worth.
            begin(on_phase, "evaluation")
            scores = _scores(reward, [prompts[i] for i in drawn], rollout, tokenizer)
            if step == 0:
                loop.note(check_step_0(roles, rollout, config, ends, scores))
            experience = evaluate_rollout(roles, rollout, config, scores, formulas)

            # 3. Optimisation: a few careful steps uphill.
            begin(on_phase, "optimisation")
            scale = warmup_constant(step, config.warmup)
            updates = [
                learn(roles, experience, rows, optimizers, scale, config, text, formulas)
                for rows, text in _minibatches(len(rollout), config, random, ptx_blocks)
            ]

            # 4. Report and save; stop if there is no use in going on.
            more = {"beta": config.beta, "lr": config.lr * scale}
            loop.report(**summarise(experience, updates), **more)
    return roles, loop.history


def _require_roles(roles: Roles, config: PPOConfig, reward: Reward | None) -> None:
    """Raise ValueError if a role that the settings ask for is empty."""
    if reward is None and getattr(roles, "reward_model", roles) is None:
        raise ValueError("train_ppo: there is no reward model; give one, or reward=…")
    if config.baseline == "critic" and not roles.critic_parameters():
        raise ValueError(
            'train_ppo: there is no critic; give one, or set PPOConfig(baseline="rloo")'
        )


def _prepare(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: PPOConfig,
    ptx_blocks: Tensor | None,
    reward: Reward | None,
) -> list[list[int]]:
    """Token ids of the prompts, once it is sure that nothing is missing and that they fit."""
    _require_roles(roles, config, reward)
    require_tokens(tokenizer, "train_ppo")
    require_some(prompts, "train_ppo", "prompts")
    if config.ptx_coef and ptx_blocks is None:
        raise ValueError("train_ppo: ptx_coef is not 0, so give ptx_blocks, text to mix in")
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, ids)) + config.max_new_tokens
    looked_at: list[torch.nn.Module] = []  # with LoRA all roles are one model
    for name in ("reference", "reward_model", "critic", "policy"):
        model = getattr(roles, name, None)
        if isinstance(model, torch.nn.Module) and not any(model is one for one in looked_at):
            looked_at.append(model)
            require_vocabulary(model, tokenizer, f"train_ppo: the {name}")
            require_sound(model, f"train_ppo, {name}", longest)
    return ids


def _make_optimizers(roles: Roles, config: PPOConfig) -> Optimizers:
    # An epsilon of 1e-5 keeps the first steps small, as in the original code.
    decay = config.weight_decay
    optimizers = {"policy": make_optimizer(roles.policy_parameters(), config.lr, decay, eps=1e-5)}
    if config.baseline == "critic":
        learners = roles.critic_parameters()
        optimizers["critic"] = make_optimizer(learners, config.critic_lr, decay, eps=1e-5)
    return optimizers


def _loop(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    config: PPOConfig,
    optimizers: Optimizers,
    data: list[Any],
    random: torch.Generator,
    queue: list[int],
    on_step: OnStep | None,
) -> tuple[Loop, PPOConfig]:
    """All that a PPO run consists of, reference and reward model too, where they are networks; and
    its settings, see `Loop.fitted`.
    """
    others = [getattr(roles, name, None) for name in ("reference", "reward_model")]
    loop = Loop(
        config,
        roles.policy,
        optimizers,
        data,
        tokenizer,
        on_step,
        frozen=[model for model in others if isinstance(model, torch.nn.Module)],
        generator=random,
        queue=queue,
        check=lambda history: check_progress(history, config),
    )
    rows, answer = min(config.minibatch, config.batch_size), config.max_new_tokens
    return loop, loop.fitted(rows, max(map(len, data[0])) + answer, answer)


def _draw_prompts(
    queue: list[int], count: int, config: PPOConfig, random: torch.Generator
) -> list[int]:
    """Row numbers of a rollout's prompts, each as often as it is to be answered.

    The next ones are taken from the queue, in place; as it runs out all `count` are shuffled in.
    """
    wanted = config.batch_size // config.answers_per_prompt
    while len(queue) < wanted:
        queue += torch.randperm(count, generator=random).tolist()
    chosen, queue[:] = queue[:wanted], queue[wanted:]
    return [i for i in chosen for _ in range(config.answers_per_prompt)]


def _scores(
    reward: Reward | None,
    prompts: list[str],
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
) -> Tensor | None:
    """What a reader's own reward says of a rollout, (B,); None where the reward model is asked.

    Raises:
        ValueError: it does not return one finite number for each answer.
    """
    if reward is None:
        return None
    found = torch.as_tensor(reward(prompts, rollout.texts(tokenizer)), dtype=torch.float32)
    if found.shape != (len(rollout),) or not found.isfinite().all():
        raise ValueError(
            f"train_ppo: reward must return {len(rollout)} finite numbers, one for each answer, "
            f"not {found.tolist()}"
        )
    return found.to(rollout.tokens.device)


def _answer(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    config: PPOConfig,
    random: torch.Generator,
) -> Rollout:
    limits = config.max_new_tokens, config.temperature
    # Weights of 16 bits are quick as they are, and autocast would cost a GPU its recording.
    wide = roles.policy.dtype == torch.float32
    with bf16_products(roles.policy, config.bf16 and wide):
        return generate(roles.policy, tokenizer, prompts, *limits, random)


def _minibatches(
    episodes: int, config: PPOConfig, random: torch.Generator, blocks: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Row numbers, shuffled anew in every epoch, each time with some random pretraining text.

    The text is (n, T), or None if nothing is mixed in.
    """
    for _ in range(config.epochs):
        for rows in torch.randperm(episodes, generator=random).split(config.minibatch):
            text = None
            if blocks is not None and config.ptx_coef:
                text = blocks[torch.randint(len(blocks), (config.ptx_blocks,), generator=random)]
            yield rows, text
