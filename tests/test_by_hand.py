"""Each trainer's updates on paper, with every setting away from its default.

So a setting is honoured, or a test fails: one that a trainer ignores gives other weights than on
paper, and one that is new and not on paper is named by `assert_every_setting_matters`. PPO is in
`test_by_hand_ppo.py`.
"""

import itertools
import math
from dataclasses import replace

import by_hand
import pytest
import tiny_models as tiny
import torch
from by_hand import (
    ANSWERS,
    BLOCKS,
    TOK,
    Run,
    assert_every_setting_matters,
    assert_same,
    encode_answer,
    encode_prompt,
)
from torch import Tensor

from rlhf_edu.data import Demonstration, Ranking
from rlhf_edu.dpo import PREFERENCES, DPOConfig, train_dpo
from rlhf_edu.losses import (
    bradley_terry_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    length_normalised_dpo_loss,
    orpo_loss,
    ptx_loss,
    simpo_loss,
)
from rlhf_edu.models import scalar_model_from
from rlhf_edu.ppo import PPOConfig
from rlhf_edu.pretrain import PretrainConfig, pretrain
from rlhf_edu.reward import RewardConfig, train_reward
from rlhf_edu.sft import SFTConfig, train_sft

# What changes the cost of a step, or what is kept of it: test_economy.py, test_resume.py.
ELSEWHERE = {"bf16", "micro_batch", "checkpoint_every", "checkpoint_folder"}


# --- pretraining -------------------------------------------------------------------------------

PRETRAIN = PretrainConfig(
    lr=2e-3,
    batch_size=3,
    epochs=2,
    warmup=3,
    weight_decay=0.2,
    betas=(0.8, 0.97),
    max_norm=2.6,
    micro_batch=2,
    seed=7,
)


def pretrain_by_hand(config: PretrainConfig) -> Run:
    model, tokens = by_hand.llama(), 0
    descent = by_hand.Descent(model, config.weight_decay, config.betas)
    random = torch.Generator().manual_seed(config.seed)
    steps = config.steps or config.epochs * math.ceil(len(BLOCKS) / config.batch_size)
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.randperm(len(BLOCKS), generator=random).split(config.batch_size)
    for step, rows in enumerate(batches[:steps]):
        loss = ptx_loss(model(input_ids=BLOCKS[rows]).logits, BLOCKS[rows])
        lr = by_hand.warmup_cosine(step, steps, config)
        norm, tokens = descent.step(loss, lr, config.max_norm), tokens + BLOCKS[rows].numel()
        record = {"step": step, "loss": loss.item(), "lr": lr, "norm": norm, "tokens": tokens}
        yield [model], record


def test_pretraining_by_hand() -> None:
    for config in (PRETRAIN, PretrainConfig(steps=9, batch_size=3, warmup=3)):
        model, history = pretrain(by_hand.llama(), BLOCKS, config)
        assert_same([model], history, pretrain_by_hand(config))
    assert_every_setting_matters(pretrain_by_hand, [PRETRAIN], ELSEWHERE, {"steps": 3})


# --- SFT ---------------------------------------------------------------------------------------

DEMONSTRATIONS = [Demonstration(tiny.prompt(i), ANSWERS[i % 5]) for i in range(18)]
SFT = SFTConfig(
    lr=2e-3,
    batch_size=2,
    epochs=1,
    warmup=3,
    weight_decay=0.1,
    max_norm=4.5,
    max_answer_tokens=12,
    micro_batch=1,
    seed=7,
)


def sft_by_hand(config: SFTConfig) -> Run:
    pairs = [(encode_prompt(d.prompt.text), encode_answer(d.answer)) for d in DEMONSTRATIONS]
    pairs = [pair for pair in pairs if len(pair[1]) <= config.max_answer_tokens]
    model, tokens = by_hand.llama(), 0
    descent = by_hand.Descent(model, config.weight_decay)
    plan = by_hand.plan([len(prompt) + len(answer) for prompt, answer in pairs], config)
    for step, (epoch, rows) in enumerate(plan):
        # A mean over all answer tokens of the batch; prompts and padding do not count.
        every = torch.cat([by_hand.logprobs(model, *pairs[i]) for i in rows])
        loss, tokens = -every.mean(), tokens + len(every)
        lr = by_hand.warmup_cosine(step, len(plan), config)
        norm = descent.step(loss, lr, config.max_norm)
        record = {"step": step, "epoch": epoch, "loss": loss.item(), "lr": lr, "norm": norm}
        yield [model], record | {"tokens": tokens}


