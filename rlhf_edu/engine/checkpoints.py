"""Runs on disk: a trainer that was stopped, or killed, goes on where it was."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.engine.checks import Record
from rlhf_edu.engine.parallel import is_main
from rlhf_edu.files import new_folder, write_text
from rlhf_edu.models import write_ends
from rlhf_edu.tokens import ending_ids

# Settings that change no number: a run may go on with other ones.
WITHOUT_EFFECT = "checkpoint_every checkpoint_folder same_start max_kl max_constant_steps".split()
WITHOUT_EFFECT += ["micro_batch"]  # but for rounding

# What reading a damaged folder can raise.
UNREADABLE = (OSError, LookupError, TypeError, json.JSONDecodeError, UnicodeDecodeError)
UNREADABLE += (AttributeError, RuntimeError, SafetensorError)
CHECKSUMS = "checksums.json"


def fingerprint(thing: Any) -> str:
    """Short hash of tensors, numbers and texts, and lists and objects made of them."""

    def plain(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return vars(part)
        part = part.detach().cpu().contiguous()
        content = hashlib.sha256(part.flatten().view(torch.uint8).numpy()).hexdigest()
        return [str(part.dtype), *part.shape, content]

    return hashlib.sha256(json.dumps(thing, default=plain).encode()).hexdigest()[:16]


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files."""
    path, found = Path(path), hashlib.sha256()
    if path.is_dir():
        sums = {
            str(file.relative_to(path)): checksum(file)
            for file in path.rglob("*")
            if file.is_file()
        }
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last."""
    return sorted(folder.glob("step_*"), key=lambda path: (len(path.name), path.name))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _name(steps: int) -> str:
    return f"step_{steps:05d}"


class Checkpoint:
    """A run on disk: after Ctrl-C, a crash or `kill -9` it goes on, and ends with the same weights.

    Every `config.checkpoint_every` steps it writes a folder such as `step_00020` into
    `config.checkpoint_folder`, whole or not at all:

        model.safetensors, config.json, …   the model as transformers saves it, ready to be tried
        state.safetensors                   trained weights, AdamW's moments, the random generator
        history.json                        the records so far
        run.json                            which run this is, and the prompts still to be drawn
        checksums.json                      of all these files, so that damage is noticed

    Training begins with `resume` and ends each step with `save_if_due`. The checkpoint of a run
    with other settings, data or first weights is refused, so it is always safe to start again.
    """

    def __init__(
        self,
        config: Any,
        model: PreTrainedModel,
        optimizers: dict[str, torch.optim.Optimizer],
        data: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        frozen: Sequence[PreTrainedModel] = (),
        generator: torch.Generator | None = None,
        queue: list[int] | None = None,
    ) -> None:
        """Note what makes up a run; nothing is read or written yet.

        Args:
            config: the trainer's settings; without a checkpoint_folder nothing is ever written.
            model: to be saved beside the state, with `tokenizer` if there is one.
            optimizers: by name; their parameters are what training changes.
            data: what is trained on.
            frozen: models that take part, but do not change.
            generator, queue: random numbers, and rows to come, where a seed does not fix them.
        """
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.optimizers, self.data, self.frozen = optimizers, data, frozen
        self.generator, self.queue = generator, queue
        self.active = bool(config.checkpoint_every) and config.checkpoint_folder is not None
        self.run: Record = {}
        self.first_step = 0

    def resume(self) -> list[Record]:
        """Go back to the newest checkpoint, and return its history; [] on a fresh start.

        Raises:
            ValueError: the checkpoint belongs to another run, or its folder is a file.
            RuntimeError: it is broken.
        """
        if not self.active:
            return []
        folder = Path(self.config.checkpoint_folder)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"checkpoint_folder: {folder} is a file; choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        self.run = self._describe_run()  # now, while the weights are those that the run began with
        for half_written in folder.glob(".step_*"):
            shutil.rmtree(half_written, ignore_errors=True)
        saved = saved_steps(folder)
        if not saved:
            return []
        try:
            history = self._read(saved[-1])
        except UNREADABLE as error:
            raise RuntimeError(
                f"the checkpoint {saved[-1]} is broken ({type(error).__name__}: {error}); delete "
                "it and start again: training goes on from the one before"
            ) from error
        self.first_step = len(history)
        return history

    def _read(self, folder: Path) -> list[Record]:
        """Put everything back as it was when a checkpoint was written; returns its history."""
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name, wanted in sums.items():
            if checksum(folder / name) != wanted:
                raise OSError(f"{name} is not what was written")
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self._require_same_run(run, folder.parent)
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        if folder.name != _name(len(history)):
            raise OSError(f"history.json has {len(history)} steps")
        self._restore(load_file(folder / "state.safetensors"), run["queue"])
        return history

    def note(self, step: int) -> Record:
        """What the record of a step says about step 0 when the run goes on after a checkpoint."""
        if step == 0 or step != self.first_step:
            return {}
        return {"step_0": f"skipped: the run goes on from a checkpoint after {step} steps"}

    def save_if_due(self, history: list[Record], last: bool = False) -> None:
        """Write a checkpoint after every `checkpoint_every` steps, and after the last one.

        So no step is lost if what comes after training fails, as on a full disk.
        """
        due = last or len(history) % (self.config.checkpoint_every or 1) == 0
        if self.active and is_main() and due:
            self.save(history)

    def save(self, history: list[Record]) -> None:
        """Write a checkpoint; all or nothing.

        Raises:
            OSError: it cannot be written, as when the disk is full.
        """
        # Without adapters' look at the hub, whether the base has the same vocabulary there.
        adapters = hasattr(self.model, "get_base_model")
        options = {"save_embedding_layers": False} if adapters else {}
        with new_folder(Path(self.config.checkpoint_folder) / _name(len(history))) as place:
            self.model.save_pretrained(place, **options)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(place)
                if self.model.can_generate():
                    write_ends(place, ending_ids(self.model, self.tokenizer))
            save_file(self._state(), place / "state.safetensors")
            write_text(place / "history.json", json.dumps(history, indent=1))
            run = self.run | {"queue": self.queue}
            write_text(place / "run.json", json.dumps(run, indent=1))
            sums = {file.name: checksum(file) for file in place.iterdir() if file.is_file()}
            write_text(place / CHECKSUMS, json.dumps(sums, indent=1))

    def _describe_run(self) -> Record:
        """What must be the same for a run to be the same."""
        settings = dataclasses.asdict(self.config)
        settings = {k: v for k, v in settings.items() if k not in WITHOUT_EFFECT}
        weights = [_parameters(optimizer) for optimizer in self.optimizers.values()]
        weights += [list(model.parameters()) for model in self.frozen]
        rest = [p for p in self.model.parameters() if not p.requires_grad]
        weights += [rest] if rest else []  # the model below an adapter
        run = {"config": type(self.config).__name__, "settings": settings}
        run |= {"data": fingerprint(self.data), "weights": fingerprint(weights)}
        return json.loads(json.dumps(run))  # tuples become lists, as in the file

    def _require_same_run(self, other: Record, folder: Path) -> None:
        ours, theirs = self.run["settings"], other["settings"]
        if other["config"] != self.run["config"]:
            difference = f"it has an {other['config']}, not a {self.run['config']}"
        elif ours != theirs:
            name = next(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            difference = f"{name} was {theirs.get(name)}, and is {ours.get(name)} now"
        elif other["data"] != self.run["data"]:
            difference = "it was trained on other data"
        elif other["weights"] != self.run["weights"]:
            difference = "it began with other weights (load the models anew if they were trained)"
        else:
            return
        raise ValueError(
            f"{folder} holds checkpoints of another run: {difference}; choose another "
            "checkpoint_folder, or delete this one to start anew"
        )

    def _state(self) -> dict[str, Tensor]:
        """All tensors that training changes, by name."""
        tensors = {}
        for name, optimizer in self.optimizers.items():
            for i, parameter in enumerate(_parameters(optimizer)):
                kept = {"weight": parameter, **optimizer.state.get(parameter, {})}
                tensors |= {f"{name}.{i}.{k}": v.detach().contiguous() for k, v in kept.items()}
        if self.generator is not None:
            tensors["generator"] = self.generator.get_state()
        return tensors

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor], queue: list[int] | None) -> None:
        """Put back what `_state` found."""
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for i, parameter in enumerate(_parameters(optimizer)):
                start = f"{name}.{i}."
                parameter.copy_(tensors[f"{start}weight"])
                kept = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
                # Copies, as the loaded tensors are views of the file.
                state[i] = {k: v.clone() for k, v in kept.items() if k != "weight"}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.generator is not None:
            self.generator.set_state(tensors["generator"])
        if self.queue is not None:
            self.queue[:] = queue
