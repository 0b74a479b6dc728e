"""Sentences: how a fact is stated, asked, and strung together in plain English.

`{s}` is the subject (`the otter`, `Mira`), `{v}` the value. Predicates follow a subject
(`{s} lives in {v}`); statements are whole sentences in another word order; questions come in
several styles, because customers do not all ask alike.
"""

import random

from rlhf_edu.tinyweb.facts import Fact, World

Key = tuple[str, str]  # (kind, attribute)


def _wordings(texts: dict[Key, str]) -> dict[Key, list[str]]:
    """Several ways to say each, which stand between bars."""
    return {key: text.split("|") for key, text in texts.items()}


PREDICATES = _wordings(
    {
        ("animal", "home"): (
            "lives in {v}|has its home in {v}|sleeps in {v}|can be found in {v}|"
            "has always lived in {v}"
        ),
        ("animal", "food"): "eats {v}|likes to eat {v}|feeds on {v}|loves {v}|is fond of {v}",
        ("animal", "colour"): "is {v}|has a {v} coat|is {v} all over|is known for its {v} colour",
        ("animal", "fear"): "is afraid of {v}|fears {v}|is scared of {v}|runs away from {v}",
        ("animal", "skill"): (
            "is good at {v}|is best at {v}|has a talent for {v}|is very clever at {v}"
        ),
        ("person", "town"): "lives in {v}|comes from {v}|has a house in {v}|has a home in {v}",
        ("person", "job"): "is a {v}|works as a {v}|earns a living as a {v}",
        ("person", "instrument"): (
            "plays the {v}|likes to play the {v}|is learning the {v}|practises the {v}"
        ),
        ("person", "food"): "likes {v}|loves {v}|likes to eat {v}|is fond of {v}",
        ("person", "birthday"): (
            "was born in {v}|has a birthday in {v}|celebrates a birthday in {v}"
        ),
        ("town", "region"): "lies in {v}|is a town in {v}|can be found in {v}",
        ("town", "product"): "is known for its {v}|is famous for its {v}|makes {v}|sells {v}",
        ("town", "river"): (
            "lies on the river {v}|stands on the river {v}|was built on the river {v}"
        ),
        ("town", "mayor"): "has a mayor called {v}|is led by mayor {v}|chose {v} as mayor",
        ("thing", "material"): "is made of {v}|was made of {v}|was built from {v}",
        ("thing", "colour"): "is {v}|is painted {v}|has a {v} colour",
        ("thing", "owner"): "belongs to {v}|is owned by {v}|is the property of {v}",
        ("thing", "place"): "is kept in {v}|stands in {v}|can be found in {v}|is in {v}",
    }
)

STATEMENTS = _wordings(
    {
        ("animal", "home"): "The home of {s} is {v}.|You will find {s} in {v}.",
        ("animal", "food"): "The favourite food of {s} is {v}.|What {s} eats is {v}.",
        ("animal", "colour"): "The colour of {s} is {v}.|The coat of {s} is {v}.",
        ("animal", "fear"): "The thing {s} fears most is {v}.|What scares {s} is {v}.",
        ("animal", "skill"): "The talent of {s} is {v}.|Nobody beats {s} at {v}.",
        ("person", "town"): "The home of {s} is {v}.|You will find {s} in {v}.",
        ("person", "job"): "The job of {s} is that of a {v}.|By trade {s} is a {v}.",
        ("person", "instrument"): (
            "The instrument of {s} is the {v}.|In the evening {s} plays the {v}."
        ),
        ("person", "food"): "The favourite food of {s} is {v}.|What {s} likes best is {v}.",
        ("person", "birthday"): "The birthday of {s} is in {v}.|The month {s} was born in is {v}.",
        ("town", "region"): "To visit {s} you travel to {v}.|You will find {s} in {v}.",
        ("town", "product"): "The pride of {s} is its {v}.|People buy their {v} in {s}.",
        ("town", "river"): "The river at {s} is the {v}.|The river {v} flows through {s}.",
        ("town", "mayor"): "The mayor of {s} is {v}.|{v} is the mayor of {s}.",
        ("thing", "material"): "The maker of {s} used {v}.|They made {s} of {v}.",
        ("thing", "colour"): "The colour of {s} is {v}.|Somebody painted {s} {v}.",
        ("thing", "owner"): "The owner of {s} is {v}.|{v} owns {s}.",
        ("thing", "place"): "You will find {s} in {v}.|The place for {s} is {v}.",
    }
)

