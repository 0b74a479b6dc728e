"""A run that is interrupted or killed goes on and ends with the same weights, bit for bit."""

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file

from rlhf_edu import dpo, lora, models, ppo, pretrain, reward, sft
from rlhf_edu.engine import checkpoints
from rlhf_edu.roles import SeparateRoles

TOK = tiny.tokenizer()
PROMPTS = [tiny.prompt(i).text for i in range(8)]
BLOCKS = pretrain.pack(TOK, tiny.TEXTS * 8, block=16)


def run_pretrain(on_step=None, **options):
    config = pretrain.PretrainConfig(**{"batch_size": 30, "steps": 6, "warmup": 2} | options)
    model, history = pretrain.pretrain(tiny.llama(), BLOCKS, config, on_step)
    return [model], history


def run_sft(on_step=None, **options):
    config = sft.SFTConfig(**{"batch_size": 4, "epochs": 2, "warmup": 2} | options)
    data = tiny.demonstrations(11)
    model, history = sft.train_sft(tiny.gpt2(), TOK, data, config, on_step, validation=data)
    return [model], history


def run_reward(on_step=None, **options):
    config = reward.RewardConfig(**{"batch_size": 4, "epochs": 2, "warmup": 2} | options)
    model = models.scalar_model_from(tiny.llama())
    model, history = reward.train_reward(model, TOK, tiny.rankings(11, k=4), config, on_step)
    return [model], history


def run_ppo(on_step=None, **options):
    small = {"steps": 5, "batch_size": 6, "minibatch": 4, "max_new_tokens": 6, "ptx_coef": 0.5}
    config = ppo.PPOConfig(**small | options)
    roles = SeparateRoles(tiny.llama(), models.scalar_model_from(tiny.llama(1)))
    roles, history = ppo.train_ppo(roles, TOK, PROMPTS, config, on_step, ptx_blocks=BLOCKS)
    return [roles.policy, roles.critic], history


def run_sft_lora(on_step=None, **options):
    config = sft.SFTConfig(**{"batch_size": 4, "epochs": 2, "warmup": 2} | options)
    model = lora.new_adapter(tiny.gpt2(), rank=4)
    model, history = sft.train_sft(model, TOK, tiny.demonstrations(11), config, on_step)
    return [model], history


def run_reward_lora(on_step=None, **options):
    config = reward.RewardConfig(**{"batch_size": 4, "epochs": 2, "warmup": 2} | options)
    model = lora.put_on(models.scalar_model_from(tiny.llama()), tiny.policy_adapter())
    model, history = reward.train_reward(model, TOK, tiny.rankings(11, k=4), config, on_step)
    return [model], history


def run_ppo_lora(on_step=None, **options):
    small = {"steps": 5, "batch_size": 6, "minibatch": 4, "max_new_tokens": 6, "ptx_coef": 0.5}
    config, roles = ppo.PPOConfig(**small | options), tiny.lora_roles()
    roles, history = ppo.train_ppo(roles, TOK, PROMPTS, config, on_step, ptx_blocks=BLOCKS)
    return [roles.backbone], history


def run_dpo_lora(on_step=None, **options):
    config = dpo.DPOConfig(**{"batch_size": 4, "epochs": 2, "warmup": 2} | options)
    policy = lora.put_on(tiny.llama(), tiny.policy_adapter())
    policy, history = dpo.train_dpo(policy, policy, TOK, tiny.rankings(11), config, on_step)
    return [policy], history


def run_dpo(on_step=None, **options):
    config = dpo.DPOConfig(**{"batch_size": 4, "epochs": 2, "warmup": 2} | options)
    data = tiny.rankings(11)
    model, history = dpo.train_dpo(tiny.llama(), tiny.llama(), TOK, data, config, on_step)
    return [model], history


RUNS = {
    "pretrain": run_pretrain,
    "sft": run_sft,
    "reward": run_reward,
    "ppo": run_ppo,
    "dpo": run_dpo,
}
LORA_RUNS = {
    "sft-lora": run_sft_lora,
    "reward-lora": run_reward_lora,
    "ppo-lora": run_ppo_lora,
    "dpo-lora": run_dpo_lora,
}
every_trainer = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
with_lora_too = pytest.mark.parametrize(
    "run", [*RUNS.values(), *LORA_RUNS.values()], ids=[*RUNS, *LORA_RUNS]
)


def keep(folder: Path, every: int = 1) -> dict:
    return {"checkpoint_every": every, "checkpoint_folder": str(folder)}


