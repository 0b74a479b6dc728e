"""Direct preference optimisation: steps 2 and 3 in one, without a reward model or sampling.

Rafailov et al. 2023, arXiv 2305.18290: the policy itself is the reward model, with
r(x, y) = beta log(policy(y|x) / reference(y|x)).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Ranking
from rlhf_edu.engine.checks import (
    OnStep,
    Record,
    check_logprobs,
    require_agreement,
    require_between,
    require_positive,
    require_some,
    require_tokens,
    step_0_tolerance,
)
from rlhf_edu.engine.economy import economy
from rlhf_edu.engine.groups import Group, answer_logprobs, longest_row, make_group
from rlhf_edu.engine.loop import Loop, OnPhase, TrainConfig, begin
from rlhf_edu.engine.parallel import fetched, gathered, share
from rlhf_edu.engine.training import make_optimizer
from rlhf_edu.losses import (
    dpo_loss,
    hinge_loss,
    ipo_loss,
    length_normalised_dpo_loss,
    orpo_loss,
    simpo_loss,
)
from rlhf_edu.models import require_fit


@dataclass(frozen=True)
class Pairs:
    """N pairs of a chosen and a rejected answer: log-probs (N,) of whole answers, *sums* in nats.

    Attributes:
        policy_chosen, policy_rejected: under the policy, with gradient.
        ref_chosen, ref_rejected: under the reference; 0 for a loss without one.
        chosen_lengths, rejected_lengths: (N,) tokens, end-of-text included.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four log-probs, in the order in which `losses.dpo_loss` takes them."""
        return self.policy_chosen, self.policy_rejected, self.ref_chosen, self.ref_rejected

    @property
    def policy_and_lengths(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The policy's log-probs and the lengths, as `losses.simpo_loss` takes them."""
        lengths = self.chosen_lengths, self.rejected_lengths
        return self.policy_chosen, self.policy_rejected, *lengths


@dataclass(frozen=True)
class Preference:
    """A preference loss as `train_dpo` uses it. Taught in chapter 12.

    Attributes:
        loss: from pairs and settings to the loss, and the rewards (N,) of the chosen and of the
            rejected answers, without gradient.
        start: from the settings to what the loss is before the first update, when policy and
            reference are the same; None if it depends on the data.
        needs_reference: without one the pass over the data before training is saved.
        options: settings of `DPOConfig` that are for this loss, and for few others.
    """

    loss: Callable[[Pairs, "DPOConfig"], tuple[Tensor, Tensor, Tensor]]
    start: Callable[["DPOConfig"], float] | None
    needs_reference: bool = True
    options: tuple[str, ...] = ()


def _log_2(config: "DPOConfig") -> float:
    return math.log(2)


# CONTRIBUTING.md says how to add one: its formula in losses.py, and an entry here.
PREFERENCES = {
    "dpo": Preference(
        lambda pairs, c: dpo_loss(*pairs.sums, c.beta, c.label_smoothing),
        start=_log_2,
        options=("label_smoothing",),
    ),
    "ipo": Preference(
        lambda pairs, c: ipo_loss(*pairs.sums, c.beta),
        start=lambda c: 1 / (2 * c.beta) ** 2,
    ),
    "length-normalised": Preference(
        lambda pairs, c: length_normalised_dpo_loss(
            *pairs.sums, pairs.chosen_lengths, pairs.rejected_lengths, c.beta
        ),
        start=_log_2,
    ),
    "hinge": Preference(
        lambda pairs, c: hinge_loss(*pairs.sums, c.beta),
        start=lambda c: 1.0,
    ),
    "simpo": Preference(
        lambda pairs, c: simpo_loss(*pairs.policy_and_lengths, c.beta, c.margin),
        start=None,
        needs_reference=False,
        options=("margin",),
    ),
    "orpo": Preference(
        lambda pairs, c: orpo_loss(*pairs.policy_and_lengths, c.beta),
        start=None,
        needs_reference=False,
    ),
}
OPTIONS = ("label_smoothing", "margin")


