"""The same loop in shapes that never change, so that a GPU can record one step and replay it."""

import atexit
import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import Cache, StaticLayer

from rlhf_edu.engine.lean import Factors, key_groups, lean, parts
from rlhf_edu.sampling import Rollout, _as_rollout, _law, _next_logits, _pick
from rlhf_edu.tokens import position_ids

# On a GPU: tokens before recording, after how many to ask whether all rows have ended, and how
# many recordings to keep, each with its cache.
WARM, LOOK_EVERY, KEEP = 2, 16, 2
# Rows, prompt tokens and answer tokens are rounded up to multiples of these, so that batches of
# about one size can share a recording.
STEPS = (8, 64, 16)


@torch.inference_mode()
def _sample_static(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    temperature: float,
    ends: Tensor,
) -> Rollout:
    """As `_sample`, in shapes and places that never change, and without a question to the device.

    So a GPU can record all that is done for one token as one CUDA graph, and do it again without
    waiting for Python. Rows that have ended are written on, and cut off in the end.
    """
    batch, limit = uniforms.shape
    places = _take(model, (batch, ids.shape[1], limit), temperature)
    with lean(model, places.additions):
        _read_prompts(model, places, ids, mask)
        places.start(uniforms)
        for done in range(limit):
            if places.replay is None and done == WARM:
                step = functools.partial(_step, model, places, temperature)
                places.replay = _recorded(step, ids.device)
            if places.replay:
                places.replay()
            else:
                _step(model, places, temperature)
            written = places.response[:batch, : done + 1]
            if (done + 1) % LOOK_EVERY == 0 and torch.isin(written, ends).any(1).all():
                break
    _keep(places, ids.device)
    over = torch.isin(written, ends)
    lengths = torch.where(over.any(1), over.int().argmax(1) + 1, limit)
    response, logprobs = (x[:batch, :limit] for x in (places.response, places.logprobs))
    return _as_rollout(ids, mask, response, lengths, over.any(1), logprobs)


# --- one token -----------------------------------------------------------------------------------


class Places:
    """All that one step of sampling reads and writes: it never moves, so a step can be recorded.

    Attributes:
        sizes: rows, prompt tokens and answer tokens that there is room for.
        t: (1,), the number of the next token of each answer.
        hidden: (rows, 1, group, T), added to what attention looks at: 0, or -inf where it must not.
        replay: what does a step on a GPU, once it is recorded.
    """

    def __init__(self, model: PreTrainedModel, sizes: tuple[int, int, int], state: Any) -> None:
        """Make room, and remember the model without keeping it alive."""
        rows, width, limit = self.sizes = sizes
        self.model, self.state = weakref.ref(model, _forget), state
        self.replay: Callable[[], None] | None = None
        make = functools.partial(torch.zeros, device=model.device)
        self.uniforms = make(rows, limit, dtype=torch.float64)
        self.response = make(rows, limit, dtype=torch.long)
        self.logprobs = make(rows, limit)
        self.t = make(1, dtype=torch.long)
        self.positions = make(rows, 1, dtype=torch.long)
        # Eager attention folds no heads, and has no place for more than one row.
        group = 1 if model.config._attn_implementation == "eager" else key_groups(model)
        self.hidden = make(rows, 1, group, width + limit, dtype=model.dtype)
        self.spot = Spot(width, width + limit, make(1, dtype=torch.long))
        layers = [InPlaceLayer(self.spot) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=layers)
        self.logits: Tensor | None = None
        self.additions: list[Factors] = []

    def start(self, uniforms: Tensor) -> None:
        """Begin answers with these random numbers (B, R)."""
        self.uniforms[: len(uniforms), : uniforms.shape[1]] = uniforms
        self.t.zero_()
        self.spot.column.fill_(self.spot.width)
        self.spot.copies = None


