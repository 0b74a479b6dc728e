"""Direct preference optimisation: steps 2 and 3 in one, without a reward model or sampling.

Rafailov et al. 2023, arXiv 2305.18290: the policy itself is the reward model, with
r(x, y) = beta log(policy(y|x) / reference(y|x)).
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Ranking
from rlhf_edu.losses import dpo_loss, ipo_loss, length_normalised_dpo_loss, masked_sum
from rlhf_edu.models import Sequences, encode_answer, encode_prompt, join, response_logprobs
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

LOSSES = ("dpo", "ipo", "length-normalised")


@dataclass(frozen=True)
class DPOConfig:
    """Settings of `train_dpo`.

    Attributes:
        beta: reward per nat of log-ratio; the tau of IPO. Larger stays nearer to the reference.
        loss: one of `LOSSES`.
        label_smoothing: how probably a label is wrong; for "dpo" alone.
        lr: peak learning rate; a cosine to a tenth follows.
        batch_size: prompts per step, each with all of its answers.
        epochs: passes over the prompts.
        warmup: steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_norm: the gradient is clipped to this norm.
        max_answer_tokens: an answer that was cut off anyway is read up to here.
        seed: of the order of the prompts.
        checkpoint_every, checkpoint_folder: save after so many steps, 0 = never, and where.
    """

    beta: float = 0.1
    loss: str = "dpo"
    label_smoothing: float = 0.0
    lr: float = 2e-4
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
        require_positive(self, "beta", "lr", "batch_size", "epochs", "max_norm")
        require_positive(self, "max_answer_tokens")
        require_between(self, 0, float("inf"), "warmup", "weight_decay")
        require_between(self, 0, 0.5, "label_smoothing")
        require_checkpoints(self)
        if self.loss not in LOSSES:
            raise ValueError(f"DPOConfig: loss must be one of {LOSSES}, not {self.loss!r}")
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError('DPOConfig: label_smoothing is for loss="dpo"; set it to 0')


@dataclass(frozen=True)
class Group:
    """One prompt with its K answers as token ids, and its pairs (chosen, rejected) as indices."""

    prompt: list[int]
    answers: list[list[int]]
    pairs: list[tuple[int, int]]


def make_group(tokenizer: PreTrainedTokenizerBase, ranking: Ranking, limit: int = 64) -> Group:
    """Encode a ranking; every two answers that are not tied make a pair."""
    answers = []
    for text, ended in zip(ranking.answers, ranking.ended, strict=True):
        ids = encode_answer(tokenizer, text, ended)
        # A policy has to predict something: an empty answer that was cut off has no token.
        answers.append((ids if ended else ids[:limit]) or [tokenizer.eos_token_id])
    k, ranks = len(answers), ranking.ranks
    pairs = [(i, j) for i in range(k) for j in range(k) if ranks[i] < ranks[j]]
    return Group(encode_prompt(tokenizer, ranking.prompt.text), answers, pairs)


def _join(groups: Sequence[Group], pad_id: int) -> tuple[Sequences, Tensor, Tensor]:
    """All answers as sequences (rows), and rows of the chosen and of the rejected answers (N,)."""
    prompts = [group.prompt for group in groups for _ in group.answers]
    answers = [answer for group in groups for answer in group.answers]
    pairs, first = [], 0
    for group in groups:
        pairs += [(first + chosen, first + rejected) for chosen, rejected in group.pairs]
        first += len(group.answers)
    chosen, rejected = torch.tensor(pairs).unbind(1)
    return join(prompts, answers, pad_id), chosen, rejected


@torch.no_grad()
def reference_sums(
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    batch_size: int = 16,
) -> list[Tensor]:
    """Log-probs of whole answers under the reference, nats: one tensor (K,) for each group."""
    order = sorted(range(len(groups)), key=lambda i: len(groups[i].prompt))
    result: list[Tensor] = [torch.empty(0)] * len(groups)
    for start in range(0, len(groups), batch_size):
        part = order[start : start + batch_size]
        rows, _, _ = _join([groups[i] for i in part], tokenizer.pad_token_id)
        rows = rows.to(reference.device)
        sums = masked_sum(response_logprobs(reference, rows), rows.mask)
        pieces = sums.split([len(groups[i].answers) for i in part])
        for i, piece in zip(part, pieces, strict=True):
            result[i] = piece.clone()
    return result


def _pair_sums(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: list[Group], theirs: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of pairs (N,): policy chosen, rejected, reference chosen, rejected; lengths."""
    rows, chosen, rejected = _join(part, tokenizer.pad_token_id)
    rows = rows.to(policy.device)
    ours, lengths = masked_sum(response_logprobs(policy, rows), rows.mask), rows.mask.sum(1)
    sums = [ours[chosen], ours[rejected], theirs[chosen], theirs[rejected]]
    return sums, [lengths[chosen], lengths[rejected]]


