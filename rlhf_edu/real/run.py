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
import copy
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.dpo import train_dpo
from rlhf_edu.engine.chat_templates import fix_day
from rlhf_edu.engine.checkpoints import checksum, saved_steps
from rlhf_edu.engine.checks import Record, require_tokens
from rlhf_edu.engine.devices import device_of, versions
from rlhf_edu.engine.ledger import GB, Ledger, explained, ppo_ledger
from rlhf_edu.engine.loading import load_config
from rlhf_edu.engine.parallel import is_main, join_others
from rlhf_edu.files import one_line_errors, write_text
from rlhf_edu.generation import generate
from rlhf_edu.lora import Adapter, new_adapter, put_on, save_adapter, take_off
from rlhf_edu.models import change_kept, round_weights, save_model, scalar_model_from
from rlhf_edu.ppo import train_ppo
from rlhf_edu.pretrain import pack
from rlhf_edu.real.formats import (
    Loaded,
    leave_out_long,
    load_demonstrations,
    load_pages,
    load_prompts,
    load_rankings,
)
from rlhf_edu.real.options import config_of, dtypes_of, read_options, reward_function
from rlhf_edu.real.sources import (
    base_model,
    find_source,
    language_model,
    require_same_vocabulary,
    scalar_model,
    source_tokenizer,
)
from rlhf_edu.reward import normalise_reward, score_answers, train_reward
from rlhf_edu.roles import LoraRoles, RolesOfModels, SeparateRoles
from rlhf_edu.sft import train_sft
from rlhf_edu.tokens import encode_prompt, limit_prompts

# Options that may change when a run goes on.
FREE = ("out", "device", "checkpoint_every", "hub", "micro_batch")
SAMPLES = 4
ENOUGH = 0.9  # of what training changed, to be left after rounding


# --- a run and its folder ------------------------------------------------------------------------


