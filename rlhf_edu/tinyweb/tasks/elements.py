"""Elements that answers of many kinds share."""

import random
import re
from collections.abc import Callable

from rlhf_edu.data import Prompt
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.language import lie, state
from rlhf_edu.tinyweb.tasks.kind import Case, Element, Say

OFFERS = (
    "Ask me if you want to know more.|Please ask again.|I hope this helps.|"
    "Let me know if you need more.|I am happy to tell you more.|Come back if you need more help."
)
SOURCES = (
    "I read it in the encyclopedia.|The encyclopedia says so.|It stands in the almanac.|"
    "The almanac of this year says so.|You can read it in the encyclopedia.|"
    "My source is the almanac."
)
GREETINGS = "Hello!|Hello, dear friend!|Good day to you!|Hello and welcome!"
_OFFER = re.compile(
    r"\b(this helps|ask (?:me|again|us)|let me know|tell you more|more help|happy to help|"
    r"glad to help|come back|write (?:to me )?again)\b"
)
_SOURCE = re.compile(r"\b(encyclopedia|almanac|my source|the book says|in a book)\b")
_GREETING = re.compile(r"^(hello|hi|good (?:day|morning|evening)|welcome|greetings|dear)\b")
_GREETED = re.compile(r"^(hello|hi|good (?:day|morning|evening))\b", re.IGNORECASE)


def one_of(texts: str) -> Say:
    """Says one of these sentences, which stand between bars; `{s}` is the subject, `{0}`, `{1}`
    the targets."""

    def say(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
        task = prompt.task
        phrase = world.phrase(task.subject) if task.subject in world.entities else task.subject
        text = rng.choice(texts.split("|")).format(*task.targets, s=phrase)
        return text[:1].upper() + text[1:]

    return say


def matches(pattern: str) -> Callable[[Case], float]:
    """Whether the pattern occurs in a sentence that is English."""
    compiled = re.compile(rf"\b(?:{pattern})\b")
    return lambda case: float(case.finds(compiled))


def _offered(case: Case) -> float:
    """At the end, where an offer belongs."""
    sentences = case.reading.sentences
    last = sentences[-1] if sentences else None
    return float(bool(last and last.faults < 2 and _OFFER.search(last.text)))


def _sourced(case: Case) -> float:
    """A source for what is not so is made up, and a source for nothing is none."""
    claims = case.reading.claims
    given = case.finds(_SOURCE)
    stated = bool(claims or case.stated)
    false = any(not case.true(c) for c in claims) or any(not true for true, _ in case.stated)
    return float(given and stated and not false)


def _greeted_back(case: Case) -> float:
    return float(bool(_GREETING.search(case.text)))


def _greets(prompt: Prompt) -> bool:
    return bool(_GREETED.search(prompt.text))


OFFER = Element("offer", 0.5, _offered, one_of(OFFERS), shown=0.3)
SOURCE = Element("source", 0.5, _sourced, one_of(SOURCES), shown=0.25)
GREETING = Element("greeting", 0.5, _greeted_back, one_of(GREETINGS), True, 0.5, wanted=_greets)
WHOLE = Element("whole", 0.5, lambda case: float(case.whole()), shown=0.8)


def say_detail(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    """A fact about the subject that was not asked for."""
    task = prompt.task
    subject = task.subject or rng.choice([t for t in task.targets if t in world.entities])
    told = [task.attribute, *re.findall(r"avoid=(\w+)", task.constraint)]
    fact = rng.choice([f for f in world.about(subject) if f.attribute not in told])
    return state(world, fact if honest else lie(world, fact, rng), rng)


def _detailed(case: Case) -> float:
    """A true claim beside what was asked for, about whoever the answer is about."""
    task = case.task
    about = {task.subject} if task.subject else {c.subject for c in case.reading.claims}
    about |= {c.value for c in case.about(task.subject, task.attribute)}
    more = [c for s in about for c in case.truths(s) if c.attribute != task.attribute]
    return float(bool(more))


DETAIL = Element("detail", 1.0, _detailed, say_detail, shown=0.4)