def stop_at(step: int):
    def on_step(record) -> None:
        if record["step"] == step:
            raise KeyboardInterrupt

    return on_step


def weights(trained: list) -> list[torch.Tensor]:
    return [weight for model in trained for weight in model.state_dict().values()]


def same_bits(ours: list, theirs: list) -> bool:
    pairs = zip(weights(ours), weights(theirs), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "step_0")} for r in history]


# --- the same weights ----------------------------------------------------------------------------


@with_lora_too
def test_an_interrupt_at_any_step_changes_nothing(run, tmp_path: Path) -> None:
    whole, records = run()
    for step in range(len(records)):
        folder = tmp_path / str(step)
        run(stop_at(step), **keep(folder, every=2))
        trained, history = run(**keep(folder, every=2))
        assert same_bits(trained, whole), step
        assert timeless(history) == timeless(records)
        # Ctrl-C came before step's own checkpoint was written.
        done = step // 2 * 2
        assert {r["step"] for r in history if "step_0" in r} == {0, done}
        assert history[0]["step_0"].startswith(("ok", "look"))
        assert done == 0 or history[done]["step_0"].startswith("skipped: the run goes on from a c")
        seconds = [record["seconds"] for record in history]
        assert seconds == sorted(seconds)


def test_the_last_step_is_kept_whatever_the_interval(tmp_path: Path) -> None:
    for i, run in enumerate(RUNS.values()):
        _, history = run(**keep(tmp_path / str(i), every=100))
        names = [path.name for path in (tmp_path / str(i)).iterdir()]
        assert names == [f"step_{len(history):05d}"]


@with_lora_too
def test_a_run_that_is_done_comes_back_whole(run, tmp_path: Path) -> None:
    whole, records = run(**keep(tmp_path))
    trained, history = run(lambda record: pytest.fail("a step too many"), **keep(tmp_path, 3))
    assert same_bits(trained, whole) and history == records


@with_lora_too
def test_one_seed_repeats_and_two_differ(run) -> None:
    one, again, other = run(seed=3), run(seed=3), run(seed=4)
    assert same_bits(one[0], again[0]) and timeless(one[1]) == timeless(again[1])
    assert not same_bits(one[0], other[0])


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    assert same_bits(run_ppo()[0], run_ppo(**keep(tmp_path))[0])


# --- kill -9 -----------------------------------------------------------------------------------


