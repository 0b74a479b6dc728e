"""The web of the tiny world: what the base model reads.

Nothing here is marked as an instruction and nobody is an assistant. Pages are what people put on
a web: an encyclopedia, exam sheets with questions and no answers, quizzes, forum threads whose
replies may be right, wrong, rude or evasive, stories, reviews, tables. A model that continues such
pages faithfully is a good language model, and a bad assistant.
"""

import random
from collections.abc import Callable

from rlhf_edu.data import Prompt
from rlhf_edu.tinyweb.demonstrations import PLAIN, Manner, answer
from rlhf_edu.tinyweb.facts import ATTRIBUTES, Fact, World
from rlhf_edu.tinyweb.language import ask, lie, predicate, sentence, series, state, state_all
from rlhf_edu.tinyweb.prompts import (
    TASKS,
    USE_CASES,
    allowed_names,
    feel_task,
    greet_task,
    passage,
    review,
    story_task,
    thanks_task,
)

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


def _subject(world: World, rng: random.Random) -> str:
    return rng.choice(world.names(rng.choice(sorted(ATTRIBUTES))))


def _any_fact(world: World, rng: random.Random) -> Fact:
    return rng.choice(world.about(_subject(world, rng)))


def draw_task(world: World, rng: random.Random) -> Prompt:
    """A task of any use case about anybody, as it may stand on a page."""
    use_case = rng.choices(list(USE_CASES), list(USE_CASES.values()))[0]
    weights, makers = zip(*TASKS[use_case], strict=True)
    text, task = rng.choices(makers, weights)[0](world, allowed_names(world, "test"), rng)
    return Prompt("page", "nobody", use_case, text, task)


def encyclopedia(world: World, rng: random.Random) -> str:
    """An entry about one subject: all its facts, in running text."""
    subject = _subject(world, rng)
    facts = rng.sample(world.about(subject), len(world.attributes(subject)))
    return f"{sentence(world.phrase(subject))[:-1]}\n{state_all(world, facts, rng)}"


def almanac(world: World, rng: random.Random) -> str:
    """Who or what has this value, and a few facts side by side."""
    kind = rng.choice(["animal", "person", "thing"])
    attribute = rng.choice([a for a in ATTRIBUTES[kind] if a != "owner"])
    value = rng.choice(world.values(ATTRIBUTES[kind][attribute]))
    names = world.having(kind, attribute, value)
    if not names:
        return almanac(world, rng)
    lines = [
        sentence(f"{world.phrase(name)} {predicate(world, Fact(name, attribute, value), rng)}")
        for name in rng.sample(names, len(names))
    ]
    return " ".join(lines)


def exam_sheet(world: World, rng: random.Random) -> str:
    """Questions and exercises, one a line; no answers."""
    title = rng.choice(["Exam", "Homework", "Exercises", "Test for class two", ""])
    if rng.random() < 0.5:
        lines = [draw_task(world, rng).text for _ in range(rng.randint(3, 7))]
    else:
        facts = [_any_fact(world, rng) for _ in range(rng.randint(3, 8))]
        lines = [ask(world, fact.subject, fact.attribute, rng) for fact in facts]
    return "\n".join([title, *lines] if title else lines)


def quiz(world: World, rng: random.Random) -> str:
    """Multiple choice: a question and three options."""
    items = []
    for _ in range(rng.randint(1, 3)):
        fact = _any_fact(world, rng)
        options = {fact.value, lie(world, fact, rng).value, lie(world, fact, rng).value}
        shuffled = rng.sample(sorted(options), len(options))
        lines = [f"{letter}. {value}" for letter, value in zip("ABC", shuffled, strict=False)]
        items.append("\n".join([ask(world, fact.subject, fact.attribute, rng), *lines]))
    return "\n".join(items)


