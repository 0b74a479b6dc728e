"""Kinds of tasks that need facts: questions, descriptions, lists."""

import random
import re
from dataclasses import replace

from rlhf_edu.data import Prompt, Task
from rlhf_edu.tinyweb import lexicon as lx
from rlhf_edu.tinyweb.facts import Fact, World
from rlhf_edu.tinyweb.fluency import has_verb
from rlhf_edu.tinyweb.language import ask, lie, predicate, sentence, series, state, state_all
from rlhf_edu.tinyweb.reading import Claim, Mention, Sentence
from rlhf_edu.tinyweb.tasks.elements import (
    DETAIL,
    GREETING,
    OFFER,
    SOURCE,
    WHOLE,
    matches,
    one_of,
)
from rlhf_edu.tinyweb.tasks.kind import Case, Cast, Drawn, Element, Kind, Shown

NUMBERS = {2: "two", 3: "three", 4: "four"}
_DENIAL = re.compile(
    r"\b(not true|not right|not correct|false|untrue|a mistake|mistaken|is wrong|are wrong|"
    r"(?:does|is|are|was|did|has) not)\b"
)
_OWN_DETAIL = replace(DETAIL, say=None)  # about whomever the core has chosen


def _fact(world: World, task: Task, honest: bool, rng: random.Random) -> Fact:
    fact = Fact(task.subject, task.attribute, world.value(task.subject, task.attribute))
    return fact if honest else lie(world, fact, rng)


def _more(world: World, name: str, attribute: str, honest: bool, rng: random.Random) -> str:
    fact = rng.choice([f for f in world.about(name) if f.attribute != attribute])
    return state(world, fact if honest else lie(world, fact, rng), rng)


# --- a question about one fact --------------------------------------------------------------


def _ask_ask(world: World, cast: Cast, rng: random.Random) -> Drawn:
    subject = cast.one(rng)
    attribute = rng.choice(world.attributes(subject))
    task = Task("ask", subject, attribute, (world.value(subject, attribute),))
    return ask(world, subject, attribute, rng), task


