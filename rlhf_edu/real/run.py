"""Training as one command: `python -m rlhf_edu sft|reward|ppo|dpo --model … --data … --out …`.

A run has a folder, and goes on where it was stopped when its command is given again:

    run.json        which run it is: settings, data, versions; and whether it is done
    history.jsonl   the record of each step
    samples.jsonl   a few answers (or scores of answers), before and after
    checkpoints/    where a stopped run goes on
    model/          what was trained: a model's folder, or with --lora a peft folder
    critic/         of PPO
"""

import argparse
import contextlib
import dataclasses
import io
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from rlhf_edu import __version__
from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.dpo import DPOConfig, train_dpo
from rlhf_edu.engine.ledger import GB, Ledger, explained, ppo_ledger
from rlhf_edu.engine.parallel import is_main, join_others
from rlhf_edu.engine.training import Record
from rlhf_edu.files import write_text
from rlhf_edu.generation import generate
from rlhf_edu.lora import Adapter, new_adapter, put_on, save_adapter, take_off
from rlhf_edu.models import round_weights, save_model, scalar_model_from
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.pretrain import pack
from rlhf_edu.real.formats import (
    Loaded,
    leave_out_long,
    load_demonstrations,
    load_pages,
    load_prompts,
    load_rankings,
    one_line_errors,
)
from rlhf_edu.real.sources import (
    PROMPT_FORMATS,
    base_model,
    find_source,
    language_model,
    require_same_vocabulary,
    scalar_model,
    source_tokenizer,
)
from rlhf_edu.reward import RewardConfig, normalise_reward, score_answers, train_reward
from rlhf_edu.roles import LoraRoles, RolesOfModels, SeparateRoles
from rlhf_edu.sft import SFTConfig, train_sft
from rlhf_edu.tokens import limit_prompts

CONFIGS = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig, "dpo": DPOConfig}
# Real answers are longer than those of the tiny web.
DEFAULTS = {"checkpoint_every": 50, "max_answer_tokens": 128, "max_new_tokens": 128}
# Settings that have a flag of another name, or none.
WITHOUT_FLAG = ("checkpoint_folder", "ptx_coef", "same_start")
# Options that may change when a run goes on.
FREE = ("out", "device", "checkpoint_every", "hub", "micro_batch")
SAMPLES = 4


# --- options -------------------------------------------------------------------------------------


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m rlhf_edu {command}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a model's or adapter's folder, a run's, or a hub id")
    add("--data", required=True, help="a file (.json, .jsonl, .gz, .parquet, .csv) or a hub id")
    add("--out", required=True, type=Path, help="the run's folder; the same command goes on there")
    add("--lora", action="store_true", help="train an adapter, not the whole network")
    add("--rank", type=int, default=16, help="of a new adapter")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights")
    add("--prompt-format", default="auto", choices=PROMPT_FORMATS, help="chat template or plain")
    add("--max-prompt-tokens", type=int, default=256, help="longer prompts are left out")
    add("--limit", type=int, help="read so many rows at most")
    add("--hub", action="store_true", help="models and data may come from the Hugging Face hub")
    if command == "ppo":
        add("--reward-model", required=True, help="what `reward` trained, from the same base")
        add("--ptx-data", help="text to mix in: a .txt file, or rows with `text`")
        add("--ptx-tokens", type=int, default=128, help="tokens of a block of that text")
        add("--gamma", type=float, default=0.0, help="weight of its gradient")
    _add_settings(parser, CONFIGS[command])
    return parser


def _add_settings(parser: argparse.ArgumentParser, config: type) -> None:
    """A flag for every setting of a trainer, with the explanation from its docstring."""
    explained = dict(re.findall(r"^        (\w+)(?:, \w+)?: (.+)$", config.__doc__, re.M))
    for field in dataclasses.fields(config):
        if field.name not in WITHOUT_FLAG:
            default = DEFAULTS.get(field.name, field.default)
            kind = {"type": float if default is None else type(default)}
            if isinstance(default, bool):
                kind = {"action": "store_true"}
            flag, text = f"--{field.name.replace('_', '-')}", explained.get(field.name, " ")
            parser.add_argument(flag, **kind, default=default, help=text.replace("%", "%%"))


