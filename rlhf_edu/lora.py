"""LoRA: small trained additions to a frozen model, which many roles can share (`LoraRoles`).

A linear layer W x becomes W x + (alpha / r) B A x, with A (r, in) and B (out, r) trained and W left
alone; B starts at 0, so that a new adapter changes nothing (Hu et al. 2021, arXiv 2106.09685).
`peft` does all of it. On disk an adapter is an ordinary peft folder: `AutoPeftModelForCausalLM`
opens a trained policy without this package.
"""

import copy
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

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

from rlhf_edu.engine.adapters import CONFIG_FILE, WEIGHTS_FILE, _config, _with_score
from rlhf_edu.files import new_folder, one_line_errors
from rlhf_edu.models import is_scalar, scalar_head, write_ends
from rlhf_edu.tokens import ending_ids

LINEAR = (nn.Linear, Conv1D)  # GPT-2 stores its linear layers as Conv1D
HEADS = ("score", "classifier")  # what token classifiers call a reward model's head


@dataclass(frozen=True)
class Adapter:
    """An adapter apart from any model.

    Attributes:
        config: peft's settings; `base_model_name_or_path` says which model it belongs to.
        weights: by the names that peft gives them in files; with the head, if it has one.
        generation_config: the model's, which says what ends an answer (`tokens.ending_ids`).
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

    Taught in chapter 11.

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
    """Freeze a model and put a copy of an adapter into it, trainable. Taught in chapter 11.

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
    """Return a copy of an adapter and its settings; the model stays as it is.

    Taught in chapter 11.
    """
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    weights = {key: weight.detach().cpu().clone() for key, weight in weights.items()}
    generation = getattr(model, "generation_config", None)
    return Adapter(copy.deepcopy(model.peft_config[name]), weights, generation)


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Add an adapter into a model's weights, W + (alpha / r) B A, in place; all can be trained.

    Taught in chapter 11.
    """
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


def save_adapter(adapter: Adapter, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Save adapter and tokenizer as a peft folder, all or nothing; an older folder is replaced.

    Taught in chapter 11.

    A local base is stored as an absolute path, so that the folder opens from anywhere. Which tokens
    end an answer is said in a generation_config.json beside the adapter.

    Raises:
        OSError: it cannot be written, as when the disk is full.
    """
    config = copy.deepcopy(adapter.config)
    config.inference_mode = True
    base = config.base_model_name_or_path
    if base and Path(base).is_dir():
        config.base_model_name_or_path = os.path.abspath(base)
    with new_folder(folder) as place:
        config.save_pretrained(str(place))
        save_file(adapter.weights, place / WEIGHTS_FILE, metadata={"format": "pt"})
        tokenizer.save_pretrained(place)
        if not adapter.head:
            write_ends(place, ending_ids(adapter, tokenizer))
