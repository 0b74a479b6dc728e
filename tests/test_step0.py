"""Before its first update each trainer checks itself; every classical sabotage is found."""

import copy
import dataclasses
import math
import re

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import dpo, models, ppo, pretrain, reward, sampling, sft, tokens
from rlhf_edu.data import Ranking
from rlhf_edu.engine import groups
from rlhf_edu.roles import SeparateRoles

WITH_REFERENCE = [name for name, loss in dpo.PREFERENCES.items() if loss.needs_reference]
TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]
BLOCKS = pretrain.pack(TOK, tiny.TEXTS * 8, block=16)
NOISY = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}


def train_pretrain(model):
    config = pretrain.PretrainConfig(batch_size=8, steps=1)
    return pretrain.pretrain(model, BLOCKS, config)[1]


def train_sft(model):
    config = sft.SFTConfig(batch_size=8, epochs=1)
    return sft.train_sft(model, TOK, tiny.demonstrations(8), config)[1]


def train_reward(model):
    model = models.scalar_model_from(model).train(model.training)
    config = reward.RewardConfig(batch_size=8)
    return reward.train_reward(model, TOK, tiny.rankings(8), config)[1]


def train_dpo(model, reference=None, **options):
    reference = copy.deepcopy(model).eval() if reference is None else reference
    config = dpo.DPOConfig(batch_size=8, **options)
    return dpo.train_dpo(model, reference, TOK, tiny.rankings(8), config)[1]


def make_roles(model, cls=SeparateRoles, **options):
    roles = cls(model, models.scalar_model_from(tiny.llama(1)), **options)
    roles.policy.train(model.training)
    return roles


def train_ppo(model, cls=SeparateRoles, reference=None, **options):
    roles = make_roles(model, cls, reference=reference)
    small = {"steps": 1, "batch_size": 8, "minibatch": 4, "max_new_tokens": 8}
    return ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(**small | options))[1]


def pad_with(token: int, monkeypatch) -> None:
    """Let all tests of this file pad with another token."""
    tokenizer = copy.deepcopy(TOK)
    tokenizer.pad_token = TOK.convert_ids_to_tokens(token)
    monkeypatch.setitem(globals(), "TOK", tokenizer)


TRAINERS = {
    "pretrain": train_pretrain,
    "sft": train_sft,
    "reward": train_reward,
    "dpo": train_dpo,
    "ppo": train_ppo,
}
every_trainer = pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)


# --- all is well ---------------------------------------------------------------------------------


