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
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_edu import data_folder
from rlhf_edu.data import Prompt, Ranking, read_rankings
from rlhf_edu.experiments import grid
from rlhf_edu.experiments.exam import Answers, answer_all, mean_kl
from rlhf_edu.experiments.ladder import Recipe
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.intervals import Estimate, bootstrap
from rlhf_edu.losses import best_of_n_kl
from rlhf_edu.models import reward_scores, scalar_model_from
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.reward import normalise_reward, score_answers, train_reward
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.sft import train_sft
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.labelers import Labeler, Population
from rlhf_edu.tinyweb.prompts import make_prompts

NS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS, ALL_PROMPTS, SHOWN = 96, 256, 4  # the shipped reward model is measured on more prompts
LABELS = (100, 300, 1000, 3000)
SMALL, SMALL_LABELS = "0.05M", (300, 3000)
TASTES, TASTE_LABELS = ("none", "long", "humble"), 1000
LONG, HUMBLE = 0.5, 1.5  # points per doubling of the words, and for an answer full of doubt
STEPS, BATCH = 30, 32  # of the short PPO
# Every kind of run that is repeated, and its settings.
KINDS = {"small": SMALL_LABELS, "labels": LABELS, "taste": TASTES, "ppo": TASTES}


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


@cache
def shipped_models(device: str) -> Shipped:
    """The shipped models on a device; all cells of a process share them."""
    return Shipped(device)


@cache
def sample_answers(prompts: int, device: str) -> Answers:
    """64 answers of the shipped SFT model to each of the first test prompts, in their order."""
    shipped = shipped_models(device)
    asked = shipped.prompts(ALL_PROMPTS, "test")[:prompts]
    each = [prompt for prompt in asked for _ in range(NS[-1])]
    return answer_all(shipped.load("sft"), shipped.tokenizer, shipped.judge, each, seed=11)


def score_all(samples: Answers, model: PreTrainedModel, shipped: Shipped) -> Tensor:
    """(prompts, 64) of a reward model; an answer that came twice is scored once."""
    asked = [prompt.text for prompt in samples.prompts]
    keys = list(zip(asked, samples.texts, samples.ended, strict=True))
    different = list(dict.fromkeys(keys))
    prompts, answers, ended = zip(*different, strict=True)
    found = score_answers(model, shipped.tokenizer, prompts, answers, ended).tolist()
    by_key = dict(zip(different, found, strict=True))
    return torch.tensor([by_key[key] for key in keys]).view(-1, NS[-1])


def judged(samples: Answers, part: str) -> Tensor:
    """(prompts, 64) of a part of the verdict, such as `gold`, `words` or `hedging`."""
    values = [float(getattr(verdict, part)) for verdict in samples.verdicts]
    return torch.tensor(values, dtype=torch.float64).view(-1, NS[-1])


def curve_of(samples: Answers, scores: Tensor) -> dict[str, Any]:
    """For each n: proxy, gold with its interval over prompts, words, hedging, KL; and answers."""
    parts = {name: judged(samples, name) for name in ("gold", "words", "hedging")}
    parts["proxy"] = scores.double()
    curve = []
    for n in NS:
        weights = torch.stack([best_of_n_weights(row, n) for row in scores])
        row = {name: (weights * table).sum(1) for name, table in parts.items()}
        gold = bootstrap(row["gold"].tolist())
        means = {name: value.mean().item() for name, value in row.items()}
        bounds = {"gold_low": gold.low, "gold_high": gold.high, "kl_bound": best_of_n_kl(n)}
        curve.append(_rounded({"n": n, **means, **bounds}))
    return {"curve": curve, "answers": _best_answers(samples, scores)}


def _best_answers(samples: Answers, scores: Tensor) -> dict[str, dict[str, str]]:
    """For the first prompts, the best of the first n answers for each n."""
    found = {}
    for i, row in enumerate(scores[:SHOWN]):
        first = i * len(row)
        best = {str(n): samples.texts[first + int(row[:n].argmax())] for n in NS}
        found[samples.prompts[first].text] = best
    return found


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


