"""Your own loss in every trainer: what is written in a notebook is what trains."""

import math

import pytest
import tiny_models as tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_edu import dpo, losses, models, ppo, reward, sft
from rlhf_edu.roles import SeparateRoles

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]


def weights(model) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def roles(**options) -> SeparateRoles:
    return SeparateRoles(tiny.llama(), models.scalar_model_from(tiny.llama(1)), **options)


def ppo_config(**options) -> ppo.PPOConfig:
    usual = {"steps": 2, "batch_size": 8, "minibatch": 4, "max_new_tokens": 6}
    return ppo.PPOConfig(**usual | options)


# --- SFT and reward model ------------------------------------------------------------------------


def my_sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    return -(logprobs * mask).sum() / mask.sum()


def test_sft_with_an_own_loss_learns_the_same() -> None:
    config = sft.SFTConfig(batch_size=4, epochs=1)
    ours, _ = sft.train_sft(tiny.llama(), TOK, tiny.demonstrations(8), config)
    mine, _ = sft.train_sft(tiny.llama(), TOK, tiny.demonstrations(8), config, loss=my_sft_loss)
    torch.testing.assert_close(weights(mine), weights(ours))


def test_sft_takes_the_loss_that_it_is_given() -> None:
    data, config = tiny.demonstrations(8), sft.SFTConfig(batch_size=8, epochs=3, warmup=0)
    before = sft.answer_loss(tiny.llama(), TOK, data)
    backwards, _ = sft.train_sft(
        tiny.llama(), TOK, data, config, loss=lambda logprobs, mask: -my_sft_loss(logprobs, mask)
    )
    assert sft.answer_loss(backwards, TOK, data) > before  # less and less likely answers


def test_a_reward_model_with_an_own_loss_learns_the_same() -> None:
    def my_loss(scores: Tensor, ranks: Tensor) -> Tensor:
        rows = [losses.kwise_loss(s, r) for s, r in zip(scores, ranks, strict=True)]
        return torch.stack(rows).mean()

    config = reward.RewardConfig(batch_size=4)
    start = models.scalar_model_from(tiny.llama())
    ours, _ = reward.train_reward(
        models.scalar_model_from(tiny.llama()), TOK, tiny.rankings(8), config
    )
    mine, _ = reward.train_reward(start, TOK, tiny.rankings(8), config, loss=my_loss)
    torch.testing.assert_close(weights(mine), weights(ours))


# --- DPO and its relatives -----------------------------------------------------------------------


def my_dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta
) -> Tensor:
    h = beta * (policy_chosen - ref_chosen - policy_rejected + ref_rejected)
    return -F.logsigmoid(h).mean()


def test_dpo_with_an_own_loss_learns_the_same() -> None:
    config = dpo.DPOConfig(batch_size=4, beta=0.3)
    data = tiny.rankings(8)
    ours, ours_said = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, data, config)
    mine, mine_said = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, data, config, loss=my_dpo_loss)
    torch.testing.assert_close(weights(mine), weights(ours))
    assert mine_said[-1]["margin"] == pytest.approx(ours_said[-1]["margin"])


@pytest.mark.parametrize("name", dpo.PREFERENCES)
def test_every_preference_loss_brings_pairs_into_order(name: str) -> None:
    config = dpo.DPOConfig(batch_size=8, epochs=8, lr=1e-3, loss=name, beta=0.5)
    _, said = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, tiny.rankings(8), config)
    assert said[-1]["loss"] < said[0]["loss"]
    # The chosen answers become likelier beside the rejected ones, whatever the reward is called.
    gaps = [record["chosen_logprob"] - record["rejected_logprob"] for record in said]
    assert gaps[-1] > gaps[0]


@pytest.mark.parametrize("name", dpo.PREFERENCES)
def test_step_0_knows_where_a_loss_starts(name: str) -> None:
    preference, config = dpo.PREFERENCES[name], dpo.DPOConfig(loss=name, beta=0.3)
    zero = torch.zeros(3)
    if preference.start is not None:
        pairs = dpo.Pairs(zero, zero, zero, zero, zero + 2, zero + 5)
        assert preference.loss(pairs, config)[0].item() == pytest.approx(preference.start(config))


@pytest.mark.parametrize(
    "name", [name for name, loss in dpo.PREFERENCES.items() if not loss.needs_reference]
)
def test_a_loss_without_reference_never_asks_one(name: str) -> None:
    reference = tiny.llama()
    reference.forward = None  # to be called would be an error
    config = dpo.DPOConfig(batch_size=4, loss=name, beta=2.0)
    _, said = dpo.train_dpo(tiny.llama(), reference, TOK, tiny.rankings(4), config)
    assert "no reference" in said[0]["step_0"]


def test_settings_of_other_losses_are_refused() -> None:
    for options in ({"loss": "ipo", "label_smoothing": 0.1}, {"loss": "dpo", "margin": 1.0}):
        with pytest.raises(ValueError, match="is not for loss="):
            dpo.DPOConfig(**options)


# --- PPO -----------------------------------------------------------------------------------------


