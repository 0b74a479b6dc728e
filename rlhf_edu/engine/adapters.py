"""The settings in an adapter's folder, written by strangers: which count, which are refused."""

import math
import re
from typing import Any

from peft import LoraConfig
from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


# The settings of peft that an adapter's folder may choose, and their types. What it chooses runs on
# the reader's machine, so that all others have to be as if they were not there.
NUMBER, NAMES = (int, float), (list, str, type(None))


SETTINGS = {
    "base_model_name_or_path": str,
    "revision": (str, type(None)),
    "task_type": (str, type(None)),
    "r": int,
    "lora_alpha": NUMBER,
    "lora_dropout": NUMBER,
    "bias": str,
    "lora_bias": bool,
    "fan_in_fan_out": bool,
    "use_rslora": bool,
    "use_dora": bool,
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "target_modules": NAMES,
    "modules_to_save": NAMES,
}


# They choose which layers get an addition, some by regular expressions, which may take for ever:
# the names of the weights say it as well.
CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")


# Without effect on what is loaded, or dealt with apart.
HARMLESS = {"peft_type", "inference_mode", "peft_version", "auto_mapping", "runtime_config"}


HARMLESS |= {"init_lora_weights", "eva_config", "qalora_group_size", "megatron_core", *CHOICES}


# Ways to start that leave the base model as it is; others, such as PiSSA, change it.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def _config(settings: Any, weights: dict[str, Tensor]) -> LoraConfig:
    """The settings of a folder, checked: whoever wrote it need not be a friend.

    Raises:
        ValueError: they are of another kind of adapter, no settings at all, or not to be trusted.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"holds a {type(settings).__name__}, and not the settings of an adapter")
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"it is of type {settings.get('peft_type')!r:.40}; only LoRA works")
    if not settings.get("base_model_name_or_path"):
        raise ValueError(
            "does not say which model its adapter belongs to; write the model's folder or hub id "
            "there as base_model_name_or_path"
        )
    for name, value in settings.items():
        if name in SETTINGS and not _fits(value, SETTINGS[name]):
            raise ValueError(f"{name} cannot be {value!r:.40}")
        if name not in SETTINGS and name not in HARMLESS and value not in (None, False, [], {}):
            raise ValueError(
                f"an adapter with {name:.40} does not work here; merge it into its model with peft "
                "(merge_and_unload), and give that"
            )
    config = LoraConfig(**{name: settings[name] for name in SETTINGS if name in settings})
    _require_plain(config, settings.get("init_lora_weights", True), weights)
    listed = isinstance(config.target_modules, set) and len(config.target_modules) <= len(weights)
    if not listed or any(settings.get(name) for name in CHOICES):
        additions = (name.split(".lora_") for name in weights if ".lora_" in name)
        config.target_modules = {n.removeprefix("base_model.model.") for n, _ in additions}
    return config


def _fits(value: Any, kind: Any) -> bool:
    """Whether a setting is of a type; a number is finite then, and a list holds texts."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, list):
        return kind is NAMES and all(isinstance(part, str) and part for part in value)
    return isinstance(value, kind) and (not isinstance(value, float) or math.isfinite(value))


def _require_plain(config: LoraConfig, start: Any, weights: dict[str, Tensor]) -> None:
    """Raise ValueError for settings that are well-formed, but do harm or contradict the weights."""
    if start not in STARTS:
        raise ValueError(
            f"init_lora_weights is {start!r:.40}, which changes the model below as well; save it "
            "as plain LoRA first (path_initial_model_for_weight_conversion of peft)"
        )
    for name, value in {**config.rank_pattern, **config.alpha_pattern}.items():
        if not re.fullmatch(r"\^?[\w.\\]+\$?", name) or not _fits(value, NUMBER):
            raise ValueError(f"the pattern {name!r:.40} must be a layer's name, with a number")
    ranks = {len(weight) for name, weight in weights.items() if ".lora_A." in name}
    known = {config.r, *config.rank_pattern.values()}
    if not ranks or not ranks <= known:
        found = ", ".join(map(str, sorted(ranks))) or "nothing"
        raise ValueError(f"r is {config.r}, but {WEIGHTS_FILE} holds additions of rank {found}")


def _with_score(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with a head, if there is one, as `scalar_class` has it: `score`, with a bias."""
    head = r"\.classifier\.(weight|bias)$"
    named = {re.sub(head, r".score.\1", name): weight for name, weight in weights.items()}
    for name in [name for name in named if name.endswith(".score.weight")]:
        bias = name.removesuffix("weight") + "bias"
        named.setdefault(bias, named[name].new_zeros(len(named[name])))
    return named
