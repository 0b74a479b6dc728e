"""Direct preference optimisation: steps 2 and 3 in one, without a reward model or sampling.

Rafailov et al. 2023, arXiv 2305.18290: the policy itself is the reward model, with
r(x, y) = beta log(policy(y|x) / reference(y|x)).
"""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Ranking
from rlhf_edu.engine.checkpoints import Checkpoint
from rlhf_edu.engine.checks import (
    OnStep,
    Record,
    check_logprobs,
    require_agreement,
    require_between,
    require_checkpoints,
    require_numbers,
    require_positive,
    require_some,
    require_sound,
    require_tokens,
    require_vocabulary,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import economy
from rlhf_edu.engine.groups import Group, answer_logprobs, make_group
from rlhf_edu.engine.parallel import gathered, share, share_of_batch, totals
from rlhf_edu.engine.training import (
    make_optimizer,
    number_of_batches,
    plan_batches,
    report,
    started,
    update,
    warmup_cosine,
)
from rlhf_edu.losses import dpo_loss, ipo_loss, length_normalised_dpo_loss
from rlhf_edu.models import require_kind

LOSSES = ("dpo", "ipo", "length-normalised")


@dataclass(frozen=True)
class DPOConfig:
    """Settings of `train_dpo`.

    Attributes:
        beta: reward per nat of log-ratio; the tau of IPO. Larger stays nearer to the reference.
        loss: which loss, see `losses.py`.
        label_smoothing: how probably a label is wrong; for "dpo" alone.
        lr: peak learning rate; a cosine to a tenth follows.
        batch_size: prompts per step, each with all of its answers.
        epochs: passes over the prompts.
        warmup: steps in which the learning rate rises.
        weight_decay: how strongly AdamW pulls the matrices to 0.
        max_norm: the gradient is clipped to this norm.
        max_answer_tokens: an answer that was cut off anyway is read up to here.
        bf16: multiply matrices in bfloat16, see `economy.bf16_products`.
        micro_batch: hold the activations of so many prompts with their answers at once; the
            backward pass computes them again. 0: of all. See `economy.micro_batches`.
        seed: of the random order of the prompts.
        same_start: policy and reference start as the same model, and step 0 checks that they do.
        checkpoint_every: save the state after so many steps, and after the last one; 0: never.
        checkpoint_folder: where. A run whose folder holds a checkpoint of it goes on from there.
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
    bf16: bool = False
    micro_batch: int = 0
    seed: int = 0
    same_start: bool = True
    checkpoint_every: int = 0
    checkpoint_folder: str | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive(self, "beta", "lr", "batch_size", "epochs", "max_norm")
        require_positive(self, "max_answer_tokens")
        require_between(self, 0, float("inf"), "warmup", "weight_decay", "micro_batch")
        require_between(self, 0, 0.5, "label_smoothing")
        require_checkpoints(self)
        if self.loss not in LOSSES:
            raise ValueError(f"DPOConfig: loss must be one of {LOSSES}, not {self.loss!r}")
        if self.label_smoothing and self.loss != "dpo":
            raise ValueError('DPOConfig: label_smoothing is for loss="dpo"; set it to 0')


def make_groups(
    tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking], max_answer_tokens: int = 64
) -> list[Group]:
    """Groups of the rankings that prefer one answer to another.

    Raises:
        ValueError: there are none, or all answers that differ in rank are the same text.
    """
    require_tokens(tokenizer, "train_dpo")
    groups = [make_group(tokenizer, ranking, max_answer_tokens) for ranking in rankings]
    groups = [group for group in groups if group.pairs]
    require_some(groups, "train_dpo", "rankings of two answers or more, not all tied")
    if all(group.answers[i] == group.answers[j] for group in groups for i, j in group.pairs):
        raise ValueError(
            "train_dpo: in every pair the chosen answer is the rejected one; look at how the "
            "answers were sampled and ranked"
        )
    return groups


@torch.no_grad()
def reference_sums(
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    batch_size: int = 64,
) -> list[Tensor]:
    """Log-probs of whole answers under the reference, nats: one tensor (K,) for each group."""
    mine, pad_id = share(groups), tokenizer.pad_token_id
    parts = (mine[i : i + batch_size] for i in range(0, len(mine), batch_size))
    found = (answer_logprobs(reference, part, pad_id) for part in parts)
    return gathered([sums(answers) for part in found for answers in part], reference.device)


def sums(answers: Sequence[Tensor]) -> Tensor:
    """Log-probs (K,) of whole answers, nats, from those of their tokens."""
    return torch.stack([logprobs.sum() for logprobs in answers])


def _pair_sums(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: list[Group], theirs: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of pairs (N,): policy chosen, rejected, reference chosen, rejected; lengths."""
    answers = sum(answer_logprobs(policy, part, tokenizer.pad_token_id), [])
    ours = sums(answers)
    lengths = torch.tensor(list(map(len, answers)), device=ours.device)
    chosen, rejected = _pair_rows(part)
    pairs = [ours[chosen], ours[rejected], theirs[chosen], theirs[rejected]]
    return pairs, [lengths[chosen], lengths[rejected]]


def _pair_rows(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Which answers of all groups are chosen, and which rejected, in every pair (N,)."""
    pairs, first = [], 0
    for group in groups:
        pairs += [(first + chosen, first + rejected) for chosen, rejected in group.pairs]
        first += len(group.answers)
    return torch.tensor(pairs).unbind(1)


def _preference_loss(
    config: DPOConfig, pairs: list[Tensor], lengths: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    if config.loss == "ipo":
        return ipo_loss(*pairs, config.beta)
    if config.loss == "length-normalised":
        return length_normalised_dpo_loss(*pairs, *lengths, config.beta)
    return dpo_loss(*pairs, config.beta, config.label_smoothing)


@torch.no_grad()
def check_step_0(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: list[Group],
    longest: Group,
    theirs: Tensor,
    config: DPOConfig,
) -> Record:
    """Before the first update the policy is the reference: margins are 0 and the loss is log 2.

    Args:
        part: the groups of the first batch.
        longest: that of all batches.
        theirs: log-probs of their answers under the reference, nats.

    Raises:
        RuntimeError: it is not so; the message names likely causes.
    """
    # 1. Are the policy's log-probs right?
    checked, pad_id = [*part, longest], tokenizer.pad_token_id
    answers = [(group.prompt, answer) for group in checked for answer in group.answers]
    check_logprobs(policy, lambda: sum(answer_logprobs(policy, checked, pad_id), []), answers)
    # 2. Are they the reference's?
    pairs, lengths = _pair_sums(policy, tokenizer, part, theirs)
    loss, up, down = _preference_loss(config, pairs, lengths)
    found = f"loss {loss.item():.4f}, margin {(up - down).mean().item():.2g}"
    if not config.same_start:
        return {"step_0": f"ok: policy and reference need not be the same; {found}"}
    ours, references = torch.cat(pairs[:2]), torch.cat(pairs[2:])
    per_token, limit = torch.cat(lengths), step_0_tolerance(policy)
    why = (
        "both must start as the same model, with dropout off and the same temperature, template "
        "and masks; if they are meant to differ, set DPOConfig.same_start=False"
    )
    what = "log-probs per token of policy and reference"
    require_agreement(ours / per_token, references / per_token, limit, what, why)
    # 3. Then the loss is known, whatever the data: for IPO (0 - 1 / (2 beta))^2, else log 2.
    start = 1 / (2 * config.beta) ** 2 if config.loss == "ipo" else math.log(2)
    if not math.isclose(loss.item(), start, rel_tol=100 * limit):
        raise RuntimeError(f"step 0: the loss is {loss.item():.4f}, not {start:.4f}, at margin 0")
    return {"step_0": f"ok: the policy is the reference; {found}"}


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
        config, on_step: settings, and what is called with the record of each step.

    Returns:
        The policy, and one record per step, until the end or an interrupt, of means over pairs
        before the step: step, epoch, loss, margin (chosen less rejected implicit reward), accuracy
        (margins above 0), chosen_reward, rejected_reward, chosen_logprob, rejected_logprob (nats
        per answer; that the chosen one falls too is normal), lr, norm, seconds, step_0.

    Raises:
        ValueError: there are no rankings, or no two different answers that are not tied.
        RuntimeError: step 0 is not what it must be, loss or gradient is NaN or infinite, or
            `training.require_progress` stopped the run.
    """
    config = config or DPOConfig()
    groups = make_groups(tokenizer, rankings, config.max_answer_tokens)
    for model, name in ((policy, "policy"), (reference, "reference")):
        require_kind(model, f"train_dpo: the {name}")
        require_vocabulary(model, tokenizer, f"train_dpo: the {name}")
    sizes = [group.longest for group in groups]
    require_sound(policy, "train_dpo", max(sizes))
    require_sound(reference, "train_dpo", max(sizes))
    # The reference never changes: one pass over the data before training is all it has to do.
    with economy(config, reference):
        references = reference_sums(reference, tokenizer, groups)
    optimizer = make_optimizer(policy.parameters(), config.lr, config.weight_decay)
    plan = plan_batches(sizes, config.batch_size, config.epochs, config.seed)
    steps = config.epochs * number_of_batches(len(groups), config.batch_size)
    saved = Checkpoint(config, policy, {"policy": optimizer}, groups, tokenizer, [reference])
    history = saved.resume()
    start, longest = started(history), max(groups, key=lambda group: group.longest)
    with contextlib.suppress(KeyboardInterrupt):
        for epoch, chosen in islice(plan, len(history), None):
            # 1. Log-probs of all answers; each is read once, whatever the number of its pairs.
            step = len(history)
            mine, weight = share_of_batch(chosen, lambda i: len(groups[i].pairs))
            part, refs = [groups[i] for i in mine], torch.cat([references[i] for i in mine])
            with economy(config, policy):
                pairs, lengths = _pair_sums(policy, tokenizer, part, refs)
                checked = (policy, tokenizer, part, longest, refs, config)
                note = saved.note(step) if step else check_step_0(*checked)

            # 2. How far has the policy moved towards the chosen answers?
            loss, up, down = _preference_loss(config, pairs, lengths)
            loss = weight * loss

            # 3. Move it a little further.
            lr = config.lr * warmup_cosine(step, steps, config.warmup)
            norm = update(optimizer, loss, lr, config.max_norm)

            # 4. Report and save.
            record = {"step": step, "epoch": epoch, **totals(loss=loss), "lr": lr, "norm": norm}
            record |= _diagnostics(up, down, *pairs[:2])
            record |= {"seconds": time.perf_counter() - start, **note}
            report(history, record, on_step)
            saved.save_if_due(history, last=len(history) == steps)
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
