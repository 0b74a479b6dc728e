"""Each number of an evaluation on models made by hand; intervals, few-shot prompts and skills."""

from types import SimpleNamespace

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import data_folder
from rlhf_edu.data import Ranking
from rlhf_edu.experiments.exam import (
    Answers,
    answer_all,
    completion_rate,
    few_shot_prefix,
    kl_to_reference,
    labelers_prefer,
    reward_accuracy,
    row,
    skill_items,
    skills,
)
from rlhf_edu.generation import generate
from rlhf_edu.intervals import bootstrap, win_rate
from rlhf_edu.models import load_policy, load_tokenizer, scalar_head, scalar_model_from
from rlhf_edu.reward import score_answers
from rlhf_edu.sampling import Rollout
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.labelers import Population, ceiling
from rlhf_edu.tinyweb.prompts import make_prompts

TOK = tiny.tokenizer()


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


def test_an_interval_is_of_95_percent():
    numbers = [0.0, 1.0] * 200  # the standard error of their mean is 0.5 / sqrt(400) = 0.025
    found = bootstrap(numbers, seed=3)
    assert found.mean == 0.5 and found == bootstrap(numbers, seed=3) != bootstrap(numbers)
    assert found.high - 0.5 == pytest.approx(1.96 * 0.025, rel=0.06)
    assert 0.5 - found.low == pytest.approx(1.96 * 0.025, rel=0.06)
    assert str(found).startswith("0.50 [0.45, 0.55")


# --- numbers on models made by hand ------------------------------------------------------------


def test_kl_is_log_policy_less_log_reference_over_the_tokens_of_an_answer():
    random = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(9, 9, generator=random).log_softmax(-1) for _ in "pr")
    tokens = torch.tensor([[0, 4, 5, 2, 0], [1, 3, 6, 7, 2], [1, 8, 2, 7, 7]])
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    answers = [[(4, 5), (5, 2)], [(3, 6), (6, 7), (7, 2)], [(8, 2)]]  # (token before, token)
    expected = [sum((policy - reference)[pair].item() for pair in pairs) for pairs in answers]
    rollout = Rollout(tokens, mask, 2, torch.ones(3, dtype=torch.bool), torch.zeros(3, 3))
    models = tiny.Bigram(policy), tiny.Bigram(reference)
    assert kl_to_reference(*models, rollout) == pytest.approx(expected, abs=1e-5)
    assert kl_to_reference(*models, rollout, batch=2) == pytest.approx(expected, abs=1e-5)