@dataclass(frozen=True)
class DPOConfig(TrainConfig):
    """Settings of `train_dpo`. Taught in chapter 09."""

    beta: float = 0.1
    """Reward per nat, of log-ratio or, without a reference, of log-prob; the tau of IPO. Larger
    stays nearer to the reference."""
    loss: Literal[tuple(PREFERENCES)] = "dpo"
    """Which preference loss."""
    label_smoothing: float = 0.0
    """How probably a label is wrong, from 0 to 0.5; for the loss dpo alone."""
    margin: float = 0.0
    """By how much the chosen answer's reward shall be larger; for the loss simpo alone."""
    lr: float = 2e-4
    """Peak learning rate of AdamW; a cosine to a tenth of it follows the warm-up."""
    batch_size: int = 16
    """Prompts per step, each with all of its answers."""
    max_answer_tokens: int = 64
    """An answer that was cut off anyway is read up to here; one that ends, to its end."""
    same_start: bool = True
    """Policy and reference start as the same model, and step 0 checks that they do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "beta", "max_answer_tokens")
        require_between(self, 0, 0.5, "label_smoothing")
        require_between(self, 0, float("inf"), "margin")
        if self.loss not in PREFERENCES:
            known = ", ".join(PREFERENCES)
            raise ValueError(f"DPOConfig: loss must be one of {known}, not {self.loss!r}")
        for name in OPTIONS:
            if getattr(self, name) and name not in PREFERENCES[self.loss].options:
                raise ValueError(f"DPOConfig: {name} is not for loss={self.loss!r}; set it to 0")


def make_groups(
    tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking], max_answer_tokens: int = 64
) -> list[Group]:
    """Groups of the rankings that prefer one answer to another. Taught in chapter 09.

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
    """Log-probs of whole answers under the reference, nats: one tensor (K,) for each group.

    Taught in chapter 09.
    """
    mine, pad_id = share(groups), tokenizer.pad_token_id
    parts = (mine[i : i + batch_size] for i in range(0, len(mine), batch_size))
    found = (answer_logprobs(reference, part, pad_id) for part in parts)
    return gathered([sums(answers) for part in found for answers in part], reference.device)


def sums(answers: Sequence[Tensor]) -> Tensor:
    """Log-probs (K,) of whole answers, nats, from those of their tokens."""
    return torch.stack([logprobs.sum() for logprobs in answers])


def make_pairs(answers: list[Tensor], references: Tensor, groups: Sequence[Group]) -> Pairs:
    """Every two answers of a group that differ in rank, as a pair.

    Args:
        answers: log-probs (tokens,) of all answers of all groups under the policy, nats.
        references: (answers,) log-probs of the same answers under the reference, nats.
    """
    # Sums, not means: DPO is about the probability of the whole answer.
    ours = sums(answers)
    lengths = torch.tensor([len(answer) for answer in answers], device=ours.device)
    chosen, rejected = pair_rows(groups).to(ours.device)
    return Pairs(
        policy_chosen=ours[chosen],
        policy_rejected=ours[rejected],
        ref_chosen=references[chosen],
        ref_rejected=references[rejected],
        chosen_lengths=lengths[chosen],
        rejected_lengths=lengths[rejected],
    )


def pair_rows(groups: Sequence[Group]) -> Tensor:
    """Which answers of all groups are chosen, and which rejected, in every pair: (2, N)."""
    # Answers of all groups stand in one list; `first` is where a group's begin.
    pairs, first = [], 0
    for group in groups:
        pairs += [(first + chosen, first + rejected) for chosen, rejected in group.pairs]
        first += len(group.answers)
    return torch.tensor(pairs).T


def _flat(lists: Iterable[list[Tensor]]) -> list[Tensor]:
    return [item for part in lists for item in part]


def own_preference(loss: Callable[..., Any]) -> Preference:
    """A function of your own as a `Preference`.

    It takes (policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta), log-probs (N,) of
    whole answers in nats, and returns the three results of `losses.dpo_loss`, or the loss alone:
    the rewards are then those of DPO, beta * log-ratio.
    """

    def with_rewards(pairs: Pairs, config: DPOConfig) -> tuple[Tensor, Tensor, Tensor]:
        found = loss(*pairs.sums, config.beta)
        if isinstance(found, tuple):
            return found
        _, up, down = dpo_loss(*pairs.sums, config.beta)
        return found, up, down

    return Preference(with_rewards, start=None)


