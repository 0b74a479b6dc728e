"""What PPO needs in memory, by role, before it needs it: four networks, or one LoRA backbone.

Weights, gradients and optimiser are counted; what a forward pass keeps for the backward pass is
measured on a model that has shapes but no numbers (torch's meta device), so that a 175B model costs
nothing to ask about. All sizes are in bytes.
"""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

GB = 1e9
FP32, BF16 = 4, 2


@dataclass(frozen=True)
class Network:
    """Numbers of one role.

    Attributes:
        frozen: parameters that are never trained.
        trained: parameters with a gradient and AdamW's two averages.
        bytes_each: of a weight and of its gradient: 4 for fp32, 2 for bf16.
        bytes_average: of one of AdamW's averages; torch keeps them as wide as the weight.
        bytes_master: of a second, precise copy of trained weights; 0: none.
    """

    frozen: float = 0
    trained: float = 0
    bytes_each: int = FP32
    bytes_average: int = FP32
    bytes_master: int = 0

    @property
    def weights(self) -> float:
        """Bytes of all weights, with the precise copy."""
        return (self.frozen + self.trained) * self.bytes_each + self.trained * self.bytes_master

    @property
    def gradients(self) -> float:
        """Bytes of the gradients."""
        return self.trained * self.bytes_each

    @property
    def optimizer(self) -> float:
        """Bytes of AdamW's averages."""
        return 2 * self.trained * self.bytes_average

    @property
    def total(self) -> float:
        """Bytes of weights, gradients and optimiser."""
        return self.weights + self.gradients + self.optimizer


def four_networks(
    policy: float, reward: float | None = None, bytes_each: int = FP32
) -> dict[str, Network]:
    """Policy and critic are trained, reference and reward model frozen.

    Args:
        policy: parameters of policy and reference.
        reward: parameters of reward model and critic; None: as many (InstructGPT used 6B).
        bytes_each: of a weight, its gradient and each average.
    """
    reward = policy if reward is None else reward
    kind = Network(bytes_each=bytes_each, bytes_average=bytes_each)
    return {
        "policy": replace(kind, trained=policy),
        "critic": replace(kind, trained=reward),
        "reference": replace(kind, frozen=policy),
        "reward model": replace(kind, frozen=reward),
    }


def one_backbone(
    base: float, adapter: float, head: float, bytes_each: int = FP32, bytes_adapter: int = FP32
) -> dict[str, Network]:
    """A frozen model with an adapter for each role, two of which are trained.

    Args:
        base: parameters of the model.
        adapter: parameters of one adapter, see `lora_parameters`.
        head: parameters of a scalar head.
        bytes_each: of a weight of the model.
        bytes_adapter: of a weight of an adapter; peft keeps those of a bf16 model in fp32.
    """
    small = Network(bytes_each=bytes_adapter, bytes_average=bytes_adapter)
    return {
        "backbone": Network(frozen=base, bytes_each=bytes_each),
        "policy": replace(small, trained=adapter),
        "critic": replace(small, trained=adapter + head),
        "reference": replace(small, frozen=adapter),
        "reward model": replace(small, frozen=adapter + head),
    }


def lora_parameters(model: PreTrainedModel, rank: int) -> int:
    """Parameters of an adapter on every linear layer of the backbone: rank (in + out) for each."""
    matrices = [
        module.weight
        for module in model.base_model.modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    ]
    return sum(rank * sum(weight.shape) for weight in matrices)


# --- what a forward pass keeps ------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: its inputs, its output, and one number for each row."""

    @staticmethod
    def forward(context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1]))
        return result

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, ...]:
        return context.saved_tensors[:3]


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *mask: Any, **options: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _attend)


def empty_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model with shapes and no numbers: it takes no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.set_attn_implementation("counted")
    return model.eval()


