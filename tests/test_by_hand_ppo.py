"""PPO's updates on paper, with every setting away from its default; see `test_by_hand.py`."""

from dataclasses import dataclass

import by_hand
import tiny_models as tiny
import torch
from by_hand import BLOCKS, EOS, TOK, Run, assert_every_setting_matters, assert_same, encode_prompt
from torch import Tensor

from rlhf_edu.generation import generate
from rlhf_edu.losses import gae, policy_loss, ptx_loss, value_loss
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


def make_roles() -> SeparateRoles:
    """Four models, no two of them alike but the critic and the reward model."""
    policy, reward_model = by_hand.llama(), scalar_model_from(by_hand.llama(1))
    with torch.no_grad():
        policy.lm_head.weight[EOS] *= -3  # so that some answers end
    return SeparateRoles(policy, reward_model, reference=by_hand.llama(3))


@dataclass
class Episode:
    """A prompt, its answer, and what its tokens were worth when it was written."""

    prompt: list[int]
    answer: list[int]
    old: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    score: float
    kl: float

    @property
    def ended(self) -> bool:
        return self.answer[-1] == EOS


@torch.no_grad()
def look_at(roles: SeparateRoles, prompt: list[int], answer: list[int], config) -> Episode:
    old = by_hand.logprobs(roles.policy, prompt, answer, config.temperature)
    reference = by_hand.logprobs(roles.reference, prompt, answer, config.temperature)
    values = by_hand.values(roles.critic, prompt, answer)
    score = by_hand.score(roles.reward_model, prompt, answer).item()
    # The penalty is on every token, the score on the last one.
    rewards = -config.beta * (old - reference)
    rewards[-1] += score if answer[-1] == EOS else min(score, 0) - config.missing_eos_penalty
    one_row = rewards[None], values[None], torch.ones(1, len(answer))
    advantages, returns = gae(*one_row, config.discount, config.lam)
    kl = (old - reference).sum().item()
    return Episode(prompt, answer, old, values, advantages[0], returns[0], score, kl)


def rollout(roles: SeparateRoles, prompts: list, config: PPOConfig, random) -> list[Episode]:
    settings = config.max_new_tokens, config.temperature, random
    found = generate(roles.policy, TOK, prompts, *settings)
    answers = [row[:n].tolist() for row, n in zip(found.response, found.lengths, strict=True)]
    episodes = [look_at(roles, *both, config) for both in zip(prompts, answers, strict=True)]
    # Advantages are whitened: over all tokens of the rollout they have mean 0 and variance 1.
    every = torch.cat([episode.advantages for episode in episodes])
    for episode in episodes:
        episode.advantages = (episode.advantages - every.mean()) / every.std(correction=0)
    return episodes


def learn(roles, part: list[Episode], descents, scale: float, config, text) -> dict[str, float]:
    """One step of policy and critic on a minibatch, a mean over its tokens."""
    new = [by_hand.logprobs(roles.policy, e.prompt, e.answer, config.temperature) for e in part]
    old, advantages = (torch.cat([getattr(e, k) for e in part]) for k in ("old", "advantages"))
    mask = torch.ones(len(old))
    ppo, seen = policy_loss(torch.cat(new), old, advantages, mask, config.clip)
    ptx = torch.zeros(()) if text is None else ptx_loss(roles.policy(input_ids=text).logits, text)
    norm = descents[0].step(ppo + config.ptx_coef * ptx, config.lr * scale, config.max_norm)

    values = torch.cat([by_hand.values(roles.critic, e.prompt, e.answer) for e in part])
    before, returns = (torch.cat([getattr(e, k) for e in part]) for k in ("values", "returns"))
    critic = value_loss(values, before, returns, mask, config.value_clip)
    descents[1].step(critic, config.critic_lr * scale, config.max_norm)
    losses = {"policy_loss": ppo, "ptx_loss": ptx, "value_loss": critic, **seen}
    return {name: number.item() for name, number in losses.items()} | {"norm": norm}


def web_text(config: PPOConfig, random) -> Tensor | None:
    if not config.ptx_coef:
        return None
    return BLOCKS[torch.randint(len(BLOCKS), (config.ptx_blocks,), generator=random)]


def ppo_by_hand(config: PPOConfig) -> Run:
    roles, queue = make_roles(), []
    descents = [by_hand.Descent(model, eps=1e-5) for model in (roles.policy, roles.critic)]
    random, ids = torch.Generator().manual_seed(config.seed), [encode_prompt(p) for p in PROMPTS]
    for step in range(config.steps):
        # 1. Every prompt is answered once before any comes again.
        while len(queue) < config.batch_size:
            queue += torch.randperm(len(ids), generator=random).tolist()
        chosen, queue = queue[: config.batch_size], queue[config.batch_size :]
        episodes = rollout(roles, [ids[i] for i in chosen], config, random)
        # 2. The rates rise from a tenth in a line.
        scale = min(1.0, 0.1 + 0.9 * step / max(1, config.warmup))
        # 3. Minibatches are shuffled anew in every epoch, each with new web text.
        updates = []
        for _ in range(config.epochs):
            for rows in torch.randperm(len(episodes), generator=random).split(config.minibatch):
                text, part = web_text(config, random), [episodes[i] for i in rows]
                updates.append(learn(roles, part, descents, scale, config, text))
                yield [roles.policy, roles.critic], {}
        record = {"step": step, "lr": config.lr * scale, "beta": config.beta}
        yield [roles.policy, roles.critic], record | summary(episodes) | summary_of(updates)


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


def test_ppo_by_hand() -> None:
    roles, history = train_ppo(make_roles(), TOK, PROMPTS, PPO, ptx_blocks=BLOCKS)
    assert_same([roles.policy, roles.critic], history, ppo_by_hand(PPO))
    assert 0 < history[0]["ended"] < 1 and history[1]["clip_fraction"] > 0
    frozen = by_hand.weights([roles.reference, roles.reward_model])
    before = by_hand.weights([by_hand.llama(3), scalar_model_from(by_hand.llama(1))])
    assert by_hand.distance(frozen, before) == 0


def test_every_setting_of_ppo_matters() -> None:
    others = {"steps": 1, "batch_size": 3, "max_new_tokens": 6}
    assert_every_setting_matters(ppo_by_hand, [PPO], ELSEWHERE, others)
