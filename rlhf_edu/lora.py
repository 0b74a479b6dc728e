"""LoRA: small trained additions to a frozen model, and the four roles of RLHF on one backbone.

A linear layer W x becomes W x + (alpha / r) B A x, with A (r, in) and B (out, r) trained and W left
alone; B starts at 0, so that a new adapter changes nothing (Hu et al. 2021, arXiv 2106.09685).
`peft` does all of it. On disk an adapter is an ordinary peft folder: `AutoPeftModelForCausalLM`
opens a trained policy without this package.
"""

import copy
import json
import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rlhf_edu.models import (
    RolesOfModels,
    ending_ids,
    is_scalar,
    new_folder,
    scalar_head,
    write_ends,
)
from rlhf_edu.rows import one_line_errors

LINEAR = (nn.Linear, Conv1D)  # GPT-2 stores its linear layers as Conv1D
HEADS = ("score", "classifier")  # what token classifiers call a reward model's head
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


@dataclass(frozen=True)
class Adapter:
    """An adapter apart from any model.

    Attributes:
        config: peft's settings; `base_model_name_or_path` says which model it belongs to.
        weights: by the names that peft gives them in files; with the head, if it has one.
        generation_config: the model's, which says what ends an answer (`models.ending_ids`).
    """

    config: LoraConfig
    weights: dict[str, Tensor]
    generation_config: GenerationConfig | None = None

    @property
    def head(self) -> dict[str, Tensor]:
        """Weight (1, d) and bias (1,) of a reward model's head; empty for a policy."""
        parts = {name: name.split(".") for name in self.weights}
        return {part[-1]: self.weights[name] for name, part in parts.items() if part[-2] in HEADS}


# --- make, take off, put on ----------------------------------------------------------------------


def new_adapter(
    model: PreTrainedModel, rank: int = 16, alpha: float | None = None, seed: int = 0
) -> PeftModel:
    """Freeze a model and put a trainable adapter into every linear layer of its backbone.

    Args:
        model: a causal language model, or a reward model, whose head is then trained as well.
            It is changed, not copied.
        rank: r, of every addition.
        alpha: additions are multiplied by alpha / rank; None: 2 rank.
        seed: of A; B is 0.

    Raises:
        ValueError: the rank is below 1, or the backbone has no linear layer.
    """
    if rank < 1:
        raise ValueError(f"new_adapter: rank must be at least 1, not {rank}")
    layers = [(n, m) for n, m in model.base_model.named_modules() if isinstance(m, LINEAR)]
    if not layers:
        raise ValueError("new_adapter: the model has no linear layer to add to; is it a model?")
    config = LoraConfig(
        task_type=_task_type(model),
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name, _ in layers}),
        fan_in_fan_out=isinstance(layers[0][1], Conv1D),
    )
    return _wrap(model, config, "default", seed)


def _wrap(model: PreTrainedModel, config: LoraConfig, name: str, seed: int = 0) -> PeftModel:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # Of a name that peft still uses and transformers has changed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        if is_scalar(model):
            scalar_head(model).float()  # it is trained: AdamW's steps are lost in 16 bits
        return get_peft_model(model, config, adapter_name=name).eval()


def _task_type(model: PreTrainedModel) -> TaskType:
    return TaskType.TOKEN_CLS if is_scalar(model) else TaskType.CAUSAL_LM


def put_on(model: PreTrainedModel, adapter: Adapter, name: str = "default") -> PeftModel:
    """Freeze a model and put a copy of an adapter into it, trainable.

    A policy's adapter fits a reward model on the same base as well: training starts from the
    policy's backbone then, and from the reward model's own head.

    Raises:
        ValueError: the adapter belongs to a model of another shape, or to one of another kind.
    """
    _require_same_kind(model, adapter)
    config = copy.deepcopy(adapter.config)
    config.inference_mode = False
    config.task_type = _task_type(model)
    config.base_model_name_or_path = None  # peft fills in the model's own
    if is_scalar(model) and not adapter.head:
        own = {f"base_model.model.{name}": weight for name, weight in _head_of(model).items()}
        adapter = Adapter(config, adapter.weights | own)
    with one_line_errors(f"the adapter for {adapter.config.base_model_name_or_path}"):
        model = _wrap(model, config, name)
    _fill(model, name, adapter)
    return model


