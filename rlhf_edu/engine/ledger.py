"""What PPO needs in memory, by role, before it needs it: four networks, or one LoRA backbone.

Weights, gradients and optimiser are counted; what passes through the model need on top is measured:
the trainer's own code runs on tensors that have shapes but no numbers (`hollow`), so that a 175B
model costs nothing to ask about. All sizes are in bytes, as a GPU gives them away.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhf_edu.engine.economy import micro_batches, whole_batches
from rlhf_edu.engine.hollow import hollow
from rlhf_edu.lora import new_adapter
from rlhf_edu.models import response_logprobs
from rlhf_edu.tokens import Sequences, by_length

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


# --- what passes need ---------------------------------------------------------------------------

# A model of many layers is not run: what it needs grows with each layer by the same.
DEPTHS = (2, 3)


@dataclass(frozen=True)
class Episodes:
    """Rows of a batch, and how they go through the model.

    Attributes:
        rows: in all.
        held: the `micro_batch`: rows that have a layer's inside in memory at once; 0: all rows
            have all of all layers.
        prompt, answer: tokens of each.
    """

    rows: int
    held: int
    prompt: int
    answer: int

    def read(self, policy: PreTrainedModel) -> Tensor:
        """Log-probs of their answers."""
        ids = torch.zeros(self.rows, self.prompt + self.answer, dtype=torch.long)
        rows = Sequences(ids, torch.ones_like(ids), self.prompt)
        with micro_batches(self.held):
            return by_length(lambda part: response_logprobs(policy, part), rows)


def empty_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model with shapes and no numbers: it takes no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


@dataclass(frozen=True)
class Taken:
    """What the policy's passes over some episodes take beside weights, in bytes by kind.

    Attributes:
        kept: from the forward pass to the backward pass.
        peak: at most; each gradient of a weight is gone as soon as it is there.
    """

    kept: Counter[str]
    peak: Counter[str]


def _run(
    config: PreTrainedConfig, episodes: Episodes, lora_rank: int, dtype: torch.dtype, learn: bool
) -> Taken:
    """What passes take in a model of so many layers as the config says."""

    def kind(tensor: Tensor) -> str:
        return "logits" if tensor.shape[-1:] == (config.vocab_size,) else "activations"

    def drop(weight: Tensor) -> None:
        weight.grad = None

    with whole_batches(), hollow(kind) as live:  # the few large passes of a GPU
        policy = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        policy = new_adapter(policy, lora_rank) if lora_rank else policy
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(drop)
        weights = live.now.copy()
        live.at_peak.clear()
        with torch.set_grad_enabled(learn):
            logprobs = episodes.read(policy)
        kept = live.now.copy()
        if learn:
            logprobs.sum().backward()
    kept.subtract(weights)
    live.at_peak.subtract(weights)
    return Taken(kept, live.at_peak)


def _taken(
    config: PreTrainedConfig, episodes: Episodes, lora_rank: int, dtype: torch.dtype
) -> Taken:
    """What passes with a gradient take, from models of two depths."""
    depths = [_with_layers(config, layers) for layers in DEPTHS]
    few, more = (_run(depth, episodes, lora_rank, dtype, learn=True) for depth in depths)
    steps = (config.num_hidden_layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])

    def at(one: Counter[str], two: Counter[str]) -> Counter[str]:
        return Counter({kind: one[kind] + steps * (two[kind] - one[kind]) for kind in two})

    return Taken(at(few.kept, more.kept), at(few.peak, more.peak))


def learning_bytes(
    config: PreTrainedConfig,
    episodes: Episodes,
    lora_rank: int = 0,
    dtype: torch.dtype = torch.float32,
    gradients: float = 0.0,
) -> dict[str, float]:
    """What the policy's passes of an optimiser step take at most, beside weights and gradients.

    Args:
        config: of the model.
        episodes: of the step.
        lora_rank, dtype: see `ppo_ledger`.
        gradients: bytes of the policy's, which come as activations go.

    Returns:
        `activations`: of all layers, and what their gradients need on the way; `logits`: all
        tensors as wide as the vocabulary.
    """
    held = min(episodes.held or episodes.rows, episodes.rows)
    taken = _taken(config, replace(episodes, rows=held), lora_rank, dtype)
    # All parts have gone forward before the first comes back.
    others = episodes.rows / held - 1
    found = {k: taken.peak[k] + others * taken.kept[k] for k in ("activations", "logits")}
    # At the peak there are no gradients yet or, later, no activations of the first part any more.
    found["activations"] -= min(gradients, taken.kept.total())
    return found


def fitting_rows(
    config: PreTrainedConfig,
    rows: int,
    prompt: int,
    answer: int,
    free: float,
    lora_rank: int = 0,
    dtype: torch.dtype = torch.float32,
) -> int:
    """The `micro_batch` for so many rows and `free` bytes: 0 where all of all rows may be kept.

    Else the rows, half of them, and so on.

    Raises:
        MemoryError: not even one row at a time fits.
    """
    held = 0
    while True:
        episodes = Episodes(rows, held, prompt, answer)
        needed = sum(learning_bytes(config, episodes, lora_rank, dtype).values())
        if needed <= free:
            return held
        if held == 1:
            break
        held = held // 2 or rows
    raise MemoryError(
        f"{rows} rows of {prompt} + {answer} tokens, read one at a time, take {needed / GB:.1f} GB "
        f"beside the weights, and {free / GB:.1f} GB are free: lower the batch or minibatch, make "
        "prompts and answers shorter, or take a smaller model"
    )


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
        activations, logits: of the optimisation phase, see `learning_bytes`.
        cache: keys and values, of the rollout phase.
        reading: of passes without a gradient: inside one layer, and logits.
    """

    networks: dict[str, Network]
    activations: float
    logits: float
    cache: float
    reading: float = 0.0

    @property
    def standing(self) -> float:
        """Bytes that are there all the time."""
        return sum(network.total for network in self.networks.values())

    @property
    def peak(self) -> float:
        """Bytes at most: evaluation and optimisation take turns, while a GPU keeps the cache of the
        rollout, since its recording of a step writes there.
        """
        return self.standing + self.cache + max(self.reading, self.activations + self.logits)

    def rows(self) -> list[tuple[str, str, float]]:
        """(role, kind, bytes) of all that takes any, largest first."""
        kinds = ("weights", "gradients", "optimizer")
        found = [
            (role, kind, getattr(network, kind))
            for role, network in self.networks.items()
            for kind in kinds
        ]
        found += [("policy", "activations", self.activations), ("policy", "logits", self.logits)]
        found += [("policy", "cache", self.cache), ("all", "reading", self.reading)]
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
    minibatch: int | None = None,
) -> Ledger:
    """The ledger of PPO with a policy, reference, reward model and critic of one architecture.

    Args:
        config: of the model.
        batch: episodes in a rollout.
        held: the micro_batch; 0: all activations of a minibatch are kept.
        prompt, answer: tokens of each.
        lora_rank: 0: four networks; else one backbone with four adapters of this rank.
        dtype: of the weights; adapters are fp32.
        minibatch: episodes of an optimiser step; None: all of the rollout.
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
    step = Episodes(minibatch or batch, held, prompt, answer)
    learning = learning_bytes(config, step, lora_rank, dtype, networks["policy"].gradients)
    read = Episodes(batch, 0, prompt, answer)
    reading = _run(_with_layers(config, 1), read, lora_rank, dtype, learn=False).peak.total()
    cache = cache_bytes(config, batch, prompt + answer, each)
    return Ledger(networks, **learning, cache=cache, reading=reading)


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
    "reading": "lower batch_size, or make prompts and answers shorter",
}