def killed_after(seconds: float, work) -> bool:
    """Do some work in a process of its own and kill it; whether it was still at work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")
@with_lora_too
def test_kill_9_at_random_moments(run, tmp_path: Path) -> None:
    whole, records = run()
    start = time.perf_counter()
    run(**keep(tmp_path / "timed"))
    duration, moment = time.perf_counter() - start, random.Random(run.__name__)
    kills = int(os.environ.get("RLHF_EDU_KILLS", "4"))
    for i in range(kills):
        # Each time from the start, so that the kill may come at any step and within any write.
        folder = tmp_path / str(i)
        killed_after(moment.uniform(0, duration), lambda: run(**keep(folder)))  # noqa: B023
        trained, history = run(**keep(folder))
        assert same_bits(trained, whole) and timeless(history) == timeless(records)
        assert not list(folder.glob(".*"))


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".step_00002.99"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    whole, _ = run_sft(**keep(tmp_path, every=2))
    assert not left.exists() and same_bits(whole, run_sft()[0])


# --- what is in a checkpoint ---------------------------------------------------------------------


@every_trainer
def test_a_checkpoint_is_safetensors_and_json_and_opens_as_a_model(run, tmp_path: Path) -> None:
    trained, history = run(**keep(tmp_path))
    newest = tmp_path / f"step_{len(history):05d}"
    kinds = {path.suffix for path in newest.iterdir()}
    assert kinds <= {".safetensors", ".json"}
    assert json.loads((newest / "history.json").read_text(encoding="utf-8")) == history
    load = models.load_scalar_model if run is run_reward else models.load_policy
    assert same_bits([load(newest)], trained[:1])
    assert (newest / "tokenizer.json").exists() == (run is not run_pretrain)


# --- checkpoints of other runs, and broken ones --------------------------------------------------


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run_sft(**keep(tmp_path))
    with pytest.raises(ValueError, match=r"another run: lr was 0.001, and is 0.01 now; choose"):
        run_sft(**keep(tmp_path), lr=1e-2)
    with pytest.raises(ValueError, match=r"another run: seed was 0, and is 1 now; choose"):
        run_sft(**keep(tmp_path), seed=1)
    with pytest.raises(ValueError, match="it has an SFTConfig, not a DPOConfig"):
        run_dpo(**keep(tmp_path))
    config = sft.SFTConfig(batch_size=4, epochs=2, warmup=2, **keep(tmp_path))
    with pytest.raises(ValueError, match="other data"):
        sft.train_sft(tiny.gpt2(), TOK, tiny.demonstrations(10), config)
    with pytest.raises(ValueError, match="other weights"):
        sft.train_sft(tiny.gpt2(seed=1), TOK, tiny.demonstrations(11), config)


def test_another_reference_is_another_run(tmp_path: Path) -> None:
    config = dpo.DPOConfig(batch_size=4, same_start=False, **keep(tmp_path))
    for reference in (tiny.llama(), tiny.llama()):
        dpo.train_dpo(tiny.llama(), reference, TOK, tiny.rankings(8), config)
    with pytest.raises(ValueError, match="other weights"):
        dpo.train_dpo(tiny.llama(), tiny.llama(7), TOK, tiny.rankings(8), config)


@pytest.mark.parametrize("name", ["run.json", "history.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_a_broken_checkpoint_is_named(name: str, damage: str, tmp_path: Path) -> None:
    run_sft(stop_at(3), **keep(tmp_path))
    path = tmp_path / "step_00003" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff\x00" * 50)
    with pytest.raises(RuntimeError, match="step_00003 is broken .*delete it and start") as error:
        run_sft(**keep(tmp_path))
    assert "\n" not in str(error.value)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    trained, _ = run_sft(**keep(tmp_path))
    assert same_bits(trained, run_sft()[0])


@pytest.mark.parametrize(
    "name", ["run.json", "history.json", "state.safetensors", "model.safetensors", "tokenizer.json"]
)
def test_a_single_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    run_sft(stop_at(3), **keep(tmp_path))
    path = tmp_path / "step_00003" / name
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=f"step_00003 is broken .*{name} is not what was writ"):
        run_sft(**keep(tmp_path))


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", '{"run.json": 1}'])
def test_checksums_are_checked_too(content: str, tmp_path: Path) -> None:
    run_sft(stop_at(3), **keep(tmp_path))
    path = tmp_path / "step_00003"
    (path / "checksums.json").write_text(content)
    (path / "history.json").write_text("[]")
    with pytest.raises(RuntimeError, match="step_00003 is broken"):
        run_sft(**keep(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of open files")
def test_what_is_loaded_does_not_hang_on_the_file(tmp_path: Path) -> None:
    """A view of a file's memory changes, or is gone, with the file."""
    run_sft(stop_at(3), **keep(tmp_path))
    found = []
    make = sft.make_optimizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "make_optimizer", lambda *a: found.append(make(*a)) or found[0])
        patch.setattr(sft.Loop, "by_length", lambda *_: iter(()))
        run_sft(**keep(tmp_path))
    assert all(state for state in found[0].state.values())
    assert "state.safetensors" not in Path("/proc/self/maps").read_text()


def test_the_newest_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    for name in ("step_100000", "step_00002", "step_99999", "step_00010"):
        (tmp_path / name).mkdir()
    names = [path.name for path in checkpoints.saved_steps(tmp_path)]
    assert names == ["step_00002", "step_00010", "step_99999", "step_100000"]


def test_a_checkpoint_without_some_weights_is_broken(tmp_path: Path) -> None:
    run_sft(**keep(tmp_path))
    path = tmp_path / "step_00006" / "state.safetensors"
    tensors = load_file(path)
    tensors.pop("model.0.weight")
    save_file({k: v.clone() for k, v in tensors.items()}, path)
    sums = {path.name: checkpoints.checksum(path)}
    (path.parent / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(RuntimeError, match="is broken"):
        run_sft(**keep(tmp_path))


def test_fingerprints_tell_things_apart() -> None:
    same = checkpoints.fingerprint([torch.arange(6.0), ["a", 1]])
    assert same == checkpoints.fingerprint([torch.arange(6.0), ("a", 1)])
    others = [[torch.arange(6.0).view(2, 3), ["a", 1]], [torch.arange(6), ["a", 1]], ["a", 1]]
    assert len({same, *map(checkpoints.fingerprint, others)}) == 4


def test_limits_that_change_no_number_may_change(tmp_path: Path) -> None:
    run_ppo(stop_at(2), **keep(tmp_path))
    _, history = run_ppo(**keep(tmp_path, every=2), max_kl=1e6)
    assert len(history) == 5
    names = {field.name for field in dataclasses.fields(ppo.PPOConfig)}
    assert set(checkpoints.WITHOUT_EFFECT) <= names
