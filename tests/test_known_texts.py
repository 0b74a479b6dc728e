"""What training does to texts we know, read by hand before and after; what records say of it."""

import by_hand
import pytest
import tiny_models as tiny
import torch
from by_hand import TOK, encode_answer, encode_prompt

from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.dpo import PREFERENCES, DPOConfig, train_dpo
from rlhf_edu.losses import kwise_loss
from rlhf_edu.models import scalar_head, scalar_model_from
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.pretrain import lm_loss, pretrain
from rlhf_edu.reward import (
    RewardConfig,
    evaluate_reward,
    normalise_reward,
    pair_accuracy,
    score_answers,
    train_reward,
)
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.sft import SFTConfig, answer_loss, train_sft

GOOD, BAD, PROMPT = "The hen is old.", "wet", tiny.prompt(1)
PROMPTS = [tiny.prompt(i).text for i in range(6)]
RANKING = Ranking(PROMPT, (BAD, GOOD), (True, True), (2, 1))


def logprob(model, answer: str) -> float:
    """Log-prob of a whole answer to `PROMPT`, nats."""
    ids = encode_prompt(PROMPT.text), encode_answer(answer)
    return by_hand.logprobs(model, *ids).sum().item()


def score(model, answer: str, ended: bool = True) -> float:
    return by_hand.score(model, encode_prompt(PROMPT.text), encode_answer(answer, ended)).item()


# --- SFT ---------------------------------------------------------------------------------------


def test_sft_makes_the_demonstration_likelier() -> None:
    model = tiny.llama()
    before = logprob(model, GOOD)
    config = SFTConfig(epochs=5, batch_size=1, warmup=0, lr=5e-3)
    train_sft(model, TOK, [Demonstration(PROMPT, GOOD)], config)
    assert logprob(model, GOOD) > before + 5


def test_the_loss_on_answers_is_a_mean_over_tokens_whatever_the_batches() -> None:
    model, data = tiny.llama(), [Demonstration(PROMPT, text) for text in (GOOD, BAD, GOOD + GOOD)]
    tokens = sum(len(encode_answer(d.answer)) for d in data)
    expected = -sum(logprob(model, d.answer) for d in data) / tokens
    for size in (1, 2, 64):
        assert answer_loss(model, TOK, data, batch_size=size) == pytest.approx(expected, abs=1e-5)
    short = answer_loss(model, TOK, data, max_answer_tokens=len(encode_answer(BAD)))
    assert short == pytest.approx(-logprob(model, BAD) / len(encode_answer(BAD)), abs=1e-5)


def test_validation_is_measured_at_the_end_of_each_epoch() -> None:
    config = {"batch_size": 2, "epochs": 3}
    data, held_out = tiny.demonstrations(5), tiny.demonstrations(2)
    model, history = train_sft(tiny.llama(), TOK, data, SFTConfig(**config), validation=held_out)
    seen = [record["step"] for record in history if "validation_loss" in record]
    assert seen == [2, 5, 8] and len(history) == 9
    assert history[-1]["validation_loss"] == answer_loss(model, TOK, held_out)
    data, held_out = tiny.rankings(5), tiny.rankings(2)
    model = scalar_model_from(tiny.llama())
    _, history = train_reward(model, TOK, data, RewardConfig(**config), validation=held_out)
    assert [r["step"] for r in history if "validation_accuracy" in r] == [2, 5, 8]
    measured = evaluate_reward(model, TOK, held_out)
    assert {key: history[-1][f"validation_{key}"] for key in measured} == measured


def test_the_loss_on_text_is_a_mean_over_tokens_whatever_the_batches() -> None:
    model, blocks = tiny.llama(), by_hand.BLOCKS
    whole = lm_loss(model, blocks)
    assert lm_loss(model, blocks, batch_size=3) == pytest.approx(whole, abs=1e-5)
    pretrain(model, blocks)
    assert lm_loss(model, blocks) < whole


# --- reward model ------------------------------------------------------------------------------


def test_a_reward_model_comes_to_prefer_the_better_answer() -> None:
    model = scalar_model_from(tiny.llama())
    before = score(model, GOOD) - score(model, BAD)
    train_reward(model, TOK, [RANKING], RewardConfig(epochs=5, warmup=0, lr=5e-3))
    assert score(model, GOOD) - score(model, BAD) > before + 1


