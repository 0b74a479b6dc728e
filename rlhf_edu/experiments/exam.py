"""How good is a model, how sure are we, and what did it cost?

Everything with an interval: 95 %, by bootstrap over prompts. Comparisons of two models are paired
by prompt, and ties count one half.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Prompt, Ranking
from rlhf_edu.generation import generate
from rlhf_edu.intervals import Estimate, bootstrap
from rlhf_edu.losses import masked_sum
from rlhf_edu.models import response_logits, response_logprobs
from rlhf_edu.reward import score_answers
from rlhf_edu.sampling import Rollout
from rlhf_edu.tinyweb import pages
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge, Verdict
from rlhf_edu.tinyweb.labelers import Population
from rlhf_edu.tokens import PROMPT_TEMPLATE, encode_prompt

MAX_NEW_TOKENS = 48


# --- answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a model said to some prompts, and what the judge thinks of it.

    `rollout` holds the tokens; with a few-shot prefix they include it.
    """

    prompts: list[Prompt]
    texts: list[str]
    ended: list[bool]
    verdicts: list[Verdict]
    rollout: Rollout

    def mean(self, part: str) -> Estimate:
        """Mean over prompts of a part of the verdict: `gold`, `helpful`, `words`, …"""
        return bootstrap([float(getattr(verdict, part)) for verdict in self.verdicts])

    @property
    def gold(self) -> list[float]:
        """The gold score of each answer."""
        return [verdict.gold for verdict in self.verdicts]


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judge: Judge,
    prompts: Sequence[Prompt],
    temperature: float = 1.0,
    seed: int = 0,
    prefix: str = "",
) -> Answers:
    """One answer to each prompt, judged.

    `prefix` stands before each prompt: the examples of few-shot prompting. With examples, an
    answer also ends at the first line break, as the examples' answers do.
    """
    said = sample_all(model, tokenizer, prompts, temperature, seed, prefix)
    return judge_all(judge, prompts, *said)


def judge_all(
    judge: Judge, prompts: Sequence[Prompt], texts: list[str], ended: list[bool], rollout: Rollout
) -> Answers:
    """Answers that were sampled before, with their verdicts."""
    verdicts = [judge(*row) for row in zip(prompts, texts, ended, strict=True)]
    return Answers(list(prompts), texts, ended, verdicts, rollout)


def sample_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    temperature: float = 1.0,
    seed: int = 0,
    prefix: str = "",
) -> tuple[list[str], list[bool], Rollout]:
    """One answer to each prompt, whether each of them ended, and the tokens."""
    texts = [prefix + prompt.text for prompt in prompts]
    ids = [encode_prompt(tokenizer, text, max_tokens=440) for text in texts]
    rollout = generate(
        model, tokenizer, ids, MAX_NEW_TOKENS, temperature, seed, stop="\n" if prefix else None
    )
    return rollout.texts(tokenizer), rollout.ended.tolist(), rollout


def few_shot_prefix(examples: Sequence[tuple[str, str]]) -> str:
    """Prompts and answers, each in the one prompt template, with a blank line between them."""
    return "".join(f"{PROMPT_TEMPLATE.format(prompt=p)}{a}\n\n" for p, a in examples)


@torch.inference_mode()
def kl_to_reference(
    policy: PreTrainedModel, reference: PreTrainedModel, rollout: Rollout, batch: int = 64
) -> list[float]:
    """Estimates of KL(policy || reference), one an answer, in nats: k1, summed over tokens.

    The answers must be the policy's own, sampled at temperature 1.
    """
    found: list[float] = []
    for start in range(0, len(rollout), batch):
        rows = rollout.rows(slice(start, start + batch))
        ratio = response_logprobs(policy, rows) - response_logprobs(reference, rows)
        found += masked_sum(ratio, rows.mask).tolist()
    return found


def mean_kl(policy: PreTrainedModel, reference: PreTrainedModel, rollout: Rollout) -> float:
    """The mean over answers of `kl_to_reference`."""
    return fmean(kl_to_reference(policy, reference, rollout))


@torch.inference_mode()
def mean_entropy(
    model: PreTrainedModel, rollout: Rollout, temperature: float = 1.0, batch: int = 64
) -> float:
    """Mean entropy, in nats, of the distributions that the tokens of the answers came from."""
    total, count = 0.0, 0.0
    for start in range(0, len(rollout), batch):
        rows = rollout.rows(slice(start, start + batch))
        logprobs = (response_logits(model, rows).float() / temperature).log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        total += (entropy * rows.mask).sum().item()
        count += rows.mask.sum().item()
    return total / count


def colder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    goal: float,
    rounds: int = 6,
) -> float:
    """The temperature from 0.2 to 1 at which a model's entropy per token is nearest to a goal."""
    low, high = 0.2, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        *_, rollout = sample_all(model, tokenizer, prompts, middle)
        if mean_entropy(model, rollout, middle) > goal:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def labelers_prefer(
    population: Population, ours: Answers, theirs: Answers, group: str = "held_out", seed: int = 0
) -> Estimate:
    """Win rate of ours over theirs by the labelers of a group, one random labeler a prompt."""
    rng = random.Random(f"labelers prefer {seed}")
    wins = []
    for i, prompt in enumerate(ours.prompts):
        labeler = rng.choice(population.group(group))
        pair, ended = [ours.texts[i], theirs.texts[i]], [ours.ended[i], theirs.ended[i]]
        first, second = population.rank(labeler, prompt, pair, ended, seed)
        wins.append(1.0 if first < second else 0.5 if first == second else 0.0)
    return bootstrap(wins)