def _read_prompts(model: PreTrainedModel, places: Places, ids: Tensor, mask: Tensor) -> None:
    """Read prompts (B, P) into places of at least so many rows; those beyond repeat the first ones.

    A prompt that stands in several rows, to be answered several times, is read once.
    """
    (rows, width, _), (batch, length) = places.sizes, ids.shape
    both, copies = torch.cat([ids, mask], 1).unique(dim=0, return_inverse=True)
    copies = copies[torch.arange(rows, device=ids.device) % batch]
    (ids, seen), places.spot.copies = both.chunk(2, dim=1), copies
    positions = position_ids(seen)
    if places.logits is not None:  # 0 times what earlier prompts left must be 0, whatever it was
        layers = places.cache.layers
        torch._foreach_zero_([x for layer in layers for x in (layer.keys, layer.values)])
    logits = _next_logits(model, ids, seen, positions, places.cache)
    if places.logits is None:
        places.logits = logits.new_zeros(rows, logits.shape[1])
    places.logits.copy_(logits[copies])
    places.positions.copy_(positions[copies, -1:])
    places.hidden.fill_(-torch.inf)
    real = seen[copies, None, None].bool()
    places.hidden[..., width - length : width].masked_fill_(real, 0)


def _step(model: PreTrainedModel, places: Places, temperature: float) -> None:
    """One more token for every row."""
    # 1. Draw a token for each row.
    law = _law(places.logits, temperature or 1.0)
    uniform = places.uniforms.index_select(1, places.t).squeeze(1)
    tokens = (law.argmax(-1) if temperature == 0 else _pick(law, uniform))[:, None]
    places.response.index_copy_(1, places.t, tokens)
    places.logprobs.index_copy_(1, places.t, law.gather(1, tokens).log())

    # 2. What comes next?
    places.positions.add_(1)
    places.hidden.index_fill_(3, places.spot.column, 0)
    after = _next_logits(model, tokens, places.hidden, places.positions, places.cache)
    places.logits.copy_(after)
    places.t.add_(1)
    places.spot.column.add_(1)


# --- the cache -----------------------------------------------------------------------------------


class Spot:
    """Where a cache takes in what is new: a prompt ends before column `width`.

    Attributes:
        column: (1,), of the next token.
        copies: (rows,), while prompts are read: which of them each row repeats; None afterwards.
    """

    def __init__(self, width: int, length: int, column: Tensor) -> None:
        self.width, self.length, self.column = width, length, column
        self.copies: Tensor | None = None