def test_pairs_in_order_by_hand() -> None:
    # First a prompt with two answers, in order; then three, of which two score the same.
    scores = torch.tensor([[1.0, 2.0, 9.0], [3.0, 3.0, 0.0]])
    ranks = torch.tensor([[2, 1, 0], [1, 2, 3]])
    assert pair_accuracy(scores, ranks) == (1 + 2, 1 + 3)
    assert pair_accuracy(-scores, ranks) == (0, 4)
    assert pair_accuracy(scores, torch.ones_like(ranks)) == (0, 0)  # ties


def test_a_reward_model_is_evaluated_by_prompts_and_pairs_whatever_the_batches() -> None:
    model = scalar_model_from(tiny.llama())
    with torch.no_grad():
        scalar_head(model).weight.mul_(3)
    texts = ("Yes!", GOOD, BAD, "Is the cat wet?")
    sizes = [(2, 1), (4, 2, 3, 1), (1, 1), (1, 2, 2), (1,)]
    data = [
        Ranking(PROMPT, texts[: len(ranks)], (True,) * len(ranks), ranks)
        for ranks in sizes  # all tied and alone: no pairs
    ]
    with torch.no_grad():
        scores = torch.tensor([score(model, text) for text in texts])
    counted = [sizes[i] for i in (0, 1, 3)]
    losses = [kwise_loss(scores[: len(ranks)], torch.tensor(ranks)) for ranks in counted]
    right = [scores[i] > scores[j] for r in counted for i, j in pairs(r)]
    for size in (1, 2, 32):
        found = evaluate_reward(model, TOK, data, batch_size=size)
        assert found["loss"] == pytest.approx(sum(losses).item() / 3, abs=1e-5)
        assert found["accuracy"] == pytest.approx(sum(right).item() / len(right))
    assert 0 < sum(right) < len(right) == 1 + 6 + 2


def pairs(ranks: tuple[int, ...]) -> list[tuple[int, int]]:
    every = range(len(ranks))
    return [(i, j) for i in every for j in every if ranks[i] < ranks[j]]


def test_scores_of_texts_are_those_of_each_alone() -> None:
    model = scalar_model_from(tiny.llama())
    texts, ended = [GOOD, BAD, GOOD, "Yes!"], [True, True, False, False]
    expected = [score(model, *row) for row in zip(texts, ended, strict=True)]
    for size in (2, 64):
        found = score_answers(model, TOK, [PROMPT.text] * 4, texts, ended, batch_size=size)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError):
        score_answers(model, TOK, [PROMPT.text] * 4, texts[:3])


def test_normalising_moves_every_score_by_the_same() -> None:
    model = scalar_model_from(tiny.llama())
    before = score(model, GOOD), score(model, BAD)
    shift = normalise_reward(model, TOK, [Demonstration(PROMPT, t) for t in (GOOD, BAD)])
    assert shift == pytest.approx(-sum(before) / 2, abs=1e-5)
    assert score(model, GOOD) == pytest.approx(before[0] + shift, abs=1e-5)


# --- DPO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", PREFERENCES)
@pytest.mark.parametrize("ranking", [RANKING, Ranking(PROMPT, (GOOD, BAD), (True, True), (2, 1))])
def test_dpo_raises_the_chosen_answer_against_the_rejected(loss: str, ranking: Ranking) -> None:
    policy = tiny.llama()
    chosen, rejected = (ranking.answers[ranking.ranks.index(rank)] for rank in (1, 2))
    before = logprob(policy, chosen) - logprob(policy, rejected)
    config = DPOConfig(loss=loss, epochs=5, warmup=0, lr=5e-3)
    _, history = train_dpo(policy, tiny.llama(), TOK, [ranking], config)
    assert logprob(policy, chosen) - logprob(policy, rejected) > before + 2
    assert history[0]["chosen_logprob"] == pytest.approx(logprob(tiny.llama(), chosen), abs=1e-4)
    assert history[0]["rejected_logprob"] == pytest.approx(
        logprob(tiny.llama(), rejected), abs=1e-4
    )


