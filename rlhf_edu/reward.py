"""Step 2 of InstructGPT: a reward model from rankings (arXiv 2203.02155, 3.5 and Eq. 1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.engine.checks import (
    DROPOUT,
    MISALIGNED,
    OnStep,
    Record,
    require_agreement,
    require_positive,
    require_some,
    require_tokens,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import economy
from rlhf_edu.engine.groups import Group, answer_scores, longest_row, make_group
from rlhf_edu.engine.loop import Loop, TrainConfig
from rlhf_edu.engine.training import make_optimizer
from rlhf_edu.losses import kwise_batch_loss, reward_bias
from rlhf_edu.models import head_output, last_hidden, require_fit, scalar_head, scores
from rlhf_edu.tokens import encode_answer, encode_prompt, pad_right, parts_by_length

RankingLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RewardConfig(TrainConfig):
    """Settings of `train_reward`. Taught in chapter 04."""

    lr: float = 5e-4
    """Peak learning rate of AdamW; a cosine to a tenth of it follows the warm-up."""
    batch_size: int = 16
    """Prompts per step, each with all of its answers."""
    epochs: int = 1
    """Passes over the rankings, one or two: seen often, comparisons are learned by heart."""
    max_answer_tokens: int = 64
    """An answer that was cut off anyway is read up to here; one that ends, to its end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_answer_tokens")


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, ended: bool, limit: int = 64
) -> list[int]:
    ids = encode_answer(tokenizer, answer, ended)
    return encode_prompt(tokenizer, prompt) + (ids if ended else ids[:limit])


def _score_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]
) -> Tensor:
    ids, mask = pad_right(rows, tokenizer.pad_token_id)
    return scores(model, ids.to(model.device), mask.to(model.device))


def _score_groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]
) -> tuple[Tensor, Tensor]:
    """Scores and ranks (B, K) of the answers to B prompts; rank 0 where there is no answer."""
    found = torch.cat(answer_scores(model, groups, tokenizer.pad_token_id))
    ranks, _ = pad_right([group.ranks for group in groups], 0)
    # Each answer went through the model once, and takes part in K - 1 pairs.
    numbers = iter(range(len(found)))
    rows, _ = pad_right([[next(numbers) for _ in group.answers] for group in groups], len(found))
    return F.pad(found, (0, 1))[rows.to(found.device)], ranks.to(found.device)


def pair_accuracy(scores: Tensor, ranks: Tensor) -> tuple[int, int]:
    """Return how many pairs without ties (B, K) of scores order as the ranks do, and of how many.

    Equal scores order nothing.
    """
    above = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    # Rank 0 is no answer at all: a prompt may have fewer than the others.
    above = above & (ranks > 0).unsqueeze(2) & (ranks > 0).unsqueeze(1)
    right = above & (scores.unsqueeze(2) > scores.unsqueeze(1))
    found, pairs = torch.stack([right.sum(), above.sum()]).tolist()
    return found, pairs


def _with_a_choice(rankings: Sequence[Ranking]) -> list[Ranking]:
    """The rankings that prefer one answer to another.

    Raises:
        ValueError: there are none, or all answers that differ in rank are the same text.
    """
    rankings = [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]
    require_some(rankings, "train_reward", "rankings of two answers or more, not all tied")
    if all(len(set(zip(r.answers, r.ended, strict=True))) == 1 for r in rankings):
        raise ValueError(
            "train_reward: in every pair the chosen answer is the rejected one; look at how the "
            "answers were sampled and ranked"
        )
    return rankings


