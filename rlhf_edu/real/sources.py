"""Models by name: a folder, an adapter's folder, a run's folder, or an id on the hub."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_edu.engine.loading import load_config, load_language_model, load_scalar
from rlhf_edu.files import one_line_errors
from rlhf_edu.lora import Adapter, is_adapter, load_adapter, merged
from rlhf_edu.models import save_model, scalar_model_from
from rlhf_edu.real.rows import require_hub

COMMAND = "python -m rlhf_edu reward"
PROMPT_FORMATS = ("auto", "chat", "plain")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: as it was given.
        folder: of the model or the adapter; or a hub id.
        base: folder or hub id of the model itself; the same as `folder` without an adapter.
        adapter: to be put on the base, or None.
    """

    name: str
    folder: str
    base: str
    adapter: Adapter | None = None


def find_source(name: str | Path) -> Source:
    """Find out what a name stands for.

    Raises:
        FileNotFoundError: there is no such folder, and the hub was not chosen.
        ValueError: it is a GGUF file, which has to be converted first; or an adapter that cannot
            be read, or whose model is itself an adapter.
    """
    folder = _folder(str(name))
    if not is_adapter(folder):
        return Source(str(name), folder, folder)
    adapter = load_adapter(folder)
    base = adapter.config.base_model_name_or_path
    try:
        base_folder = _folder(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is an adapter for the model {base}, and {error}") from None
    if is_adapter(base_folder):
        raise ValueError(
            f"{name} is an adapter on another adapter, {base}; merge that one into its model first "
            "(merge_and_unload of peft), and write the merged model's folder into "
            f"{folder}/adapter_config.json"
        )
    return Source(str(name), folder, base_folder, adapter)


def _folder(name: str) -> str:
    path = Path(name)
    for folder in (path, path / "model"):  # a model's or a run's
        if is_adapter(folder) or Path(folder, "config.json").is_file():
            return str(folder)
    if path.suffix == ".gguf":
        raise ValueError(
            f"{name} is a GGUF file: convert it first, once, with "
            "rlhf_edu.real.sources.convert_gguf(file, folder), and give the folder"
        )
    if path.exists():
        raise FileNotFoundError(
            f"{name} holds no model (config.json), no adapter (adapter_config.json) and no run"
        )
    require_hub(name, "model")
    return name


# --- load ----------------------------------------------------------------------------------------


def source_tokenizer(source: Source, prompt_format: str = "auto") -> PreTrainedTokenizerBase:
    """Load the tokenizer of a source; one without padding token pads with another's id.

    Args:
        prompt_format: "chat" wants a chat template, "plain" the course's own, "auto" takes a chat
            template where there is one. The choice is stored with what is trained.

    Raises:
        ValueError: it cannot be loaded, or there is no chat template.
    """
    with one_line_errors(f"the tokenizer of {source.name}"):
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if prompt_format == "plain":
        tokenizer.chat_template = None
    elif prompt_format == "chat" and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {source.name} has no chat template; choose --prompt-format plain, "
            "or a model that was trained to chat"
        )
    return tokenizer


def base_model(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load the language model of a source, without its adapter.

    Raises:
        ValueError: it cannot be loaded, or the tokenizer is for a larger vocabulary.
    """
    with one_line_errors(source.base):
        model = load_language_model(source.base, dtype)
    words = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > words:
        raise ValueError(
            f"{source.name}: the tokenizer has {len(tokenizer)} tokens, but the model only "
            f"{words}; give the model with the tokenizer that it was trained with"
        )
    return model.eval().to(device)


def language_model(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load the language model of a source; an adapter is added into the weights."""
    model = base_model(source, tokenizer, device, dtype)
    return merged(model, source.adapter) if source.adapter else model


def scalar_model(
    source: Source, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a reward model; an adapter is added into the weights.

    Raises:
        ValueError: it is none, or cannot be loaded.
    """
    adapter, refusal = source.adapter, f"{source.name} is no reward model; train one: {COMMAND}"
    with one_line_errors(source.base):
        has_head = load_config(source.base).num_labels == 1
    if not (adapter.head if adapter else has_head):
        raise ValueError(refusal)
    with one_line_errors(source.base):
        if has_head:
            model = load_scalar(source.base, dtype)
        else:
            model = scalar_model_from(load_language_model(source.base, dtype))
    model = model.to(device)
    return merged(model, adapter) if adapter else model


def require_same_vocabulary(policy: Source, reward: Source) -> None:
    """Raise ValueError unless two models give the same ids to the same tokens."""
    ours, theirs = (source_tokenizer(source).get_vocab() for source in (policy, reward))
    if ours == theirs:
        return
    other = next(word for word in ours | theirs if ours.get(word) != theirs.get(word))
    raise ValueError(
        f"the reward model {reward.name} reads other tokens than the policy {policy.name} "
        f"({len(theirs)} and {len(ours)}; {ascii(other)} is {theirs.get(other)} and "
        f"{ours.get(other)}); train a reward model from the policy's own base"
    )


# --- GGUF ----------------------------------------------------------------------------------------


def find_gguf(package: str) -> Path:
    """Return the GGUF file that an installed package carries, without importing the package.

    Raises:
        FileNotFoundError: the package is not installed, or carries none.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        for file in sorted(Path(folder).rglob("*.gguf")):
            return file
    raise FileNotFoundError(f"there is no installed package {package} with a GGUF file")


def convert_gguf(file: str | Path, folder: str | Path) -> None:
    """Write a GGUF file as an ordinary model folder, with 16 bits a weight; it needs gguf.

    Raises:
        ValueError: the file cannot be read.
    """
    file = Path(file)
    with one_line_errors(str(file)):
        place = {"gguf_file": file.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
        read = AutoModelForCausalLM.from_pretrained(file.parent, **place, dtype=torch.bfloat16)
    # The weights are plain numbers now, so that the settings of the quantisation must go.
    settings = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings))
    model.to(torch.bfloat16).load_state_dict(read.state_dict())
    save_model(model, tokenizer, folder)
