"""How far one can press on a reward model, by labels, size and labelers (F15, F22, F37).

    python -m rlhf_edu experiment best_of_n [--seeds N]

One set of samples serves all: 64 answers of the shipped SFT model to each of 96 test prompts. A
cell trains a reward model, which scores them all, and tells what the best of n by its score is
worth. Most learn from the rankings of the course, whose labelers have mild tastes. For some, the
same people rank the same answers again, without a taste, with one for length, or with one for
answers that doubt; against these reward models a short PPO runs, too. A seed draws the rankings,
the head and the order.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_edu import data_folder
from rlhf_edu.data import Prompt, Ranking, read_demonstrations, read_rankings
from rlhf_edu.experiments.exam import answer_all, kl_to_reference
from rlhf_edu.experiments.grid import Cells, Finding, above, each_seed, less, run_grid
from rlhf_edu.experiments.ladder import Recipe
from rlhf_edu.generation import generate
from rlhf_edu.intervals import Estimate, bootstrap, over_seeds
from rlhf_edu.losses import best_of_n_kl
from rlhf_edu.models import (
    load_policy,
    load_scalar_model,
    load_tokenizer,
    reward_scores,
    scalar_model_from,
)
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.reward import normalise_reward, score_answers, train_reward
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.sft import train_sft
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge, Verdict
from rlhf_edu.tinyweb.labelers import Labeler, Population
from rlhf_edu.tinyweb.prompts import make_prompts

NS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS, ALL_PROMPTS, SHOWN = 96, 256, 4  # the shipped reward model is measured on more prompts
LABELS = (100, 300, 1000, 3000)
SMALL, SMALL_LABELS = "0.05M", (300, 3000)
TASTES, TASTE_LABELS = ("none", "long", "humble"), 1000
LONG, HUMBLE = 0.5, 1.5  # points per doubling of the words, and for an answer full of doubt
STEPS, BATCH = 30, 32  # of the short PPO


# --- best of n from N samples ------------------------------------------------------------------


def best_of_n_weights(scores: Tensor, n: int) -> Tensor:
    """(N,) how likely each of N samples is the best of n of them, drawn without replacement.

    The mean of anything under these weights is what the best of n is worth, without the noise of
    drawing: C(i - 1, n - 1) / C(N, n) for the sample with the i-th lowest score. Samples of equal
    score share their weight.

    Raises:
        ValueError: n is not from 1 to N.
    """
    size = len(scores)
    if not 1 <= n <= size:
        raise ValueError(f"best_of_n_weights: n must be from 1 to {size}, not {n}")
    chances = [math.comb(i, n - 1) / math.comb(size, n) for i in range(size)]
    place, weights = scores.argsort(), torch.zeros(size, dtype=torch.float64)
    weights[place] = torch.tensor(chances, dtype=torch.float64)
    for value, count in zip(*scores.unique(return_counts=True), strict=True):
        if count > 1:
            weights[scores == value] = weights[scores == value].mean()
    return weights


# --- the samples -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """N answers to each of some prompts, with the judge's verdicts; in order, prompt by prompt."""

    prompts: list[Prompt]
    texts: list[str]
    ended: list[bool]
    verdicts: list[Verdict]

    def scores(self, model: PreTrainedModel) -> Tensor:
        """(prompts, N) of a reward model; an answer that came twice is scored once."""
        per = len(self.texts) // len(self.prompts)
        asked = [prompt.text for prompt in self.prompts for _ in range(per)]
        keys = list(zip(asked, self.texts, self.ended, strict=True))
        different = list(dict.fromkeys(keys))
        found = score_answers(model, tokenizer(), *zip(*different, strict=True)).tolist()
        by_key = dict(zip(different, found, strict=True))
        return torch.tensor([by_key[key] for key in keys]).view(len(self.prompts), per)

    def table(self, part: str) -> Tensor:
        """(prompts, N) of a part of the verdict, such as `gold`, `words` or `hedging`."""
        values = [float(getattr(verdict, part)) for verdict in self.verdicts]
        return torch.tensor(values, dtype=torch.float64).view(len(self.prompts), -1)


@cache
def tokenizer() -> Any:
    """The one of all shipped models."""
    return load_tokenizer(data_folder() / "models" / "sft-1M")


@cache
def sample(prompts: int) -> Samples:
    """Answers of the shipped SFT model to the first test prompts, judged."""
    world, policy = World(0), load_policy(data_folder() / "models" / "sft-1M")
    asked = make_prompts(world, "test", ALL_PROMPTS)[:prompts]
    each = [prompt for prompt in asked for _ in range(NS[-1])]
    rollout = generate(policy, tokenizer(), [prompt.text for prompt in each], seed=11)
    texts, ended, judge = rollout.texts(tokenizer()), rollout.ended.tolist(), Judge(world)
    verdicts = [judge(*row) for row in zip(each, texts, ended, strict=True)]
    return Samples(asked, texts, ended, verdicts)


