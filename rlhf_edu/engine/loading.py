"""Models from folders and the hub: all weights or an error, and never a stranger's code."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForTokenClassification

from rlhf_edu.files import UnfitModel

MAX_LAYERS = 1000  # the largest models have about 130


# Of a reward model, in the files of sequence and token classifiers.
HEAD_WEIGHTS = {"score.weight", "score.bias", "classifier.weight", "classifier.bias"}


def load_config(name: str | Path) -> PreTrainedConfig:
    """Load the settings of a model, from a folder or by a hub id; code that comes along never runs.

    Raises:
        UnfitModel: they ask for more layers than any model has.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > MAX_LAYERS:
        raise UnfitModel(f"{name}: its config.json asks for {layers} layers; is it damaged?")
    return config


def load_language_model(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model, from a folder or by a hub id, in eval mode.

    Raises:
        UnfitModel: it is a reward model, or weights are missing or left over.
    """
    model, missing, unexpected = _read(AutoModelForCausalLM, name, load_config(name), dtype)
    if unexpected & HEAD_WEIGHTS:
        raise UnfitModel(
            f"{name} is a reward model, which predicts no text; give the language model that it "
            "was trained from, or another one"
        )
    _require_all(name, missing, unexpected)
    return model


def load_scalar(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a reward model or critic, from a folder or by a hub id, in eval mode.

    Sequence classifiers with one label are reward models too: a head without bias gets a bias of 0.

    Raises:
        UnfitModel: it has no head, or more than one output, or weights are missing or left over.
    """
    config = load_config(name)
    if config.num_labels != 1:
        raise UnfitModel(f"{name} is no reward model: it has {config.num_labels} labels, not 1")
    # GPT-2 and some others call the head of a token classifier so.
    heads = {"key_mapping": {r"^classifier\.": "score."}}
    kind = scalar_class(type(config))
    model, missing, unexpected = _read(kind, name, config, dtype, **heads)
    if "score.weight" in missing:
        raise UnfitModel(f"{name} is no reward model: its files hold no weights of a head")
    if "score.bias" in missing:
        nn.init.zeros_(model.score.bias)
    _require_all(name, missing - {"score.bias"}, unexpected)
    return model


def _read(
    kind: Any, name: str | Path, config: PreTrainedConfig, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """A model, and the names of the weights that are missing in its files, and left over there."""
    options |= {"trust_remote_code": False, "output_loading_info": True}
    model, found = kind.from_pretrained(name, config=config, dtype=dtype, **options)
    return model.eval(), set(found["missing_keys"]), set(found["unexpected_keys"])


def _require_all(name: str | Path, missing: set[str], unexpected: set[str]) -> None:
    """Raise UnfitModel for missing weights, which transformers draws at random, and for others."""
    for keys, what in ((missing, "are missing"), (unexpected, "have no place in the model")):
        if keys:
            first = ", ".join(sorted(keys)[:2])
            raise UnfitModel(
                f"{name}: {len(keys)} of the weights {what} ({first}{', …' * (len(keys) > 2)}); "
                "config.json and weights do not belong together, or a file is missing or damaged"
            )


@functools.cache
def scalar_class(kind: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The class of a family's reward models: its token classifier, or one made in the same way.

    Only a third of the families have a token classifier whose head is called `score`, as Llama's;
    the others get one here: the backbone of the language model under its own names, and `score`,
    a linear layer d -> 1 with bias. A saved folder opens in plain transformers where the family has
    a token classifier of that kind, or else a sequence classifier. The latter has no bias, so that
    its scores are shifted, all by the same number.

    Args:
        kind: of the model's config.

    Raises:
        UnfitModel: no language model has such a config.
    """
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnfitModel(f"{kind.__name__} is of no causal language model, so it can judge no text")
    usual = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(kind, object)
    if issubclass(usual, GenericForTokenClassification):
        return usual
    language = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    family = next(c for c in language.__mro__ if c.__name__.endswith("PreTrainedModel"))

    def init(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        family.__init__(self, config)
        backbone = language(config).base_model
        if isinstance(backbone, language):
            raise UnfitModel(f"{language.__name__} has no backbone to put a reward model's head on")
        setattr(self, family.base_model_prefix, backbone)
        self.dropout = nn.Identity()
        # As wide as a word's vector: OPT has a narrower output than its layers.
        self.score = nn.Linear(backbone.get_input_embeddings().weight.shape[1], config.num_labels)
        self.post_init()

    name = family.__name__.removesuffix("PreTrainedModel") + "ForTokenClassification"
    members = {"__init__": init, "base_model_prefix": family.base_model_prefix}
    # transformers looks there which kinds of attention the family knows.
    members["__module__"] = language.__module__
    return type(name, (GenericForTokenClassification, family), members)