class InPlaceLayer(StaticLayer):
    """Keys and values of one layer, (rows, heads, length, D), filled in place.

    All in one dtype: autocast makes keys in fp32 and values in bfloat16.
    """

    def __init__(self, spot: Spot) -> None:
        """All layers share the spot."""
        super().__init__(spot.length)
        self.spot = spot

    def update(
        self, keys: Tensor, values: Tensor, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """Take new ones in, (B, heads, N, D); return those that attention looks at."""
        if self.spot.copies is not None:
            return self._read(keys, values)
        self.keys.index_copy_(2, self.spot.column, keys.to(self.keys.dtype))
        self.values.index_copy_(2, self.spot.column, values.to(self.keys.dtype))
        return self.keys, self.values

    def _read(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the prompts, before which nothing is remembered."""
        spot = self.spot
        if not self.is_initialized:
            self.lazy_initialization(keys[spot.copies], values.to(keys.dtype))
        for own, new in ((self.keys, keys), (self.values, values)):
            own[:, :, spot.width - new.shape[2] : spot.width] = new[spot.copies].to(own.dtype)
        return keys.to(self.keys.dtype), values.to(self.keys.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a prompt looks at, and how many are before them."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Tokens before a prompt; those of an answer bring positions and a mask."""
        return 0


def _has_static_cache(model: PreTrainedModel) -> bool:
    """Whether a cache need not grow: no sliding window, no attention or positions that look."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return False
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(model.config, 1).layers)


# --- recordings ----------------------------------------------------------------------------------

_KEPT: list["Places"] = []  # with a recording, and used by nobody just now; the last one last


def forget_recordings() -> None:
    """Give back the memory of all recordings: of each the cache, and what a step needs besides."""
    _KEPT.clear()


atexit.register(forget_recordings)  # while there still is a driver to take them


def _forget(model: weakref.ref, kept: list["Places"] = _KEPT) -> None:
    """A model is gone; at the end of Python, when `_KEPT` may be no name any more, too."""
    kept[:] = [places for places in kept if places.model is not model]


def _take(model: PreTrainedModel, wanted: tuple[int, int, int], temperature: float) -> Places:
    """Places for so many rows, prompt tokens and answer tokens: recorded ones, if there are any.

    They are taken from `_KEPT`, so that no other thread writes into them.
    """
    sizes = tuple(-(-size // step) * step for size, step in zip(wanted, STEPS, strict=True))
    if not _records(model.device):
        return Places(model, sizes, None)
    state = (_state(model), temperature)
    for places in _KEPT[::-1]:
        if places.model() is model and places.state == state and _fits(places.sizes, sizes):
            _KEPT.remove(places)
            return places
    del _KEPT[: max(0, len(_KEPT) + 1 - KEEP)]  # before there is another
    return Places(model, sizes, state)


def _fits(sizes: tuple[int, int, int], wanted: tuple[int, int, int]) -> bool:
    """Whether there is room, and not so much that it costs more than a new recording."""
    room = [has >= needs for has, needs in zip(sizes, wanted, strict=True)]
    (rows, *columns), (few, *shorter) = sizes, wanted
    return all(room) and rows * sum(columns) <= 2 * few * sum(shorter)


def _keep(places: Places, device: torch.device) -> None:
    """Let the next batch have these places, if they hold a recording that stays valid.

    What is recorded under autocast reads copies of the weights that end with its context.
    """
    if places.replay is None or torch.is_autocast_enabled(device.type):
        return
    _KEPT.append(places)
    del _KEPT[:-KEEP]


def _state(model: PreTrainedModel) -> tuple:
    """All that a recording takes for granted: whose numbers a model reads, and by what path.

    Numbers may change, as in training; tensors, adapters and hooks may not.
    """
    modules, device = parts(model), model.device.type
    tensors = [x for m in modules for kind in (m._parameters, m._buffers) for x in kind.values()]
    return (
        [(x.data_ptr(), x.dtype, x.shape) for x in tensors if x is not None],
        [path for module in modules if (path := _path(module))],
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        model.config._attn_implementation,
    )


def _path(module: torch.nn.Module) -> list[Any]:
    """What makes a module compute otherwise than its class says: empty as a rule."""
    path = [*module._forward_pre_hooks, *module._forward_hooks]  # numbers that torch gives once
    path += [id(vars(module).get("forward"))] * ("forward" in vars(module))
    path += ["training"] * module.training
    if "base_layer" in module._modules and isinstance(module, BaseTunerLayer):
        path += [*module.active_adapters, module.disable_adapters, *module.merged_adapters]
        path += vars(module).get("scaling", {}).values()
    return path


_REFUSED: list[str] = []  # why a step could not be recorded; once is enough


def _records(device: torch.device) -> bool:
    return device.type == "cuda" and not _REFUSED


def _recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
    """Record what a function has a GPU do, without doing it yet; return what then does it."""
    if not _records(device):
        return None
    graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    # Only this thread's calls may spoil a recording: a notebook has others.
    options = {"stream": _recording_stream(device), "capture_error_mode": "thread_local"}
    try:
        with torch.cuda.graph(graph, **options):
            step()
    except RuntimeError as error:
        # None of it has been done, so all can go on, where it would have.
        torch.cuda.set_stream(usual)
        _REFUSED.append(str(error.__context__ or error).splitlines()[0])
        warnings.warn(
            f"sampling cannot be recorded, so it takes longer: {_REFUSED[0]}", stacklevel=3
        )
        return None
    return graph.replay


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU: left to itself a graph takes the one that is current."""
    return torch.cuda.Stream(device)