def measure(samples: Samples, scores: Tensor) -> dict[str, Any]:
    """For each n: proxy, gold with its interval over prompts, words, hedging, KL; and answers."""
    per = len(samples.texts) // len(samples.prompts)
    parts = {name: samples.table(name) for name in ("gold", "words", "hedging")}
    parts["proxy"] = scores.double()
    curve = []
    for n in NS:
        weights = torch.stack([best_of_n_weights(row, n) for row in scores])
        row = {name: (weights * table).sum(1) for name, table in parts.items()}
        gold = bootstrap(row["gold"].tolist())
        means = {name: value.mean().item() for name, value in row.items()}
        bounds = {"gold_low": gold.low, "gold_high": gold.high, "kl_bound": best_of_n_kl(n)}
        curve.append({"n": n, **means, **bounds})
    answers = {
        prompt.text: {
            str(n): samples.texts[i * per + int(scores[i, :n].argmax())] for n in NS
        }
        for i, prompt in enumerate(samples.prompts[:SHOWN])
    }  # fmt: skip
    return {"curve": [_rounded(row) for row in curve], "answers": answers}


def _rounded(row: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in row.items()}


# --- reward models -----------------------------------------------------------------------------


class Humble(Population):
    """People without tastes but one: they like to hear that somebody is not sure."""

    def utility(self, labeler: Labeler, prompt: Prompt, answer: str, ended: bool = True) -> float:
        """As in `Population`, and more for sentences that doubt."""
        doubt = self.judge(prompt, answer, ended).hedging
        return super().utility(labeler, prompt, answer, ended) + HUMBLE * doubt


def population(taste: str) -> Population:
    """The labelers of the course with one taste instead of theirs, or with none."""
    kind = Humble if taste == "humble" else Population
    people = kind(World(0), tastes=False)
    if taste == "long":
        people.labelers = [replace(person, length=LONG) for person in people.labelers]
    return people


def rank_again(people: Population, rankings: Sequence[Ranking]) -> list[Ranking]:
    """The same answers, ranked by these people."""
    return [people.ranking(r.prompt, list(r.answers), list(r.ended), "sft") for r in rankings]


def few(labels: int, seed: int) -> list[Ranking]:
    """So many of the course's rankings."""
    every = read_rankings(data_folder() / "rankings.jsonl")
    return random.Random(f"best of n {seed}").sample(every, min(labels, len(every)))


def reward_model(body: PreTrainedModel, rankings: Sequence[Ranking], seed: int) -> PreTrainedModel:
    """A reward model by the ladder's recipe; demonstrations score 0."""
    model, config = scalar_model_from(body, seed), replace(Recipe().reward, seed=seed)
    train_reward(model, tokenizer(), rankings, config)
    normalise_reward(
        model, tokenizer(), read_demonstrations(data_folder() / "demonstrations.jsonl")
    )
    return model


def small_body(seed: int) -> PreTrainedModel:
    """The smallest base model after SFT."""
    model = load_policy(data_folder() / "models" / f"base-{SMALL}")
    demonstrations = read_demonstrations(data_folder() / "demonstrations.jsonl")
    return train_sft(model, tokenizer(), demonstrations, replace(Recipe().sft, seed=seed))[0]


# --- the cells ---------------------------------------------------------------------------------


def shipped() -> dict[str, Any]:
    """The shipped reward model, on more prompts."""
    samples = sample(ALL_PROMPTS)
    return measure(samples, samples.scores(load_scalar_model(_models() / "reward-model-1M")))


def by_labels(labels: int, seed: int, small: bool = False) -> dict[str, Any]:
    """A reward model from so many rankings."""
    body = small_body(seed) if small else load_policy(_models() / "sft-1M")
    samples = sample(PROMPTS)
    return measure(samples, samples.scores(reward_model(body, few(labels, seed), seed)))


@cache
def model_by_taste(taste: str, seed: int) -> PreTrainedModel:
    """A reward model from labelers of this taste."""
    rankings = rank_again(population(taste), few(TASTE_LABELS, seed))
    return reward_model(load_policy(_models() / "sft-1M"), rankings, seed)


def by_taste(taste: str, seed: int) -> dict[str, Any]:
    """A reward model from labelers of this taste."""
    samples = sample(PROMPTS)
    return measure(samples, samples.scores(model_by_taste(taste, seed)))


