"""Small things to click: a token microscope, a prompt box for every stage, a label form, a bill.

Each is an ipywidgets box whose parts can be set from Python (`.prompt.value = "…"`), so that it
can be tested and scripted without a browser. Where no kernel runs, on GitHub or in an exported
page, the picture it last made stays behind as plain HTML and as one line of text.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ipywidgets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.data import Ranking
from rlhf_edu.generation import generate
from rlhf_edu.losses import gae, shaped_rewards
from rlhf_edu.models import (
    Sequences,
    encode_answer,
    encode_prompt,
    join,
    load_policy,
    load_tokenizer,
    response_logprobs,
    scores,
    values,
)

# Two hues that people with any colour vision can tell apart, and white for zero.
HIGH, LOW = (213, 94, 0), (0, 114, 178)
WIDE = {"width": "640px"}


class Panel(ipywidgets.VBox):
    """A box of controls above one HTML view, with a stable text for those who only see text.

    Subclasses make `controls`, then call `_build(controls)`, and define `view()` and `words()`.
    """

    def _build(self, controls: Sequence[ipywidgets.Widget]) -> None:
        self.page = ipywidgets.HTML(self.view())
        self.children = [*controls, self.page]

    def refresh(self, _change: Any = None) -> None:
        """Compute and draw again; what the controls call when they change."""
        self.page.value = self.view()

    def view(self) -> str:
        """The HTML below the controls."""
        raise NotImplementedError

    def words(self) -> str:
        """What the view says, in a sentence."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.words()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        return {**bundle, "text/plain": self.words(), "text/html": self.page.value}


# --- the microscope ----------------------------------------------------------------------------

QUANTITIES = {
    "log-prob": "log-probability under the policy, nats",
    "KL": "log(policy / reference), nats",
    "reward": "reward of the token: -beta KL, and the score at the end",
    "value": "what the critic expected before the token",
    "advantage": "better (+) or worse (-) than expected",
}


@dataclass(frozen=True)
class Slide:
    """What the microscope sees: R tokens of an answer, and R numbers for each quantity."""

    tokens: list[str]
    numbers: dict[str, list[float]]


