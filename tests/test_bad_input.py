"""What cannot work is refused in one line that says what to do, and leaves nothing half-written."""

import contextlib
import copy
import math
import re
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import data, dpo, models, ppo, pretrain, reward, sft
from rlhf_edu.data import Ranking
from rlhf_edu.generation import generate
from rlhf_edu.roles import SeparateRoles, _trainable

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]
BLOCKS = pretrain.pack(TOK, tiny.TEXTS * 8, block=32)


@contextlib.contextmanager
def refused(kind: type[Exception], message: str):
    """The block raises such an exception, with a message of one line."""
    with pytest.raises(kind) as error:
        yield
    text = str(error.value)
    assert re.search(message, text), text
    assert "\n" not in text and len(text) > 30


def run_pretrain(model, tokenizer=TOK, on_step=None, **options):
    config = pretrain.PretrainConfig(batch_size=8, steps=4, **options)
    return pretrain.pretrain(model, BLOCKS, config, on_step)


def run_sft(model, tokenizer=TOK, on_step=None, **options):
    config = sft.SFTConfig(batch_size=4, epochs=2, **options)
    return sft.train_sft(model, tokenizer, tiny.demonstrations(8), config, on_step)


def run_reward(model, tokenizer=TOK, on_step=None, **options):
    config = reward.RewardConfig(batch_size=4, epochs=2, **options)
    model = models.scalar_model_from(model)
    return reward.train_reward(model, tokenizer, tiny.rankings(8), config, on_step)


def run_dpo(model, tokenizer=TOK, on_step=None, **options):
    config = dpo.DPOConfig(batch_size=4, epochs=2, **options)
    reference = copy.deepcopy(model)
    return dpo.train_dpo(model, reference, tokenizer, tiny.rankings(8), config, on_step)


def run_ppo(model, tokenizer=TOK, on_step=None, **options):
    small = {"steps": 4, "batch_size": 8, "minibatch": 8, "max_new_tokens": 8}
    roles = SeparateRoles(model, models.scalar_model_from(tiny.llama(1)))
    return ppo.train_ppo(roles, tokenizer, PROMPTS, ppo.PPOConfig(**small | options), on_step)


RUNS = {
    "pretrain": run_pretrain,
    "sft": run_sft,
    "reward": run_reward,
    "dpo": run_dpo,
    "ppo": run_ppo,
}
every_trainer = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
with_tokenizer = pytest.mark.parametrize("run", [run_sft, run_reward, run_dpo, run_ppo])