def _preference_loss(
    config: DPOConfig, sums: list[Tensor], lengths: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    if config.loss == "ipo":
        return ipo_loss(*sums, config.beta)
    if config.loss == "length-normalised":
        return length_normalised_dpo_loss(*sums, *lengths, config.beta)
    return dpo_loss(*sums, config.beta, config.label_smoothing)


def train_dpo(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    config: DPOConfig | None = None,
    on_step: OnStep | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a policy, in place, to prefer what the labelers preferred.

    Args:
        policy: usually a copy of the SFT model.
        reference: usually the SFT model; used before training only, so it may be the policy.
        rankings: K answers to each prompt, ranked; every two that are not tied make a pair.
        config: settings; None: the defaults.
        on_step: called with the record of each step.

    Returns:
        The policy, and one record per step, of means over pairs before the step: step, epoch,
        loss, margin (chosen less rejected implicit reward), accuracy (margins above 0),
        chosen_reward, rejected_reward, chosen_logprob, rejected_logprob (nats per answer; that
        the chosen one falls too is normal), lr, norm, seconds. An interrupt returns what there is.

    Raises:
        ValueError: there are no rankings, or all are ties.
        RuntimeError: the loss or its gradient is NaN or infinite.
    """
    config = config or DPOConfig()
    groups = [make_group(tokenizer, ranking, config.max_answer_tokens) for ranking in rankings]
    groups = [group for group in groups if group.pairs]
    require_some(groups, "train_dpo", "rankings with answers that are not all tied")
    # The reference never changes: one pass over the data before training is all it has to do.
    references = reference_sums(reference, tokenizer, groups)
    sizes = [len(group.prompt) + max(map(len, group.answers)) for group in groups]
    optimizer = make_optimizer(policy.parameters(), config.lr, config.weight_decay)
    steps = config.epochs * number_of_batches(len(groups), config.batch_size)
    order = torch.Generator().manual_seed(config.seed)
    history: list[Record] = []
    start = time.perf_counter()
    with contextlib.suppress(KeyboardInterrupt):
        for epoch in range(config.epochs):
            for chosen_groups in batches(sizes, config.batch_size, order):
                # 1. Log-probs of chosen and rejected answers, in one forward pass.
                part = [groups[i] for i in chosen_groups]
                theirs = torch.cat([references[i] for i in chosen_groups])
                sums, lengths = _pair_sums(policy, tokenizer, part, theirs)

                # 2. How far has the policy moved towards the chosen answers?
                loss, up, down = _preference_loss(config, sums, lengths)

                # 3. Move it a little further.
                step = len(history)
                lr = config.lr * warmup_cosine(step, steps, config.warmup)
                norm = update(optimizer, loss, lr, config.max_norm)

                # 4. Report.
                record = {"step": step, "epoch": epoch, "loss": loss.item(), "lr": lr, "norm": norm}
                record |= _diagnostics(up, down, *sums[:2])
                record["seconds"] = time.perf_counter() - start
                report(history, record, on_step)
                checkpoint_if_due(config, policy, tokenizer, history)
    return policy, history


def _diagnostics(up: Tensor, down: Tensor, chosen: Tensor, rejected: Tensor) -> Record:
    return {
        "margin": (up - down).mean().item(),
        "accuracy": (up > down).float().mean().item(),
        "chosen_reward": up.mean().item(),
        "rejected_reward": down.mean().item(),
        "chosen_logprob": chosen.mean().item(),
        "rejected_logprob": rejected.mean().item(),
    }