@every_trainer
@pytest.mark.parametrize("model", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_a_sound_start_says_so(train, model) -> None:
    history = train(model())
    assert history[0]["step_0"].startswith(("ok", "look"))
    assert all("step_0" not in record for record in history[1:])


@pytest.mark.parametrize("loss", WITH_REFERENCE)
@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad=eos"])
def test_dpo_starts_at_its_loss_even_if_pad_is_eos(monkeypatch, loss: str, pad: int) -> None:
    pad_with(pad, monkeypatch)
    assert "the policy is the reference" in train_dpo(tiny.gpt2(), loss=loss)[0]["step_0"]
    for train in (train_sft, train_ppo, train_reward):
        assert train(tiny.gpt2())[0]["step_0"].startswith(("ok", "look"))


def test_a_fresh_head_is_near_log_2_on_pairs_it_has_not_seen() -> None:
    pick = torch.Generator().manual_seed(0)
    words = ["old", "wet", "cat", "dog", "hen", "Yes!", "Is", "The"]

    def answer() -> str:
        return " ".join(words[i] for i in torch.randint(8, (5,), generator=pick).tolist())

    data = [
        Ranking(tiny.prompt(i), tuple(answer() for _ in range(4)), (True,) * 4, (1, 2, 3, 4))
        for i in range(64)
    ]
    model = models.scalar_model_from(tiny.llama())
    with torch.no_grad():
        models.scalar_head(model).weight.mul_(0.1)
    config = reward.RewardConfig(batch_size=64)
    _, [first] = reward.train_reward(copy.deepcopy(model), TOK, data, config)
    assert first["loss"] == pytest.approx(math.log(2), abs=0.02)
    assert first["step_0"].startswith("ok: first loss 0.")
    # The same pairs, learned by heart: the next run says what that looks like.
    hard = reward.RewardConfig(batch_size=16, epochs=40, lr=1e-2)
    reward.train_reward(model, TOK, data[:16], hard)
    _, [first] = reward.train_reward(model, TOK, data[:16], config)
    assert first["step_0"].startswith("look: ") and "far below" in first["step_0"]


# --- dropout, and models that must be the same ---------------------------------------------------


@every_trainer
def test_dropout_is_named(train) -> None:
    with pytest.raises(RuntimeError, match="step 0: .*dropout is on: call model.eval()"):
        train(tiny.gpt2(**NOISY).train())


@pytest.mark.parametrize("train", [train_pretrain, train_sft, train_dpo, train_ppo])
def test_dropout_that_is_no_module_is_named_too(train) -> None:
    with pytest.raises(RuntimeError, match="dropout is on"):
        train(tiny.llama(attention_dropout=0.5).train())


def test_dropout_in_the_reference_is_found() -> None:
    with pytest.raises(RuntimeError, match="policy and reference differ .*dropout off"):
        train_dpo(tiny.gpt2(**NOISY), tiny.gpt2(**NOISY).train())

    class Noisy(SeparateRoles):
        def reference_logprobs(self, rollout, temperature=1.0):
            self.reference.train()
            return super().reference_logprobs(rollout, temperature)

    with pytest.raises(RuntimeError, match="KL to the reference is .*dropout off in both"):
        train_ppo(tiny.gpt2(**NOISY), Noisy)


def test_another_reference_is_found_unless_it_is_meant() -> None:
    with pytest.raises(RuntimeError, match="DPOConfig.same_start=False"):
        train_dpo(tiny.llama(), tiny.llama(5))
    with pytest.raises(RuntimeError, match="PPOConfig.same_start=False"):
        train_ppo(tiny.llama(), reference=tiny.llama(5))
    for train in (train_dpo, train_ppo):
        history = train(tiny.llama(), reference=tiny.llama(5), same_start=False)
        assert re.match("ok: .*need not be|look: no answer ended", history[0]["step_0"])


@pytest.mark.parametrize("same_start", [True, False])
def test_step_0_says_whether_any_answer_ended(same_start: bool) -> None:
    policy = tiny.llama()
    found = {}
    for ends in (list(range(280)), [2]):
        policy.generation_config.eos_token_id = ends
        found[len(ends)] = train_ppo(policy, same_start=same_start)[0]["step_0"]
    assert found[280].startswith("ok: ratio 1")
    assert found[1].startswith("look: no answer ended within 8 tokens; raise") and "KL" in found[1]


# --- temperature on one side ---------------------------------------------------------------------


class HotPolicy(SeparateRoles):
    def response_logprobs(self, rollout, temperature=1.0):
        return super().response_logprobs(rollout, 2 * temperature)


class HotReference(SeparateRoles):
    def reference_logprobs(self, rollout, temperature=1.0):
        return super().reference_logprobs(rollout, 2 * temperature)


def test_temperature_on_one_side_is_found(monkeypatch) -> None:
    with pytest.raises(RuntimeError, match="sampling and training disagree: .*temperature"):
        train_ppo(tiny.llama(), HotPolicy)
    with pytest.raises(RuntimeError, match="KL to the reference is .*temperature"):
        train_ppo(tiny.llama(), HotReference)
    right = dpo.reference_sums
    monkeypatch.setattr(dpo, "reference_sums", lambda *a: [s / 2 for s in right(*a)])
    with pytest.raises(RuntimeError, match="policy and reference differ .*temperature"):
        train_dpo(tiny.llama())


# --- positions, shifts ---------------------------------------------------------------------------


def lay_out_otherwise(monkeypatch, change) -> None:
    """Let `change` spoil the rows in which the answers to one prompt stand."""
    right = groups.lay_out
    monkeypatch.setattr(groups, "lay_out", lambda *a: change(right(*a)))


@pytest.mark.parametrize("train", [train_reward, train_dpo])
def test_positions_that_run_on_from_answer_to_answer_are_found(train, monkeypatch) -> None:
    right = groups._inputs

    def run_on(model, rows):
        ids, mask, positions = right(model, rows)
        return ids, mask, torch.arange(positions.shape[1]).expand(positions.shape)

    monkeypatch.setattr(groups, "_inputs", run_on)
    with pytest.raises(RuntimeError, match="positions counted without the mask"):
        train(tiny.gpt2())


@pytest.mark.parametrize("train", [train_reward, train_dpo])
def test_answers_that_see_each_other_are_found(train, monkeypatch) -> None:
    def causal(rows):
        width = rows.tokens.shape[1]
        return torch.ones(len(rows.tokens), 1, width, width, dtype=torch.bool).tril()

    monkeypatch.setattr(groups.GroupRows, "attention", causal)
    with pytest.raises(RuntimeError, match="other answers that are attended to"):
        train(tiny.llama())


def test_positions_without_the_mask_are_found(monkeypatch) -> None:
    def count_padding(mask):
        return torch.arange(mask.shape[1]).expand(mask.shape)

    # Prompts are padded on the left where answers are sampled, and nowhere else.
    monkeypatch.setattr(sampling, "position_ids", count_padding)
    with pytest.raises(RuntimeError, match="positions counted without the mask"):
        train_ppo(tiny.gpt2())


@pytest.mark.parametrize("train", [train_sft, train_ppo])
def test_padding_that_is_read_as_text_is_found(train, monkeypatch) -> None:
    def as_it_is(rows):
        return rows.tokens, torch.full((len(rows),), rows.prompt_length)

    monkeypatch.setattr(tokens.Sequences, "packed", as_it_is)
    with pytest.raises(RuntimeError, match="positions counted without the mask"):
        train(tiny.gpt2())


@pytest.mark.parametrize("shift", [1, -1])
def test_a_shift_by_one_in_dpo_is_found(shift: int, monkeypatch) -> None:
    right = groups.GroupRows.before
    monkeypatch.setattr(groups.GroupRows, "before", lambda rows: (right(rows) + shift).clamp(min=0))
    with pytest.raises(RuntimeError, match="shift by one"):
        train_dpo(tiny.llama())


@pytest.mark.parametrize("train", [train_sft, train_ppo])
@pytest.mark.parametrize("shift", [1, -1])
def test_a_shift_by_one_is_found(train, shift: int, monkeypatch) -> None:
    right = models.response_logits
    monkeypatch.setattr(models, "response_logits", lambda *a: right(*a).roll(shift, 1))
    with pytest.raises(RuntimeError, match="shift by one"):
        train(tiny.llama())


def test_a_shift_by_one_in_pretraining_is_found(monkeypatch) -> None:
    def of_the_same_token(model, blocks):
        logits = model(input_ids=blocks, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks.flatten())

    monkeypatch.setattr(pretrain, "next_token_loss", of_the_same_token)
    with pytest.raises(RuntimeError, match="that of the next tokens differ .*shift by one"):
        train_pretrain(tiny.llama())


def test_a_score_read_one_token_early_is_found(monkeypatch) -> None:
    right = models.last_hidden
    monkeypatch.setattr(groups, "last_hidden", lambda *a: right(*a).roll(1, 1))
    with pytest.raises(RuntimeError, match="scores of an answer .*shift by one"):
        train_reward(tiny.llama())


# --- padding and end-of-text ---------------------------------------------------------------------


def with_mask(sequences, change):
    """The same sequences with another mask on the responses."""
    start = sequences.prompt_length
    mask = torch.cat([sequences.attention_mask[:, :start], change(sequences)], 1)
    return dataclasses.replace(sequences, attention_mask=mask)


def not_the_pad_id(sequences):
    return (sequences.response != TOK.pad_token_id).long()


def everything(sequences):
    return torch.ones_like(sequences.mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(not_the_pad_id, "pad = EOS confusion"), (everything, "padding is scored")],
)
def test_wrong_masks_are_named(mask, message: str, monkeypatch) -> None:
    pad_with(2, monkeypatch)
    right = tokens.join
    monkeypatch.setattr(sft, "join", lambda *a: with_mask(right(*a), mask))
    with pytest.raises(RuntimeError, match=message):
        train_sft(tiny.llama())


