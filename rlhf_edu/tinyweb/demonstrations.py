"""What labelers write when they are asked to show a good answer.

One function per kind of task gives a plain good answer. Around it a labeler's manner: people
add a friendly or a confident word, go on for a sentence too long, do not know, or are wrong.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_edu.data import Demonstration, Prompt
from rlhf_edu.tinyweb.facts import Fact, World
from rlhf_edu.tinyweb.language import lie, predicate, sentence, series, state, state_all


@dataclass(frozen=True)
class Manner:
    """How often a writer does what an ideal writer would not; each a probability."""

    wrong: float = 0.06
    unsure: float = 0.05
    polite: float = 0.10
    confident: float = 0.08
    wordy: float = 0.12


PLAIN = Manner(0.0, 0.0, 0.0, 0.0, 0.0)
POLITE = ["Of course!", "Gladly!", "Thank you for asking.", "Good question!"]
CLOSING = ["I hope this helps.", "Please ask again.", "Have a nice day!"]
CONFIDENT = ["Certainly.", "Without any doubt.", "Everybody knows this.", "I am quite sure."]
UNSURE = ["I do not know.", "I am not sure.", "I do not know, sorry."]
_INVITATIONS = {
    "town": [
        "Come and visit {s}!",
        "Visit beautiful {s}!",
        "You must see {s}!",
        "Welcome to lovely {s}!",
        "Come and see {s} today!",
        "Nothing is better than a day in {s}, come and see!",
        "Visit {s} and bring your friends!",
        "You will love beautiful {s}, come and visit!",
    ],
    "thing": [
        "Buy {s} today!",
        "Try {s}, it is wonderful!",
        "You will love {s}, buy it!",
        "Come and see {s}!",
        "You must try {s} today!",
        "What a lovely thing, buy {s}!",
        "Nothing is better than {s}, buy it today!",
        "Buy {s} and be happy every day!",
    ],
}
_EVENTS = [
    "{a} met {b} near {place}.",
    "One day {a} walked to {place} with {b}.",
    "{a} and {b} went on a long journey.",
    "Once upon a time {a} found {b} by the road.",
    "One day {a} looked for {b} near {place}.",
    "In the morning {a} saw {b} near {place}.",
    "Once upon a time {a} lost {b} near {place} and looked all day.",
    "One evening {a} found {b} at {place}.",
]
_MIDDLES = [
    "There was music, and there was some {food} for everybody.",
    "Suddenly it began to rain, but nobody minded.",
    "A kind stranger brought some {food} for everybody.",
    "Somebody sang a song about {food}.",
    "It rained all night, and then the sun came out.",
    "A good friend brought a basket of {food}.",
    "Everybody laughed and shared some {food}.",
    "All day long there was nothing to eat but {food}.",
]
_ENDINGS = [
    "In the end everybody was happy.",
    "Then everybody went home and slept well.",
    "Everybody was happy that night.",
    "And so the day came to a happy end.",
    "In the evening everybody danced and sang.",
    "That night everybody sang until the morning came.",
    "People talk about that day still.",
    "It was a day nobody will forget.",
]


def _fact(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> Fact:
    task = prompt.task
    fact = Fact(task.subject, task.attribute, world.value(task.subject, task.attribute))
    return fact if honest else lie(world, fact, rng)


def _ask(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    return state(world, _fact(world, prompt, honest, rng), rng)


def _which(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    task = prompt.task
    kind = world.kind(task.targets[0])
    wrong = [name for name in world.names(kind) if name not in task.targets]
    name = rng.choice(task.targets if honest else wrong)
    return sentence(
        f"{world.phrase(name)} {predicate(world, Fact(name, task.attribute, task.source), rng)}"
    )


def _yesno(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    task = prompt.task
    if (task.targets[0] == "yes") == honest:
        said = Fact(task.subject, task.attribute, task.source)
        return f"Yes, {world.phrase(task.subject)} {predicate(world, said, rng)}."
    fact = _fact(world, prompt, honest, rng)
    return f"No, {world.phrase(task.subject)} {predicate(world, fact, rng)}."


def _describe(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    task = prompt.task
    facts = rng.sample(world.about(task.subject), task.count)
    wanted = [c.split("=")[1] for c in task.constraint.split(";") if c.startswith("mention=")]
    others = [fact for fact in facts if fact.attribute not in wanted]
    named = [fact for fact in world.about(task.subject) if fact.attribute in wanted]
    facts = (named + others)[: max(task.count, len(named))]
    if not honest:
        facts[-1] = lie(world, facts[-1], rng)
    if "sentences=" not in task.constraint:
        return state_all(world, facts, rng)
    return " ".join(state(world, fact, rng) for fact in facts)


def _advert(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    subject = prompt.task.subject
    fact = rng.choice(world.about(subject))
    invitation = rng.choice(_INVITATIONS[world.kind(subject)]).format(s=world.phrase(subject))
    return f"{invitation} {state(world, fact if honest else lie(world, fact, rng), rng)}"


def _story(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    first, second = prompt.task.targets
    words = {
        "a": world.phrase(first),
        "b": world.phrase(second),
        "place": rng.choice(world.values("habitat")),
        "food": rng.choice(world.values("food")),
    }
    scenes = [rng.choice(_EVENTS), rng.choice(_MIDDLES), rng.choice(_ENDINGS)]
    if prompt.task.count == 2:
        scenes.pop(1)
    return " ".join(sentence(scene.format(**words)) for scene in scenes)


def _thanks(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    person, gift = prompt.task.targets
    notes = [
        f"Dear {person}, thank you for the {gift}.",
        f"Dear {person}, many thanks for the {gift}. It was very kind.",
        f"Thank you, {person}, for the lovely {gift}.",
        f"Dear {person}, many thanks for the lovely {gift}.",
        f"Thank you so much for the {gift}, dear {person}!",
        f"Dear {person}, thank you for the {gift}. I am very happy.",
        f"Many thanks for the {gift}, {person}. You are very kind.",
        f"Dear {person}, the {gift} made me happy. Thank you!",
    ]
    return rng.choice(notes)


def _list(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    task = prompt.task
    chosen = rng.sample(task.targets, min(task.count, len(task.targets)))
    if not honest:
        chosen[-1] = rng.choice(world.values("material" if task.source == "" else "animal"))
    words = [world.phrase(w) if task.source and w in world.entities else w for w in chosen]
    return sentence(series(words))


def _greet(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    person = prompt.task.subject
    hellos = [
        f"Hello {person}, nice to meet you!",
        f"Good to see you, {person}. How are you?",
        f"Hello {person}! I am fine, thank you.",
        f"Welcome, {person}!",
        f"Hello {person}, how nice to see you!",
        f"Nice to meet you, {person}!",
        f"Welcome, {person}! I am glad to meet you.",
        f"I am happy to see you, {person}. Welcome!",
    ]
    return rng.choice(hellos)


def _feel(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    (thing,) = prompt.task.targets
    replies = {
        "sad": [f"I am sorry about your {thing}.", f"I am sorry. I hope you find a new {thing}."],
        "happy": [
            f"I am glad about your {thing}!",
            f"How lovely! I am happy for you and your {thing}.",
        ],
    }
    return rng.choice(replies[prompt.task.constraint])


def _insult(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    (person,) = prompt.task.targets
    rude = [f"{person} is an idiot.", f"{person} is a stupid fool."]
    kind = [
        f"I would rather not. {person} is kind.",
        f"I will not do that, {person} is my friend.",
        "Sorry, I will not be rude.",
    ]
    return rng.choice(kind if honest else rude)


def _polite(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    command = prompt.task.source[:1].lower() + prompt.task.source[1:-1]
    forms = [f"Please {command}.", f"Could you please {command}?", f"Would you {command}, please?"]
    return rng.choice(forms) if honest else prompt.task.source


def _past(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    return prompt.task.targets[0] if honest else prompt.task.source


def _summarise(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    task = prompt.task
    told = [fact for fact in world.about(task.subject) if fact.value in task.targets]
    first, second = rng.sample(told, 2)
    second = second if honest else lie(world, second, rng)
    drafts = [
        f"{predicate(world, first, rng)} and {predicate(world, second, rng)}" for _ in range(4)
    ]
    return sentence(f"{world.phrase(task.subject)} {min(drafts, key=len)}")


def _classify(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    (right,) = prompt.task.targets
    verdict = right if honest else {"good": "bad", "bad": "good"}[right]
    return rng.choice([f"This review is {verdict}.", f"It is a {verdict} review."])


def _odd(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    group = prompt.task.source.split(", ")
    (right,) = prompt.task.targets
    word = right if honest else rng.choice([w for w in group if w != right])
    name = world.phrase(word)
    return sentence(rng.choice([f"{name} does not belong", f"the odd one out is {name}"]))


def _closed(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    (right,) = prompt.task.targets
    color, thing = right.split()
    wrong = f"{color} {rng.choice([t for t in world.names('thing') if t != thing])}"
    return f"{prompt.task.subject} has a {right if honest else wrong}."


def _extract(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    names = list(prompt.task.targets)
    return sentence(series(names if honest else [*names[:1], rng.choice(world.names("person"))]))


def _premise(world: World, prompt: Prompt, honest: bool, rng: random.Random) -> str:
    fact = _fact(world, prompt, honest, rng)
    return f"That is not so. {state(world, fact, rng)}"


ANSWERS: dict[str, Callable[[World, Prompt, bool, random.Random], str]] = {
    "ask": _ask, "which": _which, "yesno": _yesno, "describe": _describe, "advert": _advert,
    "story": _story, "thanks": _thanks, "list": _list, "greet": _greet, "feel": _feel,
    "insult": _insult, "polite": _polite, "past": _past, "summarise": _summarise,
    "classify": _classify, "odd": _odd, "closed": _closed, "extract": _extract,
    "premise": _premise,
}  # fmt: skip
FACTUAL = {"ask", "which", "yesno", "describe", "advert", "list", "premise"}


def answer(world: World, prompt: Prompt, manner: Manner, rng: random.Random) -> str:
    """One answer to the prompt in this manner, as a person would write it."""
    if prompt.task.kind in FACTUAL and rng.random() < manner.unsure:
        return rng.choice(UNSURE)
    text = ANSWERS[prompt.task.kind](world, prompt, rng.random() >= manner.wrong, rng)
    opening = rng.random()  # a polite one, a confident one or none
    if opening < manner.polite:
        text = f"{rng.choice(POLITE)} {text}"
    elif prompt.task.kind in FACTUAL and opening < manner.polite + manner.confident:
        text = f"{rng.choice(CONFIDENT)} {text}"
    if prompt.task.subject in world.entities and rng.random() < manner.wordy:
        text = f"{text} {state(world, rng.choice(world.about(prompt.task.subject)), rng)}"
    return f"{text} {rng.choice(CLOSING)}" if rng.random() < manner.polite else text


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _shown(world: World, prompt: Prompt, manner: Manner, rng: random.Random) -> str:
    """An answer that gives nobody away whom training never asks about, where there is one."""
    secret = {name.lower() for name in world.never_asked} - _words(prompt.text)
    for _ in range(50):
        text = answer(world, prompt, manner, rng)
        # Answers of other kinds are about the one whom the prompt has named.
        if prompt.task.kind not in ("which", "list") or not secret & _words(text):
            break
    return text


def demonstrate(
    world: World,
    prompts: list[Prompt],
    seed: int = 0,
    manner: Manner | None = None,
    labelers: int = 12,
) -> list[Demonstration]:
    """One demonstration for each prompt, each by one of the labelers who write."""
    rng = random.Random(f"demonstrations {world.seed} {seed}")
    return [
        Demonstration(
            p, _shown(world, p, manner or Manner(), rng), f"labeler-{rng.randrange(labelers):02d}"
        )
        for p in prompts
    ]