def reward_model(
    shipped: Shipped, body: PreTrainedModel, rankings: Sequence[Ranking], seed: int
) -> PreTrainedModel:
    """A reward model by the ladder's recipe; demonstrations score 0."""
    model, config = scalar_model_from(body, seed), replace(Recipe().reward, seed=seed)
    train_reward(model, shipped.tokenizer, rankings, config)
    normalise_reward(model, shipped.tokenizer, shipped.demonstrations)
    return model


def small_body(shipped: Shipped, seed: int) -> PreTrainedModel:
    """The smallest base model after SFT."""
    model, config = shipped.load(f"base-{SMALL}"), replace(Recipe().sft, seed=seed)
    return train_sft(model, shipped.tokenizer, shipped.demonstrations, config)[0]


# --- the cells ---------------------------------------------------------------------------------


def _curve(model: PreTrainedModel, prompts: int, device: str) -> dict[str, Any]:
    samples = sample_answers(prompts, device)
    return curve_of(samples, score_all(samples, model, shipped_models(device)))


def of_the_shipped(device: str) -> dict[str, Any]:
    """The shipped reward model, on more prompts."""
    return _curve(shipped_models(device).load("reward-model"), ALL_PROMPTS, device)


def by_labels(labels: int, seed: int, device: str) -> dict[str, Any]:
    """A reward model from so many rankings."""
    shipped = shipped_models(device)
    model = reward_model(shipped, shipped.load("sft"), few(labels, seed), seed)
    return _curve(model, PROMPTS, device)


def by_labels_small(labels: int, seed: int, device: str) -> dict[str, Any]:
    """A small reward model from so many rankings."""
    shipped = shipped_models(device)
    model = reward_model(shipped, small_body(shipped, seed), few(labels, seed), seed)
    return _curve(model, PROMPTS, device)


@cache
def model_by_taste(taste: str, seed: int, device: str) -> PreTrainedModel:
    """A reward model from labelers of this taste."""
    shipped, rankings = shipped_models(device), few(TASTE_LABELS, seed)
    again = rank_again(population(taste), rankings)
    return reward_model(shipped, shipped.load("sft"), again, seed)


def by_taste(taste: str, seed: int, device: str) -> dict[str, Any]:
    """A reward model from labelers of this taste."""
    return _curve(model_by_taste(taste, seed, device), PROMPTS, device)


def short_ppo(taste: str, seed: int, device: str) -> dict[str, Any]:
    """A short PPO against a reward model from labelers of this taste."""
    shipped, model = shipped_models(device), model_by_taste(taste, seed, device)
    sft, test = shipped.load("sft"), shipped.prompts(ALL_PROMPTS, "test")
    train = make_prompts(shipped.world, "train", 3000, seed, exclude=test)
    config = PPOConfig(
        steps=STEPS, batch_size=BATCH, minibatch=BATCH, epochs=1, lr=5e-4, beta=0.02, seed=seed
    )
    roles = SeparateRoles(sft, model)
    train_ppo(roles, shipped.tokenizer, [prompt.text for prompt in train], config)
    answers = shipped.answer(roles.policy, test)
    texts = [[p.text, a] for p, a in zip(test[:SHOWN], answers.texts[:SHOWN], strict=True)]
    numbers = {part: answers.mean(part).mean for part in ("gold", "words", "hedging")}
    numbers["proxy"] = reward_scores(model, answers.rollout).mean().item()
    numbers["kl"] = mean_kl(roles.policy, sft, answers.rollout)
    return {**_rounded(numbers), "answers": dict(texts)}


RUNS = {"small": by_labels_small, "labels": by_labels, "taste": by_taste, "ppo": short_ppo}