def test_sft_by_hand() -> None:
    model, history = train_sft(by_hand.llama(), TOK, DEMONSTRATIONS, SFT)
    assert_same([model], history, sft_by_hand(SFT))
    assert_every_setting_matters(sft_by_hand, [SFT], ELSEWHERE, {"epochs": 2})


# --- reward model and DPO ----------------------------------------------------------------------

RANKINGS = [
    Ranking(tiny.prompt(0), ANSWERS[:3], (True, True, True), (2, 1, 3)),
    Ranking(tiny.prompt(1), ANSWERS[:4], (True, False, True, True), (1, 2, 2, 4)),
    Ranking(tiny.prompt(2), ANSWERS[:2], (True, True), (1, 1)),  # no pair: left out
    Ranking(tiny.prompt(3), ANSWERS[3:], (True, False), (2, 1)),  # a long one that was cut off
    Ranking(tiny.prompt(4), ANSWERS[1:4], (False, True, True), (3, 1, 2)),
    Ranking(tiny.prompt(5), ("wet", ""), (True, False), (2, 1)),  # empty, and yet a token
]


def encode_rankings(max_answer_tokens: int) -> list[tuple[list[int], list[list[int]], list]]:
    """Prompt, answers and pairs (chosen, rejected) of rankings that have a pair."""
    found = []
    for ranking in RANKINGS:
        answers = [encode_answer(*row) for row in zip(ranking.answers, ranking.ended, strict=True)]
        for i, ended in enumerate(ranking.ended):
            if not ended:  # it has no end to lose
                answers[i] = answers[i][:max_answer_tokens] or [by_hand.EOS]
        ranks = ranking.ranks
        pairs = [
            p for p in itertools.permutations(range(len(ranks)), 2) if ranks[p[0]] < ranks[p[1]]
        ]
        if pairs:
            found.append((encode_prompt(ranking.prompt.text), answers, pairs))
    return found


def longest(groups: list) -> list[int]:
    return [len(prompt) + max(map(len, answers)) for prompt, answers, _ in groups]


REWARD = RewardConfig(
    lr=2e-3,
    batch_size=2,
    epochs=2,
    warmup=3,
    weight_decay=0.1,
    max_norm=4.2,
    max_answer_tokens=5,
    micro_batch=1,
    seed=7,
)


def reward_by_hand(config: RewardConfig) -> Run:
    model = scalar_model_from(by_hand.llama())
    groups = encode_rankings(config.max_answer_tokens)
    descent, plan = (
        by_hand.Descent(model, config.weight_decay),
        by_hand.plan(longest(groups), config),
    )
    for step, (epoch, rows) in enumerate(plan):
        losses, right = [], []
        for prompt, answers, pairs in [groups[i] for i in rows]:
            scores = torch.stack([by_hand.score(model, prompt, answer) for answer in answers])
            chosen, rejected = scores[torch.tensor(pairs)].unbind(1)
            losses.append(bradley_terry_loss(chosen, rejected))
            right += (chosen > rejected).tolist()
        loss = torch.stack(losses).mean()  # every prompt counts once, whatever its pairs
        lr = by_hand.warmup_cosine(step, len(plan), config)
        norm = descent.step(loss, lr, config.max_norm)
        record = {"step": step, "epoch": epoch, "loss": loss.item(), "lr": lr, "norm": norm}
        yield [model], record | {"accuracy": sum(right) / len(right)}


def test_reward_model_by_hand() -> None:
    model, history = train_reward(scalar_model_from(by_hand.llama()), TOK, RANKINGS, REWARD)
    assert_same([model], history, reward_by_hand(REWARD))
    assert_every_setting_matters(reward_by_hand, [REWARD], ELSEWHERE)