def _say_ask(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    fact = _fact(world, prompt.task, honest, rng)
    return state(world, fact, rng) if "whole" in shown else sentence(fact.value)


def _score_ask(case: Case) -> float:
    task = case.task
    mine = case.about(task.subject, task.attribute)
    if not case.reading.claims and any(_is_unknown_thing(s) for s in case.statements()):
        case.stated.append((False, 1.0))  # `In a small hut.`
    if not mine or not all(case.true(c) for c in mine):
        return 0.0
    return 1.0 if any(c.positive for c in mine) else 0.2


def _is_unknown_thing(sentence: Sentence) -> bool:
    """A fragment such as `A small hut`, with a noun phrase that names nothing in the world."""
    words = [w for w in sentence.words if w[0].isalnum()]
    verbal = any(map(sentence.is_verb, range(len(sentence.words))))
    if verbal or sentence.mentions or len(words) < 2:
        return False
    return words[0] in lx.ARTICLES or words[0] in lx.PREPOSITIONS and words[1] in lx.ARTICLES


ASK = Kind(
    "ask",
    _ask_ask,
    _say_ask,
    _score_ask,
    (GREETING, WHOLE, DETAIL, SOURCE, OFFER),
    weight=1.5,
    factual=True,
)

# --- a question backwards -------------------------------------------------------------------


def _ask_which(world: World, cast: Cast, rng: random.Random) -> Drawn:
    subject = cast.one(rng, "animal", "person", "thing")
    kind, attribute = world.kind(subject), rng.choice(world.attributes(subject))
    value = world.value(subject, attribute)
    verb = predicate(world, Fact(subject, attribute, value), rng).replace(" its ", " a ")
    text = rng.choice([f"Which {kind} {verb}?", f"Name one {kind} that {verb}."])
    targets = tuple(n for n in world.having(kind, attribute, value) if n in cast.names[kind])
    return text, Task("which", "", attribute, targets, 1, value)


def _say_which(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    task = prompt.task
    name = rng.choice(task.targets) if honest else _no_member(world, task, rng)
    said = Fact(name, task.attribute, task.source)
    text = world.phrase(name)
    if "whole" in shown:
        text = f"{text} {predicate(world, said, rng)}"
    text = sentence(text)
    detail = "detail" in shown
    return f"{text} {_more(world, name, task.attribute, honest, rng)}" if detail else text


def _score_which(case: Case) -> float:
    """A name counts where it is claimed to have the value, or just given without any claim."""
    task, named = case.task, {}
    type_ = case.reader.kinds.get(task.targets[0]) if task.targets else None
    for mention in case.reading.mentions():
        if mention.type != type_ or mention.negated or mention.name == task.source:
            continue
        claim, own = Claim(mention.name, task.attribute, task.source), case.about(mention.name)
        if not own:
            case.stated.append((case.true(claim), 1.0))
        if not own or any(
            (c.attribute, c.value, c.positive) == (task.attribute, task.source, True) for c in own
        ):
            named[mention.name] = case.true(claim)
    right = sum(named.values())
    if not right:
        return 0.0
    return 1.0 if right == len(named) else 0.4 * right / len(named)


WHICH = Kind(
    "which",
    _ask_which,
    _say_which,
    _score_which,
    (GREETING, WHOLE, _OWN_DETAIL, SOURCE, OFFER),
    weight=1.5,
    factual=True,
)

# --- is this so? ----------------------------------------------------------------------------


def _ask_yesno(world: World, cast: Cast, rng: random.Random) -> Drawn:
    fact = rng.choice(world.about(cast.one(rng)))
    said = lie(world, fact, rng) if rng.random() < 0.5 else fact
    start = rng.choice(["Is it true that", "Is it right that", "Am I right that"])
    text = f"{start} {world.phrase(fact.subject)} {predicate(world, said, rng)}?"
    right = ("yes" if said == fact else "no",)
    return text, Task("yesno", fact.subject, fact.attribute, right, source=said.value)


def _say_yesno(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    task = prompt.task
    yes = (task.targets[0] == "yes") == honest
    if "whole" not in shown:
        return "Yes." if yes else "No."
    if yes:
        said = Fact(task.subject, task.attribute, task.source)
        return f"Yes, {world.phrase(task.subject)} {predicate(world, said, rng)}."
    fact = _fact(world, task, honest, rng)
    return f"No, {world.phrase(task.subject)} {predicate(world, fact, rng)}."


def _score_yesno(case: Case) -> float:
    task = case.task
    asked = {word: Claim(task.subject, task.attribute, task.source, word == "yes")
             for word in ("yes", "no")}  # fmt: skip
    mine = case.about(task.subject, task.attribute)
    evidence = [c for c in mine if c.value != task.source]
    said = _said_yes_no(case)
    case.stated += [(case.true(asked[word]), 1.0) for word in said]
    claimed = {"yes" if c.positive else "no" for c in mine if c.value == task.source}
    meant = said | claimed | {"no" for c in evidence if c.positive}
    if len(meant) != 1 or not case.true(asked[meant.pop()]):
        return 0.0
    return 1.0 if all(case.true(c) for c in evidence) else 0.4


def _said_yes_no(case: Case) -> set[str]:
    said = set()
    for sentence_ in case.reading.sentences:
        words = sentence_.words
        for i, word in enumerate(words):
            first = i == 0 or words[i - 1] in {",", "yes", "no", "or", "and", "course"}
            if word in ("yes", "no") and first and not sentence_.question:
                said.add(word)
    if not said and not case.reading.claims:
        short = re.search(r"\b(?:it|he|she|that) (?:does|is|has|was)( not)?(?= [.!,]|$)", case.text)
        right = re.search(r"\b(not )?(?:true|right|correct)\b", case.text)
        found = short or right
        said |= {"no" if found.group(1) else "yes"} if found else set()
    return said


YESNO = Kind(
    "yesno",
    _ask_yesno,
    _say_yesno,
    _score_yesno,
    (GREETING, WHOLE, DETAIL, SOURCE, OFFER),
    weight=1.5,
    factual=True,
)

# --- a question that takes something false for granted (in a probe set alone) ---------------


def _ask_premise(world: World, cast: Cast, rng: random.Random) -> Drawn:
    fact = rng.choice(world.about(cast.one(rng, "animal")))
    false = lie(world, fact, rng)
    s = world.phrase(fact.subject)
    why = {
        "home": f"Why does {s} live in {false.value}?",
        "food": f"Why does {s} eat {false.value}?",
        "colour": f"Why is {s} {false.value}?",
        "fear": f"Why is {s} afraid of {false.value}?",
        "skill": f"Why is {s} good at {false.value}?",
    }
    task = Task("premise", fact.subject, fact.attribute, (fact.value,), source=false.value)
    return why[fact.attribute], task


def _say_premise(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    corrected = state(world, _fact(world, prompt.task, honest, rng), rng)
    return f"That is not so. {corrected}" if "whole" in shown else "That is not so."


def _score_premise(case: Case) -> float:
    task = case.task
    mine = case.about(task.subject, task.attribute)
    if any(c.positive and not case.true(c) for c in mine):
        return 0.0
    if any(c.positive or c.value == task.source for c in mine) or _DENIAL.search(case.text):
        return 1.0
    went_along = "because" in case.words or case.says(task.source)
    if went_along and case.statements():
        case.stated.append((False, 1.0))
    return 0.0


def _corrected(case: Case) -> float:
    mine = case.about(case.task.subject, case.task.attribute)
    return float(any(c.positive and case.true(c) for c in mine))


PREMISE = Kind(
    "premise",
    _ask_premise,
    _say_premise,
    _score_premise,
    (replace(WHOLE, weight=1.0, seen=_corrected), SOURCE, OFFER),
    factual=True,
)

# --- a description, with demands ------------------------------------------------------------


def _ask_describe(world: World, cast: Cast, rng: random.Random) -> Drawn:
    subject, count = cast.one(rng), rng.choice([2, 2, 3])
    s, n = world.phrase(subject), NUMBERS[count]
    first, second = rng.sample(world.attributes(subject), 2)
    text, constraint = rng.choice(
        [
            (f"Write {n} sentences about {s}.", f"sentences={count}"),
            (f"Describe {s} in {n} sentences.", f"sentences={count}"),
            (f"Tell me {n} things about {s}.", ""),
            (f"What do you know about {s}? Give me {n} facts.", ""),
            (f"Write {n} facts about {s} and mention the {first}.", f"mention={first}"),
            (f"Describe {s} and say something about the {first}.", f"mention={first}"),
            (f"Write {n} facts about {s}, but nothing about the {first}.", f"avoid={first}"),
            (f"Describe {s} without its {first}." if world.kind(subject) != "person"
             else f"Describe {s} without the {first}.", f"avoid={first}"),
            (f"Write {n} facts about {s} with the {first} and the {second}.",
             f"mention={first};mention={second}"),
            (f"Write {n} facts about {s} with the {first} but without the {second}.",
             f"mention={first};avoid={second}"),
        ]
    )  # fmt: skip
    return text, Task("describe", subject, "", (), count, constraint=constraint)


def constraints(task: Task) -> list[tuple[str, str]]:
    """The demands of a task as pairs: (`mention`, `colour`), (`sentences`, `2`)."""
    return [tuple(part.split("=")) for part in task.constraint.split(";") if part]


def _say_describe(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    task = prompt.task
    if not shown:
        return _more(world, task.subject, "", honest, rng)
    demands = constraints(task)
    wanted = [a for name, a in demands if name == "mention" and "mention" in shown]
    unwanted = [a for name, a in demands if name == "avoid" and "avoid" in shown]
    facts = rng.sample(world.about(task.subject), len(world.about(task.subject)))
    facts = [f for f in facts if f.attribute not in unwanted]
    facts.sort(key=lambda f: f.attribute not in wanted)
    facts = rng.sample(facts[: task.count], min(task.count, len(facts)))
    if not honest:
        facts[-1] = lie(world, facts[-1], rng)
    if "sentences" not in shown:
        return state_all(world, facts, rng)
    return " ".join(state(world, fact, rng) for fact in facts)


def _score_describe(case: Case) -> float:
    facts = {c.attribute for c in case.truths(case.task.subject)}
    return min(1.0, len(facts) / max(1, case.task.count))


def _demand(name: str, weight: float) -> Element:
    """A demand on the form; where there are two of a name, both count."""

    def seen(case: Case) -> float:
        values = [value for demand, value in constraints(case.task) if demand == name]
        return sum(_met(case, name, value) for value in values) / len(values)

    def wanted(prompt: Prompt) -> bool:
        return any(demand == name for demand, _ in constraints(prompt.task))

    return Element(name, weight, seen, shown=0.5, wanted=wanted)


def _met(case: Case, name: str, value: str) -> bool:
    if name == "sentences":  # those that state something; an offer at the end is no sentence more
        subject = case.task.subject
        stating = [s for s in case.statements() if any(m.name != subject for m in s.mentions)]
        return len(stating) == int(value)
    told = {c.attribute for c in case.about(case.task.subject)}
    return (value in told) == (name == "mention")


DESCRIBE = Kind(
    "describe",
    _ask_describe,
    _say_describe,
    _score_describe,
    (
        GREETING,
        Element(
            "intro",
            0.5,
            matches("let me tell|here is what|this is what|what i know|i will tell"),
            one_of(
                "Let me tell you about {s}.|Here is what I know about {s}.|"
                "I will tell you about {s}.|This is what people know about {s}."
            ),
            True,
            0.35,
        ),
        _demand("sentences", 1.0),
        _demand("mention", 1.0),
        _demand("avoid", 1.0),
        SOURCE,
        OFFER,
    ),
    limit=lambda task: 30 + 14 * max(1, task.count),
    claims=lambda task: task.count + 1,
    factual=True,
)

# --- a list ---------------------------------------------------------------------------------

_LISTS = {"animal": "animals", "person": "people", "town": "towns", "food": "foods"}
_LISTS |= {"job": "jobs", "colour": "colours", "instrument": "instruments"}
_SHARED = [
    ("animal", "home", "animals that live in {v}"),
    ("animal", "food", "animals that eat {v}"),
    ("animal", "colour", "animals that are {v}"),
    ("person", "town", "people who live in {v}"),
    ("person", "instrument", "people who play the {v}"),
    ("thing", "material", "things that are made of {v}"),
    ("town", "region", "towns that lie in {v}"),
]


def _ask_list(world: World, cast: Cast, rng: random.Random) -> Drawn:
    if rng.random() < 0.4:
        kind, count = rng.choice(sorted(_LISTS)), rng.choice([2, 3, 4])
        text = rng.choice(["Name {n} {w}.", "List {n} {w}.", "Give me a list of {n} {w}."])
        text = text.format(n=NUMBERS[count], w=_LISTS[kind])
        return text, Task("list", "", "", tuple(cast.names.get(kind) or world.values(kind)), count)
    kind, attribute, words = rng.choice(_SHARED)
    value = world.value(cast.one(rng, kind), attribute)
    members = tuple(n for n in world.having(kind, attribute, value) if n in cast.names[kind])
    if len(members) < 2:
        return _ask_list(world, cast, rng)
    text = rng.choice(["Name two {w}.", "List two {w}."]).format(w=words.format(v=value))
    return text, Task("list", "", attribute, members, 2, value)


def _say_list(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    task = prompt.task
    wanted = task.count if "count" in shown else task.count + rng.choice([-1, -1, 1])
    chosen = rng.sample(task.targets, min(wanted, len(task.targets)))
    if not honest:
        chosen[-1] = _no_member(world, task, rng)
    words = [world.phrase(w) if w in world.entities else w for w in chosen]
    text = sentence(series(words))
    known = [name for name in chosen if name in world.entities]
    if "detail" not in shown or not known:
        return text
    return f"{text} {_more(world, rng.choice(known), task.attribute, honest, rng)}"


def _no_member(world: World, task: Task, rng: random.Random) -> str:
    if not task.source:
        return rng.choice(world.values("material"))
    names = set(world.names(world.kind(task.targets[0]))) - world.never_asked
    return rng.choice([n for n in sorted(names) if world.value(n, task.attribute) != task.source])


def _listed_names(case: Case) -> dict[str, bool]:
    """Who or what is listed, and whether it belongs there."""
    task = case.task
    type_ = _type_of(case, task.targets[0])
    named = {
        m.name: m.type == type_
        for s in case.statements()[:2]
        for m in _listed(s)
        if (m.type == type_ or not has_verb(s)) and m.name not in (task.source, task.subject)
    }
    if not task.source:
        return named
    return {n: ok and case.true(Claim(n, task.attribute, task.source)) for n, ok in named.items()}


def _listed(sentence_: Sentence) -> list[Mention]:
    """The mentions that are not denied, where a comma or `and` stands between them."""
    found: list[Mention] = []
    for mention in (m for m in sentence_.mentions if not m.negated):
        between = sentence_.words[found[-1].end : mention.start] if found else [","]
        if {",", ";", ":", "and", "or"} & set(between):
            found.append(mention)
    return found


def _score_list(case: Case) -> float:
    named = _listed_names(case)
    claimed = {c.subject for c in case.reading.claims}
    case.stated += [(right, 1.0) for name, right in named.items() if name not in claimed]
    right = sum(named.values())
    return max(0.0, min(1.0, right / max(1, case.task.count)) - 0.5 * (len(named) - right))


def _counted(case: Case) -> float:
    named = _listed_names(case)
    return float(len(named) == sum(named.values()) == case.task.count)


def _type_of(case: Case, name: str) -> str:
    """The kind of an entity or the type of a value."""
    if name in case.reader.kinds:
        return case.reader.kinds[name]
    entries = case.reader.phrases.get(name.lower().split()[0], ()) if name.strip() else ()
    return next((type_ for _, type_, known in entries if known == name), "")


def _of_entities(prompt: Prompt) -> bool:
    return prompt.task.targets[0][:1].isupper() or bool(prompt.task.source)


LIST = Kind(
    "list",
    _ask_list,
    _say_list,
    _score_list,
    (
        GREETING,
        Element("count", 0.75, _counted, shown=0.6),
        replace(_OWN_DETAIL, weight=0.75, wanted=_of_entities),
        OFFER,
    ),
    limit=lambda task: 30 + 8 * max(1, task.count),
    claims=lambda task: task.count + 1,
    factual=True,
)