@torch.no_grad()
def check_step_0(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    pairs: Pairs,
    preference: Preference,
    config: DPOConfig,
) -> Record:
    """Before the first update the policy is the reference: margins are 0 and the loss is known.

    Args:
        groups: those of the first batch, and the longest of all.
        pairs: what the first batch gave.

    Raises:
        RuntimeError: it is not so; the message names likely causes.
    """
    # 1. Are the policy's log-probs right?
    pad_id = tokenizer.pad_token_id
    answers = [(group.prompt, answer) for group in groups for answer in group.answers]
    check_logprobs(policy, lambda: _flat(answer_logprobs(policy, groups, pad_id)), answers)
    loss, up, down = preference.loss(pairs, config)
    found = f"loss {loss.item():.4f}, margin {(up - down).mean().item():.2g}"
    if not preference.needs_reference:
        return {"step_0": f"ok: this loss has no reference; {found}"}
    if not config.same_start:
        return {"step_0": f"ok: policy and reference need not be the same; {found}"}
    # 2. Are they the reference's?
    limit = step_0_tolerance(policy)
    why = (
        "both must start as the same model, with dropout off and the same temperature, template "
        "and masks; if they are meant to differ, set DPOConfig.same_start=False"
    )
    ours = torch.cat([pairs.policy_chosen, pairs.policy_rejected])
    references = torch.cat([pairs.ref_chosen, pairs.ref_rejected])
    lengths = torch.cat([pairs.chosen_lengths, pairs.rejected_lengths])
    what = "log-probs per token of policy and reference"
    require_agreement(ours / lengths, references / lengths, limit, what, why)
    # 3. Then the loss is known, whatever the data.
    start = preference.start(config) if preference.start else loss.item()
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
    loss: Callable[..., Any] | None = None,
    on_phase: OnPhase | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Train a policy, in place, to prefer what the labelers preferred. Taught in chapter 09.

    Args:
        policy, reference: usually the SFT model, twice; the reference is used before training only.
        rankings: K answers to each prompt, ranked; every two that are not tied make a pair.
        config, on_step: settings, and what is called with the record of each step.
        loss: your own in the place of `config.loss`, see `own_preference`.
        on_phase: called with "reference" and "training" as each begins.

    Returns:
        The policy, and one record per step: loss, lr, norm, seconds, and what `diagnostics` says.

    Raises:
        ValueError: there are no rankings, or no two different answers that are not tied.
        RuntimeError: NaN or infinity somewhere, or a check stopped the run.
    """
    config = config or DPOConfig()
    preference = own_preference(loss) if loss else PREFERENCES[config.loss]
    groups = make_groups(tokenizer, rankings, config.max_answer_tokens)
    lengths, pad_id = [group.longest for group in groups], tokenizer.pad_token_id
    for model, role in ((policy, "policy"), (reference, "reference")):
        require_fit(model, tokenizer, "train_dpo", max(lengths), role)
    # The reference never changes: one pass over the data before training is all it has to do.
    begin(on_phase, "reference")
    references = [torch.zeros(len(group.answers)) for group in groups]
    with economy(config, reference):
        if preference.needs_reference:
            references = reference_sums(reference, tokenizer, groups)
    optimizers = {"model": make_optimizer(policy.parameters(), config.lr, config.weight_decay)}
    loop = Loop(config, policy, optimizers, groups, tokenizer, on_step, frozen=[reference])
    config = loop.fitted(config.batch_size, *longest_row(groups))
    begin(on_phase, "training")
    with loop:
        for batch in loop.by_length(lengths, [len(group.pairs) for group in groups]):
            # 1. Log-probs of all answers; each is read once, whatever the number of its pairs.
            part = [groups[i] for i in batch.rows]
            theirs = torch.cat([references[i] for i in batch.rows]).to(policy.device)
            with economy(config, policy):
                pairs = make_pairs(_flat(answer_logprobs(policy, part, pad_id)), theirs, part)
                if batch.step == 0:
                    checked = [*part, max(groups, key=lambda group: group.longest)]
                    loop.note(check_step_0(policy, tokenizer, checked, pairs, preference, config))

            # 2. How far has it moved towards the chosen answers?
            mean, up, down = preference.loss(pairs, config)
            # 3. Move it a little further.
            loop.descend(batch.weight * mean)
            # 4. Report and save.
            loop.report(epoch=batch.epoch, **diagnostics(up, down, pairs))
    return policy, loop.history


def diagnostics(up: Tensor, down: Tensor, pairs: Pairs) -> Record:
    """Means over pairs: margin (chosen less rejected reward), accuracy (margins above 0), the two
    rewards, and the two log-probs, nats per answer; that the chosen one falls too is normal.
    """
    return fetched(
        margin=(up - down).mean(),
        accuracy=(up > down).float().mean(),
        chosen_reward=up.mean(),
        rejected_reward=down.mean(),
        chosen_logprob=pairs.policy_chosen.mean(),
        rejected_logprob=pairs.policy_rejected.mean(),
    )