@torch.no_grad()
def check_step_0(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: Sequence[Group],
    loss: Tensor,
) -> Record:
    """Before the first update: scores depend on their own row alone, and the loss is near log 2.

    A fresh head knows nothing, so that its loss on unseen pairs is log 2 or, as its scores spread
    at random, above. A first loss far below is no error, but the record says what it may mean.

    Args:
        part: the groups of the first batch, and the longest of all.
        loss: of the first batch, nats per pair.

    Raises:
        RuntimeError: dropout is on, or padding or another answer changes a score.
    """
    limit = step_0_tolerance(model)
    found, again = (answer_scores(model, part, tokenizer.pad_token_id) for _ in range(2))
    require_agreement(
        torch.cat(found), torch.cat(again), limit, "two passes over one batch", DROPOUT
    )
    shortest = min(range(len(part)), key=lambda i: len(part[i].tokens))  # the most padding
    answers = part[-1].answers
    farthest = max(range(len(answers)), key=lambda k: len(answers[k]))
    for i, k in ((shortest, -1), (-1, farthest)):
        ids = torch.tensor([part[i].prompt + part[i].answers[k]], device=model.device)
        alone = head_output(model, last_hidden(model, ids)[0, -1])
        what = "scores of an answer in its batch and alone"
        require_agreement(found[i][k], alone, limit, what, MISALIGNED)
    numbers = f"first loss {loss.item():.3f}, log 2 is {math.log(2):.3f}"
    if loss < math.log(2) / 2:
        return {
            "step_0": f"look: {numbers}; far below, so the model has learned from such pairs "
            "before, or its head is large, or all pairs are alike"
        }
    return {"step_0": f"ok: {numbers}; scores do not depend on padding"}


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    config: RewardConfig | None = None,
    on_step: OnStep | None = None,
    validation: Sequence[Ranking] | None = None,
    loss: RankingLoss = kwise_batch_loss,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a reward model, in place, to score answers as they were ranked. Taught in chapter 04.

    Args:
        model: from `models.scalar_model_from`.
        rankings: K answers to each prompt, ranked; K may vary.
        config, on_step: settings, and what is called with the record of each step.
        validation: rankings to measure loss and accuracy on after each epoch.
        loss: from scores (B, K) and ranks (B, K), 1 the best and 0 where there is no answer, to a
            scalar: your own in the place of `losses.kwise_batch_loss`.

    Returns:
        The model, and one record per step, until the end or an interrupt: step, epoch, loss (nats
        per pair), accuracy, lr, norm, seconds, on each epoch's last step validation_loss and
        validation_accuracy, and on the first step_0.

    Raises:
        ValueError: there are no rankings with two different answers that are not tied, or the
            model is none with a head, or has another vocabulary.
        RuntimeError: step 0 is not what it must be, loss or gradient is NaN or infinite, or
            `checks.require_progress` stopped the run.
    """
    config = config or RewardConfig()
    require_tokens(tokenizer, "train_reward")
    groups = [make_group(tokenizer, r, config.max_answer_tokens) for r in _with_a_choice(rankings)]
    lengths = [group.longest for group in groups]
    require_fit(model, tokenizer, "train_reward", max(lengths), scalar=True)
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay)
    loop = Loop(config, model, {"model": optimizer}, groups, tokenizer, on_step)
    config = loop.fitted(config.batch_size, *longest_row(groups))
    with loop:
        for batch in loop.by_length(lengths):
            # 1. Score all answers to some prompts, each of them once.
            part = [groups[i] for i in batch.rows]
            with economy(config, model):
                scored, ranks = _score_groups(model, tokenizer, part)

                # 2. How likely are the labelers' choices, pair by pair?
                mean = batch.weight * loss(scored, ranks)
                if batch.step == 0:
                    checked = [*part, max(groups, key=lambda group: group.longest)]
                    loop.note(check_step_0(model, tokenizer, checked, mean))

            # 3. Make them likelier.
            loop.descend(mean)

            # 4. Report and save.
            measured = validation if batch.ends_epoch else None
            more = _validate(model, tokenizer, measured) if measured else {}
            right, pairs = pair_accuracy(scored.detach(), ranks)
            loop.report(epoch=batch.epoch, **more, accuracy=right / pairs)
    return model, loop.history


@torch.no_grad()
def evaluate_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    batch_size: int = 32,
) -> dict[str, float]:
    """Return loss (nats per pair) and accuracy (over all pairs without ties) on rankings.

    Taught in chapter 04.
    """
    rankings = [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]
    require_some(rankings, "evaluate_reward", "rankings with answers that are not all tied")
    total, right, pairs = 0.0, 0, 0
    for start in range(0, len(rankings), batch_size):
        part = rankings[start : start + batch_size]
        got, wanted = _score_groups(model, tokenizer, [make_group(tokenizer, r) for r in part])
        total += kwise_batch_loss(got, wanted).item() * len(part)
        more_right, more_pairs = pair_accuracy(got, wanted)
        right, pairs = right + more_right, pairs + more_pairs
    return {"loss": total / len(rankings), "accuracy": right / pairs}


def _validate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, validation: Sequence[Ranking]
) -> Record:
    measured = evaluate_reward(model, tokenizer, validation)
    return {f"validation_{key}": value for key, value in measured.items()}


@torch.no_grad()
def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    ended: Sequence[bool] | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Scores (N,) of N answers to N prompts, as texts; `ended` None: all have their end.

    Taught in chapter 04.

    Raises:
        ValueError: there are not as many answers as prompts, or there are none.
    """
    require_some(prompts, "score_answers", "prompts")
    ended = [True] * len(prompts) if ended is None else ended
    texts = zip(prompts, answers, ended, strict=True)
    rows = [_encode(tokenizer, prompt, answer, end) for prompt, answer, end in texts]
    result = torch.empty(len(rows))
    for part in parts_by_length(list(map(len, rows)), batch_size):
        result[part] = _score_rows(model, tokenizer, [rows[i] for i in part]).cpu()
    return result


@torch.no_grad()
def normalise_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
) -> float:
    """Shift the scores, in the head's bias, so that demonstrations score 0 on average.

    Taught in chapter 04.

    Returns the shift. A model to be saved in 16 bits is rounded first (`models.round_weights`),
    or the rounding would move the zero again.
    """
    prompts = [demonstration.prompt.text for demonstration in demonstrations]
    answers = [demonstration.answer for demonstration in demonstrations]
    # Pairs leave the zero of the scores free; PPO's penalty for a missing end, and beta, need one.
    bias = reward_bias(score_answers(model, tokenizer, prompts, answers))
    scalar_head(model).bias.add_(bias)
    return bias.item()