def _require_same_kind(model: PreTrainedModel, adapter: Adapter) -> None:
    """Raise ValueError if an adapter trains a layer that the model has not."""
    if adapter.head and not is_scalar(model):
        raise ValueError(
            "the adapter is a reward model's: it has a head, and predicts no text; give the "
            "adapter of a policy, or the model itself"
        )
    layers = {part for name, _ in model.named_modules() for part in name.split(".")}
    others = set(adapter.config.modules_to_save or ()) - layers - set(HEADS)
    if others and is_scalar(model):
        raise ValueError(
            f"the adapter also replaces {', '.join(sorted(others))}, which a reward model has not; "
            "leave out --lora: then it is merged into its model first (lora.merged)"
        )


def _head_of(model: PreTrainedModel) -> dict[str, Tensor]:
    head = next(name for name, module in model.named_children() if module is scalar_head(model))
    return {f"{head}.{name}": weight for name, weight in scalar_head(model).state_dict().items()}


def _fill(model: PeftModel, name: str, adapter: Adapter) -> None:
    """Put an adapter's weights into the place that is ready for them."""
    try:
        found = set_peft_model_state_dict(model, adapter.weights, adapter_name=name)
    except (RuntimeError, KeyError) as error:
        raise ValueError(_misfit(adapter, str(error).split("\n")[-1].strip())) from None
    own = re.compile(rf"\.(lora_\w+|modules_to_save)\.{name}(\.|$)")
    missing = [key for key in found.missing_keys if own.search(key)]
    if missing or found.unexpected_keys:
        raise ValueError(_misfit(adapter, f"for example {(missing + found.unexpected_keys)[0]}"))


def _misfit(adapter: Adapter, what: str) -> str:
    base = adapter.config.base_model_name_or_path
    return (
        f"the adapter does not fit the model: {what}; it was trained on {base}, so start from "
        "that model, or train the adapter anew"
    )


def take_off(model: PeftModel, name: str = "default") -> Adapter:
    """Return a copy of an adapter and its settings; the model stays as it is."""
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    weights = {key: weight.detach().cpu().clone() for key, weight in weights.items()}
    generation = getattr(model, "generation_config", None)
    return Adapter(copy.deepcopy(model.peft_config[name]), weights, generation)


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Add an adapter into a model's weights, W + (alpha / r) B A, in place; all can be trained."""
    return put_on(model, adapter).merge_and_unload().eval().requires_grad_(True)


# --- files ---------------------------------------------------------------------------------------


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return Path(folder, CONFIG_FILE).is_file()


def load_adapter(folder: str | Path) -> Adapter:
    """Read an adapter from a peft folder.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is no LoRA adapter, or does not say which model it belongs to.
    """
    if not is_adapter(folder) or not Path(folder, WEIGHTS_FILE).is_file():
        names = f"{CONFIG_FILE} and {WEIGHTS_FILE}"
        raise FileNotFoundError(f"{folder} holds no adapter; it needs {names}")
    with one_line_errors(str(folder)):
        settings = json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_peft_weights(str(folder), device="cpu")
    try:
        return Adapter(_config(settings, weights), _with_score(weights))
    except ValueError as error:
        raise ValueError(f"{Path(folder, CONFIG_FILE)}: {error}") from None


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


