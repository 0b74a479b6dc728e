"""Fewer operations for a token of every row: they are what a GPU's time goes to while it samples.

A model of transformers that reads one token dispatches some forty operations a layer, most of
them on a few numbers, and LoRA as many again. Within `lean` it makes do with half. What it finds is
the same up to rounding, and no library is changed: what stands in for a module's `forward` belongs
to that module alone, would be right at any time, and is taken out again.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_edu.engine.economy import other_forward

# Layers that compute what Llama's do: weight * x / sqrt(mean(x²) + eps), and attention with rotary
# positions. Others, as Gemma's, keep their own way.
RMS_NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
ATTENTIONS = {"LlamaAttention", "MistralAttention", "Qwen2Attention"}

Forward = Callable[..., Any]
Factors = tuple[Tensor, Tensor]


@contextlib.contextmanager
def lean(model: PreTrainedModel, additions: list[Factors]) -> Iterator[None]:
    """A context in which a model takes fewer operations for a token, without gradient.

    Args:
        model: its attention is folded (see `_attend`) if it is "sdpa".
        additions: A and B of LoRA's layers in the type of the layer, from an earlier time, or
            empty: then they are put into it. They are brought up to date, in place.
    """
    modules, turn = parts(model), Turn()
    with _folded(modules):
        shorter = {m: way for m in modules if (way := _shorter(m, turn)) is not None}
        shorter |= _adapted_layers(modules, additions, model.device)
        own = [module for module in shorter if "forward" not in vars(module)]
        with other_forward(own, lambda forward: shorter[forward.__self__]):
            yield


@contextlib.contextmanager
def _folded(modules: list[nn.Module]) -> Iterator[None]:
    """A context in which attention that is "sdpa" is folded (see `_attend`)."""
    found = {id(c): c for module in modules if (c := vars(module).get("config")) is not None}
    found = [c for c in found.values() if getattr(c, "_attn_implementation", None) == "sdpa"]
    for config in found:
        config._attn_implementation = FOLDED
    try:
        yield
    finally:
        for config in found:
            config._attn_implementation = "sdpa"


def parts(model: nn.Module) -> list[nn.Module]:
    """A model and all modules in it; torch's own way takes ten times as long to find them."""
    found = [model]
    for module in found:
        found += [part for part in module._modules.values() if part is not None]
    return found


def _shorter(module: nn.Module, turn: "Turn") -> Forward | None:
    """A shorter way to what a module computes, if there is one."""
    kind = type(module).__name__
    if kind in RMS_NORMS:
        return _rms_norm(module)
    if kind == "NewGELUActivation":  # GPT-2's, in one operation instead of eight
        return functools.partial(F.gelu, approximate="tanh")
    if kind in ATTENTIONS and module.config._attn_implementation == FOLDED and not module.training:
        return _rotary_attention(module, turn)
    return None


def _rms_norm(module: nn.Module) -> Forward:
    """One operation instead of seven."""
    weight, eps = module.weight, module.variance_epsilon
    return lambda x: F.rms_norm(x, weight.shape, weight, eps)


# --- attention -----------------------------------------------------------------------------------

FOLDED = "rlhf_edu_folded"


def key_groups(model: PreTrainedModel) -> int:
    """How many heads of a query share the keys of one head."""
    heads = model.config.num_attention_heads
    return heads // (getattr(model.config, "num_key_value_heads", None) or heads)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token to a cache whose keys serve several heads of the query each.

    Heads that share keys become rows of one query (B, key heads, group, D): they see the same
    keys under the same mask. Else a copy of the whole cache would be made for each head.
    """
    if query.shape[2] > 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    batch, heads, _, size = query.shape
    rows = query.reshape(batch, key.shape[1], -1, size)
    found = F.scaled_dot_product_attention(rows, key, value, attention_mask, scale=scaling)
    return found.reshape(batch, 1, heads, -1), None


AttentionInterface.register(FOLDED, _attend)
AttentionMaskInterface.register(FOLDED, sdpa_mask)


class Turn:
    """Rotary positions for queries and keys at once, in three operations instead of ten."""

    def __init__(self) -> None:
        """All layers of a model share one, as they share the angles."""
        self.last: tuple[Tensor | None, Tensor | None] = (None, None)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn vectors (B, N, heads, D) by angles given as cosine and sine, (B, N, D)."""
        half = x.shape[-1] // 2
        last, signed = self.last
        if last is not sin:
            signed = torch.cat([-sin[..., :half], sin[..., half:]], -1).unsqueeze(2)
            self.last = sin, signed
        return torch.addcmul(x * cos.unsqueeze(2), x.roll(half, -1), signed)


def _rotary_attention(module: nn.Module, turn: Turn) -> Forward:
    """Attention as Llama's, with queries and keys turned together."""

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        shape = (*hidden_states.shape[:-1], -1, module.head_dim)
        query, key = module.q_proj(hidden_states).view(shape), module.k_proj(hidden_states)
        both = turn(torch.cat([query, key.view(shape)], 2), *position_embeddings).transpose(1, 2)
        query, key = both[:, : query.shape[2]], both[:, query.shape[2] :]
        value = module.v_proj(hidden_states).view(shape).transpose(1, 2)
        cache = options.pop("cache", past_key_values)  # its name since transformers 5.24
        if cache is not None:
            key, value = cache.update(key, value, module.layer_idx)
        options["scaling"] = module.scaling
        found, _ = _attend(module, query, key, value, attention_mask, **options)
        return module.o_proj(found.flatten(2)), None

    return forward


# --- LoRA ----------------------------------------------------------------------------------------


def _adapted_layers(
    modules: list[nn.Module], additions: list[Factors], device: torch.device
) -> dict[nn.Module, Forward]:
    """A shorter way for every layer that adds (alpha / r) B A x and nothing else."""
    layers = [m for m in modules if "base_layer" in m._modules and isinstance(m, LoraLinear)]
    names = [_added(layer) for layer in layers]
    # Autocast makes copies of its own.
    if not all(names) or not layers or torch.is_autocast_enabled(device.type):
        return {}
    now = [(x.lora_A[n].weight, x.lora_B[n].weight) for x, n in zip(layers, names, strict=True)]
    if not additions:
        types = [layer.get_base_layer().weight.dtype for layer in layers]
        for pair, dtype in zip(now, types, strict=True):
            additions.append(tuple(torch.empty_like(x, dtype=dtype) for x in pair))
    torch._foreach_copy_([x for pair in additions for x in pair], [x for pair in now for x in pair])
    scales = [layer.scaling[name] for layer, name in zip(layers, names, strict=True)]
    every = zip(layers, additions, scales, strict=True)
    return {layer: _adapted(layer, *pair, scale) for layer, pair, scale in every}


def _added(layer: LoraLinear) -> str | None:
    """Name of the one adapter that adds to a layer, if it adds a product and nothing else."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.training or layer.disable_adapters or layer.merged:
        return None
    plain = not layer.lora_variant and layer.lora_B[names[0]].bias is None
    return names[0] if plain and layer.get_base_layer().weight.is_floating_point() else None


def _adapted(layer: LoraLinear, down: Tensor, up: Tensor, scale: float) -> Forward:
    """W x + (alpha / r) B A x: two operations more than W x, instead of six."""
    usual = layer.forward

    def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.is_grad_enabled() or args or options:
            return usual(x, *args, **options)
        found = layer.base_layer(x)
        found.view(-1, len(up)).addmm_(F.linear(x, down).view(-1, len(down)), up.T, alpha=scale)
        return found

    return forward