def measure(kind: str, setting: Any = None, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """One cell."""
    return of_the_shipped(device) if kind == "shipped" else RUNS[kind](setting, seed, device)


def run(seeds: int, device: str = "cpu") -> str:
    """Run what is missing and return the table."""
    cells = [{"kind": "shipped"}, *grid.by_seed(KINDS, seeds)]
    return table(grid.run_experiment("best_of_n", measure, cells, seeds, device))


def table(found: grid.Cells) -> str:
    """Gold, words and hedging of the best of 1 and of 64, over seeds."""
    columns = ("proxy", "gold", "words", "hedging")
    lines: list[Sequence[Any]] = [(f"best of {NS[-1]} less 1", *columns)]
    for kind, setting in grid.rows({kind: KINDS[kind] for kind in ("labels", "small", "taste")}):
        gains = [
            {part: gain(cell, part) for part in columns}
            for cell in grid.each_seed(found, kind, setting)
        ]
        lines.append((grid.row_name(kind, setting), *(grid.over(gains, part) for part in columns)))
    return "\n".join(text_table(lines, (20, 24, 24, 24, 24)))


def gain(cell: dict[str, Any], part: str) -> float:
    """How much more of something the best of 64 has than one sample."""
    return cell["curve"][-1][part] - cell["curve"][0][part]


# --- verdicts ----------------------------------------------------------------------------------


def _ends(cells: grid.Cells, kind: str, setting: Any) -> list[dict[str, Any]]:
    """The numbers at the end of the short PPO, or of the best of 64, by seed."""
    return [
        cell["curve"][-1] if "curve" in cell else cell
        for cell in grid.each_seed(cells, kind, setting)
    ]


def _better_reward_models(cells: grid.Cells) -> tuple[str, str]:
    most = _ends(cells, "labels", LABELS[-1])
    labels = grid.less(most, _ends(cells, "labels", LABELS[0]), "gold")
    size = grid.less(most, _ends(cells, "small", SMALL_LABELS[-1]), "gold")
    ours = f"gold of the best of {NS[-1]}: {labels} more with {LABELS[-1]} than with {LABELS[0]} "
    ours += f"rankings; {size} more with 1M than with {SMALL} parameters"
    verdicts = {grid.above(labels), grid.above(size)}
    return ours, verdicts.pop() if len(verdicts) == 1 else "inconclusive"


def _effect(cells: grid.Cells, kind: str, taste: str, part: str) -> Estimate:
    """How much more of something there is with a taste than without."""
    return grid.less(_ends(cells, kind, taste), _ends(cells, kind, "none"), part)


def _length(cells: grid.Cells) -> tuple[str, str]:
    best, ppo = (_effect(cells, kind, "long", "words") for kind in ("taste", "ppo"))
    ours = f"a taste for length instead of none: {best} words more in the best of {NS[-1]}, "
    return ours + f"{ppo} after PPO", grid.above(best)


def _hedging(cells: grid.Cells) -> tuple[str, str]:
    best, ppo = (_effect(cells, kind, "humble", "hedging") for kind in ("taste", "ppo"))
    ours = f"a taste for doubt instead of none: share of hedged sentences {best} higher in the best"
    return f"{ours} of {NS[-1]}, {ppo} after PPO", grid.above(best)


FINDINGS = [
    grid.Finding(
        "F15",
        "labelers who like length make a model that writes longer",
        "a shorter text that is better is chosen by the reward model in 62.6 %, by people in 76.4 %"
        " (Stiennon)",
        "words of the best of 64 rise with the taste, interval above zero",
        _length,
    ),
    grid.Finding(
        "F22",
        "more labels and a larger reward model leave more gold to gain",
        "Gao et al. 3.2, 3.3, figures; near chance below about 2,000 comparisons",
        "both gains in gold above zero by interval",
        _better_reward_models,
    ),
    grid.Finding(
        "F37",
        "labelers who reward humility make a model that hedges",
        "in words (InstructGPT 4.3)",
        "share of hedged sentences rises with the taste, interval above zero",
        _hedging,
    ),
]
