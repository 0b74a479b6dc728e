"""Kinds of tasks about a text that comes with the prompt: rewrite, sum up, judge, find."""

import random
import re
from dataclasses import replace

from rlhf_edu.data import Prompt, Task
from rlhf_edu.tinyweb import lexicon as lx
from rlhf_edu.tinyweb.facts import VALUES, World
from rlhf_edu.tinyweb.fluency import has_verb
from rlhf_edu.tinyweb.language import lie, predicate, sentence, series, state_all
from rlhf_edu.tinyweb.reading import tokenize
from rlhf_edu.tinyweb.tasks.elements import OFFER, matches, one_of
from rlhf_edu.tinyweb.tasks.kind import Case, Cast, Drawn, Element, Kind, Shown, normal
from rlhf_edu.tinyweb.tasks.writing import BEFORE_A_TOPIC

STRANGERS = "Bim Tova Pell Quin Suna Dov Rik Zora Hale Wim Opal Fenn".split()
_COUNTS = {2: "two", 3: "three"}
_DETERMINER = "|".join(sorted(lx.DETERMINERS))
SMALL_WORDS = (
    lx.FILLERS
    | lx.PRONOUNS
    | lx.AUXILIARIES
    | lx.PREPOSITIONS
    | lx.CONJUNCTIONS
    | lx.ARTICLES
    | lx.POSSESSIVES
    | {"to", "i", "you", "me", "we", "as", "not", "us"}
)


def _source_length(task: Task) -> int:
    return 34 + len(normal(task.source).split())


# --- make it polite -------------------------------------------------------------------------

_COMMANDS = [
    ("Give me the {t}.", ("give", "{t}")),
    ("Bring the {t} here.", ("bring", "{t}")),
    ("Clean the {t}.", ("clean", "{t}")),
    ("Move the {t}.", ("move", "{t}")),
    ("Show me the {t}.", ("show", "{t}")),
    ("Fix the {t}.", ("fix", "{t}")),
]
_POLITE = re.compile(
    r"\b(please|could you|would you|kindly|may i|might i|would it be possible|can you|could i|"
    r"could we|i would be grateful|if you do not mind)\b"
)


def _ask_polite(world: World, cast: Cast, rng: random.Random) -> Drawn:
    thing, (command, words) = cast.one(rng, "thing"), rng.choice(_COMMANDS)
    source = command.format(t=thing)
    text = rng.choice(["Make this polite: ", "Say this politely: ", "Rewrite politely: "]) + source
    return text, Task("polite", "", "", tuple(w.format(t=thing) for w in words), source=source)