def without_ends(rows):
    """What looks like padding is taken for padding, the ends of answers too."""
    return dataclasses.replace(rows, answer=rows.answer.masked_fill(rows.tokens == 2, -1))


def padding_is_the_last_answer(rows):
    last = rows.answer.amax(1, keepdim=True)
    return dataclasses.replace(rows, answer=torch.where(rows.answer < 0, last, rows.answer))


@pytest.mark.parametrize(
    ("change", "message"),
    [(without_ends, "pad = EOS confusion"), (padding_is_the_last_answer, "padding is scored")],
)
def test_wrong_masks_of_answers_are_named(change, message: str, monkeypatch) -> None:
    pad_with(2, monkeypatch)
    lay_out_otherwise(monkeypatch, change)
    with pytest.raises(RuntimeError, match=message):
        train_dpo(tiny.llama())
    with pytest.raises(RuntimeError, match="scores of an answer in its batch and alone"):
        train_reward(tiny.llama())


@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad=eos"])
def test_wrong_masks_are_named_in_ppo(pad: int, monkeypatch) -> None:
    pad_with(pad, monkeypatch)
    right = ppo.generate
    for mask in (everything, not_the_pad_id):
        if mask is not_the_pad_id and pad == 0:
            continue  # with a padding token of its own this mask is right
        monkeypatch.setattr(ppo, "generate", lambda *a, m=mask: with_mask(right(*a), m))
        with pytest.raises(RuntimeError, match="padding is scored, or end-of-text is taken"):
            train_ppo(end_often(tiny.llama()), max_new_tokens=12)


