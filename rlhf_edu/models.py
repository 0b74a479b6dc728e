"""Models: load, make and save them, and what they say of the tokens of an answer.

Every model is an ordinary `transformers` one: a causal language model (policy, reference), or a
token classifier with a single label (reward model, critic), see `scalar_class`. They stay in eval
mode, in training too: with dropout a policy would not agree with itself between rollout and update.

Shapes: B rows, P prompt tokens, R response tokens, T tokens in all, V words of the vocabulary.
"""

import copy
import json
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_edu.engine.checks import require_sound, require_vocabulary
from rlhf_edu.engine.economy import one_pass
from rlhf_edu.engine.loading import load_language_model, load_scalar, scalar_class
from rlhf_edu.engine.logits import in_parts, logprobs_of, without_adapters
from rlhf_edu.files import new_folder, write_text
from rlhf_edu.losses import token_logprobs
from rlhf_edu.tokens import Sequences, by_length, ending_ids, position_ids

# Two orders of magnitude from the smallest to the largest, as from GPT-3 1.3B to 175B.
SIZES = {
    "0.05M": {"hidden_size": 24, "num_hidden_layers": 2, "heads": 2, "intermediate_size": 64},
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "heads": 4, "intermediate_size": 344},
    "6M": {"hidden_size": 256, "num_hidden_layers": 7, "heads": 4, "intermediate_size": 688},
}


# --- make, load, save --------------------------------------------------------------------------


def new_llama(size: str, vocab_size: int = 1536, seed: int = 0) -> LlamaForCausalLM:
    """Return an untrained Llama of one of the `SIZES`, fp32, embeddings tied. Taught in chapter 01.

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
    """Number of parameters; tied ones count once. Taught in chapter 01."""
    return sum(parameter.numel() for parameter in model.parameters())


def _existing(folder: str | Path, what: str = "model", file: str = "config.json") -> str:
    if not Path(folder, file).is_file():
        raise FileNotFoundError(f"{folder} holds no {what} ({file} is missing)")
    return str(folder)


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

    Taught in chapter 04.

    The head's weights are drawn from N(0, 1 / (d + 1)), that is, with standard deviation
    1 / sqrt(d + 1), and its bias is 0 (Stiennon et al. 2020, arXiv 2009.01325, in their code).
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with policy.device:  # or a slow host would make the weights that are then replaced
        model = scalar_class(type(config))._from_config(config, dtype=policy.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    head, generator = scalar_head(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(head.weight.shape, generator=generator, device="cpu")
        head.weight.copy_(weight / (head.in_features + 1) ** 0.5)
        head.bias.zero_()
    return model.eval()


def is_scalar(model: PreTrainedModel) -> bool:
    """Whether a model is a reward model or critic, and no language model; adapters may be on it."""
    return type(without_adapters(model)).__name__.endswith("Classification")


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


def require_fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trainer: str,
    longest: int,
    role: str = "model",
    scalar: bool = False,
) -> None:
    """Raise ValueError or RuntimeError unless a model can take a role in a trainer.

    It must be of the right kind, know the tokenizer's words, be sound, and read the longest row.
    """
    require_kind(model, f"{trainer}: the {role}", scalar)
    require_vocabulary(model, tokenizer, f"{trainer}: the {role}")
    require_sound(model, trainer, longest)


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """Return the last, linear layer of a reward model or critic: d -> 1. Taught in chapter 04."""
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


def write_ends(folder: Path, ends: Sequence[int]) -> None:
    """Say in a folder's generation_config.json which tokens end an answer; the rest of it stays."""
    # Into the file: transformers refuses to save a configuration that was changed, if a published
    # model's has a temperature and no sampling.
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    settings["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    write_text(file, json.dumps(settings, indent=2, sort_keys=True) + "\n")


# --- what models say about tokens ----------------------------------------------------------------


def response_logits(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Logits (B, R, V) that predict each response token, the first one from the prompt alone.

    Taught in chapter 05.
    """
    tokens, start = sequences.packed()
    # The token before the first of a response predicts it: one place earlier, once.
    first = int(start.min()) - 1
    # The output layer is a good part of a small model: only where it is looked at.
    keep = tokens.shape[1] - first
    with one_pass(model):
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
    return _at(logits, start - 1 - first, sequences.response.shape[1])


def _at(values: Tensor, start: Tensor, width: int) -> Tensor:
    """From (B, T, D) `width` columns from `start` (B,) on: (B, width, D), any beyond the end."""
    columns = start[:, None] + torch.arange(width, device=values.device)
    # Beyond a row's end there is padding, which nobody will look at.
    columns = columns.clamp(max=values.shape[1] - 1).unsqueeze(-1)
    return values.gather(1, columns.expand(-1, -1, values.shape[-1]))


def response_logprobs(
    model: PreTrainedModel, sequences: Sequences, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities (B, R), in nats, of the response tokens; meaningless on padding.

    Taught in chapter 03.
    """
    if not in_parts(model):
        return token_logprobs(response_logits(model, sequences), sequences.response, temperature)
    tokens, start = sequences.packed()
    hidden = _at(last_hidden(model, tokens), start - 1, sequences.response.shape[1])
    ids = sequences.response.flatten()
    found = logprobs_of(model, hidden.flatten(0, 1), ids, temperature)
    return found.view(sequences.response.shape)


def last_hidden(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The last layer's output (B, T, D); rows without padding on the left need no more than ids."""
    backbone = without_adapters(model).base_model
    known = positions is not None and counts_positions(model)
    options = {"position_ids": positions} if known else {}
    with one_pass(backbone):
        output = backbone(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    return output.last_hidden_state


def counts_positions(model: PreTrainedModel) -> bool:
    """Whether a model can be told its tokens' positions; BLOOM and MPT go by the mask instead."""
    return "position_ids" in signature(without_adapters(model).base_model.forward).parameters


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
    """Scores (B,) of a reward model for whole answers. Taught in chapter 06."""

    def compute(part: Sequences) -> Tensor:
        tokens, start = part.packed()
        last = (start + part.mask.sum(1) - 1)[:, None]
        hidden = last_hidden(model, tokens).take_along_dim(last.unsqueeze(-1), 1)
        return head_output(model, hidden.squeeze(1))

    return by_length(compute, sequences)


def response_values(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Values (B, R) of a critic before each response token. Taught in chapter 06."""
    tokens, start = sequences.packed()
    after = head_output(model, last_hidden(model, tokens)).unsqueeze(-1)
    # The value after a prompt's last token is the one before response token 0: one shift, once.
    return _at(after, start - 1, sequences.response.shape[1]).squeeze(-1)