def reward_accuracy(
    reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]
) -> list[float]:
    """Share of a ranking's pairs that the scores order as the ranks do; one number a ranking.

    Ties of the ranks are no pairs, and rankings of ties alone are left out; equal scores count
    one half.
    """
    asked = [r.prompt.text for r in rankings for _ in r.answers]
    said = [answer for r in rankings for answer in r.answers]
    ended = [flag for r in rankings for flag in r.ended]
    scores = score_answers(reward_model, tokenizer, asked, said, ended)
    by_ranking = scores.split([len(ranking.answers) for ranking in rankings])
    shares = []
    for ranking, found in zip(rankings, by_ranking, strict=True):
        pairs = [(found[i].item(), found[j].item()) for i, j in ordered_pairs(ranking.ranks)]
        if pairs:
            shares.append(fmean((a > b) + 0.5 * (a == b) for a, b in pairs))
    return shares


def ordered_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(i, j): the places of all pairs in which i is ranked above j; ties are no pairs."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


# --- what the base model could do before: skills, measured in the web's own formats ------------


Item = tuple[str, str]  # a text that breaks off, and how it goes on


def table_item(world: World, rng: random.Random) -> Item:
    """A table that breaks off before its last cell."""
    *rows, last = pages.table(world, rng).split("\n")
    last, right = last.rsplit(" | ", 1)
    return "\n".join([*rows, last + " |"]), right


def story_item(world: World, rng: random.Random) -> Item:
    """A story that breaks off before the coloured thing it began with is found again."""
    text, right = pages.story(world, rng).rsplit(" the ", 1)
    return text + " the", right


def dictation_item(world: World, rng: random.Random) -> Item:
    """What a teacher read out, before a pupil writes it down."""
    text, right = pages.dictation(world, rng).split("\n")[:2]
    return text + "\n", right


def answer_item(world: World, rng: random.Random) -> Item:
    """A teacher's sheet of the shortest answers, before one of them."""
    items = [pages.answer_item(world, rng) for _ in range(4)]
    text = "\n".join(["Answers", *("\n".join(item) for item in items[:-1]), items[-1][0]])
    return text + "\n", items[-1][1]


def reading_item(world: World, rng: random.Random) -> Item:
    """A passage and a question about it, after another such pair with its answer."""
    (shown, _), (text, right) = pages.reading_item(world, rng), pages.reading_item(world, rng)
    return f"{shown}\n{text.removesuffix(right)}", right


def quiz_item(world: World, rng: random.Random) -> Item:
    """A quiz that breaks off before a letter."""
    (first, letter), (question, right) = (pages.quiz_item(world, rng) for _ in range(2))
    return f"{first}\nAnswer: {letter}.\n{question}\nAnswer:", right


def homework_item(world: World, rng: random.Random) -> Item:
    """Homework that is about to be marked."""
    (first, mark), (work, right) = (pages.homework_item(world, rng) for _ in range(2))
    return f"{first}\nMark: {mark}.\n{work}\nMark:", right


SKILLS: dict[str, Callable[[World, random.Random], Item]] = {
    "table": table_item,
    "story": story_item,
    "dictation": dictation_item,
    "answers": answer_item,
    "reading": reading_item,
    "quiz": quiz_item,
    "homework": homework_item,
}


def skill_items(world: World, skill: str, n: int, seed: int = 0) -> list[Item]:
    """Texts that test one of the `SKILLS`, each with how it goes on."""
    rng = random.Random(f"{skill} {world.seed} {seed}")
    return [SKILLS[skill](world, rng) for _ in range(n)]


def completion_rate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> float:
    """Share of the texts that the model, greedily, continues with the right words."""
    bos = [tokenizer.bos_token_id]
    ids = [bos + tokenizer.encode(text, add_special_tokens=False) for text, _ in items]
    rollout = generate(model, tokenizer, ids, max_new_tokens=24, temperature=0)
    said = [text.strip() for text in rollout.texts(tokenizer)]
    return float(np.mean([t.startswith(right) for t, (_, right) in zip(said, items, strict=True)]))


def skills(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, n: int = 200
) -> dict[str, float]:
    """What reading the web taught the base model to do, in the web's own formats, in [0, 1]."""
    return {
        skill: completion_rate(model, tokenizer, skill_items(world, skill, n)) for skill in SKILLS
    }


# --- one row of the ladder ----------------------------------------------------------------------


def row(stage: str, answers: Answers, **more: Any) -> dict[str, Any]:
    """One row of the ladder's table: gold with interval, its parts, and what else was measured."""
    gold = answers.mean("gold")
    parts = ("helpful", "truthful", "harmless", "words", "flawless", "attempted", "evasive")
    parts += ("invents",)
    return {
        "stage": stage,
        "gold": gold.mean,
        "gold_low": gold.low,
        "gold_high": gold.high,
        **{part: answers.mean(part).mean for part in parts},
        **more,
    }
