"""Step 2 of InstructGPT: a reward model from rankings (arXiv 2203.02155, 3.5 and Eq. 1)."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.losses import kwise_batch_loss, reward_bias
from rlhf_edu.models import encode_answer, encode_prompt, pad_right, scalar_head, scores
from rlhf_edu.training import (
    OnStep,
    Record,
    batches,
    checkpoint_if_due,
    make_optimizer,
    number_of_batches,
    report,
    require_between,
    require_checkpoints,
    require_positive,
    require_some,
    update,
    warmup_cosine,
)


@dataclass(frozen=True)
class RewardConfig:
    """Settings of `train_reward`.

    Attributes:
        lr: peak learning rate; a cosine to a tenth follows.
        batch_size: prompts per step, each with all of its answers.
        epochs: one; a reward model that sees a comparison twice learns it by heart.
        warmup: steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_norm: the gradient is clipped to this norm.
        max_answer_tokens: an answer that was cut off anyway is read up to here; one that has an
            end is always read to its end.
        seed: of the order of the prompts.
        checkpoint_every, checkpoint_folder: save after so many steps, 0 = never, and where.
    """

    lr: float = 5e-4
    batch_size: int = 16
    epochs: int = 1
    warmup: int = 10
    weight_decay: float = 0.0
    max_norm: float = 1.0
    max_answer_tokens: int = 64
    seed: int = 0
    checkpoint_every: int = 0
    checkpoint_folder: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "lr", "batch_size", "epochs", "max_norm", "max_answer_tokens")
        require_between(self, 0, float("inf"), "warmup", "weight_decay")
        require_checkpoints(self)


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, ended: bool, limit: int = 64
) -> list[int]:
    ids = encode_answer(tokenizer, answer, ended)
    return encode_prompt(tokenizer, prompt) + (ids if ended else ids[:limit])


def _encode_ranking(
    tokenizer: PreTrainedTokenizerBase, ranking: Ranking, limit: int
) -> list[list[int]]:
    answers = zip(ranking.answers, ranking.ended, strict=True)
    return [_encode(tokenizer, ranking.prompt.text, text, end, limit) for text, end in answers]


def _score_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]
) -> Tensor:
    ids, mask = pad_right(rows, tokenizer.pad_token_id)
    return scores(model, ids.to(model.device), mask.to(model.device))


def _score_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Sequence[list[int]]],
    ranks: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor]:
    """Scores and ranks (B, K) of the answers to B prompts; rank 0 where there is no answer."""
    flat = _score_rows(model, tokenizer, [row for group in groups for row in group])
    padded_ranks, present = pad_right(ranks, 0)
    present = present.bool().to(flat.device)
    # Each answer went through the model once, and takes part in K - 1 pairs.
    padded = flat.new_zeros(present.shape).masked_scatter(present, flat)
    return padded, padded_ranks.to(flat.device)


def pair_accuracy(scores: Tensor, ranks: Tensor) -> tuple[int, int]:
    """Return how many pairs without ties (B, K) of scores order as the ranks do, and of how many.

    Equal scores order nothing.
    """
    above = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    above = above & (ranks > 0).unsqueeze(2) & (ranks > 0).unsqueeze(1)
    right = above & (scores.unsqueeze(2) > scores.unsqueeze(1))
    return int(right.sum()), int(above.sum())


def train_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    config: RewardConfig | None = None,
    on_step: OnStep | None = None,
    validation: Sequence[Ranking] | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a reward model, in place, to score answers as the labelers ranked them.

    Args:
        model: from `models.scalar_model_from`.
        rankings: K answers to each prompt, ranked; K may vary.
        config: settings; None: the defaults.
        on_step: called with the record of each step.
        validation: rankings to measure loss and accuracy on after each epoch.

    Returns:
        The model, and one record per step: step, epoch, loss (nats per pair), accuracy, lr, norm,
        seconds, and validation_loss and validation_accuracy on each epoch's last step. An
        interrupt returns what there is.

    Raises:
        ValueError: there are no rankings, or all are ties.
        RuntimeError: the loss or its gradient is NaN or infinite.
    """
    config = config or RewardConfig()
    rankings = [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]
    require_some(rankings, "train_reward", "rankings with answers that are not all tied")
    groups = [_encode_ranking(tokenizer, r, config.max_answer_tokens) for r in rankings]
    lengths = [max(len(row) for row in group) for group in groups]
    optimizer = make_optimizer(model.parameters(), config.lr, config.weight_decay)
    per_epoch = number_of_batches(len(groups), config.batch_size)
    steps = config.epochs * per_epoch
    order = torch.Generator().manual_seed(config.seed)
    history: list[Record] = []
    start = time.perf_counter()
    with contextlib.suppress(KeyboardInterrupt):
        for epoch in range(config.epochs):
            for rows in batches(lengths, config.batch_size, order):
                # 1. Score all answers to some prompts, each of them once.
                ranks = [rankings[i].ranks for i in rows]
                got, wanted = _score_groups(model, tokenizer, [groups[i] for i in rows], ranks)

                # 2. How likely are the labelers' choices, pair by pair? Make them likelier.
                loss = kwise_batch_loss(got, wanted)
                step = len(history)
                lr = config.lr * warmup_cosine(step, steps, config.warmup)
                norm = update(optimizer, loss, lr, config.max_norm)

                # 3. Report.
                record = {"step": step, "epoch": epoch, "loss": loss.item(), "lr": lr, "norm": norm}
                right, pairs = pair_accuracy(got.detach(), wanted)
                record["accuracy"] = right / pairs
                if validation and (step + 1) % per_epoch == 0:
                    record |= _validate(model, tokenizer, validation)
                record["seconds"] = time.perf_counter() - start
                report(history, record, on_step)
                checkpoint_if_due(config, model, tokenizer, history)
    return model, history


@torch.no_grad()
def evaluate_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    batch_size: int = 32,
) -> dict[str, float]:
    """Return loss (nats per pair) and accuracy (over all pairs without ties) on rankings."""
    rankings = [ranking for ranking in rankings if len(set(ranking.ranks)) > 1]
    require_some(rankings, "evaluate_reward", "rankings with answers that are not all tied")
    total, right, pairs = 0.0, 0, 0
    for start in range(0, len(rankings), batch_size):
        part = rankings[start : start + batch_size]
        groups = [_encode_ranking(tokenizer, ranking, 64) for ranking in part]
        got, wanted = _score_groups(model, tokenizer, groups, [r.ranks for r in part])
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

    Raises:
        ValueError: there are not as many answers as prompts, or there are none.
    """
    require_some(prompts, "score_answers", "prompts")
    ended = [True] * len(prompts) if ended is None else ended
    texts = zip(prompts, answers, ended, strict=True)
    rows = [_encode(tokenizer, prompt, answer, end) for prompt, answer, end in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    result = torch.empty(len(rows))
    for start in range(0, len(rows), batch_size):
        part = order[start : start + batch_size]
        result[part] = _score_rows(model, tokenizer, [rows[i] for i in part]).cpu()
    return result


@torch.no_grad()
def normalise_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Sequence[Demonstration],
) -> float:
    """Shift the scores, in the head's bias, so that demonstrations score 0 on average.

    Returns the shift. A model to be saved in 16 bits is rounded first (`models.round_weights`),
    or the rounding would move the zero again.
    """
    prompts = [demonstration.prompt.text for demonstration in demonstrations]
    answers = [demonstration.answer for demonstration in demonstrations]
    bias = reward_bias(score_answers(model, tokenizer, prompts, answers))
    scalar_head(model).bias.add_(bias)
    return bias.item()