class Run:
    """What the four commands share: options, models, data, and the folder."""

    def __init__(self, command: str, options: argparse.Namespace) -> None:
        """Look at the options and claim the folder; nothing is loaded but the tokenizer.

        Raises:
            ValueError: an option is out of range, or the folder holds another run.
        """
        self.command, self.options, self.out = command, options, options.out
        self.config, self.device = config_of(command, options), device_of(options.device)
        self.dtype, self.save_dtype = dtypes_of(options)
        settings = {k: v for k, v in vars(options).items() if k not in FREE}
        self.about: Record = {"command": command, **settings}
        files = [Path(getattr(options, name, None) or "") for name in ("data", "ptx_data")]
        self.about["checksums"] = {str(f): checksum(f) for f in files if _is_stored(f)}
        self.done = self._claim()
        self.source = find_source(options.model)
        self.rank = self._rank()
        self.tokenizer = source_tokenizer(self.source, options.prompt_format)
        require_tokens(self.tokenizer, command)
        limit_prompts(self.tokenizer, options.max_prompt_tokens)
        self.day = fix_day(self.tokenizer, self._first_day())
        self.history: list[Record] = []
        self.stopped = False

    def _claim(self) -> bool:
        """Whether the run in the folder is done; an error if it is another one."""
        file = self.out / "run.json"
        if not file.is_file():
            if self.out.is_file() or any(self.out.glob("[!.]*")):
                raise ValueError(f"--out {self.out} is in use, but not by a run; choose another")
            return False
        done, run = _read_about(file)
        for name, value in self.about.items():
            if name == "checksums" and run.get(name) != value:
                changed = ", ".join(f for f in value if run.get(name, {}).get(f) != value[f])
                raise ValueError(
                    f"{self.out} holds another run: {changed} was another file when it began; "
                    "choose another --out, or delete this one to start anew"
                )
            if run.get(name) != value:
                raise ValueError(
                    f"{self.out} holds another run: {name} was {run.get(name)}, and is "
                    f"{value} now; choose another --out, or delete this one to start anew"
                )
        critic = getattr(self.config, "baseline", "") == "critic"
        for name in ("model", "critic") if critic else ("model",):
            if done and not any((self.out / name).glob("*.safetensors")):
                raise ValueError(
                    f"{file} says that the run is done, but {self.out / name} is gone; choose "
                    "another --out, or delete this one to start anew"
                )
        return done

    def _first_day(self) -> str | None:
        """The day of this run so far, or else of the reward model's, for templates with a date."""
        file = self.out / "run.json"
        day = json.loads(file.read_text(encoding="utf-8")).get("day") if file.is_file() else None
        if day is None and getattr(self.options, "reward_model", None):
            reward = source_tokenizer(find_source(self.options.reward_model))
            day = reward.init_kwargs.get("template_day")
        return day

    def note(self, done: bool, **more: Any) -> None:
        """Write run.json."""
        if not is_main():
            return
        about = {"done": done, "run": self.about, "device": str(self.device), **more}
        about |= {"day": self.day} if self.day else {}
        about["versions"] = versions()
        write_text(self.out / "run.json", json.dumps(about, indent=1, default=str) + "\n")

    def load(self, loader: Callable[..., Loaded], max_answer_tokens: int) -> list[Any]:
        """Load the data, say what was left out, and note that the run has begun."""
        loaded = loader(self.options.data, self.options.limit)
        longest = self.options.max_prompt_tokens, max_answer_tokens
        leave_out_long(loaded, self.tokenizer, *longest)
        say(loaded)
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
        return new_adapter(model, self.rank, seed=self.config.seed)

    def _rank(self) -> int:
        """The rank of the adapter to be trained; 0 without one."""
        wanted, adapter = self.options.rank, self.source.adapter
        if not self.options.lora or adapter is None:
            return (wanted or 16) * self.options.lora
        if wanted not in (None, adapter.config.r):
            raise ValueError(
                f"--rank {wanted} is of a new adapter, but {self.source.name} is an adapter of "
                f"rank {adapter.config.r}, which is trained on; leave --rank out"
            )
        return adapter.config.r

    def step(self, record: Record) -> None:
        """Add a record to history.jsonl, after those up to the checkpoint."""
        if not is_main():
            return
        file = self.out / "history.jsonl"
        if not self.history:
            found = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            write_text(file, "".join(found.splitlines(keepends=True)[: record["step"]]))
        self.history.append(record)
        with open(file, "a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(record) + "\n")
        say(_line(record))
        # A checkpoint is several times a model; one to go on from, and one in case that is broken.
        for old in saved_steps(self.out / "checkpoints")[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def finish(
        self, history: list[Record], trained: dict[str, Any], samples: Sequence[Record]
    ) -> None:
        """Save everything and note that the run is done; not if it was stopped half-way."""
        if self.stopped:
            say(f"stopped after {len(history)} steps; the same command goes on")
        if self.stopped or not is_main():
            return
        for name, model in trained.items():
            self._save(model, self.out / name)
        for name, rows in (("history", history), ("samples", samples)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(self.out / f"{name}.jsonl", text)
        self.note(done=True, data=self.data, steps=len(history))
        say(f"done: {self.out / 'model'}")

    def _save(self, model: PreTrainedModel | Adapter, folder: Path) -> None:
        if isinstance(model, PeftModel):
            model = take_off(model)
        if isinstance(model, Adapter):
            save_adapter(model, self.tokenizer, folder)
        else:
            save_model(model, self.tokenizer, folder, self.save_dtype)

    def answers(self, model: PreTrainedModel, prompts: Sequence[str]) -> list[str]:
        """Sampled answers to a few prompts."""
        limit = getattr(self.config, "max_new_tokens", None) or self.options.max_answer_tokens
        context = getattr(model.config, "max_position_embeddings", None) or float("inf")
        longest = max(len(encode_prompt(self.tokenizer, prompt)) for prompt in prompts)
        limit = max(1, min(limit, context - longest))
        return generate(model, self.tokenizer, prompts, limit).texts(self.tokenizer)


def _is_stored(path: Path) -> bool:
    """Whether a path is a file, or a folder that `datasets` saved, and no pipe or hub id."""
    return path.is_file() or (path / "dataset_info.json").is_file()


def _read_about(file: Path) -> tuple[bool, Record]:
    """From run.json whether the run is done, and which one it is."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return bool(found["done"]), dict(found["run"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} is broken ({type(error).__name__}: {error}); choose another --out, or delete "
            "this one to start anew"
        ) from None


def say(text: Any) -> None:
    """Print a line. If nobody reads any longer, as after `| head`, training goes on in silence."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    start = _start(run, model)
    model, history = train_sft(model, run.tokenizer, data, run.config, run.step)
    model = _as_saved(run, model, start)
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
    start = _start(run, model)
    model, history = train_reward(model, run.tokenizer, data, run.config, run.step)
    model = _as_saved(run, model, start)
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
    start = _start(run, policy)
    # The reference has done its part before the first step, so it may be the policy itself.
    policy, history = train_dpo(policy, policy, run.tokenizer, data, run.config, run.step)
    policy = _as_saved(run, policy, start)
    samples = _before_and_after(shown, before, run.answers(policy, shown))
    run.finish(history, {"model": policy}, samples)


def _ppo(run: Run) -> None:
    prompts: list[str] = run.load(load_prompts, run.config.max_new_tokens)
    shown, expected = prompts[:SAMPLES], _ledger(run)
    say(f"memory: about {expected.peak / GB:.1f} GB at most")
    with explained(expected):
        roles = _roles(run)
        before = run.answers(roles.policy, shown)
        text = _blocks(run) if run.options.ptx_data else None
        settings = run.config, run.step, text, reward_function(run.options.reward_function)
        roles, history = train_ppo(roles, run.tokenizer, prompts, *settings)
    trained = _policy_and_critic(run, roles)
    samples = _before_and_after(shown, before, run.answers(roles.policy, shown))
    run.finish(history, trained, samples)


def _policy_and_critic(run: Run, roles: RolesOfModels) -> dict[str, Any]:
    """What PPO trained, by the names of the folders that it is saved in."""
    critic = run.config.baseline == "critic"
    if isinstance(roles, LoraRoles):
        names = {"model": "policy", **({"critic": "critic"} if critic else {})}
        return {folder: roles.adapter(role) for folder, role in names.items()}
    trained = {"model": _as_saved(run, roles.policy, roles.reference)}
    if critic:
        trained["critic"] = _as_saved(run, roles.critic, roles.reward_model)
    return trained


def _ledger(run: Run) -> Ledger:
    """What the run will need in memory, with prompts and answers as long as they may be."""
    with one_line_errors(run.source.base):
        config = load_config(run.source.base)
    held = run.config.micro_batch
    if held == "auto":  # a GPU takes as many rows as fit, if one does
        held = int(run.device.type == "cuda")
    lengths = run.options.max_prompt_tokens, run.config.max_new_tokens
    settings = run.rank, run.dtype, min(run.config.minibatch, run.config.batch_size)
    return ppo_ledger(config, run.config.batch_size, held, *lengths, *settings)


def _roles(run: Run) -> RolesOfModels:
    """The networks of PPO, or, with --lora, adapters on one; without a critic for RLOO and GRPO."""
    loading, critic = (run.device, run.dtype), run.config.baseline == "critic"
    reward = find_source(run.options.reward_model) if run.options.reward_model else None
    if reward:
        require_same_vocabulary(run.source, reward)
    if not run.options.lora:
        policy = language_model(run.source, run.tokenizer, *loading)
        judge = scalar_model(reward, *loading) if reward else None
        return SeparateRoles(policy, judge, use_critic=critic)
    if reward and (reward.adapter is None or not _same(reward.base, run.source.base)):
        raise ValueError(
            f"ppo --lora has one model for all roles, {run.source.base}, but the reward model "
            f"{reward.name} is not an adapter for it; train one: python -m rlhf_edu reward --lora "
            f"--model {run.options.model}, or leave out --lora"
        )
    base = base_model(run.source, run.tokenizer, *loading)
    adapter, judge = run.source.adapter, reward.adapter if reward else None
    if adapter is None:
        fresh = new_adapter(base, run.rank, seed=run.config.seed)
        adapter = take_off(fresh)
        base = fresh.unload()
    return LoraRoles(base, adapter, judge, use_critic=critic)


def _same(base: str, other: str) -> bool:
    """Whether two folders or hub ids are the same."""
    folders = Path(base), Path(other)
    return folders[0].samefile(other) if all(f.is_dir() for f in folders) else base == other


def _blocks(run: Run) -> Tensor:
    return pack(run.tokenizer, load_pages(run.options.ptx_data), run.options.ptx_tokens)


def _start(run: Run, model: PreTrainedModel) -> PreTrainedModel | None:
    """A copy of the model before training, if it will be rounded after it."""
    return copy.deepcopy(model) if run.save_dtype else None


def _as_saved(run: Run, model: PreTrainedModel, start: PreTrainedModel | None) -> PreTrainedModel:
    """The model with its weights as they are saved; says what rounding leaves of training."""
    if run.save_dtype is None:
        return model
    kept = change_kept(start, model, run.save_dtype)
    say(f"rounded to {run.options.save_dtype}: {kept:.0%} of what training changed is left")
    if kept < ENOUGH:
        say("look: what is saved is not what was trained; leave out --save-dtype, or raise --lr")
    return round_weights(model, run.save_dtype)


HOW_TO_RUN = {"sft": _sft, "reward": _reward, "ppo": _ppo, "dpo": _dpo}


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
        say("stopped; the same command goes on")
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system takes back however this process ends.

    Raises:
        OSError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="utf-8") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise OSError(f"another process trains in {folder}; wait, or choose another") from None
        for left in folder.glob(".*.[0-9]*"):  # of processes that were killed while they wrote
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield


def main(command: str, arguments: Sequence[str]) -> int:
    """Run one of the four commands; returns the exit code, 130 for a run that was stopped."""
    options = read_options(command, arguments)
    join_others()
    with contextlib.ExitStack() as stack:
        if not is_main():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        run = Run(command, options)
        if run.done:
            say(f"done already: {run.out / 'model'}")
            return 0
        if is_main():
            stack.enter_context(_alone(run.out))
        with _stoppable(run):
            HOW_TO_RUN[command](run)
    return 130 if run.stopped else 0