def save_adapter(adapter: Adapter, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save adapter and tokenizer as a peft folder, all or nothing; an older folder is replaced.

    A local base is stored as an absolute path, so that the folder opens from anywhere. Which tokens
    end an answer is said in a generation_config.json beside the adapter.

    Raises:
        OSError: it cannot be written, as when the disk is full.
    """
    config = copy.deepcopy(adapter.config)
    config.inference_mode = True
    if Path(config.base_model_name_or_path or "").is_dir():
        config.base_model_name_or_path = os.path.abspath(config.base_model_name_or_path)
    with new_folder(folder) as place:
        config.save_pretrained(str(place))
        save_file(adapter.weights, place / WEIGHTS_FILE, metadata={"format": "pt"})
        tokenizer.save_pretrained(place)
        if not adapter.head:
            write_ends(place, ending_ids(adapter, tokenizer))


# --- four roles on one backbone ------------------------------------------------------------------


class LoraRoles(RolesOfModels):
    """One frozen model with four adapters: what four networks do in the memory of little over one.

    The reference is a frozen copy of the policy's first adapter. Where that one is new (B = 0),
    the SFT model being the base itself, this is the base; where SFT trained an adapter, the base
    is *not* the reference, so that adapters are never just turned off. Reward model and critic have
    a head each.

    The backbone stays in the role it had last, so that a backward pass, which may compute parts
    again, finds what the forward pass ran.
    """

    NAMES = ("policy", "reference", "reward", "critic")

    def __init__(
        self,
        base: PreTrainedModel,
        policy: Adapter,
        reward_model: Adapter,
        reference: Adapter | None = None,
        critic: Adapter | None = None,
    ) -> None:
        """Start from a policy and a reward model that were trained on the same base.

        Args:
            base: a causal language model. It is changed, not copied: the adapters go into it.
            policy: usually the adapter from SFT; copied, as the others are.
            reward_model: with its head.
            reference: where the KL penalty is measured from; None: the policy as it is now.
            critic: None: the reward model as it is now (InstructGPT C.4).

        Raises:
            ValueError: an adapter does not fit the base, or the reward model has no head.
        """
        adapters = [policy, reference or policy, reward_model, critic or reward_model]
        self.backbone = put_on(base, policy, "policy")
        _attach_head(self.backbone.get_base_model(), adapters[2:])
        for name, adapter in zip(self.NAMES[1:], adapters[1:], strict=True):
            with torch.random.fork_rng(devices=[]):
                self.backbone.add_adapter(name, copy.deepcopy(adapter.config))
            _fill(self.backbone, name, adapter)
        self.backbone.eval().requires_grad_(False)
        self._learners = {name: self._parameters_of(name) for name in ("policy", "critic")}
        self._role = ""
        self._as("policy")

    def _parameters_of(self, role: str) -> list[nn.Parameter]:
        named = self.backbone.named_parameters()
        return [parameter for name, parameter in named if f".{role}." in name]

    def _as(self, role: str) -> PeftModel:
        """The backbone in a role."""
        if role != self._role:
            self.backbone.set_adapter(role, inference_mode=True)
            # Both learn, whichever is active: a gradient may still be on its way to the other.
            for parameter in self.policy_parameters() + self.critic_parameters():
                parameter.requires_grad_(True)
            self._role = role
        return self.backbone

    @property
    def policy(self) -> PeftModel:
        """The model that is being trained, until another role is asked for."""
        return self._as("policy")

    @property
    def reference(self) -> PeftModel:
        """The policy as it was, until another role is asked for."""
        return self._as("reference")

    @property
    def reward_model(self) -> PeftModel:
        """The reward model, until another role is asked for."""
        return self._as("reward")

    @property
    def critic(self) -> PeftModel:
        """The critic, until another role is asked for."""
        return self._as("critic")

    def policy_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self._learners["policy"])

    def critic_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self._learners["critic"])

    def adapter(self, role: str) -> Adapter:
        """Return a copy of the adapter of one of the four `NAMES`."""
        return take_off(self.backbone, role)


def _attach_head(model: PreTrainedModel, adapters: Sequence[Adapter]) -> None:
    """Give a language model the place where peft switches the heads of reward model and critic."""
    if not all(adapter.head for adapter in adapters):
        raise ValueError(
            "LoraRoles: the reward model's adapter has no head; give one that train_reward made"
        )
    weight = adapters[0].head["weight"]
    head = nn.Linear(weight.shape[1], 1, dtype=weight.dtype, device=model.device)
    # It is never used, but it is part of the run: the same in every process.
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    model.score = head
