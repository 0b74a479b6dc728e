"""What `make_prompts` refuses, and that demonstrators are people; the rest is in test_tinyweb."""

import pytest

from rlhf_edu.tinyweb.demonstrations import demonstrate
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.prompts import make_prompts


def test_unknown_split_and_too_many_prompts_are_refused():
    with pytest.raises(ValueError, match="unknown split"):
        make_prompts(World(0), "exam", 1)
    with pytest.raises(ValueError, match="fewer than"):
        make_prompts(World(0), "train", 400, use_cases={"chat": 1.0})


def test_demonstrators_are_people():
    world = World(0)
    prompts = make_prompts(world, "train", 400)
    shown = demonstrate(world, prompts)
    judge = Judge(world)
    mean = sum(judge(d.prompt, d.answer).gold for d in shown) / len(shown)
    assert 2.0 < mean < 3.0  # they show about half of what makes an answer good
    assert shown == demonstrate(world, prompts) != demonstrate(world, prompts, seed=1)