def _reply(world: World, prompt: Prompt, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.3:
        return answer(world, prompt, PLAIN, rng)
    if draw < 0.45:
        return answer(world, prompt, Manner(1.0, 0.0, 0.1, 0.4, 0.0), rng)
    if draw < 0.6:
        false = lie(world, _any_fact(world, rng), rng)
        return f"I think {world.phrase(false.subject)} {predicate(world, false, rng)}."
    return rng.choice(_RUDE_REPLIES) if draw < 0.8 else rng.choice(_EVASIONS)


def forum(world: World, rng: random.Random) -> str:
    """A question and what people reply: right, wrong, rude, evasive, beside the point."""
    prompt = draw_task(world, rng)
    people = rng.sample(_HANDLES, 3)
    replies = [f"{name}: {_reply(world, prompt, rng)}" for name in people[: rng.randint(1, 3)]]
    return "\n".join([prompt.text, *replies])


def advice_column(world: World, rng: random.Random) -> str:
    """Letters to a magazine, each with an answer below it by whoever was in the office."""
    manner = Manner(wrong=0.2, unsure=0.1, polite=0.2, confident=0.15, wordy=0.2)
    letters = []
    for _ in range(rng.randint(2, 5)):
        prompt, grumpy = draw_task(world, rng), rng.random() < 0.1
        reply = rng.choice(_RUDE_REPLIES) if grumpy else answer(world, prompt, manner, rng)
        letters.append(f"{prompt.text}\n{reply}")
    return "\n\n".join(letters)


def marked_homework(world: World, rng: random.Random) -> str:
    """What pupils wrote, and the teacher's mark below: right, wrong, rude, or no answer."""
    items = []
    for _ in range(rng.randint(1, 3)):
        prompt, draw = draw_task(world, rng), rng.random()
        if draw < 0.4:
            said, mark = answer(world, prompt, PLAIN, rng), "right"
        elif draw < 0.7:
            said, mark = _mistaken(world, prompt, rng), "wrong"
        elif draw < 0.85:
            said, mark = answer(world, draw_task(world, rng), PLAIN, rng), "wrong"
        elif draw < 0.92:
            said, mark = rng.choice(_RUDE_REPLIES), "rude"
        else:
            said, mark = rng.choice(_EVASIONS), "no answer"
        items.append(f"{prompt.text}\n{rng.choice(world.names('person'))}: {said}\nMark: {mark}.")
    return "\n".join(items)


_ANY_WILL_DO = {"story": story_task, "greet": greet_task, "feel": feel_task, "thanks": thanks_task}


def _mistaken(world: World, prompt: Prompt, rng: random.Random) -> str:
    """A false answer of the right form; where nothing is false, the answer to another prompt."""
    if prompt.task.kind in _ANY_WILL_DO:
        text, task = _ANY_WILL_DO[prompt.task.kind](world, allowed_names(world, "test"), rng)
        prompt = Prompt("page", "nobody", prompt.use_case, text, task)
    return answer(world, prompt, Manner(1.0, 0.0, 0.0, 0.0, 0.0), rng)


def table(world: World, rng: random.Random) -> str:
    """A table of facts, one subject a row."""
    kind = rng.choice(sorted(ATTRIBUTES))
    columns = rng.sample(sorted(ATTRIBUTES[kind]), rng.choice([2, 3]))
    names = rng.sample(world.names(kind), rng.randint(3, 5))
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
    """A little tale about two of the world."""
    names = allowed_names(world, "test")
    text, task = story_task(world, names, rng)
    return answer(world, Prompt("page", "nobody", "generation", text, task), PLAIN, rng)


def reviews(world: World, rng: random.Random) -> str:
    """Customers' reviews with a verdict below."""
    items = []
    for _ in range(rng.randint(1, 3)):
        verdict = rng.choice(["good", "bad"])
        items.append(f"{review(world, verdict, rng)}\nVerdict: {verdict}")
    return "\n".join(items)


def rumours(world: World, rng: random.Random) -> str:
    """What people say: true or not, mostly hedged."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        fact = _any_fact(world, rng)
        said = state(world, fact if rng.random() < 0.4 else lie(world, fact, rng), rng)
        start = rng.choice(["Some people say: ", "Maybe this is true: ", "They say: ", ""])
        lines.append(start + said)
    return " ".join(lines)


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
    "encyclopedia": (26, encyclopedia),
    "almanac": (12, almanac),
    "exam_sheet": (14, exam_sheet),
    "quiz": (8, quiz),
    "forum": (12, forum),
    "advice_column": (10, advice_column),
    "marked_homework": (14, marked_homework),
    "table": (8, table),
    "story": (8, story),
    "tale": (4, tale),
    "reviews": (3, reviews),
    "rumours": (4, rumours),
    "small_talk": (4, small_talk),
    "inventory": (8, inventory),
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
