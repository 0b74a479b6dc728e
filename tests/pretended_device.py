"""A second device on a machine that has none: where tensors of the two meet it raises, as a GPU.

    with pretended_device() as device:
        model = tiny.llama().to(device)
        model(ids)             # RuntimeError: embedding: expected all tensors on one device …
        model(ids.to(device))  # the logits that it has on the CPU

A tensor of the device is a shell of device "meta" around the CPU tensor whose numbers it has. So
sampling, checks and losses find real numbers, and nothing fails but what lies on the wrong side.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_edu.engine.hollow import shell_around

DEVICE, CPU = torch.device("meta"), torch.device("cpu")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPYING = {"copy_", "_to_copy"}
JOINING = {"cat", "stack"}
TREES = {tuple, list, dict}


class Shell(Tensor):
    """A tensor of the pretended device; `inner` is the CPU tensor whose numbers it has."""

    is_meta = False  # or torch would say that it has no numbers

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Shell":
        return shell_around(cls, inner, DEVICE)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None) -> Any:
        return compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        """Its numbers; torch has them for no class but its own."""
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"Shell({self.inner})"


def compute(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU tensors inside, and put the result on the right device.

    Raises:
        RuntimeError: tensors of two devices meet in it, or a generator draws on the other device.
    """
    name = function.overloadpacket.__name__
    shells: dict[int, Shell] = {}
    here: list[Tensor] = []

    def inside(x: Any) -> Any:
        if isinstance(x, Shell):
            shells[id(x.inner)] = x
            return x.inner
        if isinstance(x, Tensor):
            assert x.device == CPU, f"{name}: torch made a tensor without numbers; see NumbersKept"
            here.append(x)
        return x

    def outside(x: Any) -> Any:
        if id(x) in shells:  # what was changed in place keeps its shell
            return shells[id(x)]
        return Shell(x) if isinstance(x, Tensor) else x

    inner, options = each(inside, args), each(inside, kwargs)
    if here and shells and name not in COPYING:
        require_one_device(function, args, here)
    there, wanted = bool(shells), kwargs.get("device")
    if wanted is not None:
        there, options["device"] = wanted == DEVICE, CPU
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU draws nothing on the other device")
    found = function(*inner, **options)
    return each(outside, found) if there else found


def require_one_device(function: Callable[..., Any], args: tuple, here: list[Tensor]) -> None:
    """Raise RuntimeError unless tensors of the device may meet those that lie here.

    As on a GPU, two kinds may: single numbers, if they are neither joined with the others nor what
    is written to; and indices of a tensor of the device.
    """
    name = function.overloadpacket.__name__
    if name in INDEXING and isinstance(args[0], Shell):
        here = [x for x in here if not any(x is index for index in args[1])]
    written = function._schema.is_mutable and any(x is args[0] for x in here)
    if name in JOINING or written or any(x.dim() for x in here):
        raise RuntimeError(f"{name}: expected all tensors on one device, found two")


def each(change: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of tuples, lists and dicts with everything in it changed."""
    if isinstance(tree, tuple | list):
        return type(tree)([each(change, x) if type(x) in TREES else change(x) for x in tree])
    if isinstance(tree, dict):
        return {key: each(change, x) for key, x in tree.items()}
    return change(tree)


class PretendedDevice(TorchDispatchMode):
    """Sees what makes a tensor on the device, or moves one there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking takes time

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        return compute(function, args, kwargs or {})


class NumbersKept(TorchFunctionMode):
    """Numbers of Python become tensors on the CPU first: torch forgets them on device "meta"."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return function(*args, **kwargs | {"device": None}).to(kwargs["device"])
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])
        return function(*args, **kwargs)


@contextlib.contextmanager
def pretended_device() -> Iterator[torch.device]:
    """A context in which there is a second device."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that tied weights stay tied
    try:
        with _libraries_take_it(), PretendedDevice(), NumbersKept():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


@contextlib.contextmanager
def _libraries_take_it() -> Iterator[None]:
    """What treats a device called "meta" in its own way treats it as it would a GPU."""
    autocast, is_on = torch.autocast, torch.is_autocast_enabled
    fused = [*optimizer._get_fused_kernels_supported_devices(), DEVICE.type]

    def known(name: str) -> str:
        return CPU.type if name == DEVICE.type else name

    def inference(on: bool) -> contextlib.AbstractContextManager:
        return torch.no_grad() if on else contextlib.nullcontext()

    patches = [
        mock.patch.object(torch, "autocast", lambda name, *a, **k: autocast(known(name), *a, **k)),
        mock.patch.object(torch, "is_autocast_enabled", lambda name="cpu": is_on(known(name))),
        mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: fused),
        # Inference tensors of another class cannot be written into.
        mock.patch.object(torch._C, "_InferenceMode", inference),
        # peft leaves an adapter where it is if there are others on "meta".
        mock.patch.object(nn.ModuleDict, "parameters", lambda self: iter(())),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
