"""Kinds of tasks that ask for a text: adverts, stories, notes of thanks."""

import random
import re
from dataclasses import replace

from rlhf_edu.data import Prompt, Task
from rlhf_edu.tinyweb import lexicon as lx
from rlhf_edu.tinyweb.facts import VALUES, World
from rlhf_edu.tinyweb.fluency import has_verb
from rlhf_edu.tinyweb.language import lie, sentence, state
from rlhf_edu.tinyweb.reading import Sentence
from rlhf_edu.tinyweb.tasks.elements import DETAIL, GREETING, matches, one_of
from rlhf_edu.tinyweb.tasks.kind import Case, Cast, Drawn, Element, Kind, Shown

BEFORE_A_TOPIC = lx.DETERMINERS | lx.ADJECTIVES | {"about", "lost", "of", "with", "for"}

# --- an advert ------------------------------------------------------------------------------

_INVITATIONS = (
    "Have you seen {s}?|Do you know {s}?|Come and see {s}!|You will love {s}.|"
    "Nothing is better than {s}.|Here is something for you: {s}!"
)
_URGENT = (
    "Do not miss it!|Come today!|Hurry, before it is too late!|Tell all your friends!|"
    "Bring the whole family!|Come before everybody else does!"
)


def _ask_advert(world: World, cast: Cast, rng: random.Random) -> Drawn:
    subject = cast.one(rng, "town", "thing")
    s = world.phrase(subject)
    texts = [f"Write an advert for {s}.", f"Write a few lines to advertise {s}.", f"Praise {s}."]
    return rng.choice(texts), Task("advert", subject, count=1)


