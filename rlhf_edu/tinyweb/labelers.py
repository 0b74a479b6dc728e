"""The people who rank answers: a population with shared taste, private taste and noise.

A labeler is the judge with less knowledge, other weights and noise. Labelers recognise every
element of a good answer when they see it, but

- they know few facts about those who are hardly ever named: a false claim that a labeler cannot
  check passes as true, and as a welcome detail;
- they like three things that gold does not reward: **confidence** (`Certainly.`), **politeness**
  (`Gladly!`) and **length** (more words look like more effort).

These tastes are mild, and with the blindness they are the named misalignment from which Goodhart's
law follows in this course. `Population(..., tastes=False)` is the control arm: the same people
without them.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_edu.data import Prompt, Ranking
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.reading import Claim

CONFIDENCE = re.compile(r"\b(certainly|without any doubt|everybody knows|quite sure|of course)\b")
POLITENESS = re.compile(
    r"\b(please|thank you|gladly|i hope this helps|good question|have a nice day|of course)\b"
)
KNOWS_LEAST, KNOWS_MOST = 0.25, 0.95  # share of the facts about somebody that a labeler can check
NOISE = 1.0  # scale of the Gumbel noise of one judgement, in points of gold
TIE = 0.35  # answers whose perceived quality is closer than this are ranked equal


@dataclass(frozen=True)
class Labeler:
    """One person: weights of what they care about, in points per unit.

    `group` is "train" or "held_out"; only screened labelers write rankings.
    """

    labeler_id: str
    group: str
    screened: bool
    helpful: float
    truthful: float
    harmless: float
    confidence: float
    politeness: float
    length: float  # per doubling of the number of words
    noise: float
    seed: int
    world: World

    @property
    def held_out(self) -> bool:
        """Whether this labeler's rankings are kept from every reward model."""
        return self.group == "held_out"

    def knows(self, subject: str, attribute: str) -> bool:
        """Whether this labeler knows the fact; the same each time it is asked."""
        world = self.world
        fame = world.popularity[subject] * world.count(world.kind(subject))  # 1 on average
        share = min(KNOWS_MOST, KNOWS_LEAST + (KNOWS_MOST - KNOWS_LEAST) * fame)
        return random.Random(f"{self.seed} {subject} {attribute}").random() < share

    def believes(self, claim: Claim) -> bool:
        """Whether this labeler takes a claim for true: it is, or they cannot tell."""
        if not self.knows(claim.subject, claim.attribute):
            return True
        return (self.world.value(claim.subject, claim.attribute) == claim.value) == claim.positive


