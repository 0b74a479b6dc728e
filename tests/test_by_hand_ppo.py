"""PPO's updates on paper, with every setting away from its default; see `test_by_hand.py`."""

from dataclasses import dataclass, replace

import by_hand
import pytest
import tiny_models as tiny
import torch
from by_hand import BLOCKS, EOS, TOK, Run, assert_every_setting_matters, assert_same, encode_prompt
from torch import Tensor

from rlhf_edu.generation import generate
from rlhf_edu.losses import gae, kl_k3, policy_loss, ptx_loss, value_loss
from rlhf_edu.models import scalar_model_from
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.roles import SeparateRoles

# test_economy.py, test_resume.py, and what only stops a run: test_step0.py, test_bad_input.py.
ELSEWHERE = {"bf16", "micro_batch", "checkpoint_every", "checkpoint_folder"}
ELSEWHERE |= {"same_start", "max_kl", "max_constant_steps"}

PROMPTS = [tiny.prompt(i).text for i in range(7)]
PPO = PPOConfig(
    steps=2,
    batch_size=4,
    minibatch=3,
    epochs=3,
    lr=3e-3,
    critic_lr=1e-2,
    warmup=3,
    weight_decay=0.1,
    answers_per_prompt=2,
    beta=0.3,
    clip=0.1,
    value_clip=0.1,
    discount=0.9,
    lam=0.8,
    missing_eos_penalty=2.5,
    temperature=0.7,
    max_new_tokens=5,
    ptx_coef=0.5,
    ptx_blocks=3,
    max_norm=0.7,
    micro_batch=2,
    seed=11,
    same_start=False,
)


PPO_CONFIGS = {name: replace(PPO, baseline=name) for name in ("critic", "rloo", "grpo")}


def make_roles(config: PPOConfig = PPO) -> SeparateRoles:
    """Four models, no two of them alike but the critic and the reward model."""
    policy, reward_model = by_hand.llama(), scalar_model_from(by_hand.llama(1))
    with torch.no_grad():
        policy.lm_head.weight[EOS] *= -3  # so that some answers end
    critic = config.baseline == "critic"
    return SeparateRoles(policy, reward_model, reference=by_hand.llama(3), use_critic=critic)


def learners(roles: SeparateRoles) -> list[torch.nn.Module]:
    return [model for model in (roles.policy, roles.critic) if model is not None]


@dataclass
class Episode:
    """A prompt, its answer, and what its tokens were worth when it was written."""

    prompt: list[int]
    answer: list[int]
    old: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    score: float
    paid: float  # the score, less what an answer without end pays
    kl: float

    @property
    def ended(self) -> bool:
        return self.answer[-1] == EOS


@torch.no_grad()
def look_at(roles: SeparateRoles, prompt: list[int], answer: list[int], config) -> Episode:
    old = by_hand.logprobs(roles.policy, prompt, answer, config.temperature)
    reference = by_hand.logprobs(roles.reference, prompt, answer, config.temperature)
    values = torch.zeros_like(old)
    if config.baseline == "critic":
        values = by_hand.values(roles.critic, prompt, answer)
    score = by_hand.score(roles.reward_model, prompt, answer).item()
    paid = score if answer[-1] == EOS else min(score, 0) - config.missing_eos_penalty
    # The penalty is on every token, the score on the last one.
    rewards = -config.beta * (old - reference)
    rewards[-1] += paid
    one_row = rewards[None], values[None], torch.ones(1, len(answer))
    advantages, returns = gae(*one_row, config.discount, config.lam)
    kl = (old - reference).sum().item()
    found = advantages[0], returns[0], score, paid, kl
    return Episode(prompt, answer, old, reference, values, *found)


def rollout(roles: SeparateRoles, prompts: list, config: PPOConfig, random) -> list[Episode]:
    settings = config.max_new_tokens, config.temperature, random
    found = generate(roles.policy, TOK, prompts, *settings)
    answers = [row[:n].tolist() for row, n in zip(found.response, found.lengths, strict=True)]
    episodes = [look_at(roles, *both, config) for both in zip(prompts, answers, strict=True)]
    if config.baseline != "critic":
        compare(episodes, config)
        return episodes
    # Advantages are whitened: over all tokens of the rollout they have mean 0 and variance 1.
    every = torch.cat([episode.advantages for episode in episodes])
    for episode in episodes:
        episode.advantages = (episode.advantages - every.mean()) / every.std(correction=0)
    return episodes


def compare(episodes: list[Episode], config: PPOConfig) -> None:
    """Each token's advantage is its answer's, over the other answers to the same prompt."""
    k = config.answers_per_prompt
    for group in by_hand.chunks(episodes, k):
        assert len({tuple(episode.prompt) for episode in group}) == 1
        worth = torch.tensor([episode.paid for episode in group])
        if config.baseline == "rloo":  # the KL is a price, and the mean that of the others
            worth = worth - config.beta * torch.tensor([episode.kl for episode in group])
            better = [worth[i] - (worth.sum() - worth[i]) / (k - 1) for i in range(k)]
        else:  # in units of the group's spread
            better = (worth - worth.mean()) / (worth.std(correction=0) + 1e-6)
        for episode, advantage in zip(group, better, strict=True):
            episode.advantages = torch.full_like(episode.old, float(advantage))


