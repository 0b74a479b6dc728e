"""SFT, reward model, PPO and DPO: first steps by hand, learning, interrupts, bad input."""

import copy
import json
import math
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import dpo, models, ppo, reward, sft, tokens
from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.engine import training
from rlhf_edu.generation import generate
from rlhf_edu.losses import bradley_terry_loss
from rlhf_edu.pretrain import next_token_loss, pack
from rlhf_edu.roles import SeparateRoles

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]
BLOCKS = pack(TOK, tiny.TEXTS * 8, block=16)


def broken(model):
    """The same model, with a weight that is no number."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters())[:] = math.nan
    return model


def stop_after(step: int):
    def on_step(record) -> None:
        if record["step"] == step:
            raise KeyboardInterrupt

    return on_step


# --- what all share ----------------------------------------------------------------------------


def test_batches_cover_every_row_once_and_repeat() -> None:
    lengths = [i * 7 % 23 for i in range(50)]
    epochs = [
        list(training.batches(lengths, 8, torch.Generator().manual_seed(seed), pool=3))
        for seed in (0, 0, 1)
    ]
    assert sorted(i for batch in epochs[0] for i in batch) == list(range(50))
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(epochs[0]) == training.number_of_batches(50, 8) == 7


def test_schedules() -> None:
    factors = [training.warmup_cosine(step, 20, 4) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[-1] == pytest.approx(0.1)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    constant = [training.warmup_constant(step, 10) for step in range(12)]
    assert constant[0] == 0.1 and constant[5] == pytest.approx(0.55) and constant[10:] == [1, 1]


def test_update_refuses_infinite_gradients() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = training.make_optimizer([weight], 0.1)
    with pytest.raises(RuntimeError, match="the gradient is"):
        training.update(optimizer, weight.sqrt().sum(), 0.1, 1.0)
    assert weight.item() == 0


# --- SFT ---------------------------------------------------------------------------------------


def test_sft_learns_the_answers_and_repeats() -> None:
    config = sft.SFTConfig(lr=1e-2, batch_size=4, epochs=8, warmup=2)
    data = tiny.demonstrations(12)
    runs = [sft.train_sft(tiny.llama(), TOK, data, config, validation=data) for _ in "ab"]
    losses = [[record["loss"] for record in history] for _, history in runs]
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0] / 2
    measured = [r["validation_loss"] for r in runs[0][1] if "validation_loss" in r]
    assert len(measured) == 8 and measured[-1] < measured[0]
    assert measured[-1] == pytest.approx(sft.answer_loss(runs[0][0], TOK, data), abs=1e-5)


def test_sft_loss_is_on_answer_and_end_alone() -> None:
    model, [example] = tiny.llama(), tiny.demonstrations(1)
    prompt = tokens.encode_prompt(TOK, example.prompt.text)
    answer = tokens.encode_answer(TOK, example.answer)
    logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = -sum(logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(answer))
    found = sft.answer_loss(model, TOK, [example])
    assert found == pytest.approx(expected.item() / len(answer), abs=1e-5) and answer[-1] == 2


def test_sft_leaves_long_answers_out() -> None:
    data = tiny.demonstrations(2)
    with pytest.raises(ValueError, match="at most 1 answer tokens"):
        sft.train_sft(tiny.llama(), TOK, data, sft.SFTConfig(max_answer_tokens=1))
    kept = sft.encode_demonstrations(TOK, data, 4)
    assert len(kept) == 1 and all(answer[-1] == 2 for _, answer in kept)


def test_sft_writes_checkpoints(tmp_path: Path) -> None:
    config = sft.SFTConfig(
        batch_size=4, epochs=1, checkpoint_every=2, checkpoint_folder=str(tmp_path / "runs")
    )
    model, history = sft.train_sft(tiny.llama(), TOK, tiny.demonstrations(16), config)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["step_00002", "step_00004"]
    last = tmp_path / "runs" / "step_00004"
    assert json.loads((last / "history.json").read_text()) == history
    stored = models.load_policy(last).state_dict()
    assert all(torch.equal(stored[name], weight) for name, weight in model.state_dict().items())


# --- reward model ------------------------------------------------------------------------------


def test_reward_model_learns_and_repeats() -> None:
    config = reward.RewardConfig(lr=1e-2, batch_size=4, epochs=4, warmup=2)
    data, runs = tiny.rankings(16, k=4), []
    for _ in "ab":
        model = models.scalar_model_from(tiny.llama())
        runs.append(reward.train_reward(model, TOK, data, config, validation=data))
    losses = [[record["loss"] for record in history] for _, history in runs]
    assert losses[0] == losses[1] and losses[0][-1] < 0.3
    assert runs[0][1][-1]["validation_accuracy"] > 0.9
    assert runs[0][1][-1]["validation_loss"] == pytest.approx(
        reward.evaluate_reward(runs[0][0], TOK, data)["loss"], abs=1e-5
    )


def test_grouped_loss_is_the_mean_of_pairs_from_one_forward_each() -> None:
    model, data = models.scalar_model_from(tiny.llama()), tiny.rankings(3, k=4)
    rows = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: rows.append(len(inputs[0]))
    )
    config = reward.RewardConfig(batch_size=3)
    _, history = reward.train_reward(copy.deepcopy(model), TOK, data, config)
    hook.remove()
    losses = []
    for ranking in data:
        found = reward.score_answers(model, TOK, [ranking.prompt.text] * 4, ranking.answers)
        best, worst = torch.triu_indices(4, 4, 1)
        losses.append(bradley_terry_loss(found[best], found[worst]))
    assert history[0]["loss"] == pytest.approx(sum(losses).item() / 3, abs=1e-5)
    assert rows[0] == 3  # each prompt once; deepcopy takes the hook along


def test_ties_and_single_answers() -> None:
    model, p = models.scalar_model_from(tiny.llama()), tiny.prompt(0)
    tied = Ranking(p, ("a", "b"), (True, True), (1, 1))
    single = Ranking(p, ("a",), (True,), (1,))
    mixed = Ranking(p, ("a", "b", "c"), (True, False, True), (1, 1, 2))
    with pytest.raises(ValueError, match="not all tied"):
        reward.train_reward(model, TOK, [tied, single])
    _, history = reward.train_reward(model, TOK, [tied, single, mixed])
    assert len(history) == 1 and math.isfinite(history[0]["loss"])


def test_normalised_reward_survives_saving(tmp_path: Path) -> None:
    model = models.round_weights(models.scalar_model_from(tiny.llama()))
    data = tiny.demonstrations(12)
    reward.normalise_reward(model, TOK, data)
    models.save_model(model, TOK, tmp_path / "rm")
    model = models.load_scalar_model(tmp_path / "rm")
    texts = [d.prompt.text for d in data], [d.answer for d in data]
    assert abs(reward.score_answers(model, TOK, *texts).mean()) < 1e-5


def test_scores_of_texts_are_scores_of_the_sampled_tokens() -> None:
    policy, rm = tiny.llama(), models.scalar_model_from(tiny.llama(1))
    demonstration = tiny.demonstrations(1)[0]
    ids = [tokens.encode_prompt(TOK, demonstration.prompt.text)]
    rows = tokens.join(ids, [tokens.encode_answer(TOK, "Yes!")], 0)
    roles = SeparateRoles(policy, rm)
    found = reward.score_answers(rm, TOK, [demonstration.prompt.text], ["Yes!"])
    torch.testing.assert_close(roles.rewards(rows), found)


# --- PPO ---------------------------------------------------------------------------------------


def make_roles(**options) -> SeparateRoles:
    return SeparateRoles(tiny.llama(), models.scalar_model_from(tiny.llama(1)), **options)


both_arrangements = pytest.mark.parametrize(
    "make_roles", [make_roles, tiny.lora_roles], ids=["four networks", "one backbone"]
)


def ppo_config(**options) -> ppo.PPOConfig:
    small = {"steps": 2, "batch_size": 8, "minibatch": 8, "max_new_tokens": 8, "lr": 1e-3}
    return ppo.PPOConfig(**small | options)


@both_arrangements
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ppo_starts_with_ratio_1_and_kl_0(make_roles, temperature: float) -> None:
    config = ppo_config(temperature=temperature)
    runs = [ppo.train_ppo(make_roles(), TOK, PROMPTS, config)[1] for _ in "ab"]
    first, second = runs[0]
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["ratio_first"] == pytest.approx(1, abs=1e-4)
    assert second["ratio_first"] == pytest.approx(1, abs=1e-4)
    timeless = [[{k: v for k, v in r.items() if k != "seconds"} for r in run] for run in runs]
    assert timeless[0] == timeless[1]


def test_ppo_leaves_reference_and_reward_model_alone() -> None:
    roles = make_roles()
    before = [copy.deepcopy(m.state_dict()) for m in (roles.reference, roles.reward_model)]
    policy = copy.deepcopy(roles.policy.state_dict())
    ppo.train_ppo(roles, TOK, PROMPTS, ppo_config())
    after = [m.state_dict() for m in (roles.reference, roles.reward_model)]
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert not torch.equal(policy["lm_head.weight"], roles.policy.lm_head.weight)


def test_ppo_earns_more_reward() -> None:
    config = ppo_config(steps=40, batch_size=32, minibatch=32, beta=0.0, lr=5e-3)
    _, history = ppo.train_ppo(make_roles(), TOK, PROMPTS, config)
    start = sum(record["reward"] for record in history[:4]) / 4
    end = sum(record["reward"] for record in history[-4:]) / 4
    assert end > start + 0.5


@both_arrangements
def test_an_answer_without_end_pays_exactly_the_penalty(make_roles) -> None:
    roles = make_roles()
    ids = [tokens.encode_prompt(TOK, prompt) for prompt in PROMPTS]
    rollout = generate(roles.policy, TOK, ids, 8, seed=3)
    free, fined = (
        ppo.evaluate_rollout(roles, rollout, ppo_config(missing_eos_penalty=p, lam=1.0))
        for p in (0.0, 2.5)
    )
    assert not rollout.ended.all()
    difference = (free.returns - fined.returns)[:, 0]
    torch.testing.assert_close(difference, 2.5 * (~rollout.ended).float())
    assert torch.equal(free.scores, fined.scores)


@both_arrangements
def test_ptx_gradient_is_the_weighted_sum(make_roles) -> None:
    roles, config = make_roles(), ppo_config(ptx_coef=3.0, max_norm=1e9)
    ids = [tokens.encode_prompt(TOK, prompt) for prompt in PROMPTS]
    experience = ppo.evaluate_rollout(roles, generate(roles.policy, TOK, ids, 8), config)

    def gradient(text, coefficient: float) -> torch.Tensor:
        fresh = make_roles()
        optimizers = {
            "policy": torch.optim.SGD(fresh.policy_parameters(), 0.0),
            "critic": torch.optim.SGD(fresh.critic_parameters(), 0.0),
        }
        setting = ppo_config(ptx_coef=coefficient, max_norm=1e9)
        ppo.learn(fresh, experience, torch.arange(8), optimizers, 1.0, setting, text)
        return torch.cat([p.grad.flatten() for p in fresh.policy_parameters()])

    roles = make_roles()
    next_token_loss(roles.policy, BLOCKS[:4]).backward()
    web = torch.cat([p.grad.flatten() for p in roles.policy_parameters()])
    mixed, plain = gradient(BLOCKS[:4], 3.0), gradient(None, 0.0)
    torch.testing.assert_close(mixed, plain + 3 * web, atol=1e-5, rtol=1e-4)


@both_arrangements
def test_ptx_keeps_the_web_loss_down(make_roles) -> None:
    losses = {}
    for coefficient in (0.0, 1.0):
        config = ppo_config(steps=10, ptx_coef=coefficient, lr=5e-3)
        roles = make_roles()
        ppo.train_ppo(roles, TOK, PROMPTS, config, ptx_blocks=BLOCKS)
        with torch.no_grad():
            losses[coefficient] = next_token_loss(roles.policy, BLOCKS).item()
    assert losses[1.0] < losses[0.0]


def test_step_0_finds_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match="KL to the reference"):
        ppo.train_ppo(make_roles(reference=tiny.llama(5)), TOK, PROMPTS, ppo_config())

    class Hot(SeparateRoles):
        def response_logprobs(self, rollout, temperature=1.0):
            return super().response_logprobs(rollout, temperature * 2)

    hot = Hot(tiny.llama(), models.scalar_model_from(tiny.llama(1)))
    with pytest.raises(RuntimeError, match="sampling and training disagree"):
        ppo.train_ppo(hot, TOK, PROMPTS, ppo_config())


# --- DPO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "start"), [("dpo", math.log(2)), ("ipo", 25.0), ("length-normalised", math.log(2))]
)
def test_dpo_starts_at_margin_0_and_learns(loss: str, start: float) -> None:
    config = dpo.DPOConfig(loss=loss, lr=5e-3, batch_size=4, epochs=6, warmup=0)
    _, history = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, tiny.rankings(12), config)
    first, last = history[0], history[-1]
    assert first["loss"] == pytest.approx(start, abs=1e-3)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < first["loss"] and last["accuracy"] > 0.9


def test_precomputed_reference_is_what_it_would_say_online() -> None:
    model = tiny.gpt2()
    groups = [dpo.make_group(TOK, ranking) for ranking in tiny.rankings(7, k=4)]
    found = dpo.reference_sums(model, TOK, groups, batch_size=3)
    for group, sums in zip(groups, found, strict=True):
        alone = dpo.reference_sums(model, TOK, [group])[0]
        torch.testing.assert_close(sums, alone, atol=1e-4, rtol=0)


def test_dpo_reference_may_be_the_policy_itself() -> None:
    model = tiny.llama()
    config = dpo.DPOConfig(lr=5e-3, batch_size=4, epochs=2)
    _, history = dpo.train_dpo(model, model, TOK, tiny.rankings(8), config)
    assert history[-1]["margin"] > history[0]["margin"]


def test_dpo_sends_each_answer_once_in_one_forward() -> None:
    model, calls = tiny.llama(), []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: calls.append(len(inputs[0]))
    )
    config = dpo.DPOConfig(batch_size=4, epochs=2)
    dpo.train_dpo(model, tiny.llama(), TOK, tiny.rankings(8, k=4), config)
    hook.remove()
    # After the checks of step 0, the steps that are left: 4 prompts, each with all of its answers.
    assert calls[-3:] == [4, 4, 4]


# --- tokens ------------------------------------------------------------------------------------


def test_no_truncation_takes_the_end_away() -> None:
    limit = 12
    for length in range(1, limit + 11):
        answer = "Yes!" + "x" * (length - 1)
        whole = len(tokens.encode_answer(TOK, answer))
        ranking = Ranking(tiny.prompt(0), (answer, "cat"), (True, True), (1, 2))
        assert dpo.make_group(TOK, ranking, limit).answers[0][-1] == 2
        example = Demonstration(tiny.prompt(0), answer)
        kept = sft.encode_demonstrations(TOK, [example, *tiny.demonstrations(1)], limit)
        assert all(row[-1] == 2 for _, row in kept) and len(kept) == 1 + (whole <= limit)
        cut = Ranking(tiny.prompt(0), (answer, "cat"), (False, True), (1, 2))
        assert len(dpo.make_group(TOK, cut, limit).answers[0]) == min(whole - 1, limit)


@both_arrangements
def test_ppo_scores_token_ids_and_never_decodes(make_roles, monkeypatch) -> None:
    def refuse(*args, **options):
        raise AssertionError("decoded")

    tokenizer = copy.deepcopy(TOK)
    for name in ("decode", "batch_decode"):
        monkeypatch.setattr(tokenizer, name, refuse)
    assert len(ppo.train_ppo(make_roles(), tokenizer, PROMPTS, ppo_config())[1]) == 2


@both_arrangements
def test_ppo_uses_the_published_epsilon_and_warm_up(make_roles, monkeypatch) -> None:
    made = []

    def remember(*args, **options):
        made.append(training.make_optimizer(*args, **options))
        return made[-1]

    monkeypatch.setattr(ppo, "make_optimizer", remember)
    _, history = ppo.train_ppo(make_roles(), TOK, PROMPTS, ppo_config(steps=3, warmup=2))
    assert [group["eps"] for optimizer in made for group in optimizer.param_groups] == [1e-5] * 4
    assert [record["lr"] for record in history] == pytest.approx([1e-4, 5.5e-4, 1e-3])


# --- interrupts and bad input ------------------------------------------------------------------


def run_sft(model, on_step=None):
    config = sft.SFTConfig(batch_size=2)
    return sft.train_sft(model, TOK, tiny.demonstrations(8), config, on_step)


def run_reward(model, on_step=None):
    model, config = models.scalar_model_from(model), reward.RewardConfig(batch_size=2)
    return reward.train_reward(model, TOK, tiny.rankings(8), config, on_step)


def run_ppo(model, on_step=None):
    roles = SeparateRoles(tiny.llama(), models.scalar_model_from(model))
    return ppo.train_ppo(roles, TOK, PROMPTS, ppo_config(steps=4), on_step)


def run_dpo(model, on_step=None):
    config = dpo.DPOConfig(batch_size=2)
    return dpo.train_dpo(model, tiny.llama(), TOK, tiny.rankings(8), config, on_step)


@pytest.mark.parametrize("run", [run_sft, run_reward, run_ppo, run_dpo])
def test_an_interrupt_returns_what_there_is(run) -> None:
    trained, history = run(tiny.llama(), stop_after(1))
    assert trained is not None and [record["step"] for record in history] == [0, 1]


@pytest.mark.parametrize("run", [run_sft, run_reward, run_ppo, run_dpo])
def test_nan_stops_training(run) -> None:
    with pytest.raises(RuntimeError, match=r"nan|NaN"):
        run(broken(tiny.llama()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: sft.SFTConfig(lr=0),
        lambda: sft.SFTConfig(checkpoint_every=5),
        lambda: reward.RewardConfig(batch_size=0),
        lambda: ppo.PPOConfig(lam=1.5),
        lambda: dpo.DPOConfig(beta=-1),
        lambda: dpo.DPOConfig(loss="kto"),
        lambda: dpo.DPOConfig(loss="ipo", label_smoothing=0.1),
        lambda: sft.train_sft(tiny.llama(), TOK, []),
        lambda: ppo.train_ppo(make_roles(), TOK, []),
        lambda: ppo.train_ppo(make_roles(), TOK, PROMPTS, ppo_config(ptx_coef=1.0)),
        lambda: dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, []),
    ],
)
def test_bad_input_is_refused_in_one_line(make) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert "\n" not in str(error.value) and len(str(error.value)) > 20