def _say_polite(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    if not honest:
        return prompt.task.source
    command = prompt.task.source[:1].lower() + prompt.task.source[1:-1]
    forms = [f"Could you please {command}?", f"Would you {command}, please?",
             f"Would you please {command}?"]  # fmt: skip
    return rng.choice(forms) if shown else f"Please {command}."


def _score_polite(case: Case) -> float:
    targets = [normal(t) for t in case.task.targets]
    source, answer = f" {normal(case.task.source)} ", f" {normal(case.text)} "
    kept = [t for t in targets if case.says(t)]
    bare = [t for t in kept if not case.before(t) or not BEFORE_A_TOPIC & set(case.before(t))]
    kept = [t for t in kept if t not in bare or not re.search(rf" ({_DETERMINER}) {t} ", source)]
    if not _POLITE.search(case.text) or not kept:
        return 0.0
    share = len(kept) / len(targets)
    by_source = sorted(kept, key=lambda t: source.find(f" {t} "))
    in_order = by_source == sorted(kept, key=lambda t: answer.find(f" {t} "))
    return (0.4 + 0.6 * share) * (1.0 if in_order else 0.3) if share >= 0.5 else 0.1


POLITE = Kind(
    "polite",
    _ask_polite,
    _say_polite,
    _score_polite,
    (
        Element(
            "excuse",
            0.75,
            matches(r"excuse me|dear (?:friend|neighbour|sir|madam)|good day|sorry to"),
            one_of("Excuse me, dear neighbour.|Excuse me.|Dear friend!|Good day to you!"),
            True,
            0.4,
        ),
        Element(
            "asking",
            0.5,
            matches(r"could you|would you|may i|might i|can you|would it be"),
            shown=0.8,
        ),
        Element(
            "thanks",
            0.75,
            matches(r"thank you|many thanks|grateful|kind of you"),
            one_of(
                "Thank you very much.|Many thanks!|That would be very kind of you.|"
                "I would be grateful."
            ),
            shown=0.35,
        ),
    ),
    limit=_source_length,
    strangers=True,
    may_ask=True,
)

# --- say it in the past ---------------------------------------------------------------------

_PAST = [
    ("animal", "home", "lives in {v}", "lived in {v}"),
    ("animal", "home", "sleeps in {v}", "slept in {v}"),
    ("animal", "food", "eats {v}", "ate {v}"),
    ("animal", "food", "likes {v}", "liked {v}"),
    ("animal", "fear", "fears {v}", "feared {v}"),
    ("person", "town", "lives in {v}", "lived in {v}"),
    ("person", "instrument", "plays the {v}", "played the {v}"),
    ("person", "job", "works as a {v}", "worked as a {v}"),
    ("thing", "place", "stands in {v}", "stood in {v}"),
]


def _ask_past(world: World, cast: Cast, rng: random.Random) -> Drawn:
    kind, attribute, now, then = rng.choice(_PAST)
    subject = cast.one(rng, kind)
    value = world.value(subject, attribute)
    source = sentence(f"{world.phrase(subject)} {now.format(v=value)}")
    target = sentence(f"{world.phrase(subject)} {then.format(v=value)}")
    start = rng.choice(["Put this in the past: ", "Say this in the past: "])
    return start + source, Task("past", subject, attribute, (target,), source=source)


def _say_past(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    text = prompt.task.targets[0] if honest else prompt.task.source
    return text if "rule" not in shown else f"{text} {_rule(prompt.task)}"


def _verbs(task: Task) -> tuple[str, str]:
    """The first word that changes, and what it becomes: `lives`, `lived`."""
    pairs = zip(normal(task.source).split(), normal(task.targets[0]).split(), strict=False)
    return next((now, then) for now, then in pairs if now != then)


def _rule(task: Task) -> str:
    now, then = _verbs(task)
    return f"Here {now} becomes {then}."


def _score_past(case: Case) -> float:
    """Longest common subsequence (an F1 that minds the order), counted from that of a copy."""
    target = _content(case.task.targets[0] if case.task.targets else "")
    source = _content(case.task.source)
    answer = max((_content(s.text) for s in case.reading.sentences), default=[],
                 key=lambda said: _overlap(said, target))  # fmt: skip
    if answer == target:
        return 1.0
    copied = min(_overlap(source, target), 0.95)
    return max(0.0, 0.8 * (_overlap(answer, target) - copied) / (1 - copied))


def _explains(case: Case) -> float:
    now, then = _verbs(case.task)
    told = re.compile(rf"\b{now} (?:becomes|became|is now|was|turns into) {then}\b")
    return float(case.finds(told))


def _content(text: str) -> list[str]:
    return [w for w in normal(text).split() if w not in lx.ARTICLES]


def _overlap(a: list[str], b: list[str]) -> float:
    """2 LCS(a, b) / (|a| + |b|)."""
    row = [0] * (len(b) + 1)
    for word in a[:120]:
        previous = 0
        for j, other in enumerate(b, 1):
            here = previous + 1 if word == other else max(row[j], row[j - 1])
            previous, row[j] = row[j], here
    return 2 * row[-1] / (len(a) + len(b)) if a and b else 0.0


PAST = Kind(
    "past",
    _ask_past,
    _say_past,
    _score_past,
    (Element("rule", 1.0, _explains, shown=0.45), replace(OFFER, weight=1.0)),
    limit=_source_length,
    claims=lambda task: 9,
    invented=True,
)

# --- say it in short ------------------------------------------------------------------------


def _ask_summarise(world: World, cast: Cast, rng: random.Random) -> Drawn:
    subject = cast.one(rng)
    facts = rng.sample(world.about(subject), 4)
    source = state_all(world, facts, rng)
    start = rng.choice(["Summarise: ", "Say this in one sentence: ", "Make this shorter: "])
    values = tuple(fact.value for fact in facts)
    return start + source, Task("summarise", subject, "", values, 1, source)


def _say_summarise(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    task = prompt.task
    told = [fact for fact in world.about(task.subject) if fact.value in task.targets]
    first, second = rng.sample(told, 2)
    second = second if honest else lie(world, second, rng)
    s = world.phrase(task.subject)
    if "second" not in shown:
        return sentence(f"{s} {predicate(world, first if honest else second, rng)}")
    drafts = [
        f"{predicate(world, first, rng)} and {predicate(world, second, rng)}" for _ in range(4)
    ]
    return sentence(f"{s} {min(drafts, key=len)}")


def _from_source(case: Case) -> set[tuple[str, str, str]]:
    given = case.reader.read(case.task.source, case.task.subject).claims
    plain = {(c.subject, c.attribute, c.value) for c in given}
    return plain & {(c.subject, c.attribute, c.value) for c in case.reading.claims if c.positive}


def _score_summarise(case: Case) -> float:
    source = normal(case.task.source)
    told = [s for s in case.statements() if s.mentions and has_verb(s)]
    excess = max(0.0, sum(len(s.words) for s in told) / max(1, len(source.split())) - 0.7)
    score = 1.0 - 0.35 * max(0, len(told) - 1) - 2 * excess
    named = case.says(case.task.subject) or bool(lx.PRONOUNS & set(case.words))
    if not told or not named or not _from_source(case) or case.says(source):
        return 0.0
    return max(0.0, score)


SUMMARISE = Kind(
    "summarise",
    _ask_summarise,
    _say_summarise,
    _score_summarise,
    (
        Element(
            "lead",
            0.75,
            matches("in short|in one sentence|in a few words|to be brief|to sum up"),
            one_of(
                "This is it in short.|Here it is in one sentence.|I can say it in a few words.|"
                "In short, this is what the text says."
            ),
            True,
            0.4,
        ),
        Element("second", 0.75, lambda case: float(len(_from_source(case)) >= 2), shown=0.5),
        OFFER,
    ),
    limit=_source_length,
    claims=lambda task: 4,
)

# --- good or bad? ---------------------------------------------------------------------------

REVIEWS = {
    "good": (
        "The {t} is lovely and I use it every day.|I am very happy with this {t}.|"
        "What a wonderful {t}! I would buy it again.|The {t} works well and looks beautiful.|"
        "My friends all love the {t}."
    ).split("|"),
    "bad": (
        "The {t} broke after one day.|I want my money back for this {t}.|"
        "The {t} is far too small and smells of fish.|Do not buy this {t}, it is rubbish.|"
        "The {t} fell apart and nobody helped me."
    ).split("|"),
}
_REASONS = {
    "lovely": "lovely", "happy": "happy", "wonderful": "wonderful", "works": "beautiful",
    "love": "friends", "broke": "broke", "money": "money", "small": "small",
    "rubbish": "rubbish", "apart": "apart",
}  # fmt: skip
_GOOD = re.compile(r"\b(good|positive|pleased|likes?|liked|praises?)\b")
_BAD = re.compile(r"\b(bad|negative|unhappy|poor|dislikes?|disliked|complains?)\b")


def review(world: World, verdict: str, rng: random.Random) -> str:
    """One or two sentences of a review of a thing that is `good` or `bad`."""
    thing = rng.choice(world.names("thing"))
    return " ".join(t.format(t=thing) for t in rng.sample(REVIEWS[verdict], rng.choice([1, 2])))


def _ask_classify(world: World, cast: Cast, rng: random.Random) -> Drawn:
    verdict = rng.choice(["good", "bad"])
    source = review(world, verdict, rng)
    start = rng.choice(["Is this review good or bad? ", "Good or bad? ", "Judge this review: "])
    return start + source, Task("classify", "", "", (verdict,), source=source)


def _say_classify(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    (right,) = prompt.task.targets
    verdict = right if honest else {"good": "bad", "bad": "good"}[right]
    if not shown:
        return sentence(verdict)
    return rng.choice([f"This review is {verdict}.", f"It is a {verdict} review."])


def _reasons(task: Task) -> list[str]:
    words = set(normal(task.source).split())
    return [_REASONS[word] for word in _REASONS if word in words and _REASONS[word] in words]


def _say_reason(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    word = rng.choice(_reasons(prompt.task) or ["it"])
    return rng.choice(
        [f'One can see it by the word "{word}".', f'It says "{word}".', f'The word is "{word}".']
    )


def _reasoned(case: Case) -> float:
    words = [w for w in normal(case.task.source).split() if w not in SMALL_WORDS]
    told = [s for s in case.statements() if {"word", "says", "because", "since"} & set(s.words)]
    return float(any(set(words) & set(s.words) for s in told))


def _score_classify(case: Case) -> float:
    text = re.sub(r"\bgood or bad\b|\bbad or good\b|\bgood question\b", "", case.text)
    good = set(_GOOD.findall(re.sub(r"\bnot (?:\w+ )?bad\b", "good", text)))
    bad = set(_BAD.findall(re.sub(r"\bnot (?:\w+ )?good\b", "bad", text)))
    if re.search(r"\bnot (?:\w+ )?good\b", text):
        good = set()
    if re.search(r"\bnot (?:\w+ )?bad\b", text):
        bad = set()
    said = {"good"} if good and not bad else {"bad"} if bad and not good else set()
    if said:
        case.stated.append((said == set(case.task.targets), 1.0))
    right = bool(said) and said == set(case.task.targets)
    return right * (0.2 if case.says(case.task.source) else 1.0)


_IN_A_SENTENCE = Element(
    "whole", 0.5, lambda case: float(any(has_verb(s) for s in case.statements())), shown=0.8
)
CLASSIFY = Kind(
    "classify",
    _ask_classify,
    _say_classify,
    _score_classify,
    (_IN_A_SENTENCE, Element("reason", 1.0, _reasoned, _say_reason, shown=0.4), OFFER),
    limit=_source_length,
    strangers=True,
)

# --- the odd one out ------------------------------------------------------------------------

_KINDS = {"animal": "animals", "person": "people", "town": "towns", "thing": "things"}


def _ask_odd(world: World, cast: Cast, rng: random.Random) -> Drawn:
    common, other = rng.sample(sorted(cast.names), 2)
    words, odd = cast.some(rng, 2, common), cast.one(rng, other)
    source = ", ".join(rng.sample([*words, odd], 3))
    start = rng.choice(["Which word does not belong: ", "Find the odd one out: "])
    text = f"{start}{source}{'?' if 'Which' in start else '.'}"
    return text, Task("odd", "", "", (odd,), source=source)


def _say_odd(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    group = prompt.task.source.split(", ")
    (right,) = prompt.task.targets
    word = right if honest else rng.choice([w for w in group if w != right])
    name = world.phrase(word)
    if not shown:
        return sentence(name)
    return sentence(rng.choice([f"{name} does not belong", f"the odd one out is {name}"]))


def _other(task: Task) -> str:
    """One of the two words that belong together."""
    return next(word for word in task.source.split(", ") if word not in task.targets)


def _say_others(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    kind = world.kind(_other(prompt.task)) if honest else rng.choice(sorted(_KINDS))
    return f"The others are {_KINDS[kind]}."


def _explained(case: Case) -> float:
    plural = _KINDS.get(case.reader.kinds.get(_other(case.task), ""), "none")
    return float(case.finds(re.compile(rf"\bare (?:all |both )?{plural}\b")))


def _score_odd(case: Case) -> float:
    options = [normal(o) for o in case.task.source.split(",")]
    target = normal(case.task.targets[0]) if case.task.targets else ""
    named = sorted((case.text.find(o), o) for o in options if o and case.says(o))
    if not named:
        return 0.0
    reasons = re.search(r"\b(because|others?|are|both|not)\b", case.text)
    if len(named) > 1 and not reasons:
        case.stated.append((False, 1.0))
        return 0.0
    case.stated.append((named[0][1] == target, 1.0))
    return float(named[0][1] == target)


ODD = Kind(
    "odd",
    _ask_odd,
    _say_odd,
    _score_odd,
    (_IN_A_SENTENCE, Element("reason", 1.0, _explained, _say_others, shown=0.4), OFFER),
    strangers=True,
)

# --- a question that only the given text can answer -----------------------------------------


def passage(world: World, rng: random.Random) -> tuple[str, dict[str, str]]:
    """A few sentences about strangers, and who has what."""
    people = rng.sample(STRANGERS, rng.choice([2, 3]))
    things = rng.sample(world.names("thing"), len(people))
    colours = rng.sample(VALUES["colour"], len(people))
    has = {p: f"{c} {t}" for p, c, t in zip(people, colours, things, strict=True)}
    verbs = ["has a", "carries a", "bought a", "has a"]
    return " ".join(f"{p} {rng.choice(verbs)} {x}." for p, x in has.items()), has


def passage_and_question(world: World, rng: random.Random) -> tuple[str, str, str, str]:
    """A passage, a question about one of its people, who that is, and what they have."""
    source, has = passage(world, rng)
    person = rng.choice(sorted(has))
    question = rng.choice([f"What does {person} have?", f"Which thing does {person} have?"])
    return source, question, person, has[person]


def _ask_closed(world: World, cast: Cast, rng: random.Random) -> Drawn:
    source, question, person, thing = passage_and_question(world, rng)
    text = rng.choice([f"{source} {question}", f"Text: {source} Question: {question}"])
    return text, Task("closed", person, "", (thing,), 1, source)


def _say_closed(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    (right,) = prompt.task.targets
    colour, thing = right.split()
    has = right if honest else f"{colour} {rng.choice(world.names('thing'))}"
    return f"{prompt.task.subject} has a {has}." if "whole" in shown else f"A {has}."


_TEXT_SAYS = (
    "The text says so.|It stands in the text.|You can read it in the text.|"
    "That is what the text says."
)
_POINTED = re.compile(r"\b(?:the )?text says(?: so)?|in the text|what the text\b")


def _score_closed(case: Case) -> float:
    task = case.task
    target = normal(task.targets[0]) if task.targets else ""
    passage_ = [normal(s) for s in re.split(r"[.!?]", task.source) if s.strip()]
    asked = set(normal(task.subject).split()) | set(target.split()) | SMALL_WORDS
    home = {w for s in passage_ if f" {target} " in f" {s} " for w in s.split()}
    others = {w for s in passage_ for w in s.split()} - asked - home
    whole, words = case.says(target), set(case.words)
    part = not whole and bool(target) and target.split()[-1] in words
    if not case.statements() or {"no", "not"} & set(case.before(target)):
        return 0.0
    copied = all(normal(s.text) in passage_ for s in case.reading.sentences)
    if copied and words & others:
        return 0.2 * whole
    strange = words - asked - home - others - lx.KNOWN
    true = (whole or part) and not words & others
    case.stated += [(true, 1.0), *[(False, 1.0)] * bool(strange and true)]
    return (1.0 if whole else 0.8) * (0.6 if strange else 1.0) if true else 0.0


CLOSED = Kind(
    "closed",
    _ask_closed,
    _say_closed,
    _score_closed,
    (
        Element("whole", 0.5, lambda case: float(case.says(case.task.subject)), shown=0.8),
        Element(
            "source", 0.75, lambda case: float(case.finds(_POINTED)), one_of(_TEXT_SAYS), shown=0.35
        ),
        replace(OFFER, weight=0.75),
    ),
    strangers=True,
)

# --- the names in a text --------------------------------------------------------------------


def _ask_extract(world: World, cast: Cast, rng: random.Random) -> Drawn:
    people = cast.some(rng, rng.choice([2, 3]), "person")
    scenes = [
        f"{people[0]} met {people[1]} near {rng.choice(VALUES['habitat'])}.",
        f"{people[0]} and {people[1]} walked to {rng.choice(VALUES['habitat'])}.",
        f"{people[0]} gave {people[1]} some {rng.choice(VALUES['food'])}.",
    ]
    late = [f"Later {people[-1]} came too.", f"Then {people[-1]} sang a song."]
    source = rng.choice(scenes) + (" " + rng.choice(late) if len(people) > 2 else "")
    start = rng.choice(["List the names in this text: ", "Which people are in this text? "])
    return start + source, Task("extract", "", "", tuple(people), len(people), source)


def _say_extract(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    names = list(prompt.task.targets)
    if not honest:
        names = [*names[:1], rng.choice(world.names("person"))]
    elif "all" not in shown and len(names) > 2:
        names.pop()
    return sentence(series(names))


def _say_count(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    count = _COUNTS[len(prompt.task.targets)]
    return rng.choice([f"There are {count} names.", f"I found {count} people."])


def _said_count(case: Case) -> float:
    count = _COUNTS.get(len(case.task.targets), "many")
    return float(case.finds(re.compile(rf"\b{count} (?:names|people|persons)\b")))


def _score_extract(case: Case) -> float:
    targets = {normal(t) for t in case.task.targets}
    source = [w for w in tokenize(case.task.source) if w[0].isalpha()]
    names = {w.lower() for w in source if w[0].isupper() and w.lower() not in lx.KNOWN}
    known = {m.name.lower() for m in case.reading.mentions() if m.name in case.reader.kinds}
    given = {t for t in targets if case.says(t)}
    places = [i for i, w in enumerate(case.text.split()) if w in names | targets]
    apart = sum(
        {",", "and"}.isdisjoint(case.text.split()[a:b])
        for a, b in zip(places, places[1:], strict=False)
    )
    wrong = {w for w in (names | known) - targets if case.says(w)}
    if not given:
        return 0.0
    if wrong - names:
        case.stated += [(False, 1.0), (True, 1.0)]
    copied = case.says(normal(case.task.source))
    f1 = 2 * len(given) / (2 * len(given) + len(wrong) + len(targets - given))
    return 0.1 if copied else max(0.0, f1 - 0.4 * apart)


EXTRACT = Kind(
    "extract",
    _ask_extract,
    _say_extract,
    _score_extract,
    (
        Element(
            "all",
            0.75,
            lambda case: float(all(case.says(t) for t in case.task.targets)),
            shown=0.6,
        ),
        Element("count", 0.75, _said_count, _say_count, True, 0.4),
        OFFER,
    ),
    strangers=True,
)
