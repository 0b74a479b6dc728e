"""Widgets and live figures without a browser: set values, press buttons, read what is shown."""

import base64
import re

import matplotlib.pyplot as plt
import pytest
import tiny_models
import torch
from transformers import PreTrainedModel

from rlhf_edu.course import labelling, notebook
from rlhf_edu.course.checks import Check
from rlhf_edu.course.cost import CostCalculator
from rlhf_edu.course.labelling import LabelForm
from rlhf_edu.course.microscope import QUANTITIES, Microscope
from rlhf_edu.course.notebook import (
    Course,
    Live,
    LiveCurve,
    Progress,
    mine_or_ours,
    progress,
    show,
    start,
)
from rlhf_edu.course.talk import TalkToEveryStage
from rlhf_edu.data import Prompt, Ranking, read_rankings, to_json, to_ranking
from rlhf_edu.models import save_model, scalar_model_from

TOKENIZER = tiny_models.tokenizer()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list:
    """What stands below the cell, from top to bottom; an update takes its old place."""
    seen: list = []
    places: dict = {}

    def display(thing, display_id=None, update=False, raw=False, metadata=None) -> None:
        if update:
            seen[places[display_id]] = thing
        else:
            places[display_id] = len(seen)
            seen.append(thing)

    monkeypatch.setattr(notebook, "display", display)
    return seen


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> object:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base-1M", "sft-1M", "dpo-1M")):
        save_model(tiny_models.llama(seed), TOKENIZER, folder / name)
    reward = scalar_model_from(tiny_models.llama(0))
    save_model(reward, TOKENIZER, folder / "reward-model-1M")
    return folder


# --- the first cell ----------------------------------------------------------------------------


def test_start_says_where_we_are_and_seeds(capsys) -> None:
    course = start(seed=3)
    first = torch.rand(2)
    start(seed=3)
    assert torch.equal(first, torch.rand(2))
    assert capsys.readouterr().out == "tier tiny, seed 3, cpu, offline\n" * 2
    assert course.world.names("animal") and callable(course.judge)
    assert len(course.prompts(5)) == 5


@pytest.mark.parametrize("arguments", [{"tier": "huge"}, {"tier": "local"}, {"tier": "hub"}])
def test_start_explains_what_is_wrong(arguments: dict, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="tier"):
        start(**arguments)


