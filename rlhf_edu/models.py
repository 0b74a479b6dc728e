"""Models and tokens: load, make and save them, one prompt format, and the four roles of RLHF.

Every model is an ordinary `transformers` one: a causal language model (policy, reference), or a
token classifier with a single label (reward model, critic), see `scalar_class`. They stay in eval
mode, in training too: with dropout a policy would not agree with itself between rollout and update.

Shapes: B rows, P prompt tokens, R response tokens, T tokens in all, V words of the vocabulary.
"""

import contextlib
import copy
import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForTokenClassification

from rlhf_edu.data import to_messages, write_text
from rlhf_edu.economy import frugal, part_size
from rlhf_edu.losses import token_logprobs
from rlhf_edu.rows import UnfitModel

# The one format of every prompt, for every model. The line break is the cue to answer.
PROMPT_TEMPLATE = "{prompt}\n"
MAX_PROMPT_TOKENS = 200

MAX_LAYERS = 1000  # the largest models have about 130
# Of a reward model, in the files of sequence and token classifiers.
HEAD_WEIGHTS = {"score.weight", "score.bias", "classifier.weight", "classifier.bias"}
# A chat template is a program of a stranger's: what it may take for one conversation.
TEMPLATE_SECONDS = 1.0  # of computing; real ones take a thousandth
TEMPLATE_LETTERS = 100_000  # of its own, beside the messages
PLAIN = "choose --prompt-format plain, or a tokenizer with another template"
# Today's date, as a template asks for it: strftime_now("%d %b %Y").
STRFTIME = re.compile(r"""strftime_now\s*\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")

# Two orders of magnitude from the smallest to the largest, as from GPT-3 1.3B to 175B.
SIZES = {
    "0.05M": {"hidden_size": 24, "num_hidden_layers": 2, "heads": 2, "intermediate_size": 64},
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "heads": 4, "intermediate_size": 344},
    "6M": {"hidden_size": 256, "num_hidden_layers": 7, "heads": 4, "intermediate_size": 688},
}


# --- make, load, save --------------------------------------------------------------------------


def new_llama(size: str, vocab_size: int = 1536, seed: int = 0) -> LlamaForCausalLM:
    """Return an untrained Llama of one of the `SIZES`, fp32, embeddings tied.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"new_llama: size must be one of {', '.join(SIZES)}, not {size!r}")
    shape = dict(SIZES[size])
    heads = shape.pop("heads")
    config = LlamaConfig(
        vocab_size=vocab_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _existing(folder: str | Path, what: str = "model", file: str = "config.json") -> str:
    if not Path(folder, file).is_file():
        raise FileNotFoundError(f"{folder} holds no {what} ({file} is missing)")
    return str(folder)


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


def load_policy(folder: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model from a local folder, in eval mode.

    The shipped weights have 16 bits; fp32 is what log-probabilities and small updates need.

    Raises:
        FileNotFoundError: the folder holds no model.
        UnfitModel: see `load_language_model`.
    """
    return load_language_model(_existing(folder), dtype)


def load_scalar_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a reward model or critic from a local folder, in eval mode.

    Raises:
        FileNotFoundError: the folder holds no model.
        UnfitModel: see `load_scalar`.
    """
    return load_scalar(_existing(folder), dtype)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer from a local folder; one without a padding token pads with another's id.

    Which id stands under the padding never matters here, since masks come from lengths.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
    """
    file = "tokenizer_config.json"
    tokenizer = AutoTokenizer.from_pretrained(
        _existing(folder, "tokenizer", file), trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def scalar_model_from(policy: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Return a reward model: a copy of the policy's backbone with a fresh scalar head.

    The head's weights are drawn from N(0, 1 / (d + 1)), that is, with standard deviation
    1 / sqrt(d + 1), and its bias is 0 (Stiennon et al. 2020, arXiv 2009.01325, in their code).
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    model = scalar_class(type(config))._from_config(config, dtype=policy.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    head, generator = scalar_head(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(head.weight.shape, generator=generator)
        head.weight.copy_(weight / (head.in_features + 1) ** 0.5)
        head.bias.zero_()
    return model.to(policy.device).eval()


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


def is_scalar(model: PreTrainedModel) -> bool:
    """Whether a model is a reward model or critic, and no language model; adapters may be on it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__.endswith("Classification")


def require_kind(model: PreTrainedModel, what: str, scalar: bool = False) -> None:
    """Raise ValueError if a language model takes the place of a reward model, or the reverse."""
    if is_scalar(model) == scalar:
        return
    if scalar:
        raise ValueError(
            f"{what} must be a reward model, with a head, and is a language model; make one with "
            "models.scalar_model_from, and train it with train_reward"
        )
    raise ValueError(f"{what} must be a language model, and is a reward model, with a head")


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """Return the last, linear layer of a reward model or critic: d -> 1."""
    # Some token classifiers of transformers call it `classifier`.
    return model.score if hasattr(model, "score") else model.classifier


Model = TypeVar("Model", bound=PreTrainedModel)


def _rounded(model: PreTrainedModel) -> list[nn.Parameter]:
    """What is rounded to 16 bits: all but a reward model's head, whose bias says where zero is."""
    head = set(scalar_head(model).parameters()) if is_scalar(model) else set()
    return [parameter for parameter in model.parameters() if parameter not in head]


@torch.no_grad()
def round_weights(model: Model, dtype: torch.dtype = torch.bfloat16) -> Model:
    """Round the weights, in place, to what `save_model` stores as `dtype`; the model stays fp32.

    Whatever is measured afterwards holds for the saved model to the last digit. A reward model's
    head is left alone.
    """
    for parameter in _rounded(model):
        parameter.copy_(parameter.to(dtype))
    return model


@torch.no_grad()
def change_kept(start: PreTrainedModel, trained: PreTrainedModel, dtype: torch.dtype) -> float:
    """Which share of what training changed is left when the weights are rounded to `dtype`.

    1 - |rounding|^2 / |change|^2, at least 0. In bfloat16 a weight of 0.02 has its neighbours 1e-4
    away, so that a change of 1e-5 is lost: the weight falls back to where it was, or elsewhere.
    """
    lost, whole = 0.0, 0.0
    for before, after in zip(_rounded(start), _rounded(trained), strict=True):
        lost += (after.to(dtype).float() - after).square().sum().item()
        whole += (after - before).square().sum().item()
    return max(0.0, 1 - lost / whole) if whole else 1.0


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> None:
    """Save model and tokenizer as safetensors, all or nothing; an older folder is replaced.

    `card` becomes the folder's README. The folder says which tokens end an answer, see
    `ending_ids`.

    Args:
        dtype: of the stored weights, but for a reward model's head, which keeps its own. The model
            passed in does not change: call `round_weights` first if it is to be the same as the
            saved one. None: the model's own.

    Raises:
        OSError: it cannot be written, as when the disk is full.
    """
    stored = model
    if dtype is not None:
        stored = copy.deepcopy(model).to(dtype)
        if is_scalar(model):
            scalar_head(stored).load_state_dict(scalar_head(model).state_dict(), assign=True)
    with new_folder(folder) as place:
        stored.save_pretrained(place)
        tokenizer.save_pretrained(place)
        if model.can_generate():
            write_ends(place, ending_ids(model, tokenizer))
        if card is not None:
            Path(place, "README.md").write_text(card, encoding="utf-8")


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A place to write a folder, all or nothing; it takes the place of an older one at the end.

    Raises:
        OSError: it cannot be written, as when the disk is full; the older one is still there.
    """
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        _replace_folder(new, folder)
    except Exception as error:
        # What a failed write raises: in `tokenizers` a bare Exception.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        said = str(error).strip().split("\n")[0]
        raise OSError(f"{folder} was not written ({said}); make room and start again") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_ends(folder: Path, ends: Sequence[int]) -> None:
    """Say in a folder's generation_config.json which tokens end an answer; the rest of it stays."""
    # Into the file: transformers refuses to save a configuration that was changed, if a published
    # model's has a temperature and no sampling.
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    settings["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    write_text(file, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _replace_folder(new: Path, folder: Path) -> None:
    for path in new.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave a folder of empty files
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


# --- tokens ------------------------------------------------------------------------------------


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens: "</s>" in a text is four letters."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int | None = None
) -> list[int]:
    """Token ids of a prompt: the tokenizer's chat template up to the answer, if it has one.

    Else beginning-of-text and the course's template. A prompt that is too long loses its
    beginning, never the cue at its end.

    Args:
        text: what was asked, or a conversation as `data.to_text` writes it.
        max_tokens: None: `limit_prompts`' number, or MAX_PROMPT_TOKENS.

    Raises:
        ValueError: the chat template refuses the conversation, or is itself too long.
    """
    if max_tokens is None:
        max_tokens = tokenizer.init_kwargs.get("max_prompt_tokens", MAX_PROMPT_TOKENS)
    if tokenizer.chat_template:
        return _encode_chat(tokenizer, to_messages(text), max_tokens)
    ids = encode_text(tokenizer, PROMPT_TEMPLATE.format(prompt=text))
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + ids[-(max_tokens - len(start)) :]


def limit_prompts(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Set how long a prompt may be, in tokens; the tokenizer's files remember it.

    As with the chat template, whoever trains or asks a model later reads prompts in the same way.
    """
    tokenizer.init_kwargs["max_prompt_tokens"] = max_tokens


def fix_day(tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> str | None:
    """Make a chat template that writes today's date write the same day from now on.

    Without it the prompts of tomorrow are others than those of today. The tokenizer's files
    remember the day; one that has a day keeps it.

    Args:
        day: such as 2025-11-27; None: today.

    Returns:
        The day, or None if no chat template writes one.
    """
    if not tokenizer.chat_template or not STRFTIME.search(str(tokenizer.get_chat_template())):
        return None
    today = date.today().isoformat()
    return tokenizer.init_kwargs.setdefault("template_day", day or today)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template, with its day written out."""
    template, day = tokenizer.get_chat_template(), fix_day(tokenizer)
    if day is not None:
        first = date.fromisoformat(day)
        template = STRFTIME.sub(lambda m: json.dumps(first.strftime(m[1] or m[2])), template)
    if "strftime_now(" in template:
        raise ValueError("its date cannot be read off, so prompts would change with the day")
    return template


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], max_tokens: int
) -> list[int]:
    """Encode messages; earlier ones go first if they do not fit, then the last one's beginning."""
    while True:
        ids = _apply_template(tokenizer, messages)
        excess = len(ids) - max_tokens
        if excess <= 0:
            return ids
        if len(messages) > 1:
            later = [i for i, m in enumerate(messages) if i and m["role"] == "user"]
            messages = messages[later[0] :] if later else messages[-1:]
            continue
        left = encode_text(tokenizer, messages[0]["content"])[excess:]
        if not left:
            raise ValueError(
                f"the chat template alone has {len(ids)} tokens or more, and a prompt may have "
                f"{max_tokens}; raise --max-prompt-tokens (models.limit_prompts)"
            )
        messages = [{"role": "user", "content": tokenizer.decode(left).lstrip("\ufffd")}]


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> list[int]:
    """Token ids of a conversation up to the answer."""
    options = {"add_generation_prompt": True}
    text = _render(tokenizer, messages, **options)
    own = len(text) - 10 * sum(len(message["content"]) for message in messages)
    if not text or own > TEMPLATE_LETTERS:
        what = f"{len(text):,} letters" if text else "nothing"
        raise ValueError(f"the chat template writes {what} for a conversation; {PLAIN}")
    if "sanitize_control_tokens" in signature(tokenizer.apply_chat_template).parameters:
        # "<|im_end|>" in a message is ten letters, and ends nothing.
        options["sanitize_control_tokens"] = True
    else:
        _refuse_control_tokens(tokenizer, messages)
    options |= {"chat_template": _template(tokenizer), "return_dict": False}
    return tokenizer.apply_chat_template(messages, **options)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any
) -> str:
    """What the chat template makes of a conversation; whatever goes wrong is one line."""
    try:
        with _at_most(TEMPLATE_SECONDS):
            options |= {"chat_template": _template(tokenizer), "tokenize": False}
            return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        verb, what, advice = "refuses", str(error), "leave such rows out, or " + PLAIN
    except Exception as error:  # a template can raise anything
        verb, what, advice = "fails on", f"{type(error).__name__}: {error}", PLAIN
    roles, what = ", ".join(message["role"] for message in messages), what.partition("\n")[0]
    raise ValueError(f"the chat template {verb} a conversation of {roles}: {what}; {advice}")


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Stop a chat template that computes for longer, be it in loops or on ever longer strings."""
    # Jinja limits one loop, not loops in loops. Looking at every line works on every platform and
    # in every thread; computing time, so that a busy machine stops nobody.
    end, before = time.thread_time() + seconds, sys.gettrace()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f"it takes more than {seconds:g} s")
        return look if frame.f_code.co_filename == "<template>" else None

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _refuse_control_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    for message in messages:
        for token in tokenizer.all_special_tokens:
            if token in message["content"]:
                raise ValueError(
                    f"a message holds the control token {token}; leave it out, or install "
                    "transformers 5.23 or newer, which can read it as letters"
                )


@functools.lru_cache(maxsize=8)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The token that a chat template writes behind an assistant's turn, or None."""
    if not template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "«answer»"}]
    try:
        _, said, after = _render(tokenizer, turns).rpartition("«answer»")
    except ValueError:  # some know no such turn
        return None
    tokens = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    found = [token for token in tokens if said and after.strip().startswith(token)]
    return tokens[max(found, key=len)] if found else None


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: what the chat template ends a turn with, or end-of-text."""
    end = _end_of_turn(tokenizer, str(tokenizer.chat_template or ""))
    return tokenizer.eos_token_id if end is None else end


def ending_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all tokens that end an answer of a model (or an adapter's), sorted.

    The fact is kept in three places, which need not agree: the chat template, the tokenizer's
    end-of-text, and the model's generation_config (Gemma's lists <eos> and <end_of_turn>).
    """
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    said = said if isinstance(said, list) else [said]
    return sorted({*said, tokenizer.eos_token_id, end_of_answer(tokenizer)} - {None})


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str, ended: bool = True) -> list[int]:
    """Token ids of an answer, with the token that ends it unless the answer was cut off.

    Prompt and answer are tokenised apart and joined as ids, so that no token spans the border.
    """
    return encode_text(tokenizer, text) + ([end_of_answer(tokenizer)] if ended else [])


