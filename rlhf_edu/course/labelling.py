"""The labelling form, to rank answers in by mouse or keyboard; and what a class does with labels.

    form = LabelForm(sheet, labeler="Anna")     # keeps every label in labels.jsonl
    rows = merge(["anna.jsonl", "ben/labels.jsonl"])
    print(report(rows))                         # agreement, ratings, notes
    train_reward(model, tokenizer, [to_ranking(row) for row in rows])

A row of such a file is a ranking as `rlhf_edu.data` reads and writes it, with the labeler's
ratings and note beside it.
"""

import html
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ipywidgets
from IPython import get_ipython

from rlhf_edu.course.editions import checkout
from rlhf_edu.course.widgets import WIDE, Panel
from rlhf_edu.data import Ranking, read_rankings, to_json, to_ranking
from rlhf_edu.files import write_text
from rlhf_edu.tinyweb.labelers import agreement_of, ceiling

Row = dict[str, Any]
NOBODY = "you"  # the name of a labeler who gave none
POOR = 3  # a rating up to this says that the answer is bad
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

    def __init__(
        self, sheet: Sequence[Ranking], labeler: str = NOBODY, file: str | Path | None = None
    ) -> None:
        """Show the first prompt of a sheet that is not ranked yet.

        Args:
            sheet: prompts with K answers each; ranks that are there already are not looked at.
            labeler: whose name the new rankings carry.
            file: where labels are kept, after each click; those of this sheet that are in it
                already are taken up again. None: in `labels.jsonl` beside the notebook, and
                nowhere in the course's own notebooks, which show the same at every run.

        Raises:
            ValueError: the sheet is empty, or a prompt has fewer than 2 or more than 9 answers;
                or the file is no file of labels.
        """
        if not sheet or not all(2 <= len(r.answers) <= MAX_ANSWERS for r in sheet):
            raise ValueError(f"LabelForm: give prompts with 2 to {MAX_ANSWERS} answers each")
        super().__init__()
        self.sheet, self.labeler = list(sheet), labeler
        self.file = Path(file) if file else _default_file()
        self.labels = self._stored()
        self.place = 0
        self.trail = sorted(self.labels)  # places sent or skipped, for undo
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
        self.skip.on_click(lambda _: self.leave())
        self.undo.on_click(lambda _: self.take_back())
        self._build([])
        buttons = ipywidgets.HBox([self.submit, self.skip, self.digits])
        answers = ipywidgets.HBox(self.cards, layout={"flex_flow": "row wrap"})
        progress = ipywidgets.HBox([self.bar, self.undo, self.message])
        self.form = ipywidgets.VBox([answers, self.note, buttons])
        self.children = [progress, self.page, self.form]
        self.go(self._next())

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
        self.digits.value = ""
        self._count()
        done = self.place == len(self.sheet)
        self.form.layout.display = "none" if done else None
        self.undo.disabled = not self.trail
        if not done:
            answers = self.sheet[self.place].answers
            blank = Label((None,) * len(answers), (None,) * len(answers))
            label = self.labels.get(self.place, blank)
            self.note.value = label.note
            for i, card in enumerate(self.cards):
                card.put(answers, label, i)
        self.refresh()

    def _next(self) -> int:
        """The first place that was neither ranked nor skipped; then those skipped once; the end."""
        for most in (0, 1):
            for place in range(len(self.sheet)):
                if place not in self.labels and self.trail.count(place) <= most:
                    return place
        return len(self.sheet)

    def leave(self) -> None:
        """Skip this prompt; it comes back once, after all others."""
        self.trail.append(self.place)
        self.go(self._next())

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
        self.trail.append(self.place)
        self.go(self._next())
        self._keep()

    def take_back(self) -> None:
        """Go back to the prompt before, and forget what was said of it; the form still shows it."""
        if self.trail:
            place = self.trail.pop()
            self.go(place)
            if self.labels.pop(place, None):
                self._count()
                self._keep()

    def _count(self) -> None:
        self.bar.value = len(self.labels)
        self.message.value = f"{len(self.labels)} of {len(self.sheet)} ranked"

    def _rows(self) -> list[Row]:
        """This form's labels as rows of its file."""
        said = [label for _, label in sorted(self.labels.items())]
        return [
            to_json(ranking) | {"ratings": list(label.ratings), "note": label.note}
            for ranking, label in zip(self.rankings, said, strict=True)
        ]

    def _stored(self) -> dict[int, Label]:
        """What the file has of this labeler and this sheet."""
        if not (self.file and self.file.exists()):
            return {}
        said = {_key(row): row for row in load(self.file)}
        keys = [_key(to_json(replace(r, labeler=self.labeler))) for r in self.sheet]
        return {i: _label(said[key]) for i, key in enumerate(keys) if key in said}

    def _keep(self) -> None:
        """Write the file anew, whole; rows of other people and sheets stay as they are."""
        if not self.file:
            return
        ours = {_key(to_json(replace(r, labeler=self.labeler))) for r in self.sheet}
        try:
            others = load(self.file) if self.file.exists() else []
            save(self.file, [row for row in others if _key(row) not in ours] + self._rows())
            self.message.value += f", kept in {self.file.name}"
        except (OSError, ValueError) as error:
            self.message.value = f"not kept: {error}"

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


