"""Intervals, win rates, few-shot prompts and skills."""

import pytest

from rlhf_edu import data_folder
from rlhf_edu.experiments.exam import (
    answer_all,
    completion_rate,
    few_shot_prefix,
    kl_to_reference,
    story_prompts,
    table_prompts,
)
from rlhf_edu.intervals import bootstrap, win_rate
from rlhf_edu.models import load_policy, load_tokenizer
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.labelers import Population, ceiling
from rlhf_edu.tinyweb.prompts import make_prompts


@pytest.fixture(scope="module")
def base():
    folder = data_folder() / "models" / "base-1M"
    return load_policy(folder), load_tokenizer(folder)


def test_bootstrap_covers_the_mean_and_narrows():
    few, many = bootstrap([0.0, 1.0] * 10), bootstrap([0.0, 1.0] * 1000)
    assert few.low < 0.5 < few.high and few.mean == 0.5
    assert many.high - many.low < 0.3 * (few.high - few.low)
    with pytest.raises(ValueError, match="no numbers"):
        bootstrap([])


def test_win_rate_is_paired_and_ties_count_half():
    assert win_rate([1, 2, 3, 3], [0, 2, 5, 1]).mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    with pytest.raises(ValueError):
        win_rate([1.0], [1.0, 2.0])


def test_few_shot_prefix_is_the_template_with_blank_lines():
    assert few_shot_prefix([("Q?", "A."), ("R?", "B.")]) == "Q?\nA.\n\nR?\nB.\n\n"


def test_skills_ask_for_what_the_text_holds():
    world = World(3)
    for text, right in table_prompts(world, 20):
        name = text.split("\n")[-1].split(" | ")[0]
        assert right in [fact.value for fact in world.about(name)]
    assert all(text.count(right) == 1 for text, right in story_prompts(world, 20))


def test_base_model_knows_tables_and_asks_back(base):
    model, tokenizer = base
    world = World(0)
    assert completion_rate(model, tokenizer, table_prompts(world, 40)) > 0.8
    answers = answer_all(model, tokenizer, Judge(world), make_prompts(world, "test", 64))
    assert answers.mean("gold").high < 1.0  # F1: it continues instead of answering
    assert answers.rollout.mask.shape[0] == 64


def test_few_shot_examples_help_and_kl_to_itself_is_zero(base):
    model, tokenizer = base
    world = World(0)
    judge, prompts = Judge(world), make_prompts(world, "test", 64)
    prefix = few_shot_prefix(
        [
            ("Where does the otter live?", "I do not know."),
            ("Say this politely: Fix the bell.", "Please fix the bell."),
            ("Hello, my name is Otto.", "Hello Otto, nice to meet you!"),
        ]
    )
    plain = answer_all(model, tokenizer, judge, prompts)
    prompted = answer_all(model, tokenizer, judge, prompts, prefix=prefix)
    assert prompted.mean("gold").mean > plain.mean("gold").mean + 0.5
    assert max(abs(k) for k in kl_to_reference(model, model, plain.rollout)) < 1e-4


def test_labelers_reward_what_gold_does_not():
    world = World(0)
    judge = Judge(world)
    prompt = next(p for p in make_prompts(world, "train", 200) if p.task.kind == "thanks")
    person, gift = prompt.task.targets
    plain = f"Dear {person}, thank you for the {gift}."
    padded = f"{plain} I hope this helps. Have a nice day!"
    people, control = Population(world), Population(world, tastes=False)
    assert judge(prompt, padded).gold <= judge(prompt, plain).gold
    likes = [
        people.utility(p, prompt, padded) > people.utility(p, prompt, plain)
        for p in people.labelers
    ]
    plainly = [
        control.utility(p, prompt, padded) > control.utility(p, prompt, plain)
        for p in control.labelers
    ]
    assert sum(likes) > 0.8 * len(likes) and sum(plainly) == 0


def test_same_text_gets_the_same_rank():
    world = World(0)
    people, prompt = Population(world), make_prompts(world, "train", 1)[0]
    texts = ["I do not know.", "No idea.", "I do not know."]
    ranks = people.rank(people.labelers[0], prompt, texts, [True] * 3)
    assert ranks[0] == ranks[2] and min(ranks) == 1


def test_population_and_ceiling():
    people = Population(World(0))
    assert len(people.labelers) >= 30
    assert people.group("held_out") and people.group("train")
    assert all(p.screened for p in people.group("train"))
    # 72.6 % agreement: each labeler is right 83.6 % of the time (independent flips).
    assert ceiling(0.726) == pytest.approx(0.836, abs=5e-4)
    with pytest.raises(ValueError, match="between 0.5 and 1"):
        ceiling(0.4)
