"""The labelling form: rank answers by mouse or keyboard."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets

from rlhf_edu.course.widgets import WIDE, Panel
from rlhf_edu.data import Ranking

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