def _pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    if not rows or not all(len(row) for row in rows):
        raise ValueError("there is nothing to pad: give one row or more, each with a token or more")
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and mask (B, T), 1 on real tokens; padding comes first.

    Raises:
        ValueError: there are no rows, or one is empty.
    """
    return _pad(rows, pad_id, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and mask (B, T), 1 on real tokens; padding comes last. See pad_left."""
    return _pad(rows, pad_id, left=False)


@dataclass(frozen=True)
class Sequences:
    """Prompts, padded on the left, and responses, padded on the right, side by side.

    Attributes:
        tokens: (B, P + R) ids.
        attention_mask: (B, P + R), 1 on real tokens.
        prompt_length: P, the same for all rows.
    """

    tokens: Tensor
    attention_mask: Tensor
    prompt_length: int

    @property
    def response(self) -> Tensor:
        """Ids of the responses, (B, R)."""
        return self.tokens[:, self.prompt_length :]

    @property
    def mask(self) -> Tensor:
        """1 on the responses' real tokens, the end-of-text included, (B, R)."""
        return self.attention_mask[:, self.prompt_length :]

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self: "Rows", index: slice | Tensor) -> "Rows":
        """Some of the rows, without the columns that are padding in all of them.

        Args:
            index: a slice, or (N,) row numbers.
        """
        mask = self.attention_mask[index]
        columns = mask.any(0).nonzero().squeeze(1)
        first, last = int(columns[0]), int(columns[-1]) + 1
        return replace(
            self,
            tokens=self.tokens[index, first:last],
            attention_mask=mask[:, first:last],
            prompt_length=self.prompt_length - first,
        )

    def packed(self) -> tuple[Tensor, Tensor]:
        """Rows without the padding before and in them: tokens (B, T), and starts (B,) of responses.

        With nothing but padding behind its tokens a row needs no mask and no positions: a causal
        model does not look ahead. It is also shorter; a model reads a quarter less.
        """
        real = self.attention_mask > 0
        order = (~real).long().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
        return self.tokens.gather(1, order), real[:, : self.prompt_length].sum(1)

    def to(self, device: torch.device | str) -> "Sequences":
        """Return the same sequences on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


Rows = TypeVar("Rows", bound=Sequences)


def parts_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in parts of `size`, shortest first: padding costs as much as text."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[i : i + size] for i in range(0, len(order), size)]


def by_length(
    compute: Callable[[Sequences], Tensor], sequences: Sequences, size: int = 16
) -> Tensor:
    """Compute something for rows of like length at a time, so that little of it is padding.

    Two thirds of a rollout can be padding, and a CPU pays for it. A GPU gains more from one large
    batch of one shape, and gets it.

    Args:
        compute: from n rows to (n,), or to (n, R') for as many response tokens as they have.
        sequences: B rows, R response tokens.
        size: rows at a time.

    Returns:
        (B,) or (B, R), with gradient if `compute` gives one; 0 where all rows were padding.
    """
    size, compute = part_size(len(sequences) if sequences.tokens.is_cuda else size), frugal(compute)
    if len(sequences) <= size:
        return compute(sequences)
    order = sequences.attention_mask.sum(1).argsort(stable=True)
    parts = [compute(sequences.rows(rows)) for rows in order.split(size)]
    width = sequences.response.shape[1]
    if parts[0].dim() == 2:
        parts = [nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
    return torch.cat(parts)[order.argsort()]


def join(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> Sequences:
    """Return B prompts and B answers, given as lists of ids, as `Sequences`."""
    left, left_mask = pad_left(prompts, pad_id)
    right, right_mask = pad_right(answers, pad_id)
    tokens, mask = torch.cat([left, right], 1), torch.cat([left_mask, right_mask], 1)
    return Sequences(tokens, mask, left.shape[1])


# --- what models say about tokens ----------------------------------------------------------------


def position_ids(mask: Tensor) -> Tensor:
    """Positions (B, T) of the real tokens, counted from 0 in each row, whatever the padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def response_logits(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Logits (B, R, V) that predict each response token, the first one from the prompt alone."""
    tokens, start = sequences.packed()
    first = int(start.min()) - 1
    # The output layer is a good part of a small model: only where it is looked at.
    keep = tokens.shape[1] - first
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
    return _at(logits, start - 1 - first, sequences.response.shape[1])


def _at(values: Tensor, start: Tensor, width: int) -> Tensor:
    """From (B, T, D) `width` columns from `start` (B,) on: (B, width, D), any beyond the end."""
    columns = start[:, None] + torch.arange(width, device=values.device)
    columns = columns.clamp(max=values.shape[1] - 1).unsqueeze(-1)
    return values.gather(1, columns.expand(-1, -1, values.shape[-1]))


def response_logprobs(
    model: PreTrainedModel, sequences: Sequences, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities (B, R), in nats, of the response tokens; meaningless on padding."""
    return token_logprobs(response_logits(model, sequences), sequences.response, temperature)


def last_hidden(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The last layer's output (B, T, D); rows without padding on the left need no more than ids."""
    # With adapters there is a wrapper around the model.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = positions is not None and counts_positions(model)
    options = {"position_ids": positions} if known else {}
    output = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    return output.last_hidden_state


def counts_positions(model: PreTrainedModel) -> bool:
    """Whether a model can be told its tokens' positions; BLOOM and MPT go by the mask instead."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "position_ids" in signature(inner.base_model.forward).parameters


def head_output(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """What a scalar model's head makes of the last layer's output (..., D): (...), in fp32."""
    head = scalar_head(model)
    return head(hidden.to(next(head.parameters()).dtype)).squeeze(-1).float()


def scores(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores (B,) of a reward model: its head at the last real token of each row.

    Args:
        model: from `scalar_model_from` or `load_scalar_model`.
        ids: (B, T), padded on either side.
        mask: (B, T), 1 on real tokens.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (places * (mask > 0)).argmax(1)
    hidden = last_hidden(model, ids, mask, position_ids(mask))
    return head_output(model, hidden[torch.arange(len(ids)), last])


def values(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Values (B, T) of a critic at every token: what it expects once it has read that token."""
    return head_output(model, last_hidden(model, ids, mask, position_ids(mask)))


@torch.no_grad()
def reward_scores(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Scores (B,) of a reward model for whole answers."""

    def compute(part: Sequences) -> Tensor:
        tokens, start = part.packed()
        last = (start + part.mask.sum(1) - 1)[:, None]
        hidden = last_hidden(model, tokens).take_along_dim(last.unsqueeze(-1), 1)
        return head_output(model, hidden.squeeze(1))

    return by_length(compute, sequences)


def response_values(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Values (B, R) of a critic before each response token."""
    tokens, start = sequences.packed()
    after = head_output(model, last_hidden(model, tokens)).unsqueeze(-1)
    # The value after a prompt's last token is the one before response token 0: one shift, once.
    return _at(after, start - 1, sequences.response.shape[1]).squeeze(-1)


# --- the four roles of RLHF --------------------------------------------------------------------


class Roles(Protocol):
    """What PPO needs from policy, reference, reward model and critic, however they are stored."""

    @property
    def policy(self) -> PreTrainedModel:
        """The model that is being trained, ready to generate and to predict text."""

    def response_logprobs(self, rollout: Sequences, temperature: float) -> Tensor:
        """Log-probs (B, R) under the policy, with gradient."""

    def reference_logprobs(self, rollout: Sequences, temperature: float) -> Tensor:
        """Log-probs (B, R) under the reference, without gradient."""

    def rewards(self, rollout: Sequences) -> Tensor:
        """Scores (B,) of the reward model, without gradient."""

    def values(self, rollout: Sequences) -> Tensor:
        """Values (B, R) of the critic, with gradient; [:, t] was estimated before token t."""

    def policy_parameters(self) -> list[nn.Parameter]:
        """What the policy's optimiser changes."""

    def critic_parameters(self) -> list[nn.Parameter]:
        """What the critic's optimiser changes."""


class RolesOfModels:
    """Roles that have a model each: policy, reference, reward_model and critic."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: PreTrainedModel
    critic: PreTrainedModel

    def response_logprobs(self, rollout: Sequences, temperature: float = 1.0) -> Tensor:
        """See `Roles`."""
        return by_length(lambda x: response_logprobs(self.policy, x, temperature), rollout)

    @torch.no_grad()
    def reference_logprobs(self, rollout: Sequences, temperature: float = 1.0) -> Tensor:
        """See `Roles`."""
        return by_length(lambda x: response_logprobs(self.reference, x, temperature), rollout)

    def rewards(self, rollout: Sequences) -> Tensor:
        """See `Roles`."""
        return reward_scores(self.reward_model, rollout)

    def values(self, rollout: Sequences) -> Tensor:
        """See `Roles`."""
        return by_length(lambda x: response_values(self.critic, x), rollout)


class SeparateRoles(RolesOfModels):
    """Four networks, as in InstructGPT. Policy and critic learn; the other two are frozen.

    All four are copies: the models passed in stay as they are.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reward_model: PreTrainedModel,
        reference: PreTrainedModel | None = None,
        critic: PreTrainedModel | None = None,
    ) -> None:
        """Start from a policy and a reward model.

        Args:
            policy: usually the SFT model.
            reward_model: from `train_reward`.
            reference: where the KL penalty is measured from; None: the policy as it is now.
            critic: None: the reward model as it is now (InstructGPT C.4).

        Raises:
            ValueError: a reward model stands for a language model, or the reverse.
        """
        require_kind(policy, "SeparateRoles: the policy")
        require_kind(reward_model, "SeparateRoles: the reward model", scalar=True)
        require_kind(policy if reference is None else reference, "SeparateRoles: the reference")
        require_kind(reward_model if critic is None else critic, "SeparateRoles: the critic", True)
        self.policy = _trainable(policy)
        self.critic = _trainable(reward_model if critic is None else critic)
        self.reference = _frozen(policy if reference is None else reference)
        self.reward_model = _frozen(reward_model)

    def policy_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self.policy.parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self.critic.parameters())


def _trainable(model: Model) -> Model:
    return copy.deepcopy(model).eval().requires_grad_(True)


def _frozen(model: Model) -> Model:
    return copy.deepcopy(model).eval().requires_grad_(False)