def short_ppo(taste: str, seed: int) -> dict[str, Any]:
    """A short PPO against a reward model from labelers of this taste."""
    sft, model = load_policy(_models() / "sft-1M"), model_by_taste(taste, seed)
    world = World(0)
    test = make_prompts(world, "test", ALL_PROMPTS)
    train = [prompt.text for prompt in make_prompts(world, "train", 3000, seed, exclude=test)]
    config = PPOConfig(
        steps=STEPS, batch_size=BATCH, minibatch=BATCH, epochs=1, lr=5e-4, beta=0.02, seed=seed
    )
    roles = SeparateRoles(sft, model)
    train_ppo(roles, tokenizer(), train, config)
    answers = answer_all(roles.policy, tokenizer(), Judge(world), test, seed=7)
    texts = [[p.text, a] for p, a in zip(test[:SHOWN], answers.texts[:SHOWN], strict=True)]
    numbers = {part: answers.mean(part).mean for part in ("gold", "words", "hedging")}
    numbers["proxy"] = reward_scores(model, answers.rollout).mean().item()
    numbers["kl"] = mean(kl_to_reference(roles.policy, sft, answers.rollout))
    return {**_rounded(numbers), "answers": dict(texts)}


def _models() -> Any:
    return data_folder() / "models"


def run(seeds: int) -> str:
    """Run what is missing and return the table."""
    cells: dict[str, Any] = {"shipped": shipped}
    for seed in range(seeds):
        for n in SMALL_LABELS:
            cells[f"small {n} seed {seed}"] = lambda n=n, s=seed: by_labels(n, s, small=True)
        for n in LABELS:
            cells[f"labels {n} seed {seed}"] = lambda n=n, s=seed: by_labels(n, s)
        for t in TASTES:
            cells[f"taste {t} seed {seed}"] = lambda t=t, s=seed: by_taste(t, s)
        for t in TASTES:
            cells[f"ppo {t} seed {seed}"] = lambda t=t, s=seed: short_ppo(t, s)
    found = run_grid("best_of_n", f"python -m rlhf_edu experiment best_of_n --seeds {seeds}", cells)
    return table(found)


def table(found: Cells) -> str:
    """Gold, words and hedging of the best of 1 and of 64, over seeds."""
    kinds = [f"labels {n}" for n in LABELS] + [f"small {n}" for n in SMALL_LABELS]
    kinds += [f"taste {taste}" for taste in TASTES]
    columns = ("proxy", "gold", "words", "hedging")
    lines = [f"{f'best of {NS[-1]} less 1':<20}" + "".join(f"{c:>24}" for c in columns)]
    for kind in kinds:
        gains = [over_seeds([gain(cell, c) for cell in each_seed(found, kind)]) for c in columns]
        lines.append(f"{kind:<20}" + "".join(f"{g!s:>24}" for g in gains))
    return "\n".join(lines)


def gain(cell: dict[str, Any], part: str) -> float:
    """How much more of something the best of 64 has than one sample."""
    return cell["curve"][-1][part] - cell["curve"][0][part]


# --- verdicts ----------------------------------------------------------------------------------


def _less(cells: Cells, ours: str, theirs: str, part: str) -> Estimate:
    """Ours less theirs, by seed, after the short PPO or of the best of 64."""
    return less(_ends(cells, ours), _ends(cells, theirs), part)


def _ends(cells: Cells, kind: str) -> list[dict[str, Any]]:
    return [cell["curve"][-1] if "curve" in cell else cell for cell in each_seed(cells, kind)]


def _better_reward_models(cells: Cells) -> tuple[str, str]:
    most = f"labels {LABELS[-1]}"
    labels = _less(cells, most, f"labels {LABELS[0]}", "gold")
    size = _less(cells, most, f"small {SMALL_LABELS[-1]}", "gold")
    ours = f"gold of the best of {NS[-1]}: {labels} more with {LABELS[-1]} than with {LABELS[0]} "
    ours += f"rankings; {size} more with 1M than with {SMALL} parameters"
    verdicts = {above(labels), above(size)}
    return ours, verdicts.pop() if len(verdicts) == 1 else "inconclusive"


def _length(cells: Cells) -> tuple[str, str]:
    best, ppo = (_less(cells, f"{by} long", f"{by} none", "words") for by in ("taste", "ppo"))
    ours = f"a taste for length instead of none: {best} words more in the best of {NS[-1]}, "
    return ours + f"{ppo} after PPO", above(best)


def _hedging(cells: Cells) -> tuple[str, str]:
    best, ppo = (_less(cells, f"{by} humble", f"{by} none", "hedging") for by in ("taste", "ppo"))
    ours = f"a taste for doubt instead of none: share of hedged sentences {best} higher in the best"
    return f"{ours} of {NS[-1]}, {ppo} after PPO", above(best)


FINDINGS = [
    Finding(
        "F15",
        "labelers who like length make a model that writes longer",
        "a shorter text that is better is chosen by the reward model in 62.6 %, by people in 76.4 %"
        " (Stiennon)",
        _length,
    ),
    Finding(
        "F22",
        "more labels and a larger reward model leave more gold to gain",
        "Gao et al. 3.2, 3.3, figures; near chance below about 2,000 comparisons",
        _better_reward_models,
    ),
    Finding(
        "F37",
        "labelers who reward humility make a model that hedges",
        "in words (InstructGPT 4.3)",
        _hedging,
    ),
]