def test_a_larger_beta_stays_nearer_to_the_reference() -> None:
    moved = {}
    for beta in (0.1, 10.0):
        policy, config = tiny.llama(), DPOConfig(beta=beta, epochs=20, warmup=0, lr=2e-3)
        _, history = train_dpo(policy, tiny.llama(), TOK, [RANKING], config)
        moved[beta] = abs(logprob(policy, GOOD) - logprob(tiny.llama(), GOOD))
        assert history[0]["margin"] == 0 and history[1]["margin"] > 0
        assert history[0]["accuracy"] == 0 and history[1]["accuracy"] == 1  # equal is not above
    assert moved[10.0] < 0.9 * moved[0.1]


@pytest.mark.parametrize("train", [train_dpo, train_reward])
def test_the_longest_answer_must_fit(train) -> None:
    def short(n: int):
        model = tiny.llama(max_position_embeddings=n)
        return [model, model] if train is train_dpo else [scalar_model_from(model)]

    needed = len(encode_prompt(PROMPT.text)) + len(encode_answer(GOOD))
    train(*short(needed), TOK, [RANKING])
    with pytest.raises(ValueError, match=f"longest row has {needed} tokens"):
        train(*short(needed - 1), TOK, [RANKING])


# --- PPO ---------------------------------------------------------------------------------------


class Scripted(SeparateRoles):
    """Roles whose reward model says what a list holds, rollout by rollout."""

    def rewards(self, rollout):
        value = self.script.pop(0)
        return torch.full((len(rollout),), 0.25) + value * torch.arange(len(rollout))


def test_rewards_that_have_become_constant_stop_ppo() -> None:
    roles = Scripted(tiny.llama(), scalar_model_from(tiny.llama(1)))
    # Step 0 looks at the first rollout twice.
    roles.script = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    config = PPOConfig(steps=9, batch_size=4, max_new_tokens=4, max_constant_steps=3)
    seen: list = []
    with pytest.raises(RuntimeError, match="last 3 rollouts scored 0.25"):
        train_ppo(roles, TOK, PROMPTS, config, seen.append)
    assert [record["reward_spread"] for record in seen] == [3, 0, 0, 3, 0, 0, 0]


@pytest.mark.parametrize("other", ["reference", "reward_model"])
def test_a_ppo_run_goes_on_with_the_same_frozen_models_only(other: str, tmp_path) -> None:
    def run(**changed):
        given = {"reference": tiny.llama(3), "reward_model": scalar_model_from(tiny.llama(1))}
        critic = scalar_model_from(tiny.llama(2))
        roles = SeparateRoles(tiny.llama(), critic=critic, **given | changed)
        small = {"batch_size": 4, "max_new_tokens": 4, "same_start": False}
        keep = {"checkpoint_every": 1, "checkpoint_folder": tmp_path}
        return train_ppo(roles, TOK, PROMPTS, PPOConfig(steps=1, **small, **keep))[1]

    assert run() == run()  # the second one is read from the checkpoint
    model = tiny.llama(4)
    with pytest.raises(ValueError, match="other weights"):
        run(**{other: model if other == "reference" else scalar_model_from(model)})


# --- all trainers ------------------------------------------------------------------------------


def test_no_pass_with_a_gradient_reads_more_than_a_micro_batch() -> None:
    rows: list[int] = []

    def watched(model):
        def note(module, inputs, output) -> None:
            if torch.is_grad_enabled():
                rows.append(len(inputs[0]))

        model.model.embed_tokens.register_forward_hook(note)
        return model

    small = {"batch_size": 3, "micro_batch": 2}
    train_sft(watched(tiny.llama()), TOK, tiny.demonstrations(3), SFTConfig(epochs=1, **small))
    model = watched(scalar_model_from(tiny.llama()))
    train_reward(model, TOK, tiny.rankings(3), RewardConfig(**small))
    train_dpo(watched(tiny.llama()), tiny.llama(), TOK, tiny.rankings(3), DPOConfig(**small))
    roles = SeparateRoles(watched(tiny.llama()), watched(scalar_model_from(tiny.llama(1))))
    config = PPOConfig(steps=1, epochs=1, max_new_tokens=4, ptx_coef=1.0, **small)
    train_ppo(roles, TOK, PROMPTS, config, ptx_blocks=by_hand.BLOCKS)
    assert len(rows) > 10 and max(rows) == 2