def test_ppo_with_own_formulas_learns_the_same() -> None:
    def my_policy_loss(logprobs, old, advantages, mask, clip) -> Tensor:
        ratio = torch.exp((logprobs - old) * mask)
        worse = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
        return -(worse * mask).sum() / mask.sum()

    def my_rewards(scores, logprobs, reference, mask, beta) -> Tensor:
        rewards = -beta * (logprobs - reference) * mask
        last = mask.sum(1) - 1
        rewards[torch.arange(len(mask)), last] += scores
        return rewards

    own = ppo.Formulas(policy_loss=my_policy_loss, token_rewards=my_rewards)
    ours, _ = ppo.train_ppo(roles(), TOK, PROMPTS, ppo_config())
    mine, said = ppo.train_ppo(roles(), TOK, PROMPTS, ppo_config(), formulas=own)
    torch.testing.assert_close(weights(mine.policy), weights(ours.policy))
    assert "clip_fraction" not in said[0]  # only what the student's function returns is logged


def test_ppo_takes_the_advantages_and_the_critics_loss_that_it_is_given() -> None:
    def nothing(rewards, values, mask, discount, lam):
        return torch.zeros_like(rewards), values

    own = ppo.Formulas(advantages=nothing, value_loss=lambda values, *_: 0.0 * values.sum())
    start, config = roles(), ppo_config(steps=1)
    before = weights(start.policy), weights(start.critic)
    after, _ = ppo.train_ppo(start, TOK, PROMPTS, config, formulas=own)
    torch.testing.assert_close(weights(after.policy), before[0])
    torch.testing.assert_close(weights(after.critic), before[1])


def test_rloo_by_hand() -> None:
    config = ppo_config(baseline="rloo", answers_per_prompt=4, beta=0.3)
    start = roles(use_critic=False)
    assert start.critic is None and start.critic_parameters() == []
    rollout = ppo.generate(start.policy, TOK, [p for p in PROMPTS[:2] for _ in range(4)], 6)
    found = ppo.evaluate_rollout(start, rollout, config)
    scores = start.rewards(rollout)
    scores = losses.penalise_missing_end(scores, rollout.ended, config.missing_eos_penalty)
    for first in (0, 4):
        group = scores[first : first + 4]  # the policy is the reference: no KL yet
        for i in range(4):
            wanted = group[i] - (group.sum() - group[i]) / 3
            row = found.advantages[first + i]
            real = rollout.mask[first + i].bool()
            torch.testing.assert_close(row[real], wanted.expand(int(real.sum())))
            assert (row[~real] == 0).all()


@pytest.mark.parametrize("baseline", ["rloo", "grpo"])
def test_without_a_critic_a_rule_is_learned(baseline: str) -> None:
    def letters(prompts: list[str], answers: list[str]) -> list[float]:
        assert all(prompt in PROMPTS for prompt in prompts)
        # Below 0, as an answer without end is worth 0 at most.
        return [answer.count("e") - 9.0 for answer in answers]

    config = ppo_config(
        steps=12, batch_size=32, minibatch=32, baseline=baseline, answers_per_prompt=8, lr=1e-2
    )
    start = SeparateRoles(tiny.llama(), None)
    _, said = ppo.train_ppo(start, TOK, PROMPTS, config, reward=letters)
    rewards = [record["reward"] for record in said]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 1
    assert "value_loss" not in said[0]


def test_grpo_pays_for_kl_in_its_loss() -> None:
    config = ppo_config(baseline="grpo", answers_per_prompt=4, steps=3, lr=1e-2)
    away = ppo.train_ppo(roles(), TOK, PROMPTS, config)[1][-1]["kl"]
    dear = ppo_config(baseline="grpo", answers_per_prompt=4, steps=3, lr=1e-2, beta=50.0)
    near = ppo.train_ppo(roles(), TOK, PROMPTS, dear)[1][-1]["kl"]
    assert abs(near) < abs(away)


@pytest.mark.parametrize("found", [[1.0], [math.nan] * 8, [[1.0]] * 8])
def test_an_own_reward_must_give_a_number_an_answer(found: list) -> None:
    with pytest.raises(ValueError, match="reward must return 8 finite numbers"):
        ppo.train_ppo(roles(), TOK, PROMPTS, ppo_config(), reward=lambda p, a: found)


def test_a_group_needs_company() -> None:
    with pytest.raises(ValueError, match="answers_per_prompt to 2 or more"):
        ppo_config(baseline="rloo")
    with pytest.raises(ValueError, match="multiple of answers_per_prompt"):
        ppo_config(answers_per_prompt=3)
    with pytest.raises(ValueError, match="must be one of critic, rloo, grpo"):
        ppo_config(baseline="none")


def test_roles_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="no reward model"):
        ppo.train_ppo(SeparateRoles(tiny.llama(), None), TOK, PROMPTS, ppo_config())
    with pytest.raises(ValueError, match="no critic"):
        ppo.train_ppo(roles(use_critic=False), TOK, PROMPTS, ppo_config())
