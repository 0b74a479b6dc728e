"""Several answers to one prompt in one row, so that a model reads the prompt once and not K times.

Each answer attends to the prompt and to itself, and its positions follow the prompt's: it gets the
numbers that a row of its own would give it, for about half of the work. Models that cannot be told
who may look at whom (`shares_rows`) read one answer a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Ranking
from rlhf_edu.engine.economy import is_wide, one_pass, part_size
from rlhf_edu.engine.logits import in_parts, logprobs_of
from rlhf_edu.losses import token_logprobs
from rlhf_edu.models import counts_positions, head_output, last_hidden
from rlhf_edu.tokens import encode_answer, encode_prompt, pad_right, parts_by_length

# What configs call the number of tokens that a layer looks back. A mask of ours replaces it.
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size")
# Kinds of layers that attend, and go by the mask; others carry a state along the row.
ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "attention"}

# Tokens that a GPU reads in the time that it takes to be told what to do: an operation costs its
# launch until then. So a batch that is no longer is read an answer a row, which needs no mask, and
# attention without one is quicker by more than a prompt that is read K times costs.
FEW_TOKENS = 2**13


@dataclass(frozen=True)
class Group:
    """One prompt with its K answers as token ids, and the answers' ranks (1 is best)."""

    prompt: list[int]
    answers: list[list[int]]
    ranks: tuple[int, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Which answers (chosen, rejected) differ in rank, as indices."""
        every, ranks = range(len(self.answers)), self.ranks
        return [(i, j) for i in every for j in every if ranks[i] < ranks[j]]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longest answer: what the model's context must hold."""
        return len(self.prompt) + max(map(len, self.answers))

    @property
    def tokens(self) -> list[int]:
        """The row: the prompt, and one answer behind the other."""
        return self.prompt + [token for answer in self.answers for token in answer]


def make_group(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, limit: int = 64) -> Group:
    """Encode a ranking; an answer that was cut off anyway is read up to `limit` tokens."""
    answers = []
    for text, ended in zip(ranking.answers, ranking.ended, strict=True):
        ids = encode_answer(tokenizer, text, ended)
        # There must be something to predict: an empty answer that was cut off has no token.
        answers.append((ids if ended else ids[:limit]) or encode_answer(tokenizer, ""))
    return Group(encode_prompt(tokenizer, ranking.prompt.text), answers, tuple(ranking.ranks))


def longest_row(groups: Sequence[Group]) -> tuple[int, int]:
    """Tokens of the longest row, and of the answers in it."""
    longest = max(groups, key=lambda group: len(group.tokens))
    return len(longest.tokens), len(longest.tokens) - len(longest.prompt)


@dataclass(frozen=True)
class GroupRows:
    """Groups as tensors, padded on the right.

    Attributes:
        tokens: (B, T) ids.
        answer: (B, T) 0 on a prompt's tokens, 1 … K on those of its answers, -1 on padding.
        positions: (B, T), counted on from the prompt in each answer.
    """

    tokens: Tensor
    answer: Tensor
    positions: Tensor

    def attention(self) -> Tensor:
        """(B, 1, T, T), true where a token (third) may look at another (last)."""
        width = self.tokens.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.tokens.device).tril()
        of, by = self.answer[:, None, :], self.answer[:, :, None]
        return (causal & ((of == 0) | (of == by)) & (of >= 0)).unsqueeze(1)

    def before(self) -> Tensor:
        """(B, T) the column from which an answer's token is predicted: the one that it follows."""
        prompt = (self.answer == 0).sum(1, keepdim=True)
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return torch.where(self.positions == prompt, prompt, columns) - 1

    def lengths(self) -> list[int]:
        """Tokens of every answer, row by row."""
        real, kinds = self.answer > 0, int(self.answer.max()) + 1
        counts = (real.nonzero()[:, 0] * kinds + self.answer[real]).bincount()
        return counts[counts > 0].tolist()

    def to(self, device: torch.device) -> "GroupRows":
        """The same rows on another device."""
        return GroupRows(*(x.to(device) for x in (self.tokens, self.answer, self.positions)))


def lay_out(groups: Sequence[Group], pad_id: int) -> GroupRows:
    """Put every group into a row."""
    answer, positions = [], []
    for group in groups:
        start = len(group.prompt)
        lengths = [start, *map(len, group.answers)]
        answer.append([part for part, n in enumerate(lengths) for _ in range(n)])
        starts = [0] + [start] * len(group.answers)
        positions.append([s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)])
    tokens, mask = pad_right([group.tokens for group in groups], pad_id)
    answer, positions = pad_right(answer, -1)[0], pad_right(positions, 0)[0]
    return GroupRows(tokens, answer.masked_fill(mask == 0, -1), positions)


