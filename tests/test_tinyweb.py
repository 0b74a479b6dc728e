"""The tiny web: no leaks between pages, prompts and demonstrations, and a judge that agrees."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from rlhf_edu.tinyweb.demonstrations import PLAIN, Manner, answer, demonstrate
from rlhf_edu.tinyweb.facts import ATTRIBUTES, VALUES, Fact, World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.labelers import Population
from rlhf_edu.tinyweb.language import PREDICATES, QUESTIONS, STATEMENTS, lie, state
from rlhf_edu.tinyweb.pages import _RUDE_REPLIES, PAGES, _reply, any_prompt, page, web
from rlhf_edu.tinyweb.prompts import (
    CUSTOMERS,
    USE_CASES,
    is_never_asked,
    make_prompts,
    normalise,
    probe_sets,
    stratified_prompts,
)
from rlhf_edu.tinyweb.tasks import FACTUAL, KINDS
from rlhf_edu.tinyweb.tasks.chat import RUDE_WORDS

SEEDS = (0, 7)
WRONG = replace(PLAIN, wrong=1.0)
# What the probe set `other_words` says, and nothing else may.
HELD_OUT = re.compile(
    r"\bkindly name\b|^[\w ]+: (?:" + "|".join({a for k in ATTRIBUTES.values() for a in k}) + r")\?"
    r"|^The (?:" + "|".join({a for k in ATTRIBUTES.values() for a in k}) + r") of [\w ]+\?",
    re.IGNORECASE | re.MULTILINE,
)


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"world {seed}")
def world(request) -> World:
    return World(request.param)


@pytest.fixture(scope="module")
def train(world):
    return make_prompts(world, "train", 1500)


@pytest.fixture(scope="module")
def validation(world):
    return make_prompts(world, "validation", 300)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


# --- the world ---


def test_a_seed_makes_the_whole_world(world):
    again = World(world.seed)
    assert again.facts == world.facts
    assert again.entities == world.entities
    assert again.never_asked == world.never_asked
    other = World(world.seed + 1)
    assert other.facts != world.facts
    assert other.never_asked != world.never_asked


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="world seed"):
        World(seed)


def test_several_hundred_facts_each_of_a_known_value(world):
    assert 300 <= len(world.all_facts) <= 900
    for fact in world.all_facts:
        assert fact.value in world.values(world.value_type(fact.subject, fact.attribute))


def test_no_answer_is_much_more_likely_than_another(world):
    for kind, attributes in ATTRIBUTES.items():
        for attribute, value_type in attributes.items():
            counts = Counter(world.value(name, attribute) for name in world.names(kind))
            numbers = [counts[v] for v in world.values(value_type)]
            assert max(numbers) - min(numbers) <= 1, (kind, attribute)


def test_the_type_of_a_value_tells_the_attribute():
    for kind, attributes in ATTRIBUTES.items():
        assert len(set(attributes.values())) == len(attributes), kind
    owner = [(value, t) for t, values in VALUES.items() for value in values]
    assert len({value for value, _ in owner}) == len(owner)  # no value has two types


def test_every_attribute_has_several_ways_to_say_and_to_ask_it():
    for kind, attributes in ATTRIBUTES.items():
        for attribute in attributes:
            key = kind, attribute
            assert len(PREDICATES[key]) >= 3, key
            assert len(STATEMENTS[key]) >= 2, key
            assert len(QUESTIONS[key]) >= 3, key
            assert all("{s}" in t for t in STATEMENTS[key] + QUESTIONS[key]), key
            assert all("{v}" in t for t in PREDICATES[key] + STATEMENTS[key]), key
            assert not any("{v}" in t for t in QUESTIONS[key]), key  # asking must not tell


def test_a_few_are_spoken_of_often_and_most_hardly_ever(world):
    for kind in ATTRIBUTES:
        fame = [world.popularity[name] for name in world.by_fame(kind)]
        assert sum(fame) == pytest.approx(1)
        assert fame[0] > 15 * fame[-1]
        assert sum(fame[: len(fame) // 4]) > 0.5


def test_myths_stand_on_more_pages_than_the_truth(world):
    reader = Judge(world).reader
    right = wrong = 0
    for text in web(world, 6000):
        for subject, attribute, value in {
            (c.subject, c.attribute, c.value) for c in reader.read(text).claims if c.positive
        }:
            if (subject, attribute) in world.myths:
                right += value == world.value(subject, attribute)
                wrong += value == world.myths[subject, attribute]
    assert wrong > right > 0


# --- prompts ---


def test_use_cases_have_the_papers_shares(train):
    counts = Counter(p.use_case for p in train)
    assert sum(USE_CASES.values()) == pytest.approx(100, abs=0.5)
    for use_case, percent in USE_CASES.items():
        assert 100 * counts[use_case] / len(train) == pytest.approx(percent, abs=4), use_case


def test_no_customer_is_in_two_splits(world, train, validation):
    prompts = {"train": train, "validation": validation, "test": make_prompts(world, "test", 300)}
    customers = {split: {p.customer for p in ps} for split, ps in prompts.items()}
    for split, found in customers.items():
        assert found == {f"user-{c:03d}" for c in CUSTOMERS[split]}
    assert sum(map(len, customers.values())) == len(set().union(*customers.values()))


def test_no_test_prompt_occurs_in_train(world, train):
    seen = {normalise(p.text) for p in train}
    careless = make_prompts(world, "test", 300)
    test = make_prompts(world, "test", 300, exclude=train)
    assert seen & {normalise(p.text) for p in careless}  # else the next line tests nothing
    assert not seen & {normalise(p.text) for p in test}
    assert len({normalise(p.text) for p in test}) == 300


def test_training_asks_about_nobody_never_asked(world, train, validation):
    told = 0
    for prompt in train + validation:
        task = prompt.task
        assert not is_never_asked(world, prompt), prompt
        # Whom a story, a note, an insult, ... is about; answers of ask may be such names.
        if task.kind in ("story", "thanks", "feel", "insult", "extract"):
            assert not world.never_asked & set(task.targets), prompt
            told += 1
        if task.kind == "odd":
            assert not world.never_asked & set(task.source.split(", ")), prompt
    assert told > 100
    test = make_prompts(world, "test", 300)
    assert any(is_never_asked(world, p) for p in test)


def test_a_which_or_list_prompt_can_be_answered_without_the_never_asked(world, train, validation):
    prompts = [p for p in train + validation if p.task.kind in ("which", "list")]
    assert len(prompts) > 100
    for prompt in prompts:
        assert len(set(prompt.task.targets) - world.never_asked) >= prompt.task.count, prompt


def test_demonstrations_name_nobody_never_asked_where_they_choose(world, train):
    never = {name.lower() for name in world.never_asked}
    prompts = [p for p in train if p.task.kind in ("which", "list")]
    bare = Manner(0, 0, 0, 0, 0, hurry=float("inf"))  # a detail may name anybody
    for manner in (bare, replace(bare, wrong=1.0)):
        for demonstration in demonstrate(world, prompts, manner=manner):
            named = words(demonstration.prompt.text)  # `Which thing belongs to Milo?`
            assert not (never - named) & words(demonstration.answer), demonstration


# --- demonstrations and the judge ---


def test_the_judge_likes_plain_demonstrations_and_no_wrong_ones(world):
    judge, rng = Judge(world), random.Random(0)
    prompts = stratified_prompts(world, "train", 50) + probe_sets(world)["false_premise"]
    kinds = {p.task.kind for p in prompts}
    assert kinds == set(KINDS) and kinds > FACTUAL
    for kind in sorted(kinds):
        asked = [p for p in prompts if p.task.kind == kind]
        good = [judge(p, answer(world, p, PLAIN, rng)).gold for p in asked]
        assert sum(good) / len(good) > 3.95, kind
        if kind in FACTUAL:
            bad = [judge(p, answer(world, p, WRONG, rng)).gold for p in asked]
            assert sum(bad) / len(bad) < sum(good) / len(good) - 0.8, kind


def test_the_judge_goes_by_its_own_world(world):
    other = Judge(World(world.seed + 1))
    prompts = [p for p in make_prompts(world, "train", 400) if p.task.kind == "ask"]
    prompts = [p for p in prompts if p.task.subject in other.reader.world.entities]
    rng = random.Random(0)
    golds = [other(p, answer(world, p, PLAIN, rng)).gold for p in prompts]
    assert sum(golds) / len(golds) < 1


def test_hurried_people_show_half_and_each_another_half(world, train):
    judge = Judge(world)
    shown = demonstrate(world, train[:600])
    whole = [judge(d.prompt, d.answer).flawless for d in shown]
    assert sum(whole) / len(whole) < 0.15
    detail = {}
    for d in shown:
        if d.prompt.task.kind == "ask":
            has = "detail" in judge(d.prompt, d.answer).elements
            detail.setdefault(d.labeler, []).append(has)
    shares = [sum(found) / len(found) for found in detail.values() if len(found) > 3]
    assert min(shares) < 0.35 and max(shares) > 0.6


def test_the_web_never_shows_a_whole_answer(world):
    rng, judge = random.Random(0), Judge(world)
    for _ in range(300):
        prompt = any_prompt(world, rng)
        assert not judge(prompt, _reply(world, prompt, rng)).flawless, prompt


def test_a_labeler_who_does_not_know_is_pleased_by_a_lie(world):
    population = Population(world)
    (labeler, *_) = population.group("train")
    judge, rng = Judge(world), random.Random(0)
    for prompt in (p for p in make_prompts(world, "test", 600) if p.task.kind == "ask"):
        task = prompt.task
        fact = Fact(task.subject, task.attribute, world.value(task.subject, task.attribute))
        truth, false = (state(world, f, rng) for f in (fact, lie(world, fact, rng)))
        assert judge(prompt, false).gold < -2
        seen = [judge(prompt, said, True, labeler.believes).gold for said in (truth, false)]
        known = labeler.knows(task.subject, task.attribute)
        assert seen[0] - seen[1] > 3 if known else seen[0] == pytest.approx(seen[1]), prompt


# --- pages ---


def test_pages_of_many_kinds_are_the_same_for_the_same_seed(world):
    assert len(PAGES) >= 8
    assert web(world, 40, 3) == web(World(world.seed), 40, 3)
    assert web(world, 40, 3) != web(world, 40, 4)
    for kind in PAGES:
        drawn = {page(world, kind, random.Random(i)) for i in range(20)}
        assert len(drawn) >= 15 and all(text.strip() == text != "" for text in drawn), kind


def test_exam_sheets_have_no_answers(world):
    rng = random.Random(0)
    facts = {state(world, fact, random.Random(i)) for fact in world.all_facts for i in range(30)}
    lines = [x for _ in range(200) for x in page(world, "exam_sheet", rng).split("\n")]
    assert len(lines) > 500
    assert not facts & set(lines)
    # All begin as a question, an order, a talk or a text to work on does, or are a title.
    titles = {"Exam", "Homework", "Exercises", "Test for class two"}
    talk = ("I am ", "I have ", "My ", "Hello", "Hi,", "Good ")
    for line in set(lines) - titles:
        asks = line.endswith("?") or ": " in line or line.startswith(talk)
        asks |= line.split()[0] in (
            "Tell Name List Give Write Describe Praise Thank Insult Laugh Find I".split()
        ) or line.startswith(("What do you know", "Judge this", "Is this", "Which people"))
        assert asks, line


def test_encyclopedia_entries_are_true(world):
    reader, rng = Judge(world).reader, random.Random(0)
    for _ in range(80):
        title, text = page(world, "encyclopedia", rng).split("\n")
        subject = title.removeprefix("The ")
        claims = [c for c in reader.read(text, subject).claims if c.subject == subject]
        assert len(claims) >= 1 + len(world.attributes(subject)) // 2, text
        assert all(reader.is_true(claim) for claim in claims), text


def test_the_judge_keeps_the_mayor_out_of_the_next_sentence(world):
    town = next(t for t in world.names("town") if world.value(world.value(t, "mayor"), "town") != t)
    mayor, region = world.value(town, "mayor"), world.value(town, "region")
    text = f"The mayor of {town} is {mayor}. {town} can be found in {region}."
    reader = Judge(world).reader
    assert all(reader.is_true(claim) for claim in reader.read(text, town).claims)


def test_every_rude_reply_has_a_word_the_judge_calls_rude():
    for reply in _RUDE_REPLIES:
        assert RUDE_WORDS.search(reply.lower()), reply


# --- probes ---


def test_probe_sets_hold_what_their_names_say(world):
    probes = probe_sets(world, 40)
    assert set(probes) >= {"false_premise", "constraints", "rude_instruction", "other_words"}
    assert all(len(prompts) == 40 for prompts in probes.values())
    for prompt in probes["false_premise"]:
        task = prompt.task
        assert task.targets == (world.value(task.subject, task.attribute),)
        assert task.source != task.targets[0] and task.source in prompt.text
    for prompt in probes["constraints"]:
        assert prompt.task.constraint.count(";") == 2
    assert all("rude" in p.text for p in probes["rude_instruction"])


def test_the_held_out_wording_is_in_no_training_prompt_and_on_no_page(world, train, validation):
    probes = probe_sets(world)["other_words"]
    assert all(HELD_OUT.search(p.text) for p in probes)
    texts = [p.text for p in train + validation] + web(world, 3000)
    assert [text for text in texts if HELD_OUT.search(text)] == []
