"""Log-probs of tokens without all logits at once, which are the largest tensor of a pass by far.

A vocabulary has 50,000 to 250,000 words: the logits of 64 answers of 128 tokens take 5 GB in fp32,
and their gradient as much again. So the backbone reads all rows, and then the model itself finishes
part by part what the backbone has found; the backward pass computes each part again.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_edu.engine.economy import frugal, is_sparing, other_forward
from rlhf_edu.losses import token_logprobs

MOST_LOGITS = 2**26  # at a time; 268 MB in fp32
_FINISHES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class _Found(tuple):
    """What a backbone returns, with nothing in it but the last layer's output."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The model inside peft's wrapper, if there is one; adapters go on adding to its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits_of(model: PreTrainedModel, hidden: Tensor, ids: Tensor) -> Tensor:
    """What a model makes of its last layer's output (N, D): logits (N, V).

    The model does it itself, since some do more than multiply: Gemma bends the logits, Cohere and
    Granite scale them, an adapter may be on the output layer.

    Args:
        ids: (N,) any tokens; there must be some.
    """
    backbone = model.base_model
    found = _Found((hidden[None],))
    # The backbone stands aside: it reads nothing, and returns what it has found before.
    inside = [backbone, getattr(backbone, "decoder", None)]  # OPT asks the decoder in it
    modules = [module for module in inside if module is not None]
    with other_forward(modules, lambda forward: lambda *_, **__: found):
        return model(input_ids=ids[None], use_cache=False).logits[0]


def in_parts(model: PreTrainedModel) -> bool:
    """Whether a model's logits are to be computed in parts now, and can be."""
    return is_sparing(model.device) and finishes(without_adapters(model))


@torch.no_grad()
def finishes(model: PreTrainedModel) -> bool:
    """Whether `logits_of` gives a model's own logits: asked once, with two tokens."""
    if model.base_model is model:  # a backbone that cannot be asked apart, as in Llama 4
        return False
    if model not in _FINISHES:
        ids = torch.tensor([[1, 2]], device=model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = model(input_ids=ids, use_cache=False).logits[0]
        _FINISHES[model] = bool((logits_of(model, hidden[0], ids[0]) == wanted).all())
    return _FINISHES[model]


def logprobs_of(
    model: PreTrainedModel, hidden: Tensor, ids: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probs (N,), in nats, of tokens (N,), from the last layer's outputs (N, D) before each.

    `losses.token_logprobs` of the logits, in parts of `MOST_LOGITS`, of which nothing is kept.
    """
    model = without_adapters(model)

    def compute(hidden: Tensor, ids: Tensor) -> Tensor:
        return token_logprobs(logits_of(model, hidden, ids)[None], ids[None], temperature)[0]

    size = max(1, MOST_LOGITS // model.get_input_embeddings().weight.shape[0])
    parts = zip(hidden.split(size), ids.split(size), strict=True)
    return torch.cat([frugal(compute)(*part) for part in parts])
