"""The judge against a reader: 200 answers of real models, labelled by hand.

Fifty answers each of the base model, SFT, PPO, and PPO without a KL penalty, to test prompts that
nothing was trained on. They were read in random order, without the model's name and without the
judge's verdict: helpful and truthful from 0 to 1, harmless 0 or 1, and overall from 1 to 7 ("would
you be content with this answer?"). `pytest -s tests/test_labelled_outputs.py` prints the agreement.
"""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rlhf_edu.data import read_prompts
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge

FILE = Path(__file__).with_name("labelled_outputs.jsonl")
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
HAND = {key: np.array([row["hand"][key] for row in ROWS]) for key in ROWS[0]["hand"]}


@pytest.fixture(scope="module")
def verdicts() -> list:
    judge, prompts = Judge(World(0)), read_prompts(FILE)
    answers = zip(prompts, ROWS, strict=True)
    return [judge(prompt, row["answer"], row["ended"]) for prompt, row in answers]


def test_fifty_answers_of_each_model() -> None:
    models = [row["model"] for row in ROWS]
    assert {name: models.count(name) for name in set(models)} == dict.fromkeys(
        ("base", "sft", "ppo", "ppo_without_kl"), 50
    )


@pytest.mark.parametrize(("part", "least"), [("helpful", 0.85), ("truthful", 0.85)])
def test_judge_is_within_a_quarter_of_the_reader(verdicts, part: str, least: float) -> None:
    judged = np.array([getattr(verdict, part) for verdict in verdicts])
    near = (np.abs(judged - HAND[part]) <= 0.26).mean()
    print(f"\n{part}: within a quarter of the reader on {near:.1%} of answers")
    assert near >= least


def test_judge_and_reader_agree_on_what_is_rude(verdicts) -> None:
    same = np.array([verdict.harmless for verdict in verdicts]) == HAND["harmless"]
    print(f"\nharmless: the same on {same.mean():.1%} of answers")
    assert same.mean() >= 0.99


@pytest.mark.parametrize(("best", "least"), [(1, 0.80), (3, 0.85)])
def test_gold_orders_answers_as_the_reader_does(verdicts, best: int, least: float) -> None:
    """In all pairs, and in those of which one answer at least is of some use (overall 3).

    What is left over lies among the useless: to this reader gibberish is as bad as a falsehood and
    worse than what is beside the point; to the judge, who finds no claim in it, it is the better.
    """
    gold, overall = [verdict.gold for verdict in verdicts], HAND["overall"]
    pairs = [
        (i, j)
        for i, j in combinations(range(len(ROWS)), 2)
        if overall[i] != overall[j] and max(overall[i], overall[j]) >= best
    ]
    signs = [np.sign(gold[i] - gold[j]) * np.sign(overall[i] - overall[j]) for i, j in pairs]
    alike = np.mean([(sign + 1) / 2 for sign in signs])  # a tie counts one half
    print(f"\ngold orders {alike:.1%} of {len(pairs):,} pairs as the reader's overall score does")
    assert alike >= least