def end_often(model):
    """The same model, which likes end-of-text more than most."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight[2] *= 2
    return model


# --- policy and reference swapped ----------------------------------------------------------------


def test_swapped_roles_are_named() -> None:
    class Swapped(SeparateRoles):
        def response_logprobs(self, rollout, temperature=1.0):
            return models.response_logprobs(self.reference, rollout, temperature)

        def reference_logprobs(self, rollout, temperature=1.0):
            return models.response_logprobs(self.policy, rollout, temperature)

    with pytest.raises(RuntimeError, match="step 0: the gradient does not reach the policy"):
        train_ppo(tiny.llama(), Swapped)


@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_a_frozen_model_is_named(train) -> None:
    frozen = tiny.llama().requires_grad_(False)
    if train is train_reward:
        model = models.scalar_model_from(frozen).requires_grad_(False)
        with pytest.raises(ValueError, match="frozen; are policy and reference swapped"):
            reward.train_reward(model, TOK, tiny.rankings(4))
    elif train is train_ppo:
        roles = make_roles(frozen)
        roles.policy, roles.reference = roles.reference, roles.policy
        with pytest.raises(ValueError, match="frozen; are policy and reference swapped"):
            ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(steps=1, batch_size=4))
    else:
        with pytest.raises(ValueError, match="frozen; are policy and reference swapped"):
            train(frozen)


@pytest.mark.parametrize("loss", WITH_REFERENCE)
def test_dpo_moves_towards_the_chosen_answers(loss: str) -> None:
    # Sums of policy and reference swapped in the loss would give the same first loss, and the
    # opposite first step.
    config = dpo.DPOConfig(batch_size=8, epochs=2, warmup=0, lr=1e-3, loss=loss)
    _, history = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, tiny.rankings(8), config)
    assert history[1]["margin"] > 0 and history[1]["chosen_reward"] > history[1]["rejected_reward"]


def test_swapped_sums_are_named(monkeypatch) -> None:
    right = dpo.make_pairs

    def swapped(*arguments) -> dpo.Pairs:
        found = right(*arguments)
        chosen, rejected, ref_chosen, ref_rejected = found.sums
        lengths = found.chosen_lengths, found.rejected_lengths
        return dpo.Pairs(ref_chosen, ref_rejected, chosen, rejected, *lengths)

    monkeypatch.setattr(dpo, "make_pairs", swapped)
    with pytest.raises(RuntimeError, match="are policy and reference swapped"):
        train_dpo(tiny.llama())