def _config(command: str, options: argparse.Namespace) -> Any:
    names = [field.name for field in dataclasses.fields(CONFIGS[command])]
    given = {name: value for name, value in vars(options).items() if name in names}
    if command == "ppo":
        given["ptx_coef"] = options.gamma
    return CONFIGS[command](**given, checkpoint_folder=str(options.out / "checkpoints"))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no such device here; choose auto or cpu")
    return torch.device(name)


# --- a run and its folder ------------------------------------------------------------------------


class Run:
    """What the four commands share: options, models, data, and the folder."""

    def __init__(self, command: str, options: argparse.Namespace) -> None:
        """Look at the options and claim the folder; nothing is loaded but the tokenizer.

        Raises:
            ValueError: an option is out of range, or the folder holds another run.
        """
        self.command, self.options, self.out = command, options, options.out
        self.config, self.device = _config(command, options), _device(options.device)
        self.dtype = getattr(torch, options.dtype)
        settings = {k: v for k, v in vars(options).items() if k not in FREE}
        self.about: Record = {"command": command, **settings}
        self.done = self._claim()
        self.source = find_source(options.model)
        self.tokenizer = source_tokenizer(self.source, options.prompt_format)
        limit_prompts(self.tokenizer, options.max_prompt_tokens)
        self.history: list[Record] = []
        self.stopped = False

    def _claim(self) -> bool:
        """Whether the run in the folder is done; an error if it is another one."""
        file = self.out / "run.json"
        if not file.is_file():
            if self.out.is_file() or any(self.out.glob("[!.]*")):
                raise ValueError(f"--out {self.out} is in use, but not by a run; choose another")
            return False
        found = json.loads(file.read_text(encoding="utf-8"))
        for name, value in self.about.items():
            if found["run"].get(name) != value:
                raise ValueError(
                    f"{self.out} holds another run: {name} was {found['run'].get(name)}, and is "
                    f"{value} now; choose another --out, or delete this one to start anew"
                )
        return found["done"]

    def note(self, done: bool, **more: Any) -> None:
        """Write run.json."""
        if not is_main():
            return
        libraries = {"torch": torch, "transformers": transformers, "peft": peft}
        versions = {name: library.__version__ for name, library in libraries.items()}
        about = {"done": done, "run": self.about, "device": str(self.device), **more}
        about["versions"] = {"rlhf_edu": __version__, **versions}
        write_text(self.out / "run.json", json.dumps(about, indent=1, default=str) + "\n")

    def load(self, loader: Callable[..., Loaded], max_answer_tokens: int) -> list[Any]:
        """Load the data, say what was left out, and note that the run has begun."""
        loaded = loader(self.options.data, self.options.limit)
        longest = self.options.max_prompt_tokens, max_answer_tokens
        leave_out_long(loaded, self.tokenizer, *longest)
        print(loaded)
        self.data = {"rows": loaded.rows, "format": loaded.format, "used": len(loaded.records)}
        self.data["left_out"] = dict(loaded.dropped)
        self.note(done=False, data=self.data)
        return loaded.records

    def policy(self) -> PreTrainedModel:
        """The model to be trained, or, with --lora, its base with the adapter to be trained."""
        loading = self.source, self.tokenizer, self.device, self.dtype
        if not self.options.lora:
            return language_model(*loading)
        return self._with_adapter(base_model(*loading))

    def scalar(self) -> PreTrainedModel:
        """The reward model to be trained: the policy with a new head."""
        loading, seed = (self.source, self.tokenizer, self.device, self.dtype), self.config.seed
        if not self.options.lora:
            return scalar_model_from(language_model(*loading), seed)
        return self._with_adapter(scalar_model_from(base_model(*loading), seed))

    def _with_adapter(self, model: PreTrainedModel) -> PeftModel:
        if self.source.adapter:
            return put_on(model, self.source.adapter)
        return new_adapter(model, self.options.rank, seed=self.config.seed)

    def step(self, record: Record) -> None:
        """Add a record to history.jsonl, after those up to the checkpoint."""
        if not is_main():
            return
        file = self.out / "history.jsonl"
        if not self.history:
            lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            write_text(file, "".join(line + "\n" for line in lines[: record["step"]]))
        self.history.append(record)
        with open(file, "a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(record) + "\n")
        print(_line(record), flush=True)
        # A checkpoint is several times a model; one to go on from, and one in case that is broken.
        saved = (self.out / "checkpoints").glob("step_*")
        for old in sorted(saved, key=lambda path: (len(path.name), path.name))[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def finish(
        self, history: list[Record], trained: dict[str, Any], samples: Sequence[Record]
    ) -> None:
        """Save everything and note that the run is done; not if it was stopped half-way."""
        if self.stopped:
            print(f"stopped after {len(history)} steps; the same command goes on")
        if self.stopped or not is_main():
            return
        for name, model in trained.items():
            self._save(model, self.out / name)
        for name, rows in (("history", history), ("samples", samples)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(self.out / f"{name}.jsonl", text)
        self.note(done=True, data=self.data, steps=len(history))
        print(f"done: {self.out / 'model'}")

    def _save(self, model: PreTrainedModel | Adapter, folder: Path) -> None:
        if isinstance(model, PeftModel):
            model = take_off(model)
        if isinstance(model, Adapter):
            save_adapter(model, self.tokenizer, folder)
        else:
            save_model(model, self.tokenizer, folder)

    def answers(self, model: PreTrainedModel, prompts: Sequence[str]) -> list[str]:
        """Sampled answers to a few prompts."""
        limit = getattr(self.config, "max_new_tokens", None) or self.options.max_answer_tokens
        return generate(model, self.tokenizer, prompts, limit).texts(self.tokenizer)


def _line(record: Record) -> str:
    """The most telling numbers of a step."""
    names = ("loss", "accuracy", "margin", "reward", "kl", "ended", "seconds")
    found = [f"{name} {record[name]:.4g}" for name in names if name in record]
    return f"step {record['step']}: " + ", ".join(found)


def _before_and_after(
    prompts: Sequence[str], before: Sequence[Any], after: Sequence[Any]
) -> list[Record]:
    rows = zip(prompts, before, after, strict=True)
    return [{"prompt": p, "before": b, "after": a} for p, b, a in rows]


# --- the four commands ---------------------------------------------------------------------------


def _sft(run: Run) -> None:
    data: list[Demonstration] = run.load(load_demonstrations, run.options.max_answer_tokens)
    model, shown = run.policy(), [d.prompt.text for d in data[:SAMPLES]]
    before = run.answers(model, shown)
    model, history = train_sft(model, run.tokenizer, data, run.config, run.step)
    model = _as_saved(model)
    samples = _before_and_after(shown, before, run.answers(model, shown))
    run.finish(history, {"model": model}, samples)


def _reward(run: Run) -> None:
    data: list[Ranking] = run.load(load_rankings, run.options.max_answer_tokens)
    model = run.scalar()

    def scores() -> list[list[float]]:
        found = [
            score_answers(model, run.tokenizer, [r.prompt.text] * len(r.answers), r.answers)
            for r in data[:SAMPLES]
        ]
        return [row.tolist() for row in found]

    before = scores()
    model, history = train_reward(model, run.tokenizer, data, run.config, run.step)
    model = _as_saved(model)
    # The labelers' favourites stand for demonstrations: they score 0 on average.
    normalise_reward(model, run.tokenizer, [_favourite(ranking) for ranking in data[:256]])
    samples = _before_and_after([r.prompt.text for r in data[:SAMPLES]], before, scores())
    answers = [{"answers": r.answers, "ranks": r.ranks} for r in data[:SAMPLES]]
    rows = zip(samples, answers, strict=True)
    run.finish(history, {"model": model}, [sample | more for sample, more in rows])


def _favourite(ranking: Ranking) -> Demonstration:
    best = ranking.ranks.index(min(ranking.ranks))
    return Demonstration(ranking.prompt, ranking.answers[best])


def _dpo(run: Run) -> None:
    data: list[Ranking] = run.load(load_rankings, run.options.max_answer_tokens)
    policy, shown = run.policy(), [r.prompt.text for r in data[:SAMPLES]]
    before = run.answers(policy, shown)
    # The reference has done its part before the first step, so it may be the policy itself.
    policy, history = train_dpo(policy, policy, run.tokenizer, data, run.config, run.step)
    policy = _as_saved(policy)
    samples = _before_and_after(shown, before, run.answers(policy, shown))
    run.finish(history, {"model": policy}, samples)


def _ppo(run: Run) -> None:
    if bool(run.options.ptx_data) != bool(run.options.gamma):
        raise ValueError("ppo: --ptx-data and --gamma go together; give both or neither")
    prompts: list[str] = run.load(load_prompts, run.config.max_new_tokens)
    shown, expected = prompts[:SAMPLES], _ledger(run)
    print(f"memory: about {expected.peak / GB:.1f} GB at most")
    with explained(expected):
        roles = _roles(run)
        before = run.answers(roles.policy, shown)
        text = _blocks(run) if run.options.ptx_data else None
        settings = run.config, run.step, text
        roles, history = train_ppo(roles, run.tokenizer, prompts, *settings)
    samples = _before_and_after(shown, before, run.answers(_as_saved(roles.policy), shown))
    if isinstance(roles, LoraRoles):
        trained = {"model": roles.adapter("policy"), "critic": roles.adapter("critic")}
    else:
        trained = {"model": roles.policy, "critic": roles.critic}
    run.finish(history, trained, samples)


def _ledger(run: Run) -> Ledger:
    """What the run will need in memory, with prompts and answers as long as they may be."""
    with one_line_errors(run.source.base):
        config = AutoConfig.from_pretrained(run.source.base)
    at_once = run.config.micro_batch or run.config.minibatch
    sizes = run.config.batch_size, min(at_once, run.config.minibatch)
    lengths = run.options.max_prompt_tokens, run.config.max_new_tokens
    return ppo_ledger(config, *sizes, *lengths, run.options.rank * run.options.lora, run.dtype)


def _roles(run: Run) -> RolesOfModels:
    """Four networks, or, with --lora, four adapters on one."""
    reward, loading = find_source(run.options.reward_model), (run.device, run.dtype)
    require_same_vocabulary(run.source, reward)
    if not run.options.lora:
        policy = language_model(run.source, run.tokenizer, *loading)
        return SeparateRoles(policy, scalar_model(reward, *loading))
    if reward.adapter is None or not _same(reward.base, run.source.base):
        raise ValueError(
            f"ppo --lora has one model for all roles, {run.source.base}, but the reward model "
            f"{reward.name} is not an adapter for it; train one: python -m rlhf_edu reward --lora "
            f"--model {run.options.model}, or leave out --lora"
        )
    base = base_model(run.source, run.tokenizer, *loading)
    if run.source.adapter:
        return LoraRoles(base, run.source.adapter, reward.adapter)
    fresh = new_adapter(base, run.options.rank, seed=run.config.seed)
    adapter = take_off(fresh)
    return LoraRoles(fresh.unload(), adapter, reward.adapter)


def _same(base: str, other: str) -> bool:
    """Whether two folders or hub ids are the same."""
    folders = Path(base), Path(other)
    return folders[0].samefile(other) if all(f.is_dir() for f in folders) else base == other


def _blocks(run: Run) -> Tensor:
    return pack(run.tokenizer, load_pages(run.options.ptx_data), run.options.ptx_tokens).to(
        run.device
    )


def _as_saved(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its weights rounded as they are saved; adapters are saved as they are."""
    return model if isinstance(model, PeftModel) else round_weights(model)


COMMANDS = {"sft": _sft, "reward": _reward, "ppo": _ppo, "dpo": _dpo}


@contextlib.contextmanager
def _stoppable(run: Run) -> Iterator[None]:
    """Remember a Ctrl-C: trainers take it as the end, but the run is not done."""

    def stop(*_: Any) -> None:
        run.stopped = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
    finally:
        signal.signal(signal.SIGINT, before)


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of the four commands; returns the exit code, 130 for a run that was stopped."""
    options = _parser(command).parse_args(arguments)
    join_others()
    with contextlib.ExitStack() as stack:
        if not is_main():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        run = Run(command, options)
        if run.done:
            print(f"done already: {run.out / 'model'}")
            return 0
        with _stoppable(run):
            COMMANDS[command](run)
    return 130 if run.stopped else 0