@contextlib.contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Collect the bytes that autograd keeps for the backward pass, each storage once.

    Weights do not count: they are there anyway.
    """
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    kept, sizes = [], []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept.append(tensor)  # or its place could be given away
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def activation_bytes(model: PreTrainedModel, rows: int, prompt: int, answer: int) -> dict[str, int]:
    """What the policy's forward pass keeps for the backward pass.

    Args:
        model: from `empty_model`.
        rows: sequences at a time.
        prompt, answer: tokens of each.

    Returns:
        `activations`: of all layers; `logits`: (rows, answer + 1, V), and their gradient.
    """
    width = prompt + answer
    ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
    mask = torch.ones(rows, 1, width, width, dtype=torch.bool, device="meta")
    with saved_bytes(model) as sizes:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=ids,
            use_cache=False,
            logits_to_keep=answer + 1,
        )
    each, count = output.logits.element_size(), output.logits.numel()
    # Kept in fp32, and so is their gradient, on its way back to the model's own type.
    return {"activations": sum(sizes), "logits": count * (2 * FP32 + each * (each < FP32))}


def fitting_rows(
    config: PreTrainedConfig,
    rows: int,
    prompt: int,
    answer: int,
    free: float,
    lora_rank: int,
    dtype: torch.dtype,
) -> int:
    """The `micro_batch` for so many rows and `free` bytes: 0 where all of all rows may be kept."""
    kept = 2 * activation_bytes(empty_model(config, dtype), 1, prompt, answer)["activations"]
    width = config.hidden_size * torch.empty(0, dtype=dtype).element_size()
    inputs = rows * (prompt + answer) * width * config.num_hidden_layers
    if kept * rows <= free:
        return 0
    return max(1, min(rows, int((free - inputs) / (kept / config.num_hidden_layers))))


def cache_bytes(config: PreTrainedConfig, rows: int, tokens: int, bytes_each: int = FP32) -> int:
    """Keys and values of every layer for `rows` sequences of `tokens`."""
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * rows * tokens * kept * size * bytes_each


# --- the ledger ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """Bytes by role and kind, and what PPO's phases need on top.

    Attributes:
        networks: by role.
        activations, logits: of the optimisation phase, for the rows that are held at once.
        cache: keys and values, of the rollout phase.
    """

    networks: dict[str, Network]
    activations: float
    logits: float
    cache: float

    @property
    def standing(self) -> float:
        """Bytes that are there all the time."""
        return sum(network.total for network in self.networks.values())

    @property
    def peak(self) -> float:
        """Bytes at most: rollout and optimisation take turns."""
        return self.standing + max(self.cache, self.activations + self.logits)

    def rows(self) -> list[tuple[str, str, float]]:
        """(role, kind, bytes) of all that takes any, largest first."""
        kinds = ("weights", "gradients", "optimizer")
        found = [
            (role, kind, getattr(network, kind))
            for role, network in self.networks.items()
            for kind in kinds
        ]
        found += [("policy", "activations", self.activations), ("policy", "logits", self.logits)]
        found += [("policy", "cache", self.cache)]
        return sorted((row for row in found if row[2]), key=lambda row: -row[2])

    def __str__(self) -> str:
        lines = [f"{role:<13}{kind:<12}{size / GB:9.3f} GB" for role, kind, size in self.rows()]
        return "\n".join([*lines, f"{'peak':<25}{self.peak / GB:9.3f} GB"])


def ppo_ledger(
    config: PreTrainedConfig,
    batch: int,
    held: int,
    prompt: int,
    answer: int,
    lora_rank: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Ledger:
    """The ledger of PPO with a policy, reference, reward model and critic of one architecture.

    Args:
        config: of the model.
        batch, held: episodes in a rollout, and of those whose activations are held at once: a
            minibatch, or the micro_batch.
        prompt, answer: tokens of each.
        lora_rank: 0: four networks; else one backbone with four adapters of this rank.
        dtype: of the weights; adapters are fp32.
    """
    model = empty_model(config, dtype)
    size = sum(p.numel() for p in model.parameters())
    head = config.hidden_size + 1
    scalar = size - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    each = torch.empty(0, dtype=dtype).element_size()
    if lora_rank:
        networks = one_backbone(size, lora_parameters(model, lora_rank), head, each)
    else:
        networks = four_networks(size, scalar + head, each)
    kept = activation_bytes(model, held, prompt, answer)
    return Ledger(networks, **kept, cache=cache_bytes(config, batch, prompt + answer, each))


@contextlib.contextmanager
def explained(ledger: Ledger) -> Iterator[None]:
    """Turn an out-of-memory error into one that says which role takes what, and what to change.

    Raises:
        MemoryError: there was not enough memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        largest = max(ledger.rows(), key=lambda row: row[2])
        raise MemoryError(
            f"out of memory; PPO was expected to take {ledger.peak / GB:.1f} GB, most of it for "
            f"{largest[0]} ({largest[1]}): {ADVICE[largest[1]]}\n{ledger}"
        ) from error


ADVICE = {
    "weights": "load the models in bf16, or use one backbone with LoRA",
    "gradients": "use LoRA, which trains a hundredth of the weights",
    "optimizer": "use LoRA, which trains a hundredth of the weights",
    "activations": "set micro_batch, or lower it, or make prompts and answers shorter",
    "logits": "set micro_batch, or lower it, or lower max_new_tokens",
    "cache": "lower batch_size or max_new_tokens",
}