# --- the labels of a class ---------------------------------------------------------------------


def _default_file() -> Path | None:
    course = get_ipython() is None or Path.cwd() == checkout() / "notebooks"
    return None if course else Path("labels.jsonl")


def _key(row: Row) -> tuple[Any, ...]:
    return row["labeler"], row["prompt"], *row["answers"]


def _label(row: Row) -> Label:
    return Label(tuple(row["ranks"]), tuple(row["ratings"]), row["note"])


def load(path: str | Path) -> list[Row]:
    """Read a file of labels; one of plain rankings will do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a line is no label; the message has file and line.
    """
    rankings = read_rankings(path)
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    for number, (row, ranking) in enumerate(zip(rows, rankings, strict=True), 1):
        k = len(ranking.answers)
        ratings = row.setdefault("ratings", [None] * k)
        fits = isinstance(ratings, list) and len(ratings) == k
        if not fits or not all(rating in (None, *range(1, 8)) for rating in ratings):
            raise ValueError(f"{path}, label {number}: give {k} ratings, 1 to 7 or null")
        row["note"] = str(row.get("note", ""))
    return rows


def save(path: str | Path, rows: Sequence[Row]) -> None:
    """Write a file of labels, all or nothing; without labels there is no file.

    Raises:
        OSError: it cannot be written.
    """
    if rows:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        Path(path).unlink(missing_ok=True)


def merge(files: Iterable[str | Path]) -> list[Row]:
    """The labels of many people. Who gave no name is called after the file, or after its folder.

    A person's second label of the same answers takes the place of the first. Errors as in `load`.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for path in map(Path, files):
        name = path.parent.name if path.stem == "labels" else path.stem
        for row in load(path):
            row = row | {"labeler": name or NOBODY} if row["labeler"] == NOBODY else row
            found[_key(row)] = row
    return list(found.values())


def agreement(rankings: Iterable[Ranking]) -> list[float]:
    """How often two people agree on the order of two answers; a share for each two and prompt.

    Pairs that either of them calls equal are left out, see `labelers.agreement_of`.
    """
    asked = defaultdict(list)
    for r in rankings:
        asked[r.prompt.text, r.answers].append(r.ranks)
    shares = []
    for ranked in asked.values():
        for one, other in itertools.combinations(ranked, 2):
            shares += agreement_of(one, other)
    return shares


def report(rows: Sequence[Row]) -> str:
    """What a class's labels say: who labelled, agreement, what ratings and notes add."""
    people = sorted({row["labeler"] for row in rows})
    shares = agreement(map(to_ranking, rows))
    lines = [f"{len(rows)} labels by {len(people)}: {', '.join(people)}"]
    if shares:
        a = fmean(shares)
        top = f"; that implies a ceiling of {ceiling(a):.0%}" if a >= 0.5 else ""
        lines.append(f"Two people agree on {a:.0%} of pairs{top}.")
    else:
        lines.append("No two people have ranked the same answers, so there is no agreement.")
    rated = [row for row in rows if None not in row["ratings"]]
    poor = [row for row in rated if max(row["ratings"]) <= POOR]
    if rated:
        lines.append(f"Of {len(rated)} labels with all ratings, {len(poor)} call every answer bad")
        lines[-1] += f" ({POOR} of 7 at best): there even rank 1 is no praise."
        lines += [f"  > {row['prompt']}" for row in poor]
    lines += [
        f"{row['labeler']} on {row['prompt']!r}: {row['note']}" for row in rows if row["note"]
    ]
    return "\n".join(lines)