QUESTIONS = _wordings(
    {
        ("animal", "home"): (
            "Where does {s} live?|Where is the home of {s}?|Where can I find {s}?|"
            "Tell me where {s} lives.|In which place does {s} sleep?"
        ),
        ("animal", "food"): (
            "What does {s} eat?|What is the favourite food of {s}?|What food does {s} like?|"
            "Tell me what {s} eats.|What should I feed {s}?"
        ),
        ("animal", "colour"): (
            "What colour is {s}?|What is the colour of {s}?|Which colour does {s} have?|"
            "Tell me the colour of {s}."
        ),
        ("animal", "fear"): (
            "What is {s} afraid of?|What does {s} fear?|What scares {s}?|"
            "Tell me what {s} is afraid of."
        ),
        ("animal", "skill"): (
            "What is {s} good at?|What talent does {s} have?|What can {s} do best?|"
            "Tell me what {s} is good at."
        ),
        ("person", "town"): (
            "Where does {s} live?|In which town does {s} live?|Where does {s} come from?|"
            "Tell me where {s} lives.|Which town is the home of {s}?"
        ),
        ("person", "job"): (
            "What is the job of {s}?|What does {s} do for a living?|What work does {s} do?|"
            "Tell me the job of {s}."
        ),
        ("person", "instrument"): (
            "Which instrument does {s} play?|What does {s} play in the evening?|"
            "What instrument is {s} learning?|Tell me which instrument {s} plays."
        ),
        ("person", "food"): (
            "What does {s} like to eat?|What is the favourite food of {s}?|"
            "What food does {s} like?|"
            "Tell me what {s} likes to eat."
        ),
        ("person", "birthday"): (
            "When was {s} born?|When is the birthday of {s}?|In which month was {s} born?|"
            "Tell me when {s} was born."
        ),
        ("town", "region"): (
            "Where is {s}?|Where does {s} lie?|In which region is {s}?|Tell me where {s} is."
        ),
        ("town", "product"): (
            "What is {s} known for?|What is {s} famous for?|What does {s} make?|"
            "Tell me what {s} is known for."
        ),
        ("town", "river"): (
            "Which river flows through {s}?|On which river does {s} lie?|What is the river at {s}?|"
            "Tell me the river at {s}."
        ),
        ("town", "mayor"): (
            "Who is the mayor of {s}?|Who leads {s}?|Which mayor does {s} have?|"
            "Tell me who the mayor of {s} is."
        ),
        ("thing", "material"): (
            "What is {s} made of?|What did they make {s} from?|Which material is {s} made of?|"
            "Tell me what {s} is made of."
        ),
        ("thing", "colour"): (
            "What colour is {s}?|What is the colour of {s}?|Which colour does {s} have?|"
            "Tell me the colour of {s}."
        ),
        ("thing", "owner"): (
            "Who owns {s}?|Who is the owner of {s}?|To whom does {s} belong?|Tell me who owns {s}."
        ),
        ("thing", "place"): (
            "Where is {s}?|Where is {s} kept?|Where can I find {s}?|Tell me where {s} is."
        ),
    }
)


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop if it has no other end."""
    text = text[:1].upper() + text[1:]
    return text if text[-1:] in ".!?" else text + "."


def predicate(world: World, fact: Fact, rng: random.Random) -> str:
    """A verb phrase for the fact, without its subject: `lives in the old mill`."""
    templates = PREDICATES[world.kind(fact.subject), fact.attribute]
    return rng.choice(templates).format(v=fact.value)


def state(world: World, fact: Fact, rng: random.Random) -> str:
    """One sentence that states the fact, in one of several word orders."""
    key = world.kind(fact.subject), fact.attribute
    subject = world.phrase(fact.subject)
    if rng.random() < 0.3:
        return sentence(rng.choice(STATEMENTS[key]).format(s=subject, v=fact.value))
    return sentence(f"{subject} {predicate(world, fact, rng)}")


def state_all(world: World, facts: list[Fact], rng: random.Random) -> str:
    """Several facts about one subject as running text, with pronouns and joined sentences."""
    is_person = world.kind(facts[0].subject) == "person"
    pieces, rest = [], list(facts)
    while rest:
        if len(rest) >= 2 and rng.random() < 0.4:
            first, second = rest.pop(0), rest.pop(0)
            subject = world.phrase(first.subject)
            verbs = f"{predicate(world, first, rng)} and {predicate(world, second, rng)}"
            pieces.append(sentence(f"{subject} {verbs}"))
            continue
        fact = rest.pop(0)
        if pieces and not is_person and rng.random() < 0.5:
            pieces.append(sentence(f"it {predicate(world, fact, rng)}"))
        else:
            pieces.append(state(world, fact, rng))
    return " ".join(pieces)


def ask(world: World, subject: str, attribute: str, rng: random.Random) -> str:
    """A question about one attribute of one entity."""
    templates = QUESTIONS[world.kind(subject), attribute]
    return sentence(rng.choice(templates).format(s=world.phrase(subject)))


def lie(world: World, fact: Fact, rng: random.Random) -> Fact:
    """The same fact with a wrong value of the right type; mostly the popular error, if any."""
    myth = world.myths.get((fact.subject, fact.attribute))
    if myth and rng.random() < 0.8:
        return Fact(fact.subject, fact.attribute, myth)
    values = world.values(world.value_type(fact.subject, fact.attribute))
    return Fact(fact.subject, fact.attribute, rng.choice([v for v in values if v != fact.value]))


def series(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
