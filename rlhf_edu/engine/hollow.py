"""Tensors with a shape and no numbers, and the bytes of all that are alive: a run that costs none.

    with hollow() as live:
        model = AutoModelForCausalLM.from_config(config)  # of 175B parameters, if you like
        model(ids).logits.sum().backward()
    live.peak  # bytes at most

Whatever code does in there, it does as ever, operation by operation; what is computed are shapes.
Whole numbers that were given, such as token ids and masks, are real, so that code may look at them;
a number that would come out of weights is 1 to whoever asks.

(torch's own FakeTensorMode knows no numbers at all, cannot cast the weights of a module, and where
torch was built without CUDA cannot index what it pretends to be there.)
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512  # bytes; a GPU's memory is given away in multiples of it
FLASH = 1  # number of the fused attention that keeps no scores


def shell_around(kind: type[Tensor], inner: Tensor, device: torch.device) -> Any:
    """A tensor of a kind that seems to lie on a device, with the layout of the one inside."""
    shell = Tensor._make_wrapper_subclass(
        kind,
        inner.shape,
        strides=inner.stride(),
        storage_offset=inner.storage_offset(),
        dtype=inner.dtype,
        device=device,
    )
    shell.inner = inner
    return shell


class Hollow(Tensor):
    """A tensor that seems to lie on the CPU; `inner`, of device "meta", knows its shape."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Hollow":
        return shell_around(cls, inner, torch.device("cpu"))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None) -> Any:
        return compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        """Its numbers, all 1; torch has them for no class but its own."""
        return [part.tolist() for part in self] if self.dim() else self.item()

    def __repr__(self) -> str:
        return f"Hollow({self.inner})"


def each(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """A tree of tuples, lists and dicts with every tensor in it changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if type(tree) in (tuple, list):
        return type(tree)([each(change, x) for x in tree])
    if type(tree) is dict:
        return {key: each(change, x) for key, x in tree.items()}
    return tree


def compute(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation returns: hollow, if a tensor it was given is, or if it makes floats."""
    name, shells, real = function.overloadpacket.__name__, {}, 0

    def inside(x: Tensor) -> Tensor:
        nonlocal real
        if isinstance(x, Hollow):
            inner = x.inner
        else:
            inner, real = x.to("meta"), real + 1
        shells[id(inner)] = x
        return inner

    def outside(x: Tensor) -> Tensor:
        if id(x) in shells:  # what was changed in place
            return shells[id(x)]
        return Hollow(x) if x.is_meta else x

    inner, options = each(inside, args), each(inside, kwargs)
    if real and real == len(shells):
        return function(*args, **kwargs)
    if name == "_local_scalar_dense":
        return float(1) if args[0].is_floating_point() else 1
    if name == "_fused_sdp_choice":
        return FLASH
    if _takes_device(function):
        options["device"] = "meta"
    found = function(*inner, **options)
    if not shells and not (isinstance(found, Tensor) and found.is_floating_point()):
        return function(*args, **kwargs)
    return each(outside, found)


@cache
def _takes_device(function: Callable[..., Any]) -> bool:
    return any(argument.name == "device" for argument in function._schema.arguments)


def _tensor(tensor: Tensor) -> str:
    return "tensor"


class Live(TorchDispatchMode):
    """Counts the bytes of tensors, hollow or real, that are alive, and were not before.

    Attributes:
        now, at_peak: bytes, by kind; `at_peak` as they were when the sum was largest.
    """

    def __init__(
        self,
        kind: Callable[[Tensor], str] = _tensor,
        run: Callable[..., Any] = lambda function, args, kwargs: function(*args, **kwargs),
    ) -> None:
        """Start from nothing.

        Args:
            kind: from a new tensor to what it is counted as.
            run: does an operation.
        """
        super().__init__()
        self.kind, self.run = kind, run
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._known: dict[int, weakref.ref] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking takes time

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        each(partial(self._note, count=False), args)
        return each(self._note, self.run(function, args, kwargs or {}))

    @property
    def peak(self) -> int:
        """Bytes at most."""
        return self.at_peak.total()

    def _note(self, tensor: Tensor, count: bool = True) -> Tensor:
        storage = (tensor.inner if isinstance(tensor, Hollow) else tensor).untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = -(-storage.nbytes() // BLOCK) * BLOCK if count else 0
            kind = self.kind(tensor)

            def gone(_: weakref.ref) -> None:
                del self._known[key]
                self.now[kind] -= size

            self._known[key] = weakref.ref(storage, gone)
            self.now[kind] += size
            if self.now.total() > self.at_peak.total():
                self.at_peak = self.now.copy()
        return tensor


@contextlib.contextmanager
def hollow(kind: Callable[[Tensor], str] = _tensor) -> Iterator[Live]:
    """A context in which new tensors have no numbers, and what is alive is counted."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # so that tied weights stay tied
    try:
        with Live(kind, compute) as live:
            yield live
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
