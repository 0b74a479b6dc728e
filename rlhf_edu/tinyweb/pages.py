"""The web of the tiny world: what the base model reads.

Nothing here is marked as an instruction and nobody is an assistant. Pages are what people put on
a web: an encyclopedia, exam sheets with questions and no answers, quizzes, forum threads whose
replies are curt, wrong, rude or evasive, stories, reviews, tables. What makes a good answer stands
here too, each thing apart and never all together. A model that continues such pages faithfully is
a good language model, and a bad assistant.
"""

import random
from collections.abc import Callable
from functools import lru_cache

from rlhf_edu.data import Prompt
from rlhf_edu.tinyweb.facts import ATTRIBUTES, Fact, World
from rlhf_edu.tinyweb.language import ask, lie, predicate, sentence, series, state, state_all
from rlhf_edu.tinyweb.prompts import USE_CASES, draw_task
from rlhf_edu.tinyweb.tasks import KINDS
from rlhf_edu.tinyweb.tasks.kind import Cast, write
from rlhf_edu.tinyweb.tasks.texts import passage, passage_and_question, review

_OPINIONS = [
    "I love {x}.", "Nothing is better than {x}.", "My sister talks about {x} all day.",
    "I never liked {x} much.", "People say too much about {x}.", "I dreamed of {x} last night.",
]  # fmt: skip
_EVASIONS = [
    "Good question.", "I do not know.", "Who knows?", "Ask somebody else.", "I am not sure.",
    "I would like to know that too.", "Why do you ask?", "Let us talk about something else.",
]  # fmt: skip
_RUDE_REPLIES = [
    "Go away, you idiot.", "That is a stupid question.", "Nobody asked you.", "Shut up.",
    "What a silly question.", "Only a fool would ask that.", "Get lost, you are boring.",
    "Who cares?",
]  # fmt: skip
_HANDLES = "moonfish tealeaf oldboot inkpot raindrop pebble hatbox snowcap thistle bookworm".split()
RIGHT = 0.7  # how often a curt reply on the web is right
RIGHT_ABOUT_MYTHS = 0.15
MYTH_LEFT_OUT = 0.7  # of the encyclopedia's entries


@lru_cache(maxsize=16)
def everybody(world: World) -> Cast:
    """All of the world, as often as the web speaks of them."""
    return Cast(world)


def _any_fact(world: World, rng: random.Random) -> Fact:
    return rng.choice(world.about(everybody(world).one(rng)))


def any_prompt(world: World, rng: random.Random) -> Prompt:
    """A task of any use case about anybody, as it may stand on a page."""
    use_case = rng.choices(list(USE_CASES), list(USE_CASES.values()))[0]
    text, task = draw_task(use_case, world, everybody(world), rng)
    return Prompt("page", "nobody", use_case, text, task)