def learn(roles, part: list[Episode], descents, scale: float, config, text) -> dict[str, float]:
    """One step of policy and critic on a minibatch, a mean over its tokens."""
    new = [by_hand.logprobs(roles.policy, e.prompt, e.answer, config.temperature) for e in part]
    names = ("old", "advantages", "reference")
    old, advantages, reference = (torch.cat([getattr(e, k) for e in part]) for k in names)
    mask = torch.ones(len(old))
    ppo, seen = policy_loss(torch.cat(new), old, advantages, mask, config.clip)
    ptx = torch.zeros(()) if text is None else ptx_loss(roles.policy(input_ids=text).logits, text)
    objective = ppo + config.ptx_coef * ptx
    if config.baseline == "grpo":  # the KL is a part of the loss, by k3
        objective = objective + config.beta * kl_k3(torch.cat(new), reference).mean()
    norm = descents[0].step(objective, config.lr * scale, config.max_norm)
    losses = {"policy_loss": ppo, "ptx_loss": ptx, **seen}
    if config.baseline == "critic":
        losses["value_loss"] = learn_critic(roles, part, descents[1], scale, config)
    return {name: number.item() for name, number in losses.items()} | {"norm": norm}


def learn_critic(roles, part: list[Episode], descent, scale: float, config) -> Tensor:
    values = torch.cat([by_hand.values(roles.critic, e.prompt, e.answer) for e in part])
    before, returns = (torch.cat([getattr(e, k) for e in part]) for k in ("values", "returns"))
    loss = value_loss(values, before, returns, torch.ones(len(values)), config.value_clip)
    descent.step(loss, config.critic_lr * scale, config.max_norm)
    return loss


def web_text(config: PPOConfig, random) -> Tensor | None:
    if not config.ptx_coef:
        return None
    return BLOCKS[torch.randint(len(BLOCKS), (config.ptx_blocks,), generator=random)]


def ppo_by_hand(config: PPOConfig) -> Run:
    roles, queue = make_roles(config), []
    models, k = learners(roles), config.answers_per_prompt
    descents = [by_hand.Descent(model, config.weight_decay, eps=1e-5) for model in models]
    random, ids = torch.Generator().manual_seed(config.seed), [encode_prompt(p) for p in PROMPTS]
    for step in range(config.steps):
        # 1. Every prompt is answered once before any comes again.
        while len(queue) < config.batch_size // k:
            queue += torch.randperm(len(ids), generator=random).tolist()
        chosen, queue = queue[: config.batch_size // k], queue[config.batch_size // k :]
        prompts = [ids[i] for i in chosen for _ in range(k)]
        episodes = rollout(roles, prompts, config, random)
        # 2. The rates rise from a tenth in a line.
        scale = min(1.0, 0.1 + 0.9 * step / max(1, config.warmup))
        # 3. Minibatches are shuffled anew in every epoch, each with new web text.
        updates = []
        for _ in range(config.epochs):
            for rows in torch.randperm(len(episodes), generator=random).split(config.minibatch):
                text, part = web_text(config, random), [episodes[i] for i in rows]
                updates.append(learn(roles, part, descents, scale, config, text))
                yield models, {}
        record = {"step": step, "lr": config.lr * scale, "beta": config.beta}
        yield models, record | summary(episodes) | summary_of(updates)


def summary(episodes: list[Episode]) -> dict[str, float]:
    count, scores = len(episodes), [e.score for e in episodes]
    return {
        "reward": sum(scores) / count,
        "reward_spread": max(scores) - min(scores),
        "kl": sum(e.kl for e in episodes) / count,
        "length": sum(len(e.answer) for e in episodes) / count,
        "ended": sum(e.ended for e in episodes) / count,
        "surprise": -torch.cat([e.old for e in episodes]).mean().item(),
    }


def summary_of(updates: list[dict[str, float]]) -> dict[str, float]:
    means = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
    return means | {"ratio_first": updates[0]["ratio_mean"]}


@pytest.mark.parametrize("config", PPO_CONFIGS.values(), ids=PPO_CONFIGS)
def test_ppo_by_hand(config: PPOConfig) -> None:
    roles, history = train_ppo(make_roles(config), TOK, PROMPTS, config, ptx_blocks=BLOCKS)
    assert_same(learners(roles), history, ppo_by_hand(config))
    assert 0 < history[0]["ended"] < 1 and history[1]["clip_fraction"] > 0
    frozen = by_hand.weights([roles.reference, roles.reward_model])
    before = by_hand.weights([by_hand.llama(3), scalar_model_from(by_hand.llama(1))])
    assert by_hand.distance(frozen, before) == 0


def test_every_setting_of_ppo_matters() -> None:
    others = {"steps": 1, "batch_size": 2, "max_new_tokens": 6, "baseline": "rloo"}
    assert_every_setting_matters(ppo_by_hand, [PPO], ELSEWHERE, others)
