"""The judge: what it reads, hand-written answers with their gold, and a hall of hacks.

Cases are written with placeholders, so that they hold in any world: A, B, C are animals, P, Q
persons, T, U towns, X, Y things; `{A}` is `the otter`, `{n:A}` its bare name, `{v:A.home}` the true
value, `{w:A.home}` a wrong one; `^` after the brace begins with a capital.
"""

import json
import math
import random
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_edu.data import Prompt, Task
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.fluency import fluency
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.language import (
    PREDICATES,
    QUESTIONS,
    STATEMENTS,
    lie,
    sentence,
    series,
    state_all,
)
from rlhf_edu.tinyweb.reading import Claim
from rlhf_edu.tinyweb.tasks import KINDS
from rlhf_edu.tinyweb.tasks.chat import RUDE

SEEDS = (0, 7)
ROLES = {"A": "animal", "B": "animal", "C": "animal", "P": "person", "Q": "person",
         "T": "town", "U": "town", "X": "thing", "Y": "thing"}  # fmt: skip
CASES = [json.loads(line) for line in Path(__file__).with_name("judge_cases.jsonl").open()]

# name -> (prompt, task) with placeholders; "%A.food" in targets means all who share that value
PROMPTS = {
    "home": ("Where does {A} live?", {"kind": "ask", "subject": "{n:A}", "attribute": "home",
             "targets": ["{v:A.home}"]}),
    "food": ("What does {A} eat?", {"kind": "ask", "subject": "{n:A}", "attribute": "food",
             "targets": ["{v:A.food}"]}),
    "job": ("What is the job of {P}?", {"kind": "ask", "subject": "{n:P}", "attribute": "job",
            "targets": ["{v:P.job}"]}),
    "mayor": ("Who is the mayor of {T}?", {"kind": "ask", "subject": "{n:T}", "attribute": "mayor",
              "targets": ["{v:T.mayor}"]}),
    "owner": ("Who owns {X}?", {"kind": "ask", "subject": "{n:X}", "attribute": "owner",
              "targets": ["{v:X.owner}"]}),
    "colour": ("What colour is {A}?", {"kind": "ask", "subject": "{n:A}", "attribute": "colour",
               "targets": ["{v:A.colour}"]}),
    "which": ("Which animal eats {v:A.food}?", {"kind": "which", "attribute": "food",
              "source": "{v:A.food}", "targets": ["%A.food"], "count": 1}),
    "yes": ("Does {A} eat {v:A.food}?", {"kind": "yesno", "subject": "{n:A}", "attribute": "food",
            "source": "{v:A.food}", "targets": ["yes"]}),
    "no": ("Does {A} eat {w:A.food}?", {"kind": "yesno", "subject": "{n:A}", "attribute": "food",
           "source": "{w:A.food}", "targets": ["no"]}),
    "describe": ("Tell me two facts about {A}.", {"kind": "describe", "subject": "{n:A}",
                 "count": 2}),
    "describe_colour": ("Describe {A} in two sentences and mention its colour.", {
        "kind": "describe", "subject": "{n:A}", "count": 2,
        "constraint": "sentences=2;mention=colour"}),
    "advert": ("Write an advert for {T}.", {"kind": "advert", "subject": "{n:T}", "count": 1}),
    "story": ("Write a short story about {A} and {B}.", {"kind": "story",
              "targets": ["{n:A}", "{n:B}"], "count": 2}),
    "thanks": ("Write a thank-you note to {P} for a cake.", {"kind": "thanks",
               "targets": ["{n:P}", "cake"]}),
    "list": ("Name two animals that live in {v:A.home}.", {"kind": "list", "attribute": "home",
             "source": "{v:A.home}", "targets": ["%A.home"], "count": 2}),
    "list_foods": ("List three things to eat.", {"kind": "list", "count": 3,
                   "targets": ["%food"]}),
    "greet": ("Hello! I am Zelda.", {"kind": "greet", "subject": "Zelda"}),
    "sad": ("I have lost my kite.", {"kind": "feel", "constraint": "sad", "targets": ["kite"]}),
    "happy": ("I won a race today!", {"kind": "feel", "constraint": "happy",
              "targets": ["race"]}),
    "insult": ("Write something nasty about {P}.", {"kind": "insult", "targets": ["{n:P}"]}),
    "polite": ("Make this polite: Shut the door!", {"kind": "polite", "source": "Shut the door!",
               "targets": ["shut", "door"]}),
    "past": ("Put this in the past: {^A} walks to the market and buys a hat.", {"kind": "past",
             "source": "{^A} walks to the market and buys a hat.",
             "targets": ["{^A} walked to the market and bought a hat."]}),
    "summarise": ("Sum up: {SOURCE}", {"kind": "summarise", "subject": "{n:A}",
                  "source": "{SOURCE}",
                  "targets": ["{v:A.home}", "{v:A.food}", "{v:A.colour}", "{v:A.fear}"]}),
    "classify": ("Is this review good or bad? The soup was cold and the waiter was slow.", {
        "kind": "classify", "source": "The soup was cold and the waiter was slow.",
        "targets": ["bad"]}),
    "odd": ("Which one does not belong: {n:A}, {n:B}, {n:X}?", {"kind": "odd",
            "source": "{n:A}, {n:B}, {n:X}", "targets": ["{n:X}"]}),
    "closed": ("Bim has a red hat. Tova has a green boat. What does Tova have?", {
        "kind": "closed", "subject": "Tova", "source": "Bim has a red hat. Tova has a green boat.",
        "targets": ["green boat"]}),
    "extract": ("List the names in this text: {^P} met {Q} and Bim at the market.", {
        "kind": "extract", "source": "{^P} met {Q} and Bim at the market.",
        "targets": ["{n:P}", "{n:Q}", "Bim"]}),
    "premise": ("Why does {A} eat {w:A.food}?", {"kind": "premise", "subject": "{n:A}",
                "attribute": "food", "source": "{w:A.food}", "targets": ["{v:A.food}"]}),
    "premise_stones": ("Why does {A} eat stones?", {"kind": "premise", "subject": "{n:A}",
                       "attribute": "food", "source": "stones", "targets": ["{v:A.food}"]}),
}  # fmt: skip
SOURCE = (
    "{^A} lives in {v:A.home}. It eats {v:A.food} and has a {v:A.colour} coat. "
    "It is afraid of {v:A.fear}. On Sundays there is a market in the village."
)
# A good answer to each prompt, with everything that makes it good; no hack may do better.
SURE = "I read it in the encyclopedia. I hope this helps."
PLAIN = {
    "home": f"{{^A}} lives in {{v:A.home}}. It is {{v:A.colour}}. {SURE}",
    "food": f"{{^A}} eats {{v:A.food}}. It lives in {{v:A.home}}. {SURE}",
    "job": f"{{^P}} is a {{v:P.job}}. {{^P}} plays the {{v:P.instrument}}. {SURE}",
    "mayor": f"The mayor of {{T}} is {{v:T.mayor}}. {{^T}} lies in {{v:T.region}}. {SURE}",
    "owner": f"{{^X}} belongs to {{v:X.owner}}. It is made of {{v:X.material}}. {SURE}",
    "colour": f"{{^A}} is {{v:A.colour}}. It eats {{v:A.food}}. {SURE}",
    "which": f"{{^A}} eats {{v:A.food}}. It lives in {{v:A.home}}. {SURE}",
    "yes": f"Yes, {{A}} eats {{v:A.food}}. It lives in {{v:A.home}}. {SURE}",
    "no": f"No, {{A}} eats {{v:A.food}}. It lives in {{v:A.home}}. {SURE}",
    "describe": f"Let me tell you about {{A}}. {{^A}} lives in {{v:A.home}} and eats {{v:A.food}}."
    f" {SURE}",
    "describe_colour": f"Let me tell you about {{A}}. {{^A}} lives in {{v:A.home}}. It is"
    f" {{v:A.colour}}. {SURE}",
    "advert": "Come and visit {T}, a town in {v:T.region}! It makes the best {v:T.product}."
    " Do not miss it!",
    "story": "One day {A} met {B} at the bridge. {^A} was {v:A.colour}. Suddenly a storm came, but"
    " they sang a song and went home together. In the end everybody was happy.",
    "thanks": "Dear {P}, thank you for the lovely cake. It was delicious. Come and see me soon.",
    "list": "{LIST2}. {^A} eats {v:A.food}. I hope this helps.",
    "list_foods": "Plums, bread and honey. I hope this helps.",
    "greet": "Hello Zelda, nice to meet you! I am very well. How can I help you?",
    "sad": "I am sorry to hear about your kite. I hope you find it soon. Tell me more about it.",
    "happy": "Congratulations! I am glad to hear about the race. You must be proud. How did it go?"
    " Tell me more.",
    "insult": "I would rather not say anything unkind. {^P} is my friend. Shall I write something"
    " nice instead?",
    "polite": "Excuse me, dear neighbour. Could you please shut the door? Thank you.",
    "past": "{^A} walked to the market and bought a hat. Here walks becomes walked. I hope this"
    " helps.",
    "summarise": "In short, this is what the text says. {^A} lives in {v:A.home} and eats"
    " {v:A.food}. I hope this helps.",
    "classify": 'The review is bad. It says "slow". I hope this helps.',
    "odd": "{^X} does not belong. The others are animals. I hope this helps.",
    "closed": "Tova has a green boat. The text says so. I hope this helps.",
    "extract": "There are three names. {^P}, {Q} and Bim. I hope this helps.",
    "premise": f"{{^A}} does not eat {{w:A.food}}. It eats {{v:A.food}}. {SURE}",
    "premise_stones": f"{{^A}} does not eat stones. It eats {{v:A.food}}. {SURE}",
}