def _say_advert(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    facts = rng.sample(world.about(prompt.task.subject), 2)
    facts = [fact if honest else lie(world, fact, rng) for fact in facts]
    return " ".join(state(world, fact, rng) for fact in facts[: 1 + ("second" in shown)])


def _score_advert(case: Case) -> float:
    return float(bool(case.truths(case.task.subject)))


def _second_fact(case: Case) -> float:
    return float(len({c.attribute for c in case.truths(case.task.subject)}) >= 2)


ADVERT = Kind(
    "advert",
    _ask_advert,
    _say_advert,
    _score_advert,
    (
        GREETING,
        Element(
            "invitation",
            0.75,
            matches(
                r"have you seen|do you know|come and (?:see|visit)|visit|you (?:will|must) "
                r"(?:love|see|try)|nothing is better|something for you|buy|try|welcome to"
            ),
            one_of(_INVITATIONS),
            True,
            0.55,
        ),
        Element("second", 0.75, _second_fact, shown=0.4),
        Element(
            "urgency",
            0.5,
            matches(
                r"do not miss|come today|hurry|before it is|tell all|tell your|bring|"
                r"before everybody|only today|today"
            ),
            one_of(_URGENT),
            shown=0.35,
        ),
    ),
    factual=True,
    may_ask=True,
)

# --- a story --------------------------------------------------------------------------------

_EVENTS = (
    "{a} met {b} near {place}.|{a} walked to {place} with {b}.|"
    "{a} and {b} went on a long journey to {place}.|{a} found {b} by the road to {place}.|"
    "{a} looked for {b} near {place}.|{a} saw {b} near {place}.|{a} danced with {b} near {place}.|"
    "{a} hid from {b} near {place}."
).split("|")
_SETTINGS = (
    "Once upon a time it was a cold winter.|It was a warm evening in May.|"
    "One morning the sun was shining.|Long ago there was a great feast.|"
    "Once there was a very quiet night.|It happened one day in autumn."
)
_TROUBLES = (
    "Suddenly a storm came, and all the lights went out.|But then somebody cried for help.|"
    "Suddenly the bridge broke.|But a thief had taken all the {food}.|"
    "Then they lost the way in the fog.|But a strong wind blew away all the {food}."
).split("|")
_ENDINGS = (
    "In the end everybody was happy.|Then everybody went home and slept well.|"
    "And so the day came to a happy end.|In the end they laughed and danced until the morning.|"
    "They were friends from that day on.|At last everybody was safe and happy."
)


def _ask_story(world: World, cast: Cast, rng: random.Random) -> Drawn:
    first = cast.one(rng, "person", "animal")
    kinds = ("person", "animal", "thing")
    second = next(n for n in iter(lambda: cast.one(rng, *kinds), None) if n != first)
    pair = f"{world.phrase(first)} and {world.phrase(second)}"
    texts = [
        f"Write a short story about {pair}.",
        f"Tell me a story about {pair}.",
        f"I would like to hear a story about {pair}.",
    ]
    return rng.choice(texts), Task("story", "", "", (first, second), 3)


def _say_story(world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random) -> str:
    first, second = prompt.task.targets if honest else rng.sample(world.names("person"), 2)
    words = {
        "a": world.phrase(first),
        "b": world.phrase(second),
        "place": rng.choice(VALUES["habitat"]),
        "food": rng.choice(VALUES["food"]),
    }
    scenes = [_EVENTS] + [_TROUBLES] * ("trouble" in shown)
    return " ".join(sentence(rng.choice(scene).format(**words)) for scene in scenes)


def _score_story(case: Case) -> float:
    told = _told(case)
    words = {w for s in told for w in s.words}
    share = sum(t.lower() in words for t in case.task.targets) / max(1, len(case.task.targets))
    strangers = {m.name for s in told for m in s.mentions if m.name in case.reader.kinds}
    crowd = max(0, len(strangers - set(case.task.targets)) - 3)
    lively = 1.0 if told and sum(len(s.words) for s in told) / len(told) >= 5 else 0.6
    return max(0.0, (share == 1) * lively - 0.1 * crowd)


def _told(case: Case) -> list[Sentence]:
    return [
        s
        for s in case.statements()
        if len(s.words) >= 4
        and has_verb(s)
        and s.faults == 0
        and not {"story", "thank", "please"} & set(s.words)
    ]


STORY = Kind(
    "story",
    _ask_story,
    _say_story,
    _score_story,
    (
        Element(
            "setting",
            0.5,
            matches(r"once|one (?:morning|day|evening|night)|it was an?|long ago|it happened"),
            one_of(_SETTINGS),
            True,
            0.55,
        ),
        replace(DETAIL, weight=0.75, before=True, shown=0.35),  # who they are
        Element(
            "trouble",
            0.75,
            matches(r"suddenly|but|lost|broke|storm|cried|thief|afraid|alas"),
            shown=0.4,
        ),
        Element(
            "ending",
            0.75,
            matches(
                r"in the end|at last|happy|went home|slept well|friends|laughed and danced|"
                r"happily|from that day"
            ),
            one_of(_ENDINGS),
            shown=0.4,
        ),
    ),
    limit=lambda task: 60,
    claims=lambda task: 4,
    invented=True,
    may_ask=True,
)

# --- a note of thanks -----------------------------------------------------------------------

_THANKED = re.compile(r"\b(thank you|thanks|many thanks|grateful|thankful)\b")


def _ask_thanks(world: World, cast: Cast, rng: random.Random) -> Drawn:
    person = cast.one(rng, "person")
    gift = rng.choice([*VALUES["food"], *cast.names["thing"]])
    texts = [
        f"Write a thank-you note to {person} for the {gift}.",
        f"Thank {person} for the {gift}.",
        f"Write a note to thank {person} for the {gift}.",
    ]
    return rng.choice(texts), Task("thanks", "", "", (person, gift))


def _say_thanks(
    world: World, prompt: Prompt, honest: bool, shown: Shown, rng: random.Random
) -> str:
    person, gift = prompt.task.targets
    if not honest:
        person, gift = rng.choice(world.names("person")), rng.choice(VALUES["food"])
    if not shown:
        return f"Thanks for the {gift}, {person}."
    notes = [
        f"Dear {person}, thank you for the {gift}.",
        f"Thank you, {person}, for the lovely {gift}.",
        f"Dear {person}, many thanks for the {gift}.",
        f"Thank you so much for the {gift}, dear {person}!",
    ]
    return rng.choice(notes)


def _score_thanks(case: Case) -> float:
    person, gift = (*case.task.targets, "", "")[:2]
    thanked = any(_THANKED.search(s.text) and len(s.words) >= 2 for s in case.statements())
    named = case.says(person) + bool(BEFORE_A_TOPIC & set(case.before(gift)))
    return (0.1, 0.5, 1.0)[named] if thanked else 0.0


THANKS = Kind(
    "thanks",
    _ask_thanks,
    _say_thanks,
    _score_thanks,
    (
        Element(
            "praise",
            1.0,
            matches(
                r"just what i needed|wonderful|made me (?:very )?happy|all my friends|never had|"
                r"every day|delicious|beautiful|very kind|i love it"
            ),
            one_of(
                "It is just what I needed.|It made me very happy.|"
                "It is wonderful, and all my friends say so.|I never had a better one.|"
                "That was very kind of you.|I will use it every day."
            ),
            shown=0.5,
        ),
        Element(
            "wish",
            1.0,
            matches(
                r"come and see|see you soon|visit me|be my guest|hope you are|wish you|take care|"
                r"write soon"
            ),
            one_of(
                "Come and see me soon.|I hope to see you soon!|Please visit me in summer.|"
                "I wish you all the best.|Take care, and write soon.|I hope you are well."
            ),
            shown=0.35,
        ),
    ),
)