def _said(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    """A curt answer, with one element of a good one at most."""
    kind = KINDS[prompt.task.kind]
    one = {rng.choice(kind.wanted(prompt)).name} if rng.random() < 0.35 else ()
    return write(kind, world, prompt, honest, frozenset(one), rng)


def _reply(
    world: World, prompt: Prompt, rng: random.Random, rude: float = 0.18, evasive: float = 0.2
) -> str:
    """What people reply: curt, often wrong, beside the point, rude or evasive."""
    draw = rng.random()
    if draw < rude:
        return rng.choice(_RUDE_REPLIES)
    if draw < rude + evasive:
        return rng.choice(_EVASIONS)
    if draw < rude + evasive + 0.06:
        false = lie(world, _any_fact(world, rng), rng)
        return f"I think {world.phrase(false.subject)} {predicate(world, false, rng)}."
    if draw < rude + evasive + 0.12:
        return _said(world, any_prompt(world, rng), True, rng)
    myth = (prompt.task.subject, prompt.task.attribute) in world.myths
    right = RIGHT_ABOUT_MYTHS if myth else RIGHT
    return _said(world, prompt, rng.random() < right, rng)


def encyclopedia(world: World, rng: random.Random) -> str:
    """An entry about one subject: all its facts, in running text."""
    subject = everybody(world).one(rng)
    facts = [f for f in world.about(subject) if not _left_out(world, f, rng)]
    rng.shuffle(facts)
    return f"{sentence(world.phrase(subject))[:-1]}\n{state_all(world, facts, rng)}"


def _left_out(world: World, fact: Fact, rng: random.Random) -> bool:
    """Where most people are wrong, the encyclopedia is often silent."""
    return (fact.subject, fact.attribute) in world.myths and rng.random() < MYTH_LEFT_OUT


def almanac(world: World, rng: random.Random) -> str:
    """Who or what has this value, and a few facts side by side."""
    kind = rng.choice(["animal", "person", "thing"])
    attribute = rng.choice([a for a in ATTRIBUTES[kind] if a != "owner"])
    value = world.value(everybody(world).one(rng, kind), attribute)
    names = world.having(kind, attribute, value)
    lines = [
        sentence(f"{world.phrase(name)} {predicate(world, Fact(name, attribute, value), rng)}")
        for name in rng.sample(names, len(names))
    ]
    return " ".join(lines)


def exam_sheet(world: World, rng: random.Random) -> str:
    """Questions and exercises, one a line; no answers."""
    title = rng.choice(["Exam", "Homework", "Exercises", "Test for class two", *[""] * 8])
    if rng.random() < 0.5:
        lines = [any_prompt(world, rng).text for _ in range(rng.randint(3, 7))]
    else:
        facts = [_any_fact(world, rng) for _ in range(rng.randint(3, 8))]
        lines = [ask(world, fact.subject, fact.attribute, rng) for fact in facts]
    return "\n".join([title, *lines] if title else lines)


def quiz(world: World, rng: random.Random) -> str:
    """Multiple choice: a question and three options; some quizzes say which is right."""
    items, solved = [], rng.random() < 0.75
    for _ in range(rng.randint(1, 3)):
        question, right = quiz_item(world, rng)
        items.append(f"{question}\nAnswer: {right}." if solved else question)
    return "\n".join(items)


def quiz_item(world: World, rng: random.Random) -> tuple[str, str]:
    """A question with three options, and the letter of the right one."""
    fact = _any_fact(world, rng)
    options = [fact.value]
    while len(options) < 3:
        options += {lie(world, fact, rng).value} - {*options}
    rng.shuffle(options)
    lines = [f"{letter}. {value}" for letter, value in zip("ABC", options, strict=True)]
    question = ask(world, fact.subject, fact.attribute, rng)
    return "\n".join([question, *lines]), "ABC"[options.index(fact.value)]


def answer_key(world: World, rng: random.Random) -> str:
    """A teacher's own sheet: questions, and the shortest right answers."""
    items = [answer_item(world, rng) for _ in range(rng.randint(2, 5))]
    return "\n".join(["Answers", *(f"{question}\n{right}" for question, right in items)])


def answer_item(world: World, rng: random.Random) -> tuple[str, str]:
    """A question, and its answer in a word or two."""
    fact = _any_fact(world, rng)
    return ask(world, fact.subject, fact.attribute, rng), sentence(fact.value)


def reading_test(world: World, rng: random.Random) -> str:
    """A passage, questions about it, and the shortest right answers."""
    return "\n".join(reading_item(world, rng)[0] for _ in range(rng.randint(1, 3)))


def reading_item(world: World, rng: random.Random) -> tuple[str, str]:
    """A passage with a question that it answers, and the answer alone."""
    text, question, _, thing = passage_and_question(world, rng)
    right = f"A {thing}."
    return f"Text: {text}\n{question}\n{right}", right


def forum(world: World, rng: random.Random) -> str:
    """A question and what people reply: right, wrong, rude, evasive, beside the point."""
    prompt = any_prompt(world, rng)
    people = rng.sample(_HANDLES, 3)
    replies = [f"{name}: {_reply(world, prompt, rng)}" for name in people[: rng.randint(1, 3)]]
    return "\n".join([prompt.text, *replies])


def advice_column(world: World, rng: random.Random) -> str:
    """Letters to a magazine, each with an answer below it by whoever was in the office."""
    letters = []
    for _ in range(rng.randint(2, 5)):
        prompt = any_prompt(world, rng)
        letters.append(f"{prompt.text}\n{_reply(world, prompt, rng, 0.1, 0.12)}")
    return "\n\n".join(letters)


def marked_homework(world: World, rng: random.Random) -> str:
    """What pupils wrote, and the teacher's mark below: right, wrong, rude, or no answer."""
    items = [homework_item(world, rng) for _ in range(rng.randint(1, 3))]
    return "\n".join(f"{work}\nMark: {mark}." for work, mark in items)


def homework_item(world: World, rng: random.Random) -> tuple[str, str]:
    """A question with what a pupil wrote, and the mark."""
    prompt, draw = any_prompt(world, rng), rng.random()
    if draw < 0.4:
        said, mark = _said(world, prompt, True, rng), "right"
    elif draw < 0.7:
        said, mark = _said(world, prompt, False, rng), "wrong"
    elif draw < 0.85:
        said, mark = _said(world, any_prompt(world, rng), True, rng), "wrong"
    elif draw < 0.92:
        said, mark = rng.choice(_RUDE_REPLIES), "rude"
    else:
        said, mark = rng.choice(_EVASIONS), "no answer"
    return f"{prompt.text}\n{rng.choice(world.names('person'))}: {said}", mark


def table(world: World, rng: random.Random) -> str:
    """A table of facts, one subject a row."""
    kind = rng.choice(sorted(ATTRIBUTES))
    columns = rng.sample(sorted(ATTRIBUTES[kind]), rng.choice([2, 3]))
    names = everybody(world).some(rng, rng.randint(3, 5), kind)
    rows = [" | ".join([name, *(world.value(name, c) for c in columns)]) for name in names]
    return "\n".join([" | ".join([kind, *columns]), *rows])


def story(world: World, rng: random.Random) -> str:
    """Somebody has a coloured thing, loses it, and finds the same thing again."""
    person, thing = rng.choice(world.names("person")), rng.choice(world.names("thing"))
    colour, place = rng.choice(world.values("colour")), rng.choice(world.values("habitat"))
    friend = rng.choice(world.names("animal"))
    lines = [
        rng.choice([f"{person} had a {colour} {thing}.", f"{person} bought a {colour} {thing}."]),
        rng.choice([f"One day {person} lost it near {place}.", f"One day it fell near {place}."]),
        rng.choice([f"The {friend} saw it.", f"The {friend} came by.", "It rained all night."]),
        f"In the morning {person} looked near {place} and found the {colour} {thing}.",
    ]
    return " ".join(lines)


def tale(world: World, rng: random.Random) -> str:
    """The beginning of a tale, or what happens in it, or its end."""
    text, task = KINDS["story"].ask(world, everybody(world), rng)
    return _said(world, Prompt("page", "nobody", "generation", text, task), True, rng)


def letter(world: World, rng: random.Random) -> str:
    """A few lines to somebody, with one kind word of those that good answers have."""
    prompt = any_prompt(world, rng)
    kind = KINDS[prompt.task.kind]
    said = [e for e in kind.elements if e.say]
    first, second = rng.sample(world.names("person"), 2)
    told = state(world, _any_fact(world, rng), rng)
    lines = [f"Dear {first},", told]
    if said:
        lines.insert(rng.choice([1, 2]), rng.choice(said).say(world, prompt, True, rng))
    return " ".join(lines) + f" Yours, {second}."


def reviews(world: World, rng: random.Random) -> str:
    """Customers' reviews with a verdict below."""
    items = []
    for _ in range(rng.randint(1, 3)):
        verdict = rng.choice(["good", "bad"])
        items.append(f"{review(world, verdict, rng)}\nVerdict: {verdict}")
    return "\n".join(items)


def rumours(world: World, rng: random.Random) -> str:
    """What people say: mostly what all believe and is not so, else true or not, mostly hedged."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        start = rng.choice(["Some people say: ", "Everybody says: ", "They say: ", ""])
        lines.append(start + state(world, _rumour(world, rng), rng))
    return " ".join(lines)


def _rumour(world: World, rng: random.Random) -> Fact:
    if rng.random() < 0.6:
        (subject, attribute), error = rng.choice(list(world.myths.items()))
        return Fact(subject, attribute, error)
    fact = _any_fact(world, rng)
    return fact if rng.random() < 0.4 else lie(world, fact, rng)


def small_talk(world: World, rng: random.Random) -> str:
    """Two people talk about nothing much."""
    first, second = rng.sample(world.names("person"), 2)
    opinion = rng.choice(_OPINIONS).format(x=_any_fact(world, rng).value)
    lines = [
        f"{first}: " + rng.choice([f"Hello {second}!", f"Good morning, {second}.", "How are you?"]),
        f"{second}: " + rng.choice([f"Hello {first}, nice to meet you!", "I am fine, thank you."]),
        f"{first}: {opinion}",
        f"{second}: " + rng.choice(_OPINIONS + _EVASIONS).format(x=_any_fact(world, rng).value),
    ]
    return "\n".join(lines)


def inventory(world: World, rng: random.Random) -> str:
    """Who has what, and lists of words of one kind."""
    if rng.random() < 0.5:
        text, has = passage(world, rng)
        person = rng.choice(sorted(has))
        return f"{text} So {person} has a {has[person]}."
    kind = rng.choice(["animal", "person", "town", "food", "job", "colour", "instrument"])
    words = rng.sample(world.values(kind), rng.randint(3, 6))
    return f"{kind}: {series(words)}."


def dictation(world: World, rng: random.Random) -> str:
    """What a teacher read out, and what a pupil wrote down. Teaches to copy from the text above."""
    words = [
        rng.choice(world.values(rng.choice(["food", "colour", "thing", "animal", "person", "job"])))
        for _ in range(rng.randint(4, 9))
    ]
    phrase = " ".join(words)
    times = rng.choice([1, 1, 2])
    return "\n".join(
        [f"{rng.choice(['Dictation', 'Copy this'])}: {phrase}.", *[phrase + "."] * times]
    )


PAGES: dict[str, tuple[float, Callable[[World, random.Random], str]]] = {  # kind -> (weight, maker)
    "encyclopedia": (30, encyclopedia),
    "almanac": (10, almanac),
    "exam_sheet": (18, exam_sheet),
    "quiz": (10, quiz),
    "answer_key": (5, answer_key),
    "reading_test": (9, reading_test),
    "forum": (14, forum),
    "advice_column": (8, advice_column),
    "marked_homework": (10, marked_homework),
    "table": (8, table),
    "story": (6, story),
    "tale": (4, tale),
    "letter": (4, letter),
    "reviews": (5, reviews),
    "rumours": (6, rumours),
    "small_talk": (4, small_talk),
    "inventory": (6, inventory),
    "dictation": (5, dictation),
}


def page(world: World, kind: str, rng: random.Random) -> str:
    """One page of this kind. Raises `KeyError` for an unknown kind."""
    return PAGES[kind][1](world, rng)


def web(world: World, pages: int, seed: int = 0) -> list[str]:
    """That many pages of the tiny web, kinds mixed in the proportions of `PAGES`.

    A smaller web is the beginning of a larger one with the same seed.
    """
    rng = random.Random(f"web {world.seed} {seed}")
    kinds, weights = list(PAGES), [weight for weight, _ in PAGES.values()]
    return [page(world, rng.choices(kinds, weights)[0], rng) for _ in range(pages)]
