"""Less time and memory for the same numbers: products in bfloat16, and a batch in small parts."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


class Economy(Protocol):
    """The settings of a trainer that `economy` looks at."""

    bf16: bool
    micro_batch: int | Literal["auto"]


@contextlib.contextmanager
def economy(config: Economy, model: PreTrainedModel) -> Iterator[None]:
    """Within this context forward passes are made as a trainer's settings say.

    Leave it before the weights change: it keeps copies of them in bfloat16.
    """
    size = 0 if config.micro_batch == "auto" else config.micro_batch  # see `Loop.fitted`
    with bf16_products(model, config.bf16), micro_batches(size):
        yield


# --- products in bfloat16 ------------------------------------------------------------------------

_ADAPTED: ContextVar[Sequence[BaseTunerLayer]] = ContextVar("adapted", default=())


@contextlib.contextmanager
def bf16_products(model: PreTrainedModel, enabled: bool = True) -> Iterator[None]:
    """A context in which forward passes on the model's device multiply matrices in bfloat16.

    Weights, the optimiser's step and losses stay in fp32, on a CPU attention too. It pays on a
    processor with such instructions (avx512_bf16, AMX) and on any recent GPU; others are slower.
    """
    adapted = [m for m in model.modules() if isinstance(m, BaseTunerLayer)] if enabled else []
    products = torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)
    with products, _set(_ADAPTED, adapted), _as_now():
        yield


def _as_now() -> contextlib.AbstractContextManager[None]:
    """A context that computes as it is done now, in what autocast leaves alone."""
    return _beside_autocast(_attention(), _ADAPTED.get())


@contextlib.contextmanager
def _beside_autocast(
    attention: contextlib.AbstractContextManager, adapted: Sequence[BaseTunerLayer]
) -> Iterator[None]:
    # peft widens what an adapter reads to the adapter's fp32, only for autocast to narrow it again.
    before = [getattr(layer, "cast_input_dtype_enabled", True) for layer in adapted]
    for layer in adapted:
        layer.cast_input_dtype_enabled = False
    try:
        with attention:
            yield
    finally:
        for layer, widened in zip(adapted, before, strict=True):
            layer.cast_input_dtype_enabled = widened


class Fp32Attention(TorchFunctionMode):
    """Attention in fp32 under autocast: on a CPU its backward pass in bfloat16 costs several times
    that in fp32.
    """

    def __torch_function__(
        self, function: Callable, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        """Call a function of torch; attention with its tensors in fp32."""
        options = options or {}
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*arguments, **options)
        query, key, value = (tensor.float() for tensor in arguments[:3])
        with torch.autocast("cpu", enabled=False):
            return function(query, key, value, *arguments[3:], **options)


def _attention() -> contextlib.AbstractContextManager:
    """How to attend, as it is now."""
    if torch.is_autocast_enabled("cpu"):
        return Fp32Attention()
    with_plans = torch.backends.cuda.cudnn_sdp_enabled()
    return contextlib.nullcontext() if with_plans else without_plans()


@contextlib.contextmanager
def without_plans() -> Iterator[None]:
    """A context in which a GPU attends without cuDNN, which makes a plan for each shape it has not
    seen. That takes up to a second, and in training nearly every batch has a shape of its own.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


# --- how much of a batch at a time ---------------------------------------------------------------

_MICRO_BATCH: ContextVar[int] = ContextVar("micro_batch", default=0)
_WHOLE: ContextVar[bool] = ContextVar("whole_batches", default=False)
# Tokens of a pass without gradient on a GPU. It is busy by then, so that more gain nothing, and one
# layer's inside, some forty numbers for each of a token's, is all that such a pass holds.
MOST_TOKENS = 2**15

Found = TypeVar("Found")


@contextlib.contextmanager
def _set(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def micro_batches(size: int) -> contextlib.AbstractContextManager[None]:
    """A context in which no more than `size` rows have a layer's inside in memory; 0: all.

    What gradient accumulation is for, and activation checkpointing, in one. The forward pass reads
    `size` rows at a time and keeps what goes into each layer, no more; the backward pass computes
    the layer again. Loss and gradient are those of the whole batch, whatever the loss compares, at
    the price of one more forward pass. A layer's inside is some forty times its input: the whole
    batch as one part takes little more memory than a tenth of it, and as few steps as can be.
    """
    return _set(_MICRO_BATCH, size)


def whole_batches() -> contextlib.AbstractContextManager[None]:
    """A context in which every device gets the few large passes of a GPU, so as to count them."""
    return _set(_WHOLE, True)


def is_wide(device: torch.device) -> bool:
    """Whether a device gains more from few large passes than from little padding: a GPU does.

    There an operation costs its launch, some 10 microseconds, before it costs arithmetic.
    """
    return device.type == "cuda" or _WHOLE.get()


def is_sparing(device: torch.device) -> bool:
    """Whether logits, the largest tensor of a pass, are to be computed in parts and not kept."""
    return is_wide(device) or bool(_MICRO_BATCH.get())


def part_size(rows: int, tokens: int, usual: int, device: torch.device) -> int:
    """How many rows of a batch to read at a time.

    Args:
        rows, tokens: of the batch; tokens of its longest row.
        usual: rows at a time where padding is dear.
        device: of the model.
    """
    size = rows if is_wide(device) else min(rows, usual)
    if torch.is_grad_enabled():
        return min(size, _MICRO_BATCH.get() or size)
    return max(1, min(size, MOST_TOKENS // tokens)) if is_wide(device) else size


@contextlib.contextmanager
def one_pass(model: PreTrainedModel) -> Iterator[None]:
    """A context for a model's forward pass over some rows: `without_plans`, and, if `micro_batches`
    has a limit, nothing is kept of a layer but its input.

    (`gradient_checkpointing` of transformers asks for train mode, which turns dropout on.)
    """
    layers = _layers(model) if _MICRO_BATCH.get() and torch.is_grad_enabled() else []
    with without_plans(), other_forward(layers, frugal):
        yield


@contextlib.contextmanager
def other_forward(modules: Sequence[torch.nn.Module], change: Callable) -> Iterator[None]:
    """A context in which some modules compute what `change` makes of their `forward`."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = change(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward  # the class's is seen again
            if forward is not None:  # a library had put one there
                module.forward = forward


def _layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a backbone; a few old kinds do not say what theirs are, and count as one."""

    def inside(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        for child in module.children():
            if isinstance(child, GradientCheckpointingLayer):
                yield child
            else:
                yield from inside(child)

    return list(inside(module)) or [module]


def frugal(compute: Callable[..., Found]) -> Callable[..., Found]:
    """`compute`, with nothing kept for the backward pass but its arguments: it computes again."""
    if not torch.is_grad_enabled():
        return compute
    # torch brings autocast back for the second pass, and no more.
    options = {"use_reentrant": False, "preserve_rng_state": False}
    options["context_fn"] = lambda: (contextlib.nullcontext(), _as_now())
    return lambda *inputs, **more: checkpoint(compute, *inputs, **options, **more)