class Microscope(Panel):
    """A prompt and an answer, token by token, under two models.

    Colours show the chosen quantity: orange above zero, blue below. Without a reward model the
    score is 0, without a critic all values are; a function (prompt, answer) -> float will do for
    a reward model.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        reward: PreTrainedModel | Callable[[str, str], float] | None = None,
        critic: PreTrainedModel | None = None,
        prompt: str = "Where does the otter live?",
        answer: str | None = None,
        beta: float = 0.05,
        quantity: str = "KL",
    ) -> None:
        """Put an answer under the microscope; None: the likeliest answer of the policy."""
        super().__init__()
        self.tokenizer, self.policy, self.reference = tokenizer, policy, reference
        self.reward, self.critic, self.beta = reward, critic, beta
        self.prompt = ipywidgets.Text(prompt, description="prompt", layout=WIDE)
        # An answer may have several lines.
        self.answer = ipywidgets.Textarea(
            self._answer(prompt) if answer is None else answer,
            description="answer",
            rows=2,
            layout=WIDE,
        )
        self.quantity = ipywidgets.ToggleButtons(
            options=list(QUANTITIES), value=quantity, style={"button_width": "90px"}
        )
        self.ask = ipywidgets.Button(description="let the policy answer", layout={"width": "180px"})
        self._build([self.prompt, ipywidgets.HBox([self.answer, self.ask]), self.quantity])
        for control in (self.prompt, self.answer, self.quantity):
            control.observe(self.refresh, "value")
        self.ask.on_click(self._on_ask)

    def _answer(self, prompt: str) -> str:
        rollout = generate(self.policy, self.tokenizer, [prompt], temperature=0)
        return rollout.texts(self.tokenizer)[0]

    def _on_ask(self, _button: Any) -> None:
        self.answer.value = self._answer(self.prompt.value)

    @torch.no_grad()
    def look(self) -> Slide:
        """Every quantity of every token of the answer, its end-of-text included."""
        ids = encode_answer(self.tokenizer, self.answer.value)
        row = join([encode_prompt(self.tokenizer, self.prompt.value)], [ids], 0)
        row = row.to(self.policy.device)
        logprobs = response_logprobs(self.policy, row)
        kl = logprobs - response_logprobs(self.reference, row)
        score = torch.tensor([self._score(row)], device=row.tokens.device)
        rewards = shaped_rewards(score, logprobs, logprobs - kl, row.mask, self.beta)
        before = torch.zeros_like(logprobs) if self.critic is None else self._values(row)
        advantages, _ = gae(rewards, before, row.mask)
        found = (logprobs, kl, rewards, before, advantages)
        numbers = {name: x[0].tolist() for name, x in zip(QUANTITIES, found, strict=True)}
        return Slide([self.tokenizer.decode([i]) for i in ids], numbers)

    def _score(self, row: Sequences) -> float:
        if self.reward is None:
            return 0.0
        if isinstance(self.reward, PreTrainedModel):
            return scores(self.reward, row.tokens, row.attention_mask).item()
        return float(self.reward(self.prompt.value, self.answer.value))

    def _values(self, row: Sequences) -> torch.Tensor:
        after = values(self.critic, row.tokens, row.attention_mask)
        return after[:, row.prompt_length - 1 : -1]

    def view(self) -> str:
        """The tokens in colour, each with its number below."""
        slide, name = self.look(), self.quantity.value
        numbers = slide.numbers[name]
        largest = max(max(map(abs, numbers)), 1e-9)
        cells = "".join(
            _cell(token, number, largest)
            for token, number in zip(slide.tokens, numbers, strict=True)
        )
        prompt = f"<div><i>{html.escape(self.prompt.value)}</i></div>"
        caption = f"{name}: {QUANTITIES[name]}; sum {_signed(sum(numbers))}"
        if self.critic is None and name in ("value", "advantage"):
            caption += " (no critic was given: every value is 0)"
        return f"<div>{prompt}<div>{cells}</div><div>{html.escape(caption)}</div></div>"

    def words(self) -> str:
        """The chosen quantity in a sentence."""
        slide, name = self.look(), self.quantity.value
        total = _signed(sum(slide.numbers[name]), 1)
        tokens = f"{len(slide.tokens)} tokens of {self.answer.value!r}"
        return f"Microscope, {tokens}: {name} adds up to {total}."


def _signed(number: float, digits: int = 2) -> str:
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def _cell(token: str, number: float, largest: float) -> str:
    """One token on its colour, and its number."""
    strength = min(1.0, abs(number) / largest) * 0.75
    hue = HIGH if number > 0 else LOW
    colour = ",".join(str(round(255 - strength * (255 - part))) for part in hue)
    text = html.escape(token).replace("\n", "↵").replace(" ", "&nbsp;") or "&nbsp;"
    return (
        '<span style="display:inline-block;text-align:center;margin:1px">'
        f'<span style="display:block;background:rgb({colour});color:black;padding:2px 3px;'
        f'font-family:monospace">{text}</span><small>{_signed(number)}</small></span>'
    )


# --- talk to every stage -----------------------------------------------------------------------

STAGES = {
    "base": "base",
    "SFT": "sft",
    "PPO": "ppo",
    "PPO-ptx": "ppo-ptx",
    "DPO": "dpo",
}


class TalkToEveryStage(Panel):
    """Type a prompt, and read the answers of all stages that have been built, side by side."""

    def __init__(
        self,
        models: str | Path,
        prompt: str = "Where does the otter live?",
        size: str = "1M",
        max_new_tokens: int = 48,
        seed: int = 0,
    ) -> None:
        """Load the stages in a folder such as `data/models`.

        Raises:
            FileNotFoundError: the folder has no stage of this size.
        """
        super().__init__()
        folders = {name: Path(models) / f"{stage}-{size}" for name, stage in STAGES.items()}
        there = {name: f for name, f in folders.items() if (f / "config.json").is_file()}
        if not there:
            raise FileNotFoundError(f"no stage of size {size} to talk to in {Path(models).name}/")
        self.loaded = {name: (load_policy(f), load_tokenizer(f)) for name, f in there.items()}
        self.max_new_tokens = max_new_tokens
        self.prompt = ipywidgets.Text(prompt, description="prompt", layout=WIDE)
        self.temperature = ipywidgets.FloatSlider(
            value=0.0,
            min=0.0,
            max=1.5,
            step=0.1,
            description="temperature",
            style={"description_width": "initial"},  # the word is wider than the default
        )
        self.seed = ipywidgets.BoundedIntText(seed, min=0, max=9999, description="seed")
        for control in (self.prompt, self.temperature, self.seed):
            control.observe(self.refresh, "value")
        # The prompt is answered when Enter is pressed, not at every letter.
        self.prompt.continuous_update = self.temperature.continuous_update = False
        self._asked: tuple | None = None
        self._build([self.prompt, ipywidgets.HBox([self.temperature, self.seed])])

    def answers(self) -> dict[str, str]:
        """The answer of each stage to the prompt, at this temperature and seed."""
        asked = (self.prompt.value, self.temperature.value, self.seed.value)
        if asked != self._asked:
            self._asked, self._said = asked, self._ask(*asked)
        return self._said

    def _ask(self, prompt: str, temperature: float, seed: int) -> dict[str, str]:
        said = {}
        for name, (model, tokenizer) in self.loaded.items():
            rollout = generate(
                model, tokenizer, [prompt], self.max_new_tokens, round(temperature, 2), seed
            )
            text = rollout.texts(tokenizer)[0].strip()
            said[name] = text if rollout.ended[0] else f"{text} …"
        return said

    def view(self) -> str:
        """The answers as a table, one row a stage."""
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top;padding:4px 12px 4px 0">{name}</th>'
            f'<td style="text-align:left;padding:4px">'
            f"{html.escape(text).replace(chr(10), '<br>')}</td></tr>"
            for name, text in self.answers().items()
        )
        return f'<table style="max-width:760px">{rows}</table>'

    def words(self) -> str:
        """The answers as lines of text."""
        lines = [f"{name:>8}  {' / '.join(t.split(chr(10)))}" for name, t in self.answers().items()]
        return "\n".join([f"> {self.prompt.value}", *lines])


# --- the label form ----------------------------------------------------------------------------

CARD = {"width": "230px", "border": "1px solid #bbb", "padding": "6px", "margin": "3px"}
MAX_ANSWERS = 9


@dataclass(frozen=True)
class Label:
    """What a person has said of the answers to one prompt.

    Attributes:
        ranks: one for each answer, 1 the best; equal ranks are ties. None: not ranked yet.
        ratings: one for each answer, 1 to 7, or None where none was given.
        note: anything worth telling the researchers.
    """

    ranks: tuple[int | None, ...]
    ratings: tuple[int | None, ...]
    note: str = ""


class LabelForm(Panel):
    """A form to rank answers in: side by side, with ratings, notes, progress and undo.

    Without a mouse: type the ranks of the answers as digits (`2143`: B is best, then A, D and C;
    equal digits are ties) and press Enter. What has been said is in `labels`, by place in the
    sheet, and in `rankings`, ready for `train_reward`.
    """

    def __init__(self, sheet: Sequence[Ranking], labeler: str = "you") -> None:
        """Show the first prompt of a sheet.

        Args:
            sheet: prompts with K answers each; ranks that are there already are not looked at.
            labeler: whose name the new rankings carry.

        Raises:
            ValueError: the sheet is empty, or a prompt has fewer than 2 or more than 9 answers.
        """
        if not sheet or not all(2 <= len(r.answers) <= MAX_ANSWERS for r in sheet):
            raise ValueError(f"LabelForm: give prompts with 2 to {MAX_ANSWERS} answers each")
        super().__init__()
        self.sheet, self.labeler = list(sheet), labeler
        self.labels: dict[int, Label] = {}
        self.place = 0
        self.cards = [_AnswerCard(i) for i in range(max(len(r.answers) for r in sheet))]
        self.bar = ipywidgets.IntProgress(max=len(sheet), layout={"width": "300px"})
        self.note = ipywidgets.Text(description="note", layout=WIDE)
        self.digits = ipywidgets.Text(
            description="ranks", placeholder="such as 2143, then Enter", continuous_update=False
        )
        self.digits.observe(self._on_digits, "value")
        self.message = ipywidgets.Label()
        self.submit, self.skip, self.undo = (
            ipywidgets.Button(description=words, layout={"width": "110px"})
            for words in ("submit", "skip", "undo")
        )
        self.submit.on_click(lambda _: self.send())
        self.skip.on_click(lambda _: self.go(self.place + 1))
        self.undo.on_click(lambda _: self.take_back())
        self._build([])
        buttons = ipywidgets.HBox([self.submit, self.skip, self.undo, self.digits])
        answers = ipywidgets.HBox(self.cards, layout={"flex_flow": "row wrap"})
        progress = ipywidgets.HBox([self.bar, self.message])
        self.form = ipywidgets.VBox([answers, self.note, buttons])
        self.children = [progress, self.page, self.form]
        self.go(0)

    @property
    def rankings(self) -> list[Ranking]:
        """The prompts ranked so far, in the order of the sheet."""
        return [
            replace(self.sheet[i], ranks=label.ranks, labeler=self.labeler)
            for i, label in sorted(self.labels.items())
        ]

    def go(self, place: int) -> None:
        """Turn to a place in the sheet; what was said of it before stands there again."""
        self.place = max(0, min(place, len(self.sheet)))
        self.digits.value, self.bar.value = "", len(self.labels)
        self.message.value = f"{len(self.labels)} of {len(self.sheet)} ranked"
        done = self.place == len(self.sheet)
        self.form.layout.display = "none" if done else None
        self.undo.disabled = self.place == 0
        if not done:
            answers = self.sheet[self.place].answers
            blank = Label((None,) * len(answers), (None,) * len(answers))
            label = self.labels.get(self.place, blank)
            self.note.value = label.note
            for i, card in enumerate(self.cards):
                card.put(answers, label, i)
        self.refresh()

    def send(self) -> None:
        """Keep what the form says of this prompt, once all ranks are given, and go on."""
        if self.place == len(self.sheet):
            return
        cards = self.cards[: len(self.sheet[self.place].answers)]
        ranks, ratings = (tuple(c.rank.value for c in cards), tuple(c.rating.value for c in cards))
        if None in ranks:
            self.message.value = "give every answer a rank, 1 for the best; equal ranks are ties"
            return
        self.labels[self.place] = Label(ranks, ratings, self.note.value)
        self.go(self.place + 1)

    def take_back(self) -> None:
        """Go back to the prompt before, and forget what was said of it; the form still shows it."""
        if self.place:
            self.go(self.place - 1)
            self.labels.pop(self.place, None)
            self.bar.value = len(self.labels)
            self.message.value = f"{len(self.labels)} of {len(self.sheet)} ranked"

    def _on_digits(self, change: Any) -> None:
        typed = change["new"].replace(" ", "")
        if not typed or self.place == len(self.sheet):
            return
        k = len(self.sheet[self.place].answers)
        if len(typed) != k or not all(letter in "123456789"[:k] for letter in typed):
            self.message.value = f"type {k} digits from 1 to {k}: a rank for each answer, 1 = best"
            return
        for card, letter in zip(self.cards, typed, strict=False):
            card.rank.value = int(letter)
        self.send()

    def view(self) -> str:
        """The prompt, or at the end of the sheet a word of thanks."""
        if self.place == len(self.sheet):
            return f"<p>Thank you: {len(self.labels)} of {len(self.sheet)} prompts are ranked.</p>"
        return (
            '<p style="font-size:110%;margin:8px 4px"><b>'
            f"{html.escape(self.sheet[self.place].prompt.text)}</b></p>"
        )

    def picture(self) -> str:
        """The form as plain HTML, for pages where no kernel runs."""
        if self.place == len(self.sheet):
            return self.view()
        cells = "".join(
            f'<td style="border:1px solid #bbb;padding:6px;text-align:left;vertical-align:top;'
            f'width:170px">{card.text.value}</td>'
            for card in self.cards[: len(self.sheet[self.place].answers)]
        )
        return f"{self.view()}<table><tr>{cells}</tr></table><p>{html.escape(self.words())}</p>"

    def words(self) -> str:
        """How far the sheet has been filled in."""
        return f"Label form: {len(self.labels)} of {len(self.sheet)} prompts ranked."

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {**super()._repr_mimebundle_(**options), "text/html": self.picture()}


class _AnswerCard(ipywidgets.VBox):
    """One answer of a label form: its letter and text, its rank and its rating."""

    def __init__(self, i: int) -> None:
        self.letter = "ABCDEFGHI"[i]
        self.text = ipywidgets.HTML(layout={"min_height": "90px"})
        self.rank = ipywidgets.Dropdown(options=[("rank", None)], layout={"width": "130px"})
        ratings = [("rating", None), *((f"{n} of 7", n) for n in range(7, 0, -1))]
        self.rating = ipywidgets.Dropdown(options=ratings, layout={"width": "130px"})
        super().__init__([self.text, self.rank, self.rating], layout=CARD)

    def put(self, answers: Sequence[str], label: Label, i: int) -> None:
        """Show the i-th answer, or nothing if there are fewer."""
        self.layout.display = None if i < len(answers) else "none"
        if i < len(answers):
            said = html.escape(answers[i]).replace("\n", "<br>") or "<i>(nothing)</i>"
            self.text.value = f"<b>{self.letter}</b><br>{said}"
            places = [(f"rank {n}", n) for n in range(1, len(answers) + 1)]
            self.rank.options = [("rank", None), *places]
            for box, given in ((self.rank, label.ranks[i]), (self.rating, label.ratings[i])):
                box.value = given
                if given is None:
                    box.index = 0  # or the box would be blank, without its word "rank"


# --- what it costs -----------------------------------------------------------------------------

# Petaflop/s-days of three trainings (InstructGPT, 5.1), all 175B.
WORK = {"GPT-3, pretraining": 3640.0, "PPO-ptx": 60.0, "SFT": 4.9}


def days(petaflop_s_days: float, gpus: int, peak_teraflops: float, utilisation: float) -> float:
    """Days that a training takes on so many GPUs, each at a share of its peak."""
    return petaflop_s_days * 1000 / (gpus * peak_teraflops * utilisation)


class CostCalculator(Panel):
    """From petaflop/s-days to days and money: sliders for the machine, a table of three trainings.

    The default is a node of eight A100, whose dense 16-bit peak is 312 teraflop/s each.
    """

    def __init__(self, gpus: int = 8, peak: int = 312, utilisation: int = 40) -> None:
        super().__init__()
        wide = {"style": {"description_width": "170px"}, "layout": {"width": "520px"}}
        self.gpus = ipywidgets.SelectionSlider(
            options=[1, 2, 4, 8, 16, 64, 256, 1024, 4096], value=gpus, description="GPUs", **wide
        )
        self.peak = ipywidgets.IntSlider(
            peak, min=10, max=1000, description="peak of one, teraflop/s", **wide
        )
        self.utilisation = ipywidgets.IntSlider(
            utilisation, min=5, max=100, step=5, description="utilisation, %", **wide
        )
        self.price = ipywidgets.FloatSlider(
            value=2.0, min=0.0, max=10.0, step=0.5, description="a GPU-hour, $ (a guess)", **wide
        )
        controls = [self.gpus, self.peak, self.utilisation, self.price]
        for control in controls:
            control.observe(self.refresh, "value")
        self._build(controls)

    def days(self) -> dict[str, float]:
        """Days of each training on this machine."""
        machine = self.gpus.value, self.peak.value, self.utilisation.value / 100
        return {name: days(work, *machine) for name, work in WORK.items()}

    def view(self) -> str:
        """A table with a bar for the days of each training."""
        found, rows = self.days(), ""
        longest = max(found.values())
        for name, number in found.items():
            gpu_days = number * self.gpus.value
            cells = (name, f"{WORK[name]:,.1f}", _days(number), f"{gpu_days:,.0f}")
            cells += (f"{gpu_days * 24 * self.price.value:,.0f}",)
            width = max(1, round(200 * number / longest))
            bar = f'<div style="background:rgb(0,114,178);height:12px;width:{width}px"></div>'
            rows += "<tr>" + "".join(f"{_CELL}{text}</td>" for text in cells) + f"<td>{bar}</td>"
            rows += "</tr>"
        titles = ("training", "petaflop/s-days", "time here", "GPU-days", "dollars")
        head = "".join(f"{_CELL}<b>{title}</b></td>" for title in titles)
        return f"<table><tr>{head}</tr>{rows}</table>"

    def words(self) -> str:
        """The times in a sentence."""
        times = ", ".join(f"{name} {_days(number)}" for name, number in self.days().items())
        machine = f"{self.gpus.value} GPUs of {self.peak.value} teraflop/s"
        return f"Cost calculator, {machine} at {self.utilisation.value} %: {times}."


_CELL = '<td style="text-align:left;padding:2px 12px 2px 0">'


def _days(number: float) -> str:
    """Days as people would say them."""
    if number >= 730:
        return f"{number / 365:,.1f} years"
    return f"{number:,.1f} days" if number >= 2 else f"{number * 24:,.1f} hours"