DPO = DPOConfig(
    beta=0.3,
    label_smoothing=0.2,
    lr=2e-3,
    batch_size=2,
    epochs=2,
    warmup=3,
    weight_decay=0.1,
    max_norm=2.0,
    max_answer_tokens=5,
    micro_batch=1,
    seed=7,
    same_start=False,
)
PLAIN = replace(DPO, label_smoothing=0.0)
DPO_CONFIGS = {name: replace(PLAIN, loss=name) for name in PREFERENCES}
DPO_CONFIGS |= {"dpo": DPO, "simpo": replace(PLAIN, loss="simpo", margin=0.4)}


def preference_loss(config: DPOConfig, *pairs: Tensor) -> tuple[Tensor, ...]:
    sums, lengths = pairs[:4], pairs[4:]
    formulas = {
        "dpo": lambda: dpo_loss(*sums, config.beta, config.label_smoothing),
        "ipo": lambda: ipo_loss(*sums, config.beta),
        "hinge": lambda: hinge_loss(*sums, config.beta),
        "length-normalised": lambda: length_normalised_dpo_loss(*sums, *lengths, config.beta),
        "simpo": lambda: simpo_loss(*sums[:2], *lengths, config.beta, config.margin),
        "orpo": lambda: orpo_loss(*sums[:2], *lengths, config.beta),
    }
    return formulas[config.loss]()


def dpo_by_hand(config: DPOConfig) -> Run:
    policy, reference = by_hand.llama(), by_hand.llama(3)
    groups = encode_rankings(config.max_answer_tokens)
    descent = by_hand.Descent(policy, config.weight_decay)
    plan = by_hand.plan(longest(groups), config)
    for step, (epoch, rows) in enumerate(plan):
        found = []
        for prompt, answers, pairs in [groups[i] for i in rows]:
            ours = [by_hand.logprobs(policy, prompt, answer).sum() for answer in answers]
            with torch.no_grad():
                theirs = [by_hand.logprobs(reference, prompt, answer).sum() for answer in answers]
            lengths = [torch.tensor(len(answer)) for answer in answers]
            found += [[x[i] for x in (ours, theirs, lengths) for i in pair] for pair in pairs]
        pairs = [torch.stack(column) for column in zip(*found, strict=True)]
        loss, up, down = preference_loss(config, *pairs)  # a mean over all pairs of the batch
        lr = by_hand.warmup_cosine(step, len(plan), config)
        norm = descent.step(loss, lr, config.max_norm)
        record = {"step": step, "epoch": epoch, "loss": loss.item(), "lr": lr, "norm": norm}
        record |= {"chosen_reward": up.mean().item(), "rejected_reward": down.mean().item()}
        record |= {"chosen_logprob": pairs[0].mean().item()}
        record |= {"rejected_logprob": pairs[1].mean().item()}
        record |= {
            "margin": (up - down).mean().item(),
            "accuracy": (up > down).float().mean().item(),
        }
        yield [policy], record


@pytest.mark.parametrize("config", DPO_CONFIGS.values(), ids=DPO_CONFIGS)
def test_dpo_by_hand(config: DPOConfig) -> None:
    policy, history = train_dpo(by_hand.llama(), by_hand.llama(3), TOK, RANKINGS, config)
    assert_same([policy], history, dpo_by_hand(config))


def test_every_setting_of_dpo_matters() -> None:
    # same_start: see test_step0.py.
    assert_every_setting_matters(dpo_by_hand, [*DPO_CONFIGS.values()], ELSEWHERE | {"same_start"})


# --- all configurations ------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PRETRAIN, SFT, REWARD, DPO, PPOConfig(max_kl=1.0)])
def test_a_number_below_zero_is_refused_by_name(config) -> None:
    numbers = {k: v for k, v in vars(config).items() if type(v) in (int, float)}
    for name in numbers.keys() - {"seed"}:
        with pytest.raises(ValueError, match=f"{name} must be"):
            replace(config, **{name: -1})
