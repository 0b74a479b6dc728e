"""The options of `python -m rlhf_edu sft|reward|ppo|dpo`: a flag for every setting of a trainer."""

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import torch

from rlhf_edu.dpo import DPOConfig
from rlhf_edu.engine.checks import require_32_bits
from rlhf_edu.ppo import PPOConfig, Reward
from rlhf_edu.real.sources import PROMPT_FORMATS
from rlhf_edu.reward import RewardConfig
from rlhf_edu.sft import SFTConfig

CONFIGS = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig, "dpo": DPOConfig}
# Real answers are longer than those of the tiny web.
DEFAULTS = {"checkpoint_every": 50, "max_answer_tokens": 128, "max_new_tokens": 128}
# Settings that have a flag of another name, or none.
WITHOUT_FLAG = ("checkpoint_folder", "ptx_coef", "same_start")
# Options that change nothing without another one.
NEEDS = {"rank": "lora", "ptx_tokens": "ptx_data", "ptx_blocks": "ptx_data"}
LOWEST = {"rank": 1, "max_prompt_tokens": 1, "limit": 1, "ptx_tokens": 2}


@dataclasses.dataclass
class Shared:
    """Options that the four commands share, and no trainer has."""

    model: str
    """A model's, an adapter's or a run's folder, or a hub id."""
    data: str
    """A file (.json, .jsonl, .gz, .parquet, .csv or .txt), a folder of them, or a hub id."""
    out: Path
    """The run's folder; the same command goes on there."""
    lora: bool = False
    """Train an adapter, not the whole network."""
    rank: int | None = None
    """Rank of a new adapter; with --lora, and 16 without this."""
    device: str = "auto"
    """Where to compute: auto, cpu or cuda."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights below an adapter."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of a whole network's saved weights."""
    prompt_format: Literal[PROMPT_FORMATS] = "auto"
    """How a prompt is written down."""
    max_prompt_tokens: int = 256
    """Longer prompts are left out."""
    limit: int | None = None
    """Read so many rows at most; without it, all."""
    hub: bool = False
    """Models and data may come from the Hugging Face hub."""


@dataclasses.dataclass
class OfPPO:
    """Options of `ppo` alone."""

    reward_model: str | None = None
    """What `reward` trained, from the same base."""
    reward_function: str | None = None
    """A function MODULE:NAME from prompts and answers to scores, in the place of a reward model."""
    ptx_data: str | None = None
    """Text to mix in: a .txt file, or rows with `text`."""
    ptx_tokens: int = 128
    """Tokens of a block of that text."""
    gamma: float = 0.0
    """Weight of that text's gradient; 0 without such text."""


def explanations(config: type) -> dict[str, str]:
    """What stands below each setting in the source, on one line."""
    found = {}
    for part in reversed(config.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(part).params:
            found[entry.arg_name] = " ".join(entry.description.split())
    return found


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one of the four commands."""
    about = (
        "Train, in a folder of its own. Every step says how long it took; the same command goes on "
        "where a run was stopped."
    )
    prog = f"python -m rlhf_edu {command}"
    parser = argparse.ArgumentParser(prog=prog, description=about, allow_abbrev=False)
    for options in (Shared, *([OfPPO] if command == "ppo" else []), CONFIGS[command]):
        _add(parser, options)
    return parser


def _add(parser: argparse.ArgumentParser, options: type) -> None:
    """A flag for every field of a dataclass."""
    words, kinds = explanations(options), get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.name in WITHOUT_FLAG:
            continue
        default, text = DEFAULTS.get(field.name, field.default), words[field.name]
        required = default is dataclasses.MISSING
        more = _kind(kinds[field.name]) | ({"required": True} if required else {"default": default})
        if not required and default is not None and default is not False:
            text += f" (default: {default})"
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, help=text.replace("%", "%%"), **more)


def _kind(kind: Any) -> dict[str, Any]:
    """What argparse has to know of a field's type."""
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind == int | Literal["auto"]:
        return {"type": _auto_or_number, "metavar": "auto|N"}
    kinds = [part for part in get_args(kind) if part is not type(None)]
    return {"type": kinds[0] if kinds else kind}


def _auto_or_number(text: str) -> int | str:
    return text if text == "auto" else int(text)


def read_options(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Raises:
        ValueError: one is out of range, or has no effect without another.
    """
    parser = parser_of(command)
    options = parser.parse_args(arguments)
    if [] in vars(options).values():  # what argparse makes of `--limit=--`
        parser.error("-- is no value")
    given = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(NEEDS)))
    for name, needed in NEEDS.items():
        if getattr(given, name, None) is not None and not getattr(options, needed, None):
            raise ValueError(
                f"{_flag(name)} changes nothing without {_flag(needed)}; give both, or none"
            )
    for name, least in LOWEST.items():
        value = getattr(options, name, None)
        if value is not None and not least <= value < 2**63:
            said = f"must be at least {least}, and fit in 64 bits, not {value}"
            raise ValueError(f"{_flag(name)} {said}")
    if command == "ppo":
        _require_reward(options)
    return options


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _require_reward(options: argparse.Namespace) -> None:
    """Raise ValueError unless `ppo` has a reward, and what its baseline starts from."""
    if bool(options.ptx_data) != bool(options.gamma):
        raise ValueError("ppo: --ptx-data and --gamma go together; give both or neither")
    if not options.reward_model and not options.reward_function:
        raise ValueError("ppo: give --reward-model, or --reward-function MODULE:NAME")
    if not options.reward_model and options.baseline == "critic":
        raise ValueError(
            "ppo: the critic starts as the reward model; give --reward-model too, or take "
            "--baseline rloo --answers-per-prompt 4, which has no critic"
        )


def reward_function(name: str | None) -> Reward | None:
    """The function that MODULE:NAME stands for; modules of the working directory are found.

    Raises:
        ValueError: there is none.
    """
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--reward-function {name}: {error}; give MODULE:NAME") from None
    if not callable(found):
        raise ValueError(f"--reward-function {name} is no function")
    return found


def config_of(command: str, options: argparse.Namespace) -> Any:
    """The settings of the trainer."""
    names = [field.name for field in dataclasses.fields(CONFIGS[command])]
    given = {name: value for name, value in vars(options).items() if name in names}
    if command == "ppo":
        given["ptx_coef"] = options.gamma
    return CONFIGS[command](**given, checkpoint_folder=str(options.out / "checkpoints"))


def dtypes_of(options: argparse.Namespace) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtypes of weights in training, and on disk: None, as in training.

    Raises:
        ValueError: whole networks would be trained in 16 bits, or adapters saved in them.
    """
    dtype, saved = getattr(torch, options.dtype), getattr(torch, options.save_dtype)
    if options.lora and saved != torch.float32:
        raise ValueError("--save-dtype is for whole networks; leave it out: adapters are small")
    if not options.lora:
        require_32_bits(dtype)
    return dtype, None if saved == torch.float32 else saved