def shares_rows(model: PreTrainedModel, longest: int) -> bool:
    """Whether a model can read several answers in a row of up to `longest` tokens.

    It must count positions as it is told, attend in every layer and look back over the whole row.
    """
    config = model.config.get_text_config()
    kinds = {name: getattr(config, name, None) for name in ("layer_types", "layers_block_type")}
    windows = [getattr(config, name, None) or longest for name in WINDOWS]
    return (
        counts_positions(model)
        and not getattr(config, "alibi", False)
        and all(set(kind or []) <= ATTENDING for kind in kinds.values())
        and all(longest <= window for window in windows)
    )


def _lay_out_for(model: PreTrainedModel, groups: Sequence[Group], pad_id: int) -> GroupRows:
    """Groups as rows that the model can read: of a group each, or of an answer each."""
    alone = sum(len(group.answers) * group.longest for group in groups)
    few = is_wide(model.device) and alone <= FEW_TOKENS
    if few or not shares_rows(model, max(len(group.tokens) for group in groups)):
        groups = [Group(group.prompt, [ids], (1,)) for group in groups for ids in group.answers]
    return lay_out(groups, pad_id)


def _inputs(model: PreTrainedModel, rows: GroupRows) -> list[Tensor | None]:
    """Tokens, mask and positions as the model takes them, on its device."""
    single, rows = int(rows.answer.max()) == 1, rows.to(model.device)
    if single:  # padding behind one answer needs neither mask nor positions
        return [rows.tokens, None, None]
    attention, how = rows.attention(), getattr(model.config, "_attn_implementation", "sdpa")
    if how.startswith("flash"):
        raise ValueError(
            f"the model attends with {how}, which takes no mask of its own for each answer; load "
            'it with attn_implementation="sdpa"'
        )
    if how == "eager":  # adds the mask to the scores
        lowest = torch.finfo(model.dtype).min
        attention = torch.zeros_like(attention, dtype=model.dtype).masked_fill(~attention, lowest)
    return [rows.tokens, attention, rows.positions]


def _logprobs(model: PreTrainedModel, rows: GroupRows) -> Tensor:
    """Log-probs (N,) of all tokens of all answers, row by row."""
    ids, mask, positions = _inputs(model, rows)
    row, column = (rows.answer > 0).nonzero(as_tuple=True)
    before, wanted = rows.before()[row, column], rows.tokens[row, column]
    if in_parts(model):
        places, wanted = torch.stack([row * ids.shape[1] + before, wanted]).to(model.device)
        hidden = last_hidden(model, ids, mask, positions)
        return logprobs_of(model, hidden.flatten(0, 1)[places], wanted)
    first = int((rows.answer == 0).sum(1).min()) - 1  # nothing is predicted from earlier columns
    options = {} if positions is None else {"position_ids": positions}
    options |= {"use_cache": False, "logits_to_keep": ids.shape[1] - first}
    with one_pass(model):
        logits = model(input_ids=ids, attention_mask=mask, **options).logits
    logits, wanted = logits[row, before - first], wanted.to(model.device)
    return token_logprobs(logits[:, None], wanted[:, None]).squeeze(1)


def answer_logprobs(
    model: PreTrainedModel, groups: Sequence[Group], pad_id: int
) -> list[list[Tensor]]:
    """Log-probs, in nats, of every token of every answer: for each group K tensors (tokens,)."""

    def compute(part: Sequence[Group]) -> list[list[Tensor]]:
        rows = _lay_out_for(model, part, pad_id)
        return _by_group(_logprobs(model, rows).split(rows.lengths()), part)

    return _by_length(compute, groups, model)


def answer_scores(model: PreTrainedModel, groups: Sequence[Group], pad_id: int) -> list[Tensor]:
    """A reward model's scores of the answers, each read at its last token: (K,) for each group."""

    def compute(part: Sequence[Group]) -> list[Tensor]:
        rows = _lay_out_for(model, part, pad_id)
        hidden = last_hidden(model, *_inputs(model, rows))
        last = torch.tensor(rows.lengths()).cumsum(0) - 1
        row, column = (x[last] for x in (rows.answer > 0).nonzero(as_tuple=True))
        found = head_output(model, hidden[row, column])
        return list(found.split([len(group.answers) for group in part]))

    return _by_length(compute, groups, model)


def _by_group(answers: Sequence[Tensor], groups: Sequence[Group]) -> list[list[Tensor]]:
    found = iter(answers)
    return [[next(found) for _ in group.answers] for group in groups]


def _by_length(
    compute: Callable[[Sequence[Group]], list], groups: Sequence[Group], model: PreTrainedModel
) -> list:
    """Compute something for groups of like length at a time, as `tokens.by_length` does."""
    lengths = [len(group.tokens) for group in groups]
    size = part_size(len(groups), max(lengths), 4, model.device)
    result: list = [None] * len(groups)
    for part in parts_by_length(lengths, size):
        for i, found in zip(part, compute([groups[i] for i in part]), strict=True):
            result[i] = found
    return result
