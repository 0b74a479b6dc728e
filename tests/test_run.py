"""The four training commands: their folders, going on after a kill, and what they refuse."""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import traceback
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import SafetensorError

from rlhf_edu import __main__, data, lora, models
from rlhf_edu.course import chat
from rlhf_edu.experiments import ladder
from rlhf_edu.files import write_text
from rlhf_edu.real import options, run
from rlhf_edu.real.sources import convert_gguf, find_gguf, find_source
from rlhf_edu.reward import score_answers

TOK = tiny.tokenizer()
SMALL = {
    "sft": "--epochs 2 --batch-size 4 --max-answer-tokens 12",
    "reward": "--epochs 2 --batch-size 4 --max-answer-tokens 12",
    "dpo": "--epochs 2 --batch-size 4 --max-answer-tokens 12",
    "ppo": "--steps 4 --batch-size 4 --minibatch 2 --max-new-tokens 6",
}
LIMITS = "--max-prompt-tokens 40 --checkpoint-every 2".split()
ANSWERS = ("Yes!", "Old old old")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with two base models, data, and a reward model of each arrangement."""
    place = tmp_path_factory.mktemp("runs")
    models.save_model(tiny.llama(), TOK, place / "base", torch.float32)
    models.save_model(tiny.llama(1), TOK, place / "other", torch.float32)
    (place / "text.txt").write_text("\n\n".join(tiny.TEXTS * 9), encoding="utf-8")
    rows = [{"prompt": tiny.prompt(i).text, "chosen": "Yes!", "rejected": "wet"} for i in range(10)]
    rows += [rows[0] | {"rejected": "Yes!"}, rows[1] | {"chosen": "old " * 200}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "pairs.jsonl").write_text(lines, encoding="utf-8")
    for name, flags in (("rm", []), ("rm-lora", ["--lora"])):
        assert train(place, "reward", name, *flags) == 0
    return place


def train(place: Path, command: str, out: str, *flags: str, model: str = "base") -> int:
    # Every process has a random state of its own, as with commands, and none may matter.
    torch.manual_seed(os.getpid())
    given = ["--model", str(place / model), "--data", str(place / "pairs.jsonl")]
    given += ["--out", str(place / out), *LIMITS, *SMALL[command].split(), *flags]
    given += ["--rank", "2"] if "--lora" in flags and "--rank" not in flags else []
    if command == "ppo" and "--reward-model" not in flags:
        given += ["--reward-model", str(place / ("rm-lora" if "--lora" in flags else "rm"))]
    return __main__.main([command, *given])


def files(folder: Path) -> dict[str, bytes]:
    kept = [
        path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files(folder).items() if "safetensors" in name}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "step_0")} for r in history]


every_command = pytest.mark.parametrize("command", SMALL)
both = pytest.mark.parametrize("flags", [[], ["--lora"]], ids=["full", "lora"])


# --- what is in a run's folder -------------------------------------------------------------------


@every_command
@both
def test_a_killed_run_goes_on_and_ends_with_the_same_files(command, flags, place, capsys) -> None:
    whole, part = f"{command}-whole{flags}", f"{command}-part{flags}"
    assert train(place, command, whole, *flags) == 0
    assert "12 rows of" in capsys.readouterr().out
    for step in (0, 3):
        # As a process leaves it that is killed while it writes.
        (place / part / ".model.99").mkdir(parents=True, exist_ok=True)
        kill_at(step, lambda: train(place, command, part, *flags))
        assert not json.loads((place / part / "run.json").read_text())["done"]
        so_far = [record["step"] for record in lines(place / part / "history.jsonl")]
        assert so_far == list(range(step + 1))
    assert train(place, command, part, *flags) == 0
    ours, theirs = weights(place / part), weights(place / whole)
    assert ours == theirs and len(ours) == (2 if command == "ppo" else 1)
    assert [path.name for path in (place / part).glob(".*")] == [".lock"]
    found = [timeless(lines(place / name / "history.jsonl")) for name in (part, whole)]
    assert found[0] == found[1] and [r["step"] for r in found[0]] == list(range(len(found[0])))
    kept = sorted(path.name for path in (place / whole / "checkpoints").iterdir())
    assert kept == (["step_00002", "step_00004", "step_00006"][: len(found[0]) // 2])
    samples = lines(place / whole / "samples.jsonl")
    assert samples == lines(place / part / "samples.jsonl") and len(samples) == 4
    assert samples[0].keys() >= {"prompt", "before", "after"}
    about = json.loads((place / whole / "run.json").read_text())
    assert about["done"] and about["run"]["command"] == command and about["versions"]["torch"]
    # Once more, and there is nothing to do.
    before = files(place / whole)
    assert train(place, command, whole, *flags) == 0 and files(place / whole) == before
    assert "done already" in capsys.readouterr().out


def kill_at(step: int, work) -> None:
    """Do some work in a process of its own that is killed as it reports a step."""
    child = os.fork()
    if child:
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        return
    report = run.Run.step

    def deadly(self, record) -> None:
        report(self, record)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    run.Run.step = deadly
    # A fork has none of torch's threads, so weights must be read without any.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    sys.stderr = sys.__stderr__  # past capsys: why it was not killed
    try:
        work()
    finally:
        traceback.print_exc()
        os._exit(1)


def test_ctrl_c_stops_and_the_command_goes_on(place, monkeypatch, capsys) -> None:
    report = run.Run.step

    def interrupting(self, record) -> None:
        report(self, record)
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "step", interrupting)
        assert train(place, "sft", "stopped") == 130
    assert "stopped after 3 steps; the same command goes on" in capsys.readouterr().out
    assert not (place / "stopped" / "model").exists()
    assert train(place, "sft", "stopped") == 0
    assert len(lines(place / "stopped" / "history.jsonl")) == 6


def test_what_was_left_out_is_said(place, capsys) -> None:
    assert train(place, "dpo", "said") == 0
    said = capsys.readouterr().out
    assert "left out: 1 identical answers, 1 answer too long" in said
    kept = json.loads((place / "said" / "run.json").read_text())["data"]
    assert kept["used"] == 10 and kept["left_out"]["answer too long"] == 1


# --- what may go wrong around a run --------------------------------------------------------------


@pytest.mark.parametrize(("command", "flags"), [("sft", []), ("ppo", ["--lora"])])
def test_a_full_disk_in_the_final_save_loses_no_step(
    command, flags, place, capsys, monkeypatch
) -> None:
    out = f"full-{command}{flags}"

    def full_in(folder: str, save):
        def save_elsewhere(self, place, *rest) -> None:
            if folder not in str(place):
                return save(self, place, *rest)
            kind = SafetensorError if flags else Exception  # as tokenizers raise it
            raise kind("No space left on device (os error 28)")

        return save_elsewhere

    for name in [".model.", ".critic."] if command == "ppo" else [".model."]:
        with monkeypatch.context() as patch:
            patch.setattr(type(TOK), "save_pretrained", full_in(name, type(TOK).save_pretrained))
            code = train(place, command, out, *flags)
        folder = name.strip(".")
        refused(capsys, f"{folder} was not written .No space left.*make room and start", code)
        assert not (place / out / folder).exists()
    before = (place / out / "history.jsonl").read_bytes()
    assert train(place, command, out, *flags) == 0
    assert "step" not in re.sub("(?m)^(memory|12 rows).*", "", capsys.readouterr().out)
    assert (place / out / "history.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"{}", b"[]", b"", b"\xff\x00", b'{"done": tr', b"[" * 99999])
def test_a_broken_run_json_is_named(content, place, capsys) -> None:
    file = place / "broken" / "run.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    refused(capsys, "run.json is broken .*delete this one to start", train(place, "sft", "broken"))


def test_done_is_looked_at(place, capsys) -> None:
    assert train(place, "ppo", "looked") == 0
    capsys.readouterr()
    shutil.rmtree(place / "looked" / "critic")
    message = "says that the run is done, but .*critic is gone; choose"
    refused(capsys, message, train(place, "ppo", "looked"))
    content = (place / "pairs.jsonl").read_text(encoding="utf-8")
    try:
        write_text(place / "pairs.jsonl", content.replace("wet", "old"))
        message = "holds another run: .*pairs.jsonl was another file when it began; choose"
        refused(capsys, message, train(place, "ppo", "looked"))
    finally:
        write_text(place / "pairs.jsonl", content)


def test_noise_in_the_history_does_no_harm(place) -> None:
    kill_at(3, lambda: train(place, "sft", "noise"))
    (place / "noise" / "history.jsonl").write_bytes(b"\xff\x00{")
    assert train(place, "sft", "noise") == 0
    assert [record["step"] for record in lines(place / "noise" / "history.jsonl")] == list(range(6))


def test_two_processes_do_not_train_in_one_folder(place, capsys) -> None:
    with run._alone(place / "shared"):
        refused(capsys, "another process trains in .*shared", train(place, "sft", "shared"))
    assert train(place, "sft", "shared") == 0


def test_a_reader_who_goes_does_not_end_the_training(place, monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert train(place, "sft", "piped") == 0
    assert (place / "piped" / "model").is_dir()


def test_ctrl_c_while_something_is_loaded_says_so(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr(run, "find_source", lambda name: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)  # a job in the background may not listen at all
    with pytest.raises(SystemExit) as end:
        train(place, "sft", "early")
    assert end.value.code == 130 and capsys.readouterr().err.strip() == "rlhf_edu: stopped"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_table_that_cannot_be_printed_is_written(tmp_path, monkeypatch, capsys) -> None:
    class Quick:
        answers: dict = {}

        def __init__(self, *_, **__) -> None:
            pass

        def run(self) -> dict:
            return {"stages": [], "beside": []}

    def broken(*_) -> None:
        raise ValueError("no such letter")

    monkeypatch.setattr(ladder, "Ladder", Quick)
    monkeypatch.setattr("rlhf_edu.experiments.report.table", broken)
    monkeypatch.setattr("rlhf_edu.experiments.properties.properties", lambda report: "properties")
    assert __main__.main(["ladder", "--json", str(tmp_path / "table.json")]) == 2
    assert json.loads((tmp_path / "table.json").read_text())["stages"] == []
    # And the other way round.
    monkeypatch.setattr("rlhf_edu.experiments.report.table", lambda report: "the table")
    monkeypatch.setattr("rlhf_edu.experiments.report.side_by_side", lambda answers: "answers")
    assert __main__.main(["ladder", "--json", str(tmp_path)]) == 2
    assert "the table" in capsys.readouterr().out


def test_chat_ends_at_ctrl_d_and_reads_any_bytes(monkeypatch, capsys) -> None:
    monkeypatch.setattr(chat.Shipped, "load", lambda self, name: tiny.llama())
    monkeypatch.setattr(chat.Shipped, "tokenizer", TOK)
    typed = iter(["Is it wet?", "caf\udce9"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert __main__.main(["chat", "--stage", "base"]) == 0
    assert capsys.readouterr().out.count("    base  ") == 2


# --- from one stage to the next ------------------------------------------------------------------


def test_a_chain_of_stages_shares_one_base(place) -> None:
    assert train(place, "sft", "c-sft", "--lora") == 0
    for command in ("reward", "dpo"):
        assert train(place, command, f"c-{command}", "--lora", model="c-sft") == 0
    flags = ["--lora", "--reward-model", str(place / "c-reward")]
    assert train(place, "ppo", "c-ppo", *flags, model="c-sft") == 0
    for name in ("c-sft", "c-reward", "c-dpo", "c-ppo"):
        config = json.loads((place / name / "model" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(place / "base")
    # Reward model and DPO start from the SFT adapter, not from the base.
    first = lines(place / "c-dpo" / "history.jsonl")[0]
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    policy = AutoPeftModelForCausalLM.from_pretrained(place / "c-ppo" / "model")
    assert policy.peft_config["default"].r == 2
    # And without --lora the adapter is added into the weights.
    assert train(place, "sft", "c-full", model="c-sft") == 0
    assert not lora.is_adapter(place / "c-full" / "model")
    models.load_policy(place / "c-full" / "model")


def test_options_reach_the_trainer(place, monkeypatch) -> None:
    found = []

    def stop(roles, tokenizer, prompts, config, *rest) -> None:
        found.append((roles, config))
        raise ValueError("seen")

    monkeypatch.setattr(run, "train_ppo", stop)
    flags = ["--ptx-data", str(place / "text.txt"), "--gamma", "2", "--ptx-tokens", "16"]
    train(place, "ppo", "gamma", *flags)
    train(place, "ppo", "seed", "--lora", "--seed", "5")
    (_, config), (roles, seeded) = found
    assert config.ptx_coef == 2 and seeded.seed == 5
    wanted = lora.take_off(lora.new_adapter(models.load_policy(place / "base"), 2, seed=5)).weights
    ours = roles.adapter("policy").weights
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_the_limit_of_prompts_stays_with_the_model(place) -> None:
    tokenizer = models.load_tokenizer(place / "rm" / "model")
    assert tokenizer.init_kwargs["max_prompt_tokens"] == 40


def test_answers_that_just_fit_are_trained_on(place) -> None:
    models.save_model(tiny.llama(max_position_embeddings=40), TOK, place / "narrow")
    flags = ["--max-answer-tokens", "39", "--limit", "4"]
    assert train(place, "sft", "just", *flags, model="narrow") == 0


def test_pretraining_text_is_mixed_in(place) -> None:
    flags = ["--ptx-data", str(place / "text.txt"), "--gamma", "2", "--ptx-tokens", "16"]
    assert train(place, "ppo", "ptx", *flags) == 0
    assert all(record["ptx_loss"] > 0 for record in lines(place / "ptx" / "history.jsonl"))


def test_a_reward_model_scores_its_favourites_around_zero(place) -> None:
    model = models.load_scalar_model(place / "rm" / "model")
    prompts = [tiny.prompt(i).text.strip() for i in range(10)]
    assert abs(score_answers(model, TOK, prompts, ["Yes!"] * 10).mean()) < 1e-4


# --- what is refused -----------------------------------------------------------------------------


def refused(capsys, message: str, code: int) -> None:
    said = capsys.readouterr().err
    assert code == 2 and re.search(message, said), said
    assert said.startswith("rlhf_edu: ") and said.count("\n") == 1, said


def test_other_settings_are_another_run(place, capsys) -> None:
    assert train(place, "sft", "once") == 0
    again = train(place, "sft", "once", "--lr", "0.5")
    refused(capsys, "once holds another run: lr was 0.001, and is 0.5 now; choose another", again)
    refused(capsys, "command was sft, and is dpo now", train(place, "dpo", "once"))
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").touch()
    refused(capsys, "mine is in use, but not by a run", train(place, "sft", "mine"))


def test_names_that_stand_for_nothing_are_refused(place, capsys) -> None:
    wrong = train(place, "sft", "x1", model="nowhere")
    refused(capsys, "there is no model .*nowhere on this machine; check the path.*--hub", wrong)
    (place / "empty").mkdir()
    wrong = train(place, "sft", "x2", model="empty")
    refused(capsys, r"empty holds no model \(config.json\), no adapter", wrong)
    (place / "model.gguf").touch()
    refused(capsys, "GGUF file: convert it first", train(place, "sft", "x3", model="model.gguf"))
    wrong = train(place, "sft", "x4", "--device", "cuda:9")
    refused(capsys, "torch sees no such device here", wrong)
    wrong = train(place, "sft", "x5", "--lr", "-1")
    refused(capsys, "lr must be above 0, not -1.0", wrong)
    orphan = tiny.policy_adapter()
    orphan.config.base_model_name_or_path = "gone/model"
    lora.save_adapter(orphan, TOK, place / "orphan")
    wrong = train(place, "sft", "x6", model="orphan")
    refused(capsys, "orphan is an adapter for the model gone/model, and there is no model", wrong)
    assert not any((place / f"x{i}" / "model").exists() for i in range(1, 7))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rank 4", "--rank changes nothing without --lora; give both, or none"),
        ("--lora --rank 0", "--rank must be at least 1, and fit in 64 bits, not 0"),
        (
            "--micro-batch -1",
            "SFTConfig: micro_batch must be auto or a whole number from 0, not -1",
        ),
        ("--seed 99999999999999999999", "seed must be a whole number of 64 bits, not 9"),
        ("--device 3.5", "--device '3.5' is no device; choose auto, cpu or cuda"),
        ("--lr inf", "lr must be a finite number, not inf"),
        ("--limit -3", "--limit must be at least 1"),
        ("--max-prompt-tokens 0", "--max-prompt-tokens must be at least 1"),
        ("ppo --ptx-tokens 9", "--ptx-tokens changes nothing without --ptx-data"),
        ("ppo --ptx-blocks 4", "--ptx-blocks changes nothing without --ptx-data"),
        ("ppo --clip 0", "clip must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(flags, message, place, capsys) -> None:
    command = "ppo" if flags.startswith("ppo") else "sft"
    wrong = train(place, command, "range", *flags.removeprefix("ppo ").split())
    refused(capsys, message, wrong)
    assert not (place / "range").exists()


def test_an_adapter_keeps_its_rank(place, capsys) -> None:
    wrong = train(place, "reward", "rank", "--lora", "--rank", "4", model="rm-lora")
    refused(capsys, "rm-lora is an adapter of rank 2, which is trained on; leave --rank out", wrong)


def test_a_tokenizer_without_an_end_is_refused_before_the_samples(place, capsys) -> None:
    shutil.copytree(place / "base", place / "endless")
    (place / "endless" / "tokenizer_config.json").unlink()
    wrong = train(place, "sft", "end", model="endless")
    refused(capsys, "no end-of-text token, so no answer could ever end; set", wrong)


def test_a_gated_model_is_refused_in_one_line(place, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def gated(*args, **options):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr("rlhf_edu.real.sources.AutoTokenizer.from_pretrained", gated)
    given = ["sft", "--model", "some/gated", "--data", "x", "--out", str(place / "gated")]
    refused(capsys, "some/gated cannot be loaded; it is gated: accept its", __main__.main(given))


def test_a_missing_template_is_refused(place, capsys) -> None:
    wrong = train(place, "sft", "chat", "--prompt-format", "chat")
    refused(capsys, "base has no chat template; choose --prompt-format plain", wrong)


def test_reward_models_that_do_not_fit_are_refused(place, capsys) -> None:
    def ppo(out: str, reward: str, *flags: str) -> int:
        return train(place, "ppo", out, "--reward-model", str(place / reward), *flags)

    refused(capsys, "other is no reward model; train one: python -m", ppo("y1", "other"))
    assert train(place, "reward", "rm-other", "--lora", model="other") == 0
    capsys.readouterr()
    message = "ppo --lora has one model for all roles, .*base, but the reward model .*rm-other is "
    refused(capsys, message + "not an adapter for it; train", ppo("y2", "rm-other", "--lora"))
    refused(capsys, "rm is not an adapter for it", ppo("y3", "rm", "--lora"))
    tokenizer = tiny.train_tokenizer([text.upper() for text in tiny.TEXTS * 5], 270)
    models.save_model(models.scalar_model_from(tiny.llama()), tokenizer, place / "upper")
    message = r"reads other tokens than the policy .* \(270 and 280; .* train a reward model from"
    refused(capsys, message, ppo("y4", "upper"))
    refused(capsys, "--ptx-data and --gamma go together", ppo("y5", "rm", "--gamma", "1"))
    assert train(place, "sft", "sft-lora", "--lora") == 0
    capsys.readouterr()
    refused(capsys, "sft-lora is no reward model", ppo("y6", "sft-lora"))


@pytest.mark.parametrize("flags", [[], ["--lora"]], ids=["networks", "lora"])
def test_out_of_memory_says_which_role_took_what(flags, place, capsys, monkeypatch) -> None:
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(run, "train_ppo", too_much)
    assert train(place, "ppo", "oom", *flags) == 2
    said = capsys.readouterr()
    assert "memory: about 0." in said.out
    assert re.search(r"out of memory; PPO was expected to take .*: set micro_batch", said.err)
    assert "critic       optimizer" in said.err and not (place / "oom" / "model").exists()
    shutil.rmtree(place / "oom")


def test_a_tokenizer_larger_than_its_model_is_refused(place, capsys) -> None:
    models.save_model(tiny.llama(vocab_size=200), TOK, place / "small")
    wrong = train(place, "sft", "z1", model="small")
    refused(capsys, "the tokenizer has 280 tokens, but the model only 200; give the model", wrong)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    whole = __main__._parser()
    (commands,) = whole._subparsers._group_actions
    return {"": whole} | commands.choices | {name: options.parser_of(name) for name in SMALL}


@pytest.mark.parametrize("command", parsers())
def test_help_explains_every_option_in_a_sentence(command, capsys) -> None:
    parser = parsers()[command]
    assert re.fullmatch("(?s)[A-Z].*[.]", parser.description.replace("`", "T"))
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            assert re.fullmatch(r"[A-Z].*\.( \(default: .+\))?", action.help), action
    with pytest.raises(SystemExit) as end:
        __main__.main([command, "--help"] if command else ["--help"])
    assert end.value.code == 0 and "usage" in capsys.readouterr().out


def test_help_names_defaults_and_choices(capsys) -> None:
    assert __main__.main([]) == 0
    assert all(name in capsys.readouterr().out for name in ["findings"])
    said = options.parser_of("dpo").format_help()
    for words in (
        "{dpo,ipo,length-normalised,hinge",
        "(default: 0.0002)",
        "0: keep all",
        ": auto)",
        ": 0)",
    ):
        assert words in " ".join(said.split()), words
    assert set(__main__.CHAT_STAGES) == set(chat.FOLDERS)
    with pytest.raises(SystemExit):
        __main__.main(["ladder", "--nonsense"])


# --- sources -------------------------------------------------------------------------------------


def test_sources(place) -> None:
    plain = find_source(place / "base")
    assert plain.adapter is None and plain.base == plain.folder == str(place / "base")
    adapter = find_source(place / "rm-lora")
    assert adapter.folder == str(place / "rm-lora" / "model") and adapter.base == plain.base
    assert adapter.adapter.head["bias"].shape == (1,)
    with pytest.raises(FileNotFoundError, match="no installed package no_such_package"):
        find_gguf("no_such_package")
    with pytest.raises(FileNotFoundError, match="no installed package json"):
        find_gguf("json")
    with pytest.raises(ValueError, match="model.gguf cannot be loaded"):
        (place / "model.gguf").touch()
        convert_gguf(place / "model.gguf", place / "converted")
    assert not (place / "converted").exists()


def test_the_shipped_rankings_are_read_by_the_commands(tmp_path) -> None:
    data.write_jsonl(tmp_path / "rankings.jsonl", tiny.rankings(6))
    models.save_model(tiny.llama(), TOK, tmp_path / "base", torch.float32)
    given = f"--model {tmp_path}/base --data {tmp_path}/rankings.jsonl --out {tmp_path}/out"
    assert __main__.main(["reward", *given.split(), "--limit", "5"]) == 0
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert about["data"]["format"] == "the course schema" and about["data"]["used"] == 5