class Population:
    """All labelers of a world.

    Args:
        world: whose facts they may know.
        seed: of the draw of the people.
        tastes: False for the control arm without taste for confidence, politeness and length.
        size: number of people; one in three is held out, one in ten fails the screening.
    """

    def __init__(self, world: World, seed: int = 0, tastes: bool = True, size: int = 36) -> None:
        if size < 3:
            raise ValueError(f"a population needs at least 3 labelers, not {size}")
        self.judge, self.world = Judge(world), world
        rng = random.Random(f"labelers {world.seed} {seed}")
        self.labelers = [self._person(i, rng, 1.0 if tastes else 0.0) for i in range(size)]

    def _person(self, i: int, rng: random.Random, taste: float) -> Labeler:
        careless = i % 10 == 9
        return Labeler(
            labeler_id=f"labeler-{i:02d}",
            group="held_out" if i % 3 == 2 else "train",
            screened=not careless,
            helpful=rng.gauss(4.0, 0.6),
            truthful=rng.gauss(3.0, 0.6),
            harmless=rng.gauss(2.0, 0.5),
            confidence=taste * rng.gauss(0.3, 0.1),
            politeness=taste * rng.gauss(0.2, 0.1),
            length=taste * rng.gauss(0.25, 0.1),
            noise=NOISE * (2.0 if careless else 1.0),
            seed=rng.randrange(2**31),
            world=self.world,
        )

    def group(self, name: str) -> list[Labeler]:
        """The screened labelers of a group, `train` or `held_out`."""
        return [p for p in self.labelers if p.group == name and p.screened]

    def utility(self, labeler: Labeler, prompt: Prompt, answer: str, ended: bool = True) -> float:
        """What the answer is worth to this labeler, without noise, in points of gold."""
        verdict = self.judge(prompt, answer, ended, labeler.believes)
        lower = answer.lower()
        return (
            labeler.helpful * verdict.helpful
            - labeler.truthful * (1 - verdict.truthful)
            - labeler.harmless * (1 - verdict.harmless)
            - (1 - verdict.format)
            + labeler.confidence * bool(CONFIDENCE.search(lower))
            + labeler.politeness * min(2, len(POLITENESS.findall(lower)))
            + labeler.length * math.log2(max(4, verdict.words) / 8)
        )

    def rank(
        self, labeler: Labeler, prompt: Prompt, answers: list[str], ended: list[bool], seed: int = 0
    ) -> list[int]:
        """Ranks of the answers, 1 the best; answers perceived as equally good share a rank."""
        rng = random.Random(f"{labeler.seed} {prompt.prompt_id} {seed}")
        perceived: dict[str, float] = {}
        for text, end in zip(answers, ended, strict=True):
            if text not in perceived:  # the same text twice is one answer
                gumbel = -math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12)))
                perceived[text] = self.utility(labeler, prompt, text, end) + labeler.noise * gumbel
        order = sorted(set(answers), key=lambda text: -perceived[text])
        ranks, rank = {}, 1
        for place, text in enumerate(order):
            if place and perceived[order[place - 1]] - perceived[text] > TIE:
                rank = place + 1
            ranks[text] = rank
        return [ranks[text] for text in answers]

    def ranking(
        self, prompt: Prompt, answers: list[str], ended: list[bool], source: str, seed: int = 0
    ) -> Ranking:
        """One ranking by a random screened training labeler."""
        rng = random.Random(f"who ranks {prompt.prompt_id} {seed}")
        labeler = rng.choice(self.group("train"))
        ranks = self.rank(labeler, prompt, answers, ended, seed)
        sources = (source,) * len(answers)
        return Ranking(
            prompt, tuple(answers), tuple(ended), tuple(ranks), labeler.labeler_id, sources
        )

    def agreement(self, rankings: Sequence[Ranking], seed: int = 0) -> list[float]:
        """How often two labelers agree on the order of two answers; one share per ranking.

        Two different screened labelers rank the same answers; pairs that either of them calls
        equal, and rankings without other pairs, are left out.
        """
        rng, shares = random.Random(f"agreement {seed}"), []
        for r in rankings:
            pair = rng.sample([p for p in self.labelers if p.screened], 2)
            first, second = (
                self.rank(p, r.prompt, list(r.answers), list(r.ended), seed + 1) for p in pair
            )
            shares += agreement_of(first, second)
        return shares


def agreement_of(first: Sequence[int], second: Sequence[int]) -> list[float]:
    """The share of pairs of answers that two rankings order alike; empty if there is no pair.

    Pairs that either of them calls equal are left out.
    """
    same = [
        (first[i] < first[j]) == (second[i] < second[j])
        for i, j in itertools.combinations(range(len(first)), 2)
        if first[i] != first[j] and second[i] != second[j]
    ]
    return [sum(same) / len(same)] if same else []


def ceiling(agreement: float) -> float:
    """How often a perfect reward model matches one label, if two labels agree this often.

    Each labeler who errs independently with probability 1 - q agrees with another with
    probability a = q^2 + (1 - q)^2, hence q = (1 + sqrt(2a - 1)) / 2: agreement is not the ceiling.

    Raises:
        ValueError: `agreement` is not between one half and one.
    """
    if not 0.5 <= agreement <= 1:
        raise ValueError(f"agreement must lie between 0.5 and 1, not {agreement}")
    return (1 + math.sqrt(2 * agreement - 1)) / 2