def broken(model, value: float = math.nan):
    """The same model, with a weight that is no number."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = value
    return model


# --- models and tokenizers -----------------------------------------------------------------------


@every_trainer
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_named_at_the_start(run, value, tmp_path: Path) -> None:
    with refused(RuntimeError, r"mlp.up_proj.weight hold NaN or infinity.*load the model anew"):
        run(broken(tiny.llama(), value), checkpoint_every=1, checkpoint_folder=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_broken_reference_is_named_too() -> None:
    with refused(RuntimeError, "hold NaN"):
        dpo.train_dpo(tiny.llama(), broken(tiny.llama()), TOK, tiny.rankings(8))


@every_trainer
def test_a_loss_that_breaks_later_stops_the_run(run) -> None:
    trained = tiny.llama()

    def poison(record) -> None:
        if record["step"] == 1:
            with torch.no_grad():
                for model in (trained, *seen):
                    next(model.parameters())[5:] = math.nan

    seen = []
    right = _trainable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_edu.roles._trainable", lambda m: seen.append(right(m)) or seen[-1])
        patch.setattr(models, "scalar_model_from", remember(models.scalar_model_from, seen))
        with refused(RuntimeError, "training stopped: .* nan; lower the learning rate"):
            run(trained, on_step=poison)


def remember(make, seen: list):
    def made(*args):
        seen.append(make(*args))
        return seen[-1]

    return made


@with_tokenizer
@pytest.mark.parametrize("token", ["pad", "eos"])
def test_a_tokenizer_without_padding_or_end_is_refused(run, token: str) -> None:
    tokenizer = copy.deepcopy(TOK)
    setattr(tokenizer, f"{token}_token", None)
    with refused(ValueError, f"no {'padding' if token == 'pad' else 'end-of-text'} token.*set tok"):
        run(tiny.llama(), tokenizer)


def test_a_tokenizer_without_padding_is_loaded_with_one(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(TOK)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = models.load_tokenizer(tmp_path)
    assert loaded.pad_token_id == loaded.eos_token_id == 2
    assert run_sft(tiny.gpt2(), loaded)[1][0]["step_0"].startswith("ok")


def test_missing_folders_are_named(tmp_path: Path) -> None:
    for load in (models.load_policy, models.load_scalar_model):
        with refused(FileNotFoundError, "nowhere holds no model"):
            load(tmp_path / "nowhere")
    with refused(FileNotFoundError, "nowhere holds no tokenizer"):
        models.load_tokenizer(tmp_path / "nowhere")
    models.save_model(tiny.llama(), TOK, tmp_path / "policy")
    with refused(ValueError, "is no reward model"):
        models.load_scalar_model(tmp_path / "policy")


@every_trainer
def test_rows_longer_than_the_context_are_refused(run) -> None:
    with refused(ValueError, r"\d+ tokens, but the model reads 12 at most; shorten"):
        run(tiny.llama(max_position_embeddings=12))


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_sampling_beyond_the_context_is_refused(make) -> None:
    model = make() if make is tiny.gpt2 else make(max_position_embeddings=256)
    with refused(ValueError, r"prompt has 254 tokens.* the model reads 256 at most; shorten"):
        generate(model, TOK, [[1] * 254], max_new_tokens=3)
    assert len(generate(model, TOK, [[1] * 254], max_new_tokens=2)) == 1


# --- rankings that say nothing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "ranks", "message"),
    [
        (("Yes!",), (1,), "two answers or more, not all tied"),
        (("Yes!", "No!"), (1, 1), "two answers or more, not all tied"),
        (("Yes!", "Yes!", "Yes!"), (1, 2, 3), "the chosen answer is the rejected one; look at"),
    ],
    ids=["K=1", "ties", "chosen is rejected"],
)
def test_rankings_without_a_choice_are_refused(answers, ranks, message: str) -> None:
    useless = [Ranking(tiny.prompt(i), answers, (True,) * len(ranks), ranks) for i in range(3)]
    model = models.scalar_model_from(tiny.llama())
    with refused(ValueError, message):
        reward.train_reward(model, TOK, useless)
    with refused(ValueError, message):
        dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, useless)
    # Among others they do no harm.
    config = dpo.DPOConfig(batch_size=2)
    _, history = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, useless + tiny.rankings(3), config)
    _, scored = reward.train_reward(model, TOK, useless + tiny.rankings(3))
    assert all(math.isfinite(record["loss"]) for record in history + scored)


def test_cut_and_whole_answers_are_not_the_same() -> None:
    rows = [Ranking(tiny.prompt(i), ("Yes!", "Yes!"), (True, False), (1, 2)) for i in range(3)]
    reward.train_reward(models.scalar_model_from(tiny.llama()), TOK, rows)
    dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, rows)


# --- nothing to learn, and running away ----------------------------------------------------------


class Constant(SeparateRoles):
    def rewards(self, rollout):
        return torch.full((len(rollout),), 0.25)


def test_a_constant_reward_stops_ppo() -> None:
    config = ppo.PPOConfig(steps=9, batch_size=4, max_new_tokens=4, max_constant_steps=3)
    seen: list = []

    def roles() -> Constant:
        return Constant(tiny.llama(), models.scalar_model_from(tiny.llama(1)))

    with refused(RuntimeError, "last 3 rollouts scored 0.25, so there is nothing to learn; look"):
        ppo.train_ppo(roles(), TOK, PROMPTS, config, seen.append)
    assert len(seen) == 3
    for options in ({"max_constant_steps": 0, "batch_size": 4}, {"batch_size": 1}):
        config = ppo.PPOConfig(steps=6, max_new_tokens=4, **options)
        assert len(ppo.train_ppo(roles(), TOK, PROMPTS, config)[1]) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_model_that_gives_no_numbers_is_to_blame(value) -> None:
    class Broken(SeparateRoles):
        def rewards(self, rollout):
            return torch.tensor([value] + [0.5] * (len(rollout) - 1))

    roles = Broken(tiny.llama(), models.scalar_model_from(tiny.llama(1)))
    config = ppo.PPOConfig(steps=2, batch_size=4, max_new_tokens=4)
    with refused(RuntimeError, "reward model's scores is (nan|inf); look at the reward model"):
        ppo.train_ppo(roles, TOK, PROMPTS, config)


@pytest.mark.parametrize("role", ["reference", "reward_model", "critic"])
def test_every_role_is_looked_at_before_ppo(role) -> None:
    roles = SeparateRoles(tiny.llama(), models.scalar_model_from(tiny.llama(1)))
    setattr(roles, role, broken(getattr(roles, role)))
    with refused(RuntimeError, f"train_ppo, {role}: the weights .* hold NaN or infinity"):
        ppo.train_ppo(roles, TOK, PROMPTS, ppo.PPOConfig(steps=2, max_new_tokens=4))


def test_a_kl_that_runs_away_stops_ppo() -> None:
    hot = {"lr": 3e-2, "max_new_tokens": 4, "warmup": 0, "steps": 8}
    with refused(RuntimeError, r"KL to the reference is .* above 0.5; raise beta, lower lr"):
        run_ppo(tiny.llama(), max_kl=0.5, **hot)
    # Without a penalty the policy is meant to run.
    assert len(run_ppo(tiny.llama(), beta=0.0, **hot)[1]) == 8


def test_the_default_limit_of_kl_is_ten_nats_a_token() -> None:
    record = {"reward_spread": 1.0, "reward": 0.0, "kl": 481.0}
    with refused(RuntimeError, "above 480"):
        ppo.check_progress([record], ppo.PPOConfig())
    ppo.check_progress([record], ppo.PPOConfig(beta=0))
    ppo.check_progress([record | {"kl": 479.0}], ppo.PPOConfig())
    with refused(ValueError, "max_kl must be above 0"):
        ppo.PPOConfig(max_kl=0)


# --- the disk is full ----------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Within this context the system refuses to make a file larger, as a full disk would."""
    resource = pytest.importorskip("resource", reason="this system has no such limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@every_trainer
def test_a_full_disk_leaves_the_checkpoint_before(run, tmp_path: Path) -> None:
    keep = {"checkpoint_every": 1, "checkpoint_folder": str(tmp_path)}

    def stop(record) -> None:
        raise KeyboardInterrupt

    run(tiny.llama(), on_step=lambda record: stop(record) if record["step"] else None, **keep)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00001"]
    with (
        files_of_at_most(20_000),
        refused(OSError, "step_00002 was not written .*make room and start again"),
    ):
        run(tiny.llama(), **keep)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00001"]
    _, history = run(tiny.llama(), **keep)
    assert len(history) == 4


def test_a_full_disk_leaves_old_data_and_models(tmp_path: Path) -> None:
    path, folder = tmp_path / "rankings.jsonl", tmp_path / "model"
    data.write_jsonl(path, tiny.rankings(3))
    models.save_model(tiny.llama(), TOK, folder)
    with files_of_at_most(2_000):
        with refused(OSError, "rankings.jsonl was not written .*make room"):
            data.write_jsonl(path, tiny.rankings(500))
        with refused(OSError, "model was not written .*make room and start again"):
            models.save_model(tiny.llama(1), TOK, folder)
    assert data.read_rankings(path) == tiny.rankings(3)
    assert torch.equal(models.load_policy(folder).lm_head.weight, tiny.llama().lm_head.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "rankings.jsonl"]


def test_a_checkpoint_folder_that_is_a_file_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine", encoding="utf-8")
    with refused(ValueError, "notes.txt is a file; choose another"):
        run_sft(tiny.llama(), checkpoint_every=1, checkpoint_folder=str(path))
    assert path.read_text(encoding="utf-8") == "mine"