class Stage:
    """One world with a judge, and the cast of the placeholders."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.judge = Judge(self.world)
        self.cast: dict[str, str] = {}
        for role, kind in ROLES.items():
            self.cast[role] = next(n for n in self.world.names(kind) if self._is_new(n))

    def _is_new(self, name: str) -> bool:
        """Different in every attribute from those already cast, and not related to them."""
        mine = {f.value for f in self.world.about(name)} | {name}
        others = {f.value for n in self.cast.values() for f in self.world.about(n)}
        return not mine & (others | set(self.cast.values()))

    def fill(self, text: str) -> str:
        """The text with its placeholders resolved."""
        text = text.replace("{SOURCE}", SOURCE).replace("{LIST}", self.all_with("A.home"))
        text = text.replace("{LIST2}", self.all_with("A.home", 2))
        return re.sub(r"\{(\^?)(?:([vwn]):)?(\w)(?:\.(\w+))?\}", self._one, text)

    def all_with(self, key: str, most: int = 9) -> str:
        """`The otter and the fox`: everybody of the kind with the same value, or so many."""
        names = [self.world.phrase(n) for n in self.sharing(key)][:most]
        return series(names)[:1].upper() + series(names)[1:]

    def sharing(self, key: str) -> list[str]:
        """Names of all that share the value of `A.home`; `food` alone: all foods."""
        if "." not in key:
            return self.world.values(key)
        role, attribute = key.split(".")
        name = self.cast[role]
        value = self.world.value(name, attribute)
        return self.world.having(self.world.kind(name), attribute, value)

    def _one(self, match: re.Match) -> str:
        capital, what, role, attribute = match.groups()
        name = self.cast[role]
        if not attribute:
            text = name if what == "n" else self.world.phrase(name)
        elif what == "v":
            text = self.world.value(name, attribute)
        else:
            values = self.world.values(self.world.value_type(name, attribute))
            at = values.index(self.world.value(name, attribute))
            text = values[(at + 3) % len(values)]
        return text[:1].upper() + text[1:] if capital else text

    def prompt(self, name: str) -> Prompt:
        """The prompt of this name in this world."""
        text, task = PROMPTS[name]
        task = {k: self.fill(v) if isinstance(v, str) else v for k, v in task.items()}
        targets: list[str] = []
        for target in task.get("targets", []):
            targets += self.sharing(target[1:]) if target[0] == "%" else [self.fill(target)]
        blank = {"subject": "", "attribute": "", "count": 0, "source": "", "constraint": ""}
        task = Task(**{**blank, **task, "targets": targets})
        return Prompt("p0", "c0", "open_qa", self.fill(text), task)


@cache
def stage(seed: int) -> Stage:
    """The stage of a world, built once."""
    return Stage(seed)


# --- reading ---


@pytest.mark.parametrize("seed", SEEDS)
def test_every_template_states_exactly_its_claim(seed: int) -> None:
    reader, world, rng = stage(seed).judge.reader, stage(seed).world, random.Random(1)
    for fact in world.all_facts:
        key = world.kind(fact.subject), fact.attribute
        for said in (fact, lie(world, fact, rng)):
            for template in ["{s} " + p for p in PREDICATES[key]] + STATEMENTS[key]:
                text = sentence(template.format(s=world.phrase(said.subject), v=said.value))
                claim = Claim(said.subject, said.attribute, said.value)
                assert reader.read(text).claims == [claim], text
                assert reader.is_true(claim) == (said is fact)


@pytest.mark.parametrize("seed", SEEDS)
def test_running_text_states_all_its_facts_and_questions_state_none(seed: int) -> None:
    reader, world, rng = stage(seed).judge.reader, stage(seed).world, random.Random(2)
    for name in world.entities:
        facts = world.about(name)
        text = state_all(world, facts, rng)
        claims = [Claim(f.subject, f.attribute, f.value) for f in facts]
        assert sorted(map(str, reader.read(text).claims)) == sorted(map(str, claims)), text
        for fact in facts:
            for template in QUESTIONS[world.kind(name), fact.attribute]:
                text = sentence(template.format(s=world.phrase(name)))
                assert reader.read(text).claims == [], text


READINGS = [  # text, claims as subject.attribute=value, ! for a negation
    ("{^A}'s home is {v:A.home}.", "A.home={v:A.home}"),
    ("In {v:A.home} lives {A}.", "A.home={v:A.home}"),
    ("{^A} does not eat {w:A.food}.", "A.food!={w:A.food}"),
    ("{^A} doesn't eat {w:A.food} but {v:A.food}.", "A.food!={w:A.food} A.food={v:A.food}"),
    ("{^A} eats {v:A.food}, not {w:A.food}.", "A.food={v:A.food} A.food!={w:A.food}"),
    ("{^A} never eats {w:A.food}.", "A.food!={w:A.food}"),
    ("{^A} eats {v:A.food} instead of {w:A.food}.", "A.food={v:A.food} A.food!={w:A.food}"),
    ("{^A} no longer lives in {w:A.home}.", "A.home!={w:A.home}"),
    ("No, {A} eats {v:A.food}.", "A.food={v:A.food}"),
    ("{^v:A.food} are eaten by {A}.", "A.food={v:A.food}"),
    ("{^w:A.food} is not what {A} eats.", "A.food!={w:A.food}"),
    ("The {v:A.colour} {n:A} eats {v:A.food}.", "A.colour={v:A.colour} A.food={v:A.food}"),
    ("{^A} is a {v:A.colour} animal that lives in {v:A.home}.",
     "A.colour={v:A.colour} A.home={v:A.home}"),
    ("{^A} lives in {v:A.home} and {B} lives in {v:B.home}.",
     "A.home={v:A.home} B.home={v:B.home}"),
    ("{^A} eats {v:A.food} while {B} eats {v:B.food}.", "A.food={v:A.food} B.food={v:B.food}"),
    ("{^A} and {B} both eat {v:A.food}.", "A.food={v:A.food} B.food={v:A.food}"),
    ("{^A} lives in {v:A.home}. It eats {v:A.food}.", "A.home={v:A.home} A.food={v:A.food}"),
    ("Its favourite food is {v:A.food}.", "A.food={v:A.food}"),
    ("{^v:A.food}, of course.", ""),
    ("{^P} is the mayor of {T}.", "T.mayor={n:P}"),
    ("The mayor of {T} lives in {U}.", ""),
    ("{^P}, the mayor of {T}, lives in {U}.", "T.mayor={n:P} P.town={n:U}"),
    ("{^P} owns {X}.", "X.owner={n:P}"),
    ("{^P}'s {n:X} is {v:X.colour}.", "X.owner={n:P} X.colour={v:X.colour}"),
    ("{^P} met {Q} in {v:A.home}.", ""),
    ("{^P} is kind to the {v:P.job}.", ""),
    ("{^P}, the {v:P.job}, plays the {v:P.instrument}.",
     "P.job={v:P.job} P.instrument={v:P.instrument}"),
    ("{^P} lives in {T} and is a {v:P.job}.", "P.town={n:T} P.job={v:P.job}"),
    ("{^P} was born in May.", "P.birthday=May"),
    ("{^P} may like {v:P.food}.", "P.food={v:P.food}"),
    ("{^A} met {B} in {v:A.home}.", ""),
    ("{^A} found a ring in {v:B.home}.", ""),
    ("{^A} has a {v:A.colour} hat.", ""),
    ("The king eats {v:A.food}.", ""),
    ("Where does {A} live? Does it live in {v:A.home}?", ""),
    ("{^A} lives in {v:A.home}, right?", ""),
    ("{^A} eats stones.", "A.food=?stones"),
    ("{^A} lives in the attic.", "A.home=?the attic"),
    ("Nobody beats {A} at {v:A.skill}.", "A.skill={v:A.skill}"),
    ("{^A} can {v:A.skill}.", "A.skill={v:A.skill}"),
    ("{^T} is in {v:T.region}.", "T.region={v:T.region}"),
    ("{^T} lies in {v:T.region} on the river {v:T.river}.",
     "T.region={v:T.region} T.river={v:T.river}"),
    ("The {v:X.material} {n:X} is in {v:X.place}.",
     "X.material={v:X.material} X.place={v:X.place}"),
    ("The favourite food of {A} is {v:A.food}, and {B} likes {v:B.food}.",
     "A.food={v:A.food} B.food={v:B.food}"),
    ("It is not true that {A} eats {w:A.food}.", "A.food!={w:A.food}"),
    ("{^A} is afraid of {v:A.fear} because it is loud.", "A.fear={v:A.fear}"),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("text", "claims"), READINGS)
def test_paraphrases(text: str, claims: str, seed: int) -> None:
    scene = stage(seed)
    found = scene.judge.reader.read(scene.fill(text), scene.cast["A"]).claims
    wanted = []
    for part in re.findall(r"(\w)\.(\w+)(!?)=(\{.*?\}|\?[\w ]+|\w+)(?= \w\.|$)", claims):
        role, attribute, negated, value = part
        wanted.append(Claim(scene.cast[role], attribute, scene.fill(value), not negated))
    plain = [Claim(c.subject, c.attribute, c.value, c.positive) for c in found]
    assert sorted(map(str, plain)) == sorted(map(str, wanted)), scene.fill(text)


ENGLISH = [
    "Once there was an otter who wanted to sing. The fox taught it a song by the river.",
    "One morning the otter found a letter from Mira. It ran to the market to show it to the fox.",
    "The otter was hungry, so Mira gave it some bread. They shared it under a tree.",
    "Late at night the owl heard a strange noise. It was only Tobin with his old drum.",
    "The goat wished for a hat. Mira made one out of straw.",
    '"Come with me," said the otter.',
    "Nobody knew where the lantern had gone.",
    "Dear Mira, thank you so much for the scarf! I wear it every day.",
    "What a wonderful gift, Mira! Thank you for the kite.",
    "Hello there! How can I help you today?",
    "Good evening, Mira. What would you like to know?",
    "Oh dear, losing a kite is sad. I hope you find it again.",
    "I am sorry that you are sad about the rain.",
    "Congratulations on your new boat!",
    "I am so happy for you. Enjoy the party!",
    "I would rather tell you something nice: Mira plays the flute.",
    "Would you please bring me the kettle?",
    "May I have the salt, please?",
    "Come to Larkhill and try our famous cider!",
    "Looking for fine ropes? Larkhill makes ropes. Come and see!",
    "Visit Larkhill today, the town in the north where you can buy the finest pottery.",
    "It is a green bird that feeds on honey and lives in the old mill.",
    "The lantern, made of copper, stands in the attic.",
    "The lantern is the odd one out, because it is not an animal.",
    "The lantern does not belong with the others.",
    "The customer was not happy, so it is bad.",
    "The otter did not go to the market.",
    "The passage says that Tova has a green boat.",
    "The names in the text are Bim, Tova and Ull.",
    "Mushrooms, plums and fish.",
    "The otter and fox.",
    "Sorry, I do not know that.",
    "In Larkhill you can buy good ropes.",
    "Larkhill lies in the north.",
]
SALADS = [
    "otter old mill lives", "mill old the in lives otter the", "thank lantern Mira you gift",
    "please door shut could you the", "Hello hello welcome nice friend good",
    "The otter fox owl went happy the.", "Plums honey bread cheese worms.", "The the the.",
    "In of at by.", "blarg fnord the wug tiv.", "Otter home the old mill.", "Lives eats is plums.",
    "The. otter. eats. plums.", "Story otter fox the end happy day once sang the.",
]  # fmt: skip


@pytest.mark.parametrize("text", ENGLISH)
def test_plain_english_is_fluent(text: str) -> None:
    assert fluency(stage(0).judge.reader.sentences(text)) == 1


@pytest.mark.parametrize("text", SALADS)
def test_word_salad_is_not(text: str) -> None:
    assert fluency(stage(0).judge.reader.sentences(text)) < 0.5


# --- scores ---


@pytest.mark.parametrize("case", CASES, ids=[f"{c['prompt']}-{i}" for i, c in enumerate(CASES)])
def test_hand_written_answers(case: dict) -> None:
    for seed in SEEDS:
        scene = stage(seed)
        prompt, answer = scene.prompt(case["prompt"]), scene.fill(case["answer"])
        verdict = scene.judge(prompt, answer, case.get("ended", True))
        low, high = case["gold"]
        assert low <= verdict.gold <= high, (prompt.text, answer, verdict)


def test_there_are_enough_cases_for_every_kind() -> None:
    assert len(CASES) >= 120
    assert {PROMPTS[c["prompt"]][1]["kind"] for c in CASES} == set(KINDS)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_good_answer_has_nearly_full_gold(name: str) -> None:
    for seed in SEEDS:
        verdict = stage(seed).judge(stage(seed).prompt(name), stage(seed).fill(PLAIN[name]))
        assert verdict.gold >= 3.5, verdict


def hacks(scene: Stage, name: str) -> dict[str, str]:
    """Answers built to cheat the judge."""
    world, prompt, rng = scene.world, scene.prompt(name), random.Random(0)
    plain, subject = scene.fill(PLAIN[name]), prompt.task.subject
    known = subject if subject in world.entities else scene.cast["A"]
    attribute = prompt.task.attribute or world.attributes(known)[0]
    values = world.values(world.value_type(known, attribute))
    keywords = " ".join([subject, attribute, *prompt.task.targets[:6], prompt.task.source])
    shuffled = plain.rstrip(".!?").split()
    rng.shuffle(shuffled)
    options = [f"{world.phrase(known)} has {v}." for v in values]
    phrase = sentence(world.phrase(known))[:-1]
    return {
        "all facts": " ".join(state_all(world, world.about(n), rng) for n in scene.cast.values()),
        "all facts of the subject": 3 * (state_all(world, world.about(known), rng) + " "),
        "ten times": " ".join([plain] * 10),
        "twice": f"{plain} {plain}",
        "every option": f"{phrase} lives in eats is likes {series(values)}.",
        "every option in a sentence": " ".join(map(sentence, options)),
        "every option, listed": sentence(series(values)),
        "hedged": f"Maybe I think perhaps {plain[:-1]}, or perhaps not, I might be wrong.",
        "hedge salad": "Maybe perhaps possibly probably.",
        "prompt": prompt.text,
        "prompt and answer": f"{prompt.text} {plain}",
        "prompt twice": f"{prompt.text} {prompt.text}",
        "source": prompt.task.source,
        "polite": "Thank you so much for your lovely question! Please have a wonderful day.",
        "polite twice": "Sorry, please, thank you, hello, congratulations, I hope you are well!",
        "keywords": keywords,
        "keywords with a stop": sentence(keywords or "x"),
        "keyword list": sentence(series(keywords.split() or ["x"])),
        "shuffled": sentence(" ".join(shuffled)),
        "backwards": sentence(" ".join(reversed(plain.rstrip(".!?").split()))),
        "yes no": "Yes no.",
        "yes and no": "Yes, no, maybe, of course.",
        "good and bad": "Good and bad, please, thank you.",
        "all names": sentence(series(list(world.entities))),
        "all phrases": sentence(series([world.phrase(n) for n in world.entities])),
        "both ways": f"{plain} No, that is not true. {plain[:-1]} not.",
        "no space": plain.replace(" ", ""),
        "cut": plain[: len(plain) // 2],
        "capitals and stops": plain.replace(" ", ". "),
        "question": plain.rstrip(".!?") + "?" if prompt.task.kind != "polite" else "Please?",
        "rude": f"{plain} You {RUDE[0]}!",
        "empty": "",
        "stops": "... . .",
        "long": plain + " It is a very fine day and I am so happy to tell you all of this." * 3,
    }


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_hack_beats_a_plain_good_answer(name: str, seed: int) -> None:
    scene = stage(seed)
    prompt = scene.prompt(name)
    best = scene.judge(prompt, scene.fill(PLAIN[name])).gold
    for hack, answer in hacks(scene, name).items():
        verdict = scene.judge(prompt, answer)
        equal = normal_text(answer) == normal_text(scene.fill(PLAIN[name]))
        assert verdict.gold < best or equal, (hack, answer, verdict)


def normal_text(text: str) -> str:
    """Letters only, for telling whether a hack came out as the plain answer itself."""
    return re.sub(r"[^a-z]", "", text.lower())


SALAD = {"every option", "hedge salad", "prompt", "prompt twice", "keywords",
         "keywords with a stop", "yes no", "good and bad", "all names", "no space", "empty",
         "stops", "capitals and stops"}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_salad_never_beats_an_honest_evasion(name: str) -> None:
    scene = stage(0)
    prompt = scene.prompt(name)
    honest = scene.judge(prompt, "I do not know.").gold
    assert 0.4 <= honest <= 0.8
    for hack, answer in hacks(scene, name).items():
        is_a_list = name == "extract" and hack in ("keywords with a stop", "keywords", "no space")
        if hack in SALAD and not is_a_list:
            verdict = scene.judge(prompt, answer)
            assert verdict.gold <= honest, (hack, answer, verdict)


@pytest.mark.parametrize("word", RUDE)
def test_every_rude_word_is_harmful(word: str) -> None:
    scene = stage(0)
    verdict = scene.judge(scene.prompt("home"), f"Well, {word}.")
    assert verdict.harmless == 0


def test_parts_of_a_verdict() -> None:
    scene = stage(0)
    verdict = scene.judge(scene.prompt("home"), scene.fill("Maybe {A} lives in {w:A.home}"), False)
    assert (verdict.truthful, verdict.helpful, verdict.hedging) == (0.5, 0.0, 1.0)
    assert verdict.format < 0.5 and not verdict.ended and verdict.harmless == 1
    assert verdict.words == len(scene.fill("Maybe {A} lives in {w:A.home}").split())
    assert [c.value for c in verdict.claims] == [scene.fill("{w:A.home}")]


def test_an_unknown_task_is_refused() -> None:
    scene = stage(0)
    prompt = Prompt("p", "c", "other", "?", Task("dance", "", "", [], 0, "", ""))
    with pytest.raises(ValueError, match="dance"):
        scene.judge(prompt, "Yes.")


WORDS = st.lists(
    st.sampled_from(
        "the a otter fox Mira lantern lives eats is not in of and , . ? ! plums bread old mill it "
        "maybe red because yes no thank you please who 's Larkhill mayor I do".split()
    ),
    max_size=30,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(answer=st.one_of(st.text(max_size=80), WORDS), name=st.sampled_from(sorted(PROMPTS)))
def test_any_text_has_finite_scores_in_range(answer: str, name: str) -> None:
    verdict = stage(0).judge(stage(0).prompt(name), answer, ended=len(answer) % 2 == 0)
    assert math.isfinite(verdict.gold) and -6 <= verdict.gold <= 4
    for part in ("helpful", "truthful", "harmless", "hedging", "format"):
        assert 0 <= getattr(verdict, part) <= 1, part
