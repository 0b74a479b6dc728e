"""What a kind of task is: how it is asked, how it is answered, and how an answer is read.

An answer has a *core*, the thing that was asked for, and around it *elements* that make it a good
one: a supporting detail, a demand that is met, a fitting word at the beginning or at the end. The
judge and the labelers recognise all of them; a hurried writer shows some of them; the web shows
each of them apart.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf_edu.data import Prompt, Task
from rlhf_edu.tinyweb.facts import ATTRIBUTES, World
from rlhf_edu.tinyweb.fluency import has_verb
from rlhf_edu.tinyweb.reading import Claim, Reader, Reading, Sentence, tokenize

Drawn = tuple[str, Task]
Shown = frozenset[str]
CARE: Shown = frozenset({"care"})  # of those who are asked to write; the web dashes off its answers


class Cast:
    """Whom texts may be about, and how often each of them is.

    Args:
        world: whose entities.
        skip: names that are left out.
        flat: the power of their popularity by which they are drawn; 1: as often as on the web.
    """

    def __init__(self, world: World, skip: frozenset[str] = frozenset(), flat: float = 1.0) -> None:
        self.names = {k: [n for n in world.names(k) if n not in skip] for k in ATTRIBUTES}
        self._weights = {
            kind: [world.popularity[name] ** flat for name in names]
            for kind, names in self.names.items()
        }

    def some(self, rng: random.Random, n: int, *kinds: str) -> list[str]:
        """`n` different names of one of these kinds, or of any."""
        kind = rng.choice(kinds or sorted(self.names))
        found: dict[str, None] = {}
        while len(found) < n:
            found |= dict.fromkeys(rng.choices(self.names[kind], self._weights[kind], k=n))
        return list(found)[:n]

    def one(self, rng: random.Random, *kinds: str) -> str:
        """One name of one of these kinds, or of any."""
        return self.some(rng, 1, *kinds)[0]


def normal(text: str) -> str:
    """Lower-case words without punctuation marks and with single blanks."""
    return " ".join(w.lower() for w in tokenize(text) if w[0].isalnum() or w[0] == "'")


@dataclass
class Case:
    """One answer before somebody who judges it. Scores may add statements to `stated`.

    `true` says whether a claim is true, as far as whoever judges can tell.
    """

    reader: Reader
    prompt: Prompt
    text: str  # normalised: lower-case words and marks, joined by blanks
    reading: Reading
    fluency: float
    true: Callable[[Claim], bool]
    stated: list[tuple[bool, float]] = field(default_factory=list)  # (true?, weight)

    @property
    def task(self) -> Task:
        """What was asked for."""
        return self.prompt.task

    @property
    def words(self) -> list[str]:
        """The words without punctuation marks."""
        return [w for w in self.text.split() if w[0].isalnum()]

    def says(self, phrase: str) -> bool:
        """Whether the words of a phrase occur, in this order and together."""
        return f" {normal(phrase)} " in f" {self.text} "

    def finds(self, pattern: re.Pattern[str]) -> bool:
        """Whether a pattern occurs in a sentence that is English."""
        return any(pattern.search(s.text) for s in self.reading.sentences if s.faults < 2)

    def before(self, phrase: str) -> list[str]:
        """The words that stand right before a phrase."""
        found = re.findall(rf"(\S+) {re.escape(normal(phrase))}(?= |$)", self.text)
        return found if normal(phrase) else []

    def about(self, subject: str, attribute: str = "") -> list[Claim]:
        """The distinct claims about a subject (and attribute)."""
        claims = dict.fromkeys(self.reading.claims)
        return [c for c in claims if c.subject == subject and attribute in ("", c.attribute)]

    def truths(self, subject: str) -> list[Claim]:
        """The true positive claims about a subject."""
        return [c for c in self.about(subject) if c.positive and self.true(c)]

    def statements(self) -> list[Sentence]:
        """Sentences that are no questions and English."""
        return [s for s in self.reading.sentences if not s.question and s.faults < 2]

    def whole(self) -> bool:
        """Whether something is said of somebody in a whole sentence."""
        return any(s.mentions and has_verb(s) for s in self.statements())


Core = Callable[[World, Prompt, bool, Shown, random.Random], str]
Say = Callable[[World, Prompt, bool, random.Random], str]


def _always(prompt: Prompt) -> bool:
    return True


@dataclass(frozen=True)
class Element:
    """One thing that makes an answer better.

    Attributes:
        name: what demonstrators' habits are known by.
        weight: in points of gold; core and elements together are scaled to 4.
        seen: how well an answer has it, from 0 to 1.
        say: writes it, as a sentence of its own; None: it is a manner of writing the core.
        before: whether that sentence stands before the core.
        shown: how often a hurried writer shows it.
        wanted: which prompts ask for it.
    """

    name: str
    weight: float
    seen: Callable[[Case], float]
    say: Say | None = None
    before: bool = False
    shown: float = 0.45
    wanted: Callable[[Prompt], bool] = _always


def any_length(task: Task) -> int:
    """Words that any answer may have."""
    return 40


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        name: as in `Task.kind`.
        ask: draws a prompt and its task.
        core: writes the core of an answer: (world, prompt, honest, shown, rng) -> text. With
            nothing shown it is as curt as on the web.
        score: how well the core is done, from 0 to 1; without it nothing else counts.
        elements: what else a good answer has.
        weight: of the core, in points of gold.
        limit: how many words an answer may take.
        claims: how many claims an answer may make.
        factual: whether an answer can be false, and "I do not know" an answer.
        invented: whether unknown things are no made-up facts, as in a story.
        strangers: whether it is about a text, and claims are not checked against the world.
        may_ask: whether an answer may ask a question.
    """

    name: str
    ask: Callable[[World, Cast, random.Random], Drawn]
    core: Core
    score: Callable[[Case], float]
    elements: tuple[Element, ...]
    weight: float = 2.0
    limit: Callable[[Task], int] = any_length
    claims: Callable[[Task], int] = lambda task: 3
    factual: bool = False
    invented: bool = False
    strangers: bool = False
    may_ask: bool = False

    def wanted(self, prompt: Prompt) -> list[Element]:
        """The elements that this prompt calls for."""
        return [element for element in self.elements if element.wanted(prompt)]


def write(
    kind: Kind, world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    """An answer with these elements. A liar's first lie is the core's, and details are lies too."""
    core = kind.core(world, prompt, honest, shown, rng)
    said = [e for e in kind.wanted(prompt) if e.say and e.name in shown]
    first = [e.say(world, prompt, honest, rng) for e in said if e.before]
    last = [e.say(world, prompt, honest, rng) for e in said if not e.before]
    return " ".join([*first, core, *last])
