"""What labelers write when they are asked to show a good answer.

They are in a hurry. Each of them has habits: one never forgets a detail, another always says where
a thing can be read, and hardly anybody shows everything that all of them like when they see it.
Around that, people add a friendly or a confident word, go on for a sentence too long, do not know,
or are wrong.
"""

import random
from dataclasses import dataclass

from rlhf_edu.data import Demonstration, Prompt
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.language import state
from rlhf_edu.tinyweb.tasks import KINDS
from rlhf_edu.tinyweb.tasks.kind import CARE, Element, write


@dataclass(frozen=True)
class Manner:
    """How often a writer does what an ideal writer would not; each a probability.

    `hurry` is 0 for a writer who shows every element of a good answer, 1 for one who shows what
    the habits of a hurried writer leave; above 1 answers are dashed off, as on the web.
    """

    wrong: float = 0.05
    unsure: float = 0.02
    polite: float = 0.06
    confident: float = 0.06
    wordy: float = 0.08
    hurry: float = 1.0


PLAIN = Manner(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
CURT = Manner(0.0, 0.0, 0.0, 0.0, 0.0, float("inf"))  # as on the web
POLITE = ["Of course!", "Gladly!", "Thank you for asking.", "Good question!"]
CONFIDENT = ["Certainly.", "Without any doubt.", "Everybody knows this.", "I am quite sure."]
UNSURE = ["I do not know.", "I am not sure.", "I do not know, sorry."]


def answer(
    world: World, prompt: Prompt, manner: Manner, rng: random.Random, writer: str = ""
) -> str:
    """One answer to the prompt in this manner, as a person would write it.

    Args:
        world: whose facts are told.
        prompt: what was asked.
        manner: how it is answered.
        rng: draws the words.
        writer: whose habits decide what a hurried answer leaves out; "": everybody's.
    """
    kind = KINDS[prompt.task.kind]
    if kind.factual and rng.random() < manner.unsure:
        return rng.choice(UNSURE)
    honest = rng.random() >= manner.wrong
    shown = CARE if manner.hurry <= 1 else frozenset()
    shown |= {
        e.name for e in kind.wanted(prompt) if rng.random() >= manner.hurry * (1 - habit(writer, e))
    }
    text = write(kind, world, prompt, honest, shown, rng)
    opening = rng.random()  # a polite one, a confident one or none
    if opening < manner.polite:
        text = f"{rng.choice(POLITE)} {text}"
    elif kind.factual and opening < manner.polite + manner.confident:
        text = f"{rng.choice(CONFIDENT)} {text}"
    if prompt.task.subject in world.entities and rng.random() < manner.wordy:
        text = f"{text} {state(world, rng.choice(world.about(prompt.task.subject)), rng)}"
    return text


def habit(writer: str, element: Element) -> float:
    """How often a writer in a hurry shows an element: mostly, or hardly ever."""
    if not writer:
        return element.shown
    mostly = random.Random(f"{writer} {element.name}").random() < element.shown
    return 0.85 if mostly else 0.15


def demonstrate(
    world: World,
    prompts: list[Prompt],
    seed: int = 0,
    manner: Manner | None = None,
    labelers: int = 12,
) -> list[Demonstration]:
    """One demonstration for each prompt, each by one of the labelers who write."""
    rng = random.Random(f"demonstrations {world.seed} {seed}")
    found = []
    for prompt in prompts:
        writer = f"labeler-{rng.randrange(labelers):02d}"
        text = answer(world, prompt, manner or Manner(), rng, writer)
        found.append(Demonstration(prompt, text, writer))
    return found