def test_the_hub_and_a_folder_of_ones_own_use_the_gpu(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert repr(start(tier="hub")) == "tier hub, seed 0, cuda, online"
    assert start(tier="local", models=tmp_path).device.type == "cuda"
    assert start().device.type == "cpu"


def test_start_hides_the_error_of_a_widget_without_kernel(shown: list, monkeypatch) -> None:
    start()
    assert not shown  # outside a notebook
    monkeypatch.setattr(notebook, "get_ipython", lambda: True)
    start()
    (style,) = shown
    assert list(style) == ["text/html"]  # no words, so that stored outputs stay as they are
    assert ".jupyter-widgets {font-size: 0}" in style["text/html"]


def test_course_finds_models_by_short_and_long_names(models) -> None:
    course = Course("local", 0, torch.device("cpu"), models)
    assert course.folder("sft") == course.folder("sft-1M") == models / "sft-1M"
    assert course.has("base", "dpo") and not course.has("base", "ppo")
    assert isinstance(course.load("reward-model"), PreTrainedModel)
    assert course.load("reward-model").config.num_labels == 1
    assert course.load("base").config.vocab_size == 280
    assert course.tokenizer.eos_token_id == 2
    with pytest.raises(FileNotFoundError, match="no model called 'ppo'; there are: base-1M, dpo"):
        course.folder("ppo")


# --- figures -----------------------------------------------------------------------------------


def test_show_gives_words_picture_and_html(shown: list) -> None:
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    show(figure, 'rises from 1 to "2"', "a caption")
    bundle = shown[0]
    assert bundle["text/plain"] == 'rises from 1 to "2"\na caption'
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert '<img alt="rises from 1 to &quot;2&quot;"' in bundle["text/html"]
    assert not plt.fignum_exists(figure.number)


def test_show_wants_words() -> None:
    with pytest.raises(ValueError, match="say in `alt`"):
        show(plt.figure(), "  ")


def test_png_has_the_same_bytes_every_time() -> None:
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    assert notebook.png(figure) == notebook.png(figure)
    plt.close(figure)


# --- what the student writes -------------------------------------------------------------------


def test_a_student_s_function_is_used_once_it_is_right(capsys) -> None:
    def my_double(x):
        return x + x

    def my_stub(x):
        return ...

    check = Check(lambda x: 2 * x, [{"x": torch.tensor([1.0])}], {}, "right")
    assert mine_or_ours(my_double, check) is my_double
    assert mine_or_ours(my_stub, check) is check.right
    assert mine_or_ours(lambda x: x / 0, check) is check.right
    yours, *others = capsys.readouterr().out.splitlines()
    assert yours == "my_double: yours is used"
    assert others[0] == "my_stub: not solved yet, so rlhf_edu's own is used" and len(others) == 2


# --- bars and curves ---------------------------------------------------------------------------


def test_progress_goes_through_all_items_and_leaves_one_line(shown: list) -> None:
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert list(progress(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert shown == [{"text/plain": "counting: 3 steps"}, {"text/plain": "letters: 2 steps"}]


def test_progress_that_is_left_early_leaves_its_line(shown: list) -> None:
    for _ in progress(range(3), "counting"):
        (panel,) = shown
        assert isinstance(panel, Live)  # while it runs, something that moves
        assert panel._repr_mimebundle_()["text/plain"] == "counting: 3 steps"
        break
    assert shown == [{"text/plain": "counting: 3 steps"}]


def test_progress_is_a_callback(shown: list) -> None:
    bar = Progress(2, "SFT")
    bar({"loss": 1.0})
    assert shown == [bar.panel]
    bar({"loss": 0.5})
    assert shown == [{"text/plain": "SFT: 2 steps"}]
    assert bar.bar.value == 2 and bar.text.value.startswith("SFT: 2/2")


def test_live_curve_ends_with_a_figure_and_words(shown: list) -> None:
    live = LiveCurve(10, "PPO", digits=2, reward="score", kl="KL, nats")
    assert bytes(live._image.value[1:4]) == b"PNG"  # empty axes, no broken image
    assert repr(shown[0]) == "PPO: 10 steps"
    for i in range(10):
        live({"reward": i / 10, "kl": i, "other": "ignored"})
    live.finish()  # a second time does nothing
    # No widget stays: a saved notebook, opened again, would say "model not found" in its place.
    line, bundle = shown
    assert line == {"text/plain": "PPO: 10 steps"}
    wanted = "PPO, 10 steps: score goes from 0.05 to 0.85; KL, nats goes from 0.50 to 8.50."
    assert bundle["text/plain"] == wanted


def test_live_curve_in_words_alone(shown: list) -> None:
    live = LiveCurve(5, "PPO", digits=None, reward="score", loss="loss, nats")
    for i in range(5):
        live({"reward": i, "loss": -i})
    assert shown[1]["text/plain"] == "PPO, 5 steps: score rises; loss, nats falls."


def test_live_curve_stopped_early_shows_what_there_is(shown: list) -> None:
    live = LiveCurve(10, "PPO", digits=2, reward="score")
    live({"reward": 1.5})
    live.finish()
    assert shown[1]["text/plain"] == "PPO, 1 steps: score goes from 1.50 to 1.50."


def test_live_curve_wants_curves() -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        LiveCurve(3, "nothing")


# --- the microscope ----------------------------------------------------------------------------


def microscope(**options) -> Microscope:
    policy, reference = tiny_models.llama(0), tiny_models.llama(1)
    return Microscope(TOKENIZER, policy, reference, answer="The cat", **options)


def test_microscope_sees_every_token_and_quantity() -> None:
    critic = scalar_model_from(tiny_models.llama(2))
    scope = microscope(reward=lambda prompt, answer: 2.0, critic=critic, beta=0.1)
    slide = scope.look()
    assert "".join(slide.tokens[:-1]) == "The cat" and slide.tokens[-1] == "</s>"
    assert list(slide.numbers) == list(QUANTITIES)
    kl, reward = slide.numbers["KL"], slide.numbers["reward"]
    assert sum(reward) == pytest.approx(2.0 - 0.1 * sum(kl), abs=1e-4)
    for name in QUANTITIES:
        scope.quantity.value = name
        assert f"{name}: " in scope.page.value
        assert name in scope.words()


def test_microscope_of_a_model_and_itself_shows_no_kl() -> None:
    policy = tiny_models.llama(0)
    scope = Microscope(TOKENIZER, policy, policy, answer="The cat")
    assert scope.look().numbers["KL"] == pytest.approx([0.0] * len(scope.look().tokens))
    assert "KL adds up to +0.0" in repr(scope)


def test_microscope_says_that_it_has_no_critic() -> None:
    with_one = microscope(critic=scalar_model_from(tiny_models.llama(2)), quantity="value")
    without = microscope(quantity="value")
    assert "no critic" in without.page.value and "no critic" not in with_one.page.value
    without.quantity.value = "KL"
    assert "no critic" not in without.page.value


def test_microscope_answers_by_itself_and_on_the_button() -> None:
    policy = tiny_models.llama(0)
    scope = Microscope(TOKENIZER, policy, policy, prompt="Is the cat old?")
    first = scope.answer.value
    scope.answer.value = "<b>bold</b>"
    assert "&lt;" in scope.page.value and "<b>" not in scope.page.value
    scope.ask.click()
    assert scope.answer.value == first
    bundle = scope._repr_mimebundle_()
    assert bundle["text/plain"] == scope.words() and bundle["text/html"] == scope.page.value


def test_microscope_takes_a_reward_model_and_an_empty_answer() -> None:
    scope = microscope(reward=scalar_model_from(tiny_models.llama(3)), quantity="reward")
    scope.answer.value = ""
    assert scope.look().tokens == ["</s>"]


# --- talk to every stage -----------------------------------------------------------------------


def test_talk_lists_the_stages_that_are_there(models) -> None:
    talk = TalkToEveryStage(models, max_new_tokens=6)
    assert list(talk.answers()) == ["base", "SFT", "DPO"]
    rows = re.findall(r"<th[^>]*>(.*?)</th>", talk.page.value)
    assert rows == ["base", "SFT", "DPO"]
    assert repr(talk).splitlines()[0] == "> Where does the otter live?"
    assert len(repr(talk).splitlines()) == 4


def test_talk_answers_anew_when_something_changes(models) -> None:
    talk = TalkToEveryStage(models, max_new_tokens=6)
    first = talk.page.value
    for slider in (talk.temperature.min, talk.temperature.max):
        talk.temperature.value = slider
        assert len(talk.answers()) == 3
    at_seed_0 = talk.page.value
    talk.seed.value = 5
    assert talk.page.value != at_seed_0
    talk.seed.value, talk.temperature.value = 0, 0.0
    assert talk.page.value == first
    talk.prompt.value = ""
    assert talk.answers().keys() == {"base", "SFT", "DPO"}


def test_talk_without_stages_says_so(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no stage of size 1M"):
        TalkToEveryStage(tmp_path)


# --- the label form ----------------------------------------------------------------------------


def sheet() -> list[Ranking]:
    """Three prompts with four, two and three answers."""
    return [
        Ranking(Prompt(f"p{k}", "c", "chat", f"What <of> {k}?"), ("x", "y", "z", "w")[:k],
                (True,) * k, (1,) * k, sources=("sft",) * k)
        for k in (4, 2, 3)
    ]  # fmt: skip


def test_label_form_makes_rankings_by_mouse() -> None:
    form = LabelForm(sheet())
    assert form.rankings == [] and repr(form) == "Label form: 0 of 3 prompts ranked."
    assert "What &lt;of&gt; 4?" in form.page.value
    assert [card.layout.display for card in form.cards] == [None] * 4
    for card, rank in zip(form.cards, (2, 1, 4, 2), strict=True):
        form.submit.click()  # not before all are ranked
        assert form.rankings == [] and "give every answer a rank" in form.message.value
        card.rank.value = rank
    form.cards[1].rating.value = 7
    form.note.value = "y is right"
    form.submit.click()
    (made,) = form.rankings
    assert made.ranks == (2, 1, 4, 2) and made.labeler == "you" and made.sources == ("sft",) * 4
    assert form.labels[0].ratings == (None, 7, None, None) and form.labels[0].note == "y is right"
    assert form.bar.value == 1 and form.message.value == "1 of 3 ranked"
    assert [card.layout.display for card in form.cards] == [None, None, "none", "none"]
    assert form.note.value == "" and len(form.cards[1].rank.options) == 3
    # A box in which nothing is chosen says what it is for.
    assert {(c.rank.label, c.rating.label) for c in form.cards[:2]} == {("rank", "rating")}
    form.cards[0].rank.index = 1
    form.cards[0].rank.index = 0
    form.submit.click()  # a rank taken back is no rank
    assert len(form.rankings) == 1


def test_label_form_takes_digits_and_enter() -> None:
    form = LabelForm(sheet())
    for wrong in ("214", "2145", "21x3", "21435"):
        form.digits.value = wrong
        assert form.rankings == [] and "type 4 digits" in form.message.value
    for typed in ("2143", "1 1", "312"):
        form.digits.value = typed
        assert form.digits.value == ""
    assert [r.ranks for r in form.rankings] == [(2, 1, 4, 3), (1, 1), (3, 1, 2)]
    assert "Thank you: 3 of 3" in form.page.value and form.form.layout.display == "none"
    form.digits.value = "12"
    form.send()
    assert len(form.rankings) == 3


def test_label_form_goes_back_and_forgets() -> None:
    form = LabelForm(sheet())
    assert form.undo.disabled
    form.digits.value = "2143"
    form.skip.click()
    assert form.place == 2 and len(form.rankings) == 1
    form.undo.click()
    form.undo.click()
    assert form.place == 0 and form.rankings == [] and form.bar.value == 0
    # What was said still stands in the form, to be mended.
    assert [card.rank.value for card in form.cards] == [2, 1, 4, 3]
    form.cards[0].rank.value = 1
    form.submit.click()
    assert form.rankings[0].ranks == (1, 1, 4, 3)


def test_skipped_prompts_come_back_once_and_the_end_can_be_undone() -> None:
    form = LabelForm(sheet())
    form.skip.click()
    form.digits.value = "12"
    assert form.place == 2
    form.digits.value = "123"
    assert form.place == 0  # the one that was skipped
    form.skip.click()
    assert "2 of 3" in form.page.value and form.form.layout.display == "none"
    form.undo.click()
    assert form.place == 0 and form.form.layout.display is None
    form.digits.value = "1234"
    assert "3 of 3" in form.page.value and not form.undo.disabled
    for _ in range(5):
        form.undo.click()
    assert form.labels == {} and form.undo.disabled


def test_a_restart_loses_no_label(tmp_path) -> None:
    file = tmp_path / "labels.jsonl"
    form = LabelForm(sheet(), "Anna", file)
    assert not file.exists()
    form.cards[0].rating.value, form.note.value = 6, "good"
    form.digits.value = "2143"
    assert form.message.value == "1 of 3 ranked, kept in labels.jsonl"
    other = LabelForm(sheet(), "Ben", file)
    assert other.labels == {}
    other.digits.value = "1111"

    again = LabelForm(sheet(), "Anna", file)
    assert again.place == 1 and again.rankings == form.rankings and again.labels == form.labels
    again.digits.value = "21"
    assert [(row["labeler"], row["ranks"]) for row in labelling.load(file)] == [
        ("Ben", [1, 1, 1, 1]),
        ("Anna", [2, 1, 4, 3]),
        ("Anna", [2, 1]),
    ]
    for _ in range(2):
        again.undo.click()
    assert [r.labeler for r in read_rankings(file)] == ["Ben"]
    other.undo.click()
    assert not file.exists()


def test_a_label_that_cannot_be_kept_is_said(tmp_path) -> None:
    form = LabelForm(sheet(), file=tmp_path / "labels.jsonl")
    form.file.write_text("{}\n", encoding="utf-8")
    form.digits.value = "2143"
    assert "not kept: " in form.message.value and "line 1" in form.message.value
    assert form.file.read_text(encoding="utf-8") == "{}\n" and len(form.rankings) == 1
    with pytest.raises(ValueError, match="labels.jsonl, line 1"):
        LabelForm(sheet(), file=form.file)


def test_labels_of_a_class_are_merged_under_their_names(tmp_path) -> None:
    said = {"anna.jsonl": "1234", "ben/labels.jsonl": "2134", "cleo.jsonl": "4321"}
    for name, ranks in said.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        form = LabelForm(sheet(), file=tmp_path / name)
        for card in form.cards:
            card.rating.value = 2
        form.note.value = "hm" if name == "cleo.jsonl" else ""
        form.digits.value = ranks
    rows = labelling.merge([tmp_path / name for name in [*said, "anna.jsonl"]])
    assert [row["labeler"] for row in rows] == ["anna", "ben", "cleo"]
    rankings = [to_ranking(row) for row in rows]
    # Of six pairs anna and ben order five alike; cleo none as anna does, one as ben does.
    assert labelling.agreement(rankings) == pytest.approx([5 / 6, 0, 1 / 6])
    text = labelling.report(rows)
    assert text.startswith("3 labels by 3: anna, ben, cleo\nTwo people agree on 33% of pairs.")
    assert "3 labels with all ratings, 3 call every answer bad" in text
    assert text.endswith("cleo on 'What <of> 4?': hm")
    assert "ceiling of 91%" in labelling.report(rows[:2])
    assert "no agreement" in labelling.report(rows[:1])


@pytest.mark.parametrize("ratings", ["7", [1], [None, 8, 1, 1], [1.5, 1, 1, 1]])
def test_labels_with_wrong_ratings_are_named(tmp_path, ratings) -> None:
    row = to_json(sheet()[0]) | {"ratings": ratings}
    labelling.save(tmp_path / "x.jsonl", [row])
    with pytest.raises(ValueError, match="x.jsonl, label 1: give 4 ratings, 1 to 7 or null"):
        labelling.load(tmp_path / "x.jsonl")


def test_label_form_leaves_a_picture_where_no_kernel_runs() -> None:
    form = LabelForm(sheet())
    bundle = form._repr_mimebundle_()
    assert bundle["text/plain"] == form.words()
    assert "What &lt;of&gt; 4?" in bundle["text/html"] and "<b>D</b>" in bundle["text/html"]
    for typed in ("2143", "12", "312"):
        form.digits.value = typed
    assert "Thank you" in form._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("answers", [(), ("x",), tuple("abcdefghij")])
def test_label_form_wants_answers_to_compare(answers: tuple) -> None:
    k = len(answers)
    rows = [Ranking(Prompt("p", "c", "chat", "?"), answers, (True,) * k, (1,) * k)] if k else []
    with pytest.raises(ValueError, match="2 to 9 answers"):
        LabelForm(rows)


# --- the cost calculator -----------------------------------------------------------------------


def test_cost_calculator_gives_the_days_of_the_paper() -> None:
    costs = CostCalculator(gpus=8, peak=312, utilisation=100)
    # 3,640 petaflop/s-days on eight A100 at their dense peak.
    assert costs.days()["GPT-3, pretraining"] == pytest.approx(1458, abs=1)
    assert costs.days()["PPO-ptx"] == pytest.approx(24, abs=0.1)
    full = costs.days()["SFT"]
    costs.utilisation.value = 40
    assert costs.days()["SFT"] == pytest.approx(2.5 * full)
    assert costs.words().startswith("Cost calculator, 8 GPUs of 312 teraflop/s at 40 %: GPT-3")
    assert costs._repr_mimebundle_()["text/plain"] == repr(costs) == costs.words()


def test_cost_calculator_survives_the_ends_of_its_sliders() -> None:
    costs = CostCalculator()
    before = costs.page.value
    for slider in (costs.peak, costs.utilisation, costs.price):
        for end in (slider.min, slider.max):
            slider.value = end
            assert "PPO-ptx" in costs.page.value
            assert min(costs.days().values()) > 0
    for number in (costs.gpus.options[0], costs.gpus.options[-1]):
        costs.gpus.value = number
        assert f"{number} GPUs" in costs.words()
    assert costs.page.value != before
    costs.gpus.value, costs.utilisation.value, costs.peak.value = 1, 5, 10
    assert "years" in costs.words()
    costs.gpus.value, costs.utilisation.value, costs.peak.value = 4096, 100, 1000
    assert "hours" in costs.words()
