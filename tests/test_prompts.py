"""Worlds, prompts, pages and demonstrations: what must hold in every world."""

import random

import pytest

from rlhf_edu.tinyweb.demonstrations import FACTUAL, PLAIN, Manner, answer, demonstrate
from rlhf_edu.tinyweb.facts import ATTRIBUTES, World
from rlhf_edu.tinyweb.judge import RUDE, Judge
from rlhf_edu.tinyweb.language import PREDICATES, QUESTIONS, STATEMENTS
from rlhf_edu.tinyweb.pages import _RUDE_REPLIES, PAGES, page, web
from rlhf_edu.tinyweb.prompts import (
    CUSTOMERS,
    USE_CASES,
    make_prompts,
    normalise,
    probe_sets,
    stratified_prompts,
)

worlds = pytest.mark.parametrize("world", [World(0), World(11)], ids=["world 0", "world 11"])


def test_one_seed_one_world():
    assert World(4).facts == World(4).facts != World(5).facts
    assert len(World(4).facts) > 400
    for bad in (-1, 1.5, "0"):
        with pytest.raises(ValueError, match="world seed"):
            World(bad)


def test_every_attribute_can_be_said_and_asked_and_told_apart():
    keys = {(kind, attribute) for kind in ATTRIBUTES for attribute in ATTRIBUTES[kind]}
    assert keys == set(PREDICATES) == set(STATEMENTS) == set(QUESTIONS)
    for attributes in ATTRIBUTES.values():
        assert len(set(attributes.values())) == len(attributes)


@worlds
def test_use_cases_come_in_the_papers_proportions(world):
    prompts = make_prompts(world, "train", 2000)
    for use_case, percent in USE_CASES.items():
        share = 100 * sum(p.use_case == use_case for p in prompts) / len(prompts)
        assert share == pytest.approx(percent, abs=4)


@worlds
def test_splits_share_neither_customers_nor_prompts(world):
    test = make_prompts(world, "test", 300)
    train = make_prompts(world, "train", 2000, exclude=test)
    assert not {p.customer for p in train} & {p.customer for p in test}
    assert not {normalise(p.text) for p in train} & {normalise(p.text) for p in test}
    assert len({normalise(p.text) for p in train}) == len(train)
    assert not set(CUSTOMERS["train"]) & set(CUSTOMERS["test"])


@worlds
def test_training_never_asks_about_some(world):
    train = make_prompts(world, "train", 2000)
    assert not [p for p in train if p.task.subject in world.never_asked]
    test = make_prompts(world, "test", 300)
    assert [p for p in test if p.task.subject in world.never_asked]


def test_unknown_split_and_too_many_prompts_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        make_prompts(World(0), "exam", 1)
    with pytest.raises(ValueError, match="fewer than"):
        make_prompts(World(0), "train", 400, use_cases={"chat": 1.0})


@worlds
def test_plain_demonstrations_are_good_and_wrong_ones_are_not(world):
    judge, rng = Judge(world), random.Random(0)
    wrong = Manner(1.0, 0.0, 0.0, 0.0, 0.0)
    good: dict[str, list[float]] = {}
    bad: dict[str, list[float]] = {}
    for prompt in stratified_prompts(world, "train", 60):
        kind = prompt.task.kind
        good.setdefault(kind, []).append(judge(prompt, answer(world, prompt, PLAIN, rng)).gold)
        bad.setdefault(kind, []).append(judge(prompt, answer(world, prompt, wrong, rng)).gold)
    means = {kind: sum(scores) / len(scores) for kind, scores in good.items()}
    assert {kind: mean for kind, mean in means.items() if mean < 3.4} == {}
    for kind in FACTUAL & set(good):
        assert sum(bad[kind]) / len(bad[kind]) < means[kind] - 0.7, kind


def test_demonstrators_are_people():
    world = World(0)
    prompts = make_prompts(world, "train", 400)
    shown = demonstrate(world, prompts)
    judge = Judge(world)
    mean = sum(judge(d.prompt, d.answer).gold for d in shown) / len(shown)
    assert 3.0 < mean < 3.9  # good, not perfect
    assert shown == demonstrate(world, prompts) != demonstrate(world, prompts, seed=1)


def test_pages_of_many_kinds_repeat_by_seed():
    world = World(0)
    assert len(PAGES) >= 8
    assert web(world, 50, 3) == web(world, 50, 3) != web(world, 50, 4)
    for kind in PAGES:
        assert page(world, kind, random.Random(0)).strip()
    sheet = page(world, "exam_sheet", random.Random(1))
    assert len(sheet.split("\n")) >= 3


def test_rude_replies_are_what_the_judge_calls_rude():
    for reply in _RUDE_REPLIES:
        assert any(word in reply.lower() for word in RUDE), reply


def test_probes():
    world = World(0)
    probes = probe_sets(world, 30)
    assert all(len(prompts) == 30 for prompts in probes.values())
    for prompt in probes["false_premise"]:
        task = prompt.task
        assert world.value(task.subject, task.attribute) != task.source
    seen = {normalise(p.text) for p in make_prompts(world, "train", 3000)}
    assert not seen & {normalise(p.text) for p in probes["other_words"]}