def test_the_mean_of_kl_is_the_kl():
    table = torch.full((280, 280), -1e4)
    table[:, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    even = torch.full((280, 280), -1e4)
    even[:, :4] = torch.tensor([0.25] * 4).log()
    policy, reference = tiny.Bigram(table), tiny.Bigram(even)
    rollout = generate(policy, TOK, [[1]] * 4000, max_new_tokens=1)
    exact = sum(p * torch.tensor(p / 0.25).log().item() for p in (0.1, 0.2, 0.3, 0.4))
    found = torch.tensor(kl_to_reference(policy, reference, rollout))
    assert found.mean() == pytest.approx(exact, abs=0.03)


def test_answers_are_judged_with_their_end_and_examples_teach_to_stop():
    # It writes "ab", a line break and so on, for ever.
    model, asked = tiny.chain("\nab\n"), [tiny.prompt(0), tiny.prompt(1)]
    told = []

    def judge(*row):
        told.append(row)
        return SimpleNamespace(gold=float(len(told)))

    plain = answer_all(model, TOK, judge, asked)
    assert plain.texts == ["ab\n" * 16] * 2 and plain.ended == [False, False]
    shot = answer_all(model, TOK, judge, asked, prefix="Q?\nA.\n\n")
    assert shot.texts == ["ab", "ab"] and shot.ended == [True, True]
    texts = plain.texts + shot.texts
    assert told == list(zip(asked * 2, texts, [False, False, True, True], strict=True))
    assert shot.gold == [3.0, 4.0] and shot.mean("gold").mean == 3.5
    read = TOK.decode(shot.rollout.tokens[1, : shot.rollout.prompt_length])
    assert read.endswith(f"<s>Q?\nA.\n\n{asked[1].text}\n")


def test_answers_are_sampled_as_asked():
    model, asked = tiny.llama(), [tiny.prompt(i) for i in range(4)]

    def say(**options):
        return answer_all(model, TOK, lambda *row: None, asked, **options).texts

    prompts = [prompt.text for prompt in asked]
    assert say(seed=5) == generate(model, TOK, prompts, 48, seed=5).texts(TOK) != say()
    assert say(temperature=0) == generate(model, TOK, prompts, 48, 0).texts(TOK)


def answers(*texts: str, ended: list[bool]) -> Answers:
    prompts = [tiny.prompt(i) for i in range(len(texts))]
    return Answers(prompts, list(texts), ended, [], None)


def test_labelers_prefer_what_they_rank_first():
    class ByLength:
        """Labelers who like long answers, and those that were cut off least."""

        def group(self, name):
            assert name == "some"
            return ["Ann", "Bob", "Eve"]

        def rank(self, labeler, prompt, texts, ended, seed):
            seen.append((labeler, prompt.prompt_id, seed))
            worth = [len(text) - 100 * (not end) for text, end in zip(texts, ended, strict=True)]
            return [1 + sum(other > mine for other in worth) for mine in worth]

    seen: list = []
    ours = answers("long", "same", "short", "longest", ended=[True, True, True, False])
    theirs = answers("no", "same", "longer", "cut", ended=[True, True, True, True])
    found = labelers_prefer(ByLength(), ours, theirs, "some", seed=4)
    assert found.mean == (1 + 0.5 + 0 + 0) / 4
    assert [row[1:] for row in seen] == [(f"p{i}", 4) for i in range(4)]
    again, seen = seen, []
    labelers_prefer(ByLength(), ours, theirs, "some", seed=4)
    assert seen == again
    many = [answers(*["a"] * 60, ended=[True] * 60)] * 2
    labelers_prefer(ByLength(), *many, "some")
    assert {labeler for labeler, *_ in seen} == {"Ann", "Bob", "Eve"}


def test_reward_accuracy_by_hand():
    model, p = scalar_model_from(tiny.llama()), tiny.prompt(0)
    texts = ["Yes!", "wet", "The hen is old."]
    scores = score_answers(model, TOK, [p.text] * 3, texts)
    worst, middle, best = (texts[i] for i in scores.argsort())
    assert len(set(scores.tolist())) == 3

    def accuracy(answers, ranks):
        ranking = Ranking(p, answers, (True,) * len(ranks), ranks)
        return reward_accuracy(model, TOK, [ranking])

    assert accuracy((best, middle, worst), (1, 2, 3)) == [1.0]
    assert accuracy((worst, best, middle), (3, 1, 2)) == [1.0]
    assert accuracy((best, middle, worst), (3, 2, 1)) == [0.0]
    assert accuracy((best, middle, worst), (2, 1, 3)) == [pytest.approx(2 / 3)]
    assert accuracy((best, middle, worst), (1, 1, 2)) == [1.0]  # a tie is no pair
    assert accuracy((best, middle), (1, 1)) == []
    both = [Ranking(p, (best, worst), (True,) * 2, ranks) for ranks in ((1, 2), (2, 1))]
    assert reward_accuracy(model, TOK, both) == [1.0, 0.0]
    with torch.no_grad():
        scalar_head(model).weight.zero_()
    assert accuracy((best, middle, worst), (1, 2, 3)) == [0.5]  # equal scores are half right


def test_reward_accuracy_reads_an_answer_without_end_as_such():
    model, p = scalar_model_from(tiny.llama()), tiny.prompt(0)
    whole, cut = score_answers(model, TOK, [p.text] * 2, ["Yes!"] * 2, [True, False]).tolist()
    ranks = (1, 2) if whole > cut else (2, 1)
    ranking = Ranking(p, ("Yes!", "Yes!"), (True, False), ranks)
    assert whole != cut and reward_accuracy(model, TOK, [ranking]) == [1.0]


def test_completion_rate_by_hand():
    model = tiny.chain("x abx")  # after an x it writes " abx abx ab"
    items = [("Say x", "ab"), ("x", "a"), ("x", "b"), ("x", "abc")]
    assert completion_rate(model, TOK, items) == 0.5


def test_a_row_of_the_ladder_by_hand():
    whole = {"truthful": 1, "harmless": 0, "attempted": True, "evasive": False}
    verdicts = [
        SimpleNamespace(
            gold=g, helpful=g / 2, words=7 * g, flawless=g == 3, invents=g == 1, **whole
        )
        for g in (1, 3)
    ]
    found = row("SFT", Answers([], [], [], verdicts, None), kl=4.0)
    assert found == {
        "stage": "SFT",
        "gold": 2.0,
        "gold_low": 1.0,
        "gold_high": 3.0,
        "helpful": 1.0,
        "truthful": 1.0,
        "harmless": 0.0,
        "words": 14.0,
        "flawless": 0.5,
        "attempted": 1.0,
        "evasive": 0.0,
        "invents": 0.5,
        "kl": 4.0,
    }


# --- what the world's base model can ------------------------------------------------------------


def test_few_shot_prefix_is_the_template_with_blank_lines():
    assert few_shot_prefix([("Q?", "A."), ("R?", "B.")]) == "Q?\nA.\n\nR?\nB.\n\n"


def test_skills_ask_for_what_the_text_holds():
    world = World(3)
    for text, right in skill_items(world, "table", 20):
        name = text.split("\n")[-1].split(" | ")[0]
        assert right in [fact.value for fact in world.about(name)]
    for skill in ("story", "reading", "dictation"):  # to be copied from the text above
        for text, right in skill_items(world, skill, 20):
            assert right[:-1].lower() in text.lower(), (skill, text)
    assert all(right in "ABC" for _, right in skill_items(world, "quiz", 20))
    assert {right for _, right in skill_items(world, "homework", 40)} > {"right", "wrong"}


def test_base_model_knows_tables_and_asks_back(base):
    model, tokenizer = base
    world = World(0)
    found = skills(model, tokenizer, world, n=40)
    tables = skill_items(world, "table", 40)
    assert found["table"] == completion_rate(model, tokenizer, tables) > 0.8
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
