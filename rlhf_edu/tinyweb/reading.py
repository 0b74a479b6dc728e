"""Reading: from an answer's text to the claims it makes.

A sentence is cut into clauses. In a clause, a *value* (`the old mill`) of some type, a *subject* of
a kind that has an attribute of this type (`the otter`), and a *cue* (`lives`) make a claim; the
subject may also come from a pronoun, an earlier sentence or the question. Questions claim nothing.
What is not read: irony, numbers, comparisons, conditions ("if the otter ate plums"), quoted
speech, plurals of things, and relations between an entity and somebody not in this world.
"""

import re
from dataclasses import dataclass, field

from rlhf_edu.tinyweb import lexicon as lx
from rlhf_edu.tinyweb.facts import ATTRIBUTES, World

TOKEN = re.compile(r"'(?:s|re|ll|ve|m|d)\b|[a-zA-Z]+(?:-[a-zA-Z]+)*|\d+|\S")
_QUOTES = str.maketrans({"’": "'", '"': " ", "“": " ", "”": " "})
ENDS = frozenset(".!?")
BREAKS = frozenset(", ; : and but while whereas because although though".split())
CAPITALISED_TYPES = frozenset({"month", "river"})
ADJECTIVE_TYPES = frozenset({"colour", "material"})
MADE_UP = "?"
RELATION_STEMS = {
    form: stem
    for stem in "live sleep eat feed come work play belong".split()
    for form in (stem, stem + "s", stem + "d" if stem == "live" else stem + "ing")
}
AFTER_COLOUR = frozenset(
    "and but or nor by with because all coat fur feathers skin colour color animal creature thing "
    "one too like in from which that who it so as every since . , ; : ! ?".split()
)


@dataclass(frozen=True)
class Claim:
    """A statement: `attribute` of `subject` is (`positive`) or is not `value`."""

    subject: str
    attribute: str
    value: str
    positive: bool = True
    hedged: bool = False


@dataclass
class Mention:
    """A known name or value at `words[start:end]` of a sentence; `type` is a kind or value type."""

    start: int
    end: int
    type: str
    name: str
    negated: bool = False


@dataclass
class Sentence:
    """One sentence in lower-case words, with what was found in it."""

    words: list[str]
    raw: list[str]
    end: str
    mentions: list[Mention]
    question: bool = False
    hedged: bool = False
    faults: float = 0

    def is_verb(self, i: int) -> bool:
        """Whether word `i` can be a verb: by the lexicon, or by its ending after a subject."""
        word, after_subject = self.words[i], i > 0 and self.words[i - 1] in lx.PRONOUNS
        for mention in self.mentions:
            if mention.start <= i < mention.end:
                return mention.type == "skill" and word in lx.VERBS
            after_subject |= mention.end == i and mention.type in ATTRIBUTES
        return word in lx.VERBS or after_subject and len(word) > 3 and word.endswith(("s", "ed"))

    @property
    def text(self) -> str:
        """The words joined by blanks."""
        return " ".join(self.words)


@dataclass
class Reading:
    """All that was read in an answer: its sentences and its claims in order."""

    sentences: list[Sentence] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def mentions(self) -> list[Mention]:
        """Mentions in sentences that are no questions."""
        return [m for s in self.sentences if not s.question for m in s.mentions]


@dataclass
class Clause:
    """A part of a sentence with at most one verb phrase: `words[start:end]`."""

    sentence: Sentence
    start: int
    end: int
    mentions: list[Mention]
    free: list[tuple[int, str]]  # the words outside of mentions, with their places
    negated: set[int] = field(default_factory=set)  # places after a negation

    def cue_words(self) -> set[str]:
        """Words that may be cues; `find` and `found` only as in `you will find`, `is found`."""
        words = self.sentence.words
        found = set()
        for i, word in self.free:
            before = words[i - 1] if i else ""
            if word == "find" and before not in {"will", "can", "could", "you", "to"}:
                continue
            if word == "found" and before not in {"be", "is", "are"}:
                continue
            if word == "in" and {before, words[i - 2] if i > 1 else ""} & {"is", "are", "'s"}:
                found.add("is-in")
            found.add(word)
        return found


def tokenize(text: str) -> list[str]:
    """Words and marks, without quotes; `don't` becomes `do not`, `otter's` becomes `otter 's`."""
    return TOKEN.findall(text.translate(_QUOTES).replace("n't", " not"))


class Reader:
    """Reads claims about one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kinds = {name: entity.kind for name, entity in world.entities.items()}
        self.attribute_of: dict[str, dict[str, str]] = {}  # value type -> kind -> attribute
        for kind, attributes in ATTRIBUTES.items():
            for attribute, value_type in attributes.items():
                self.attribute_of.setdefault(value_type, {})[kind] = attribute
        self.phrases: dict[str, list[tuple[tuple[str, ...], str, str]]] = {}
        for name, kind in self.kinds.items():
            self._add(name, kind, name)
        for value_type in self.attribute_of:
            if value_type not in ATTRIBUTES:
                for value in world.values(value_type):
                    self._add(value, value_type, value)
        self._add_variants()

    def _add(self, phrase: str, type_: str, name: str) -> None:
        words = tuple(phrase.lower().split())
        entries = self.phrases.setdefault(words[0], [])
        entries.append((words, type_, name))
        entries.sort(key=lambda entry: -len(entry[0]))
        if words[0] == "the":
            self._add(" ".join(words[1:]), type_, name)

    def _add_variants(self) -> None:
        """Plums and plum, singing and sings, otter and otters, grey and gray."""
        forms = [("gray", "colour", "grey")]
        for value_type in ("food", "fear"):
            for value in self.world.values(value_type):
                if value.endswith("s"):
                    singular = value[:-3] + "y" if value.endswith("ies") else value[:-1]
                    forms.append((singular, value_type, value))
        for value, verb in lx.SKILL_VERBS.items():
            forms += [(verb, "skill", value), (verb + "s", "skill", value)]
        forms += [(n + "s", "animal", n) for n, kind in self.kinds.items() if kind == "animal"]
        for form, type_, name in forms:
            if form not in self.phrases:
                self._add(form, type_, name)

    def read(
        self, text: str, subject: str = "", attribute: str = "", invention: bool = False
    ) -> Reading:
        """Read a text as an answer to a question about an attribute of a subject.

        With `invention`, as in a story, an unknown object ("eats a cake") is no made-up fact.
        """
        reading = Reading(self.sentences(text))
        recent = [subject] if subject in self.kinds else []
        for sentence in reading.sentences:
            if sentence.question:
                continue
            for clause in self.clauses(sentence):
                _mark_negations(clause)
                reading.claims += self._claims(clause, recent, subject, attribute)
                if not invention:
                    reading.claims += self._made_up(clause, recent, reading.claims)
                named = [m.name for m in clause.mentions if m.name in self.kinds]
                recent = named + [name for name in recent if name not in named]
        return reading

    # --- sentences and clauses

    def sentences(self, text: str) -> list[Sentence]:
        """Cut a text at full stops, question marks and exclamation marks."""
        found, raw = [], []
        for token in [*tokenize(text), ""]:
            if token and token not in ENDS:
                raw.append(token)
            elif raw:
                found.append(self._sentence(raw, token))
                raw = []
        return found

    def _sentence(self, raw: list[str], end: str) -> Sentence:
        words = [token.lower() for token in raw]
        sentence = Sentence(words, raw, end, self._mentions(words, raw))
        sentence.question = _is_question(words, end)
        doubts = [w.lower() for w in raw if w != "May"]
        sentence.hedged = bool(lx.HEDGES.search(" ".join(doubts))) or _has_choice(sentence)
        return sentence

    def _mentions(self, words: list[str], raw: list[str]) -> list[Mention]:
        found, i = [], 0
        while i < len(words):
            for phrase, type_, name in self.phrases.get(words[i], ()):
                end = i + len(phrase)
                if len(phrase) > 1 and tuple(words[i:end]) != phrase:
                    continue
                if type_ in CAPITALISED_TYPES and not raw[i][0].isupper():
                    continue
                found.append(Mention(i, end, type_, name))
                i = end - 1
                break
            i += 1
        return found

    def clauses(self, sentence: Sentence) -> list[Clause]:
        """Cut a sentence at commas and conjunctions; parts without a verb join a neighbour."""
        words = sentence.words
        inside = {i for m in sentence.mentions for i in range(m.start, m.end)}
        cuts = [i for i, w in enumerate(words) if w in BREAKS and i not in inside] + [len(words)]
        spans: list[list[int]] = []
        start, open_prefix = 0, False
        for cut in cuts:
            has_verb = any(map(sentence.is_verb, range(start, cut)))
            if spans and (open_prefix or not has_verb):
                spans[-1][1] = cut
                open_prefix = open_prefix and not has_verb
            else:
                spans.append([start, cut])
                open_prefix = not has_verb
            start = cut
        return [self._clause(sentence, a, b, inside) for a, b in spans]

    def _clause(self, sentence: Sentence, start: int, end: int, inside: set[int]) -> Clause:
        mentions = [m for m in sentence.mentions if start <= m.start < end]
        free = [(i, sentence.words[i]) for i in range(start, end) if i not in inside]
        return Clause(sentence, start, end, mentions, free)

    # --- claims

    def _claims(
        self, clause: Clause, recent: list[str], subject: str, attribute: str
    ) -> list[Claim]:
        found, cues = [], clause.cue_words()
        verbal = any(map(clause.sentence.is_verb, range(clause.start, clause.end)))
        for value in clause.mentions:
            kinds = self.attribute_of.get(value.type)
            if not kinds:
                continue
            subjects = self._subjects(clause, value, kinds)
            if subjects:
                names = [s.name for s in subjects]
                first = subjects[0]
            elif self._is_subject(clause, value):
                continue
            else:
                names, first = self._implied(clause, kinds, recent), None
            for name in names:
                key = self.kinds[name], kinds[self.kinds[name]]
                asked = first is None and name == subject and key[1] == attribute
                stated = self._has_cue(clause, key, value, first, cues) and (
                    verbal or first is None or value.type in ("colour", "material", "job")
                )
                if stated or asked and _is_fragment(clause):
                    positive = not _is_negated(clause, value, first)
                    hedged = clause.sentence.hedged
                    found.append(Claim(name, key[1], value.name, positive, hedged))
        return found

    def _subjects(self, clause: Clause, value: Mention, kinds: dict[str, str]) -> list[Mention]:
        """The entity before the value, else the one after it, with those joined to it by `and`."""
        fit = [m for m in clause.mentions if m.type in kinds and m is not value]
        after = [m for m in fit if m.start >= value.end]
        if value.type in ADJECTIVE_TYPES and after and after[0].start == value.end:
            return after[:1]
        before = [m for m in fit if m.end <= value.start]
        if before:
            return _joined(clause, before[::-1])
        pronouns = {"it", "he", "she", "its", "his", "her"}
        if any(w in pronouns and i < value.start for i, w in clause.free):
            return []
        return _joined(clause, after)

    def _implied(self, clause: Clause, kinds: dict[str, str], recent: list[str]) -> list[str]:
        """Whom a clause without a subject is about: the last one named that fits."""
        words = {w for _, w in clause.free}
        if not words & lx.PRONOUNS and not _starts_without_subject(clause):
            return []
        for name in recent:
            person = self.kinds[name] == "person"
            if words & {"he", "she"} and not person or words & {"it", "its"} and person:
                continue
            if self.kinds[name] in kinds:
                return [name]
        return []

    def _is_subject(self, clause: Clause, value: Mention) -> bool:
        """Whether what could be a value opens a claim of its own: `Larkhill lies in the west`."""
        if value.start != clause.start or value.end == clause.end:
            return False
        if not clause.sentence.is_verb(value.end):
            return False
        rest = [m for m in clause.mentions if m.start >= value.end]
        kind = self.kinds.get(value.name)
        return any(kind in self.attribute_of.get(m.type, ()) for m in rest)

    def _has_cue(
        self,
        clause: Clause,
        key: tuple[str, str],
        value: Mention,
        subject: Mention | None,
        cues: set[str],
    ) -> bool:
        if value.type in ADJECTIVE_TYPES and subject and subject.start == value.end:
            return True
        if value.type == "colour" and not _colour_ends(clause, value):
            return False
        if value.type == "job":
            return _job_fits(clause, value, subject)
        if value.type == "town" and lx.CUES["town", "mayor"] & cues:
            return _nearest_cue(clause, value, lx.CUES[key], lx.CUES["town", "mayor"])
        found = lx.CUES[key] & cues
        if found == {"'s"}:
            words = clause.sentence.words
            owns = value.end < len(words) and words[value.end] == "'s"
            return owns and subject is not None and 0 < subject.start - value.end <= 3
        return bool(found)

    def _made_up(self, clause: Clause, recent: list[str], known: list[Claim]) -> list[Claim]:
        """Claims such as `the otter eats stones`, whose value is nothing of this world."""
        words = clause.sentence.words
        for i, word in clause.free:
            stem = RELATION_STEMS.get(word, word)
            after = words[i + 1] if i + 1 < clause.end else ""
            pairs, end = lx.RELATIONS.get(f"{stem} {after}"), i + 2
            if pairs is None:
                pairs, end = lx.RELATIONS.get(stem), i + 1
            if pairs is None or end >= clause.end or words[end] in lx.NOT_AN_OBJECT:
                continue
            types = {ATTRIBUTES[kind][attribute] for kind, attribute in pairs}
            if any(m.type in types and m.start >= end for m in clause.mentions):
                continue
            if any(m.type in types and m.type not in ATTRIBUTES for m in clause.mentions):
                continue
            claim = self._made_up_claim(clause, i, end, dict(pairs), recent)
            return [claim] if claim else []
        return []

    def _made_up_claim(
        self, clause: Clause, i: int, end: int, pairs: dict[str, str], recent: list[str]
    ) -> Claim | None:
        before = [m for m in clause.mentions if m.type in pairs and m.end <= i]
        names = [before[-1].name] if before else self._implied(clause, pairs, recent)
        if not names or end in clause.negated or clause.sentence.words[end:][:2] == ["a", "lot"]:
            return None
        value = MADE_UP + " ".join(clause.sentence.words[end : end + 3])
        return Claim(names[0], pairs[self.kinds[names[0]]], value, True, clause.sentence.hedged)

    def is_true(self, claim: Claim) -> bool:
        """Whether the world agrees with a claim."""
        same = self.world.facts[claim.subject, claim.attribute] == claim.value
        return same == claim.positive


# --- helpers for one clause ---


def _is_question(words: list[str], end: str) -> bool:
    if end == "?":
        return True
    first, second = words[0], words[1] if len(words) > 1 else ""
    if first in lx.QUESTION_WORDS and (second in lx.AUXILIARIES or first == "which"):
        return first not in {"how", "what"} or second not in {"a", "an"}
    if (first, second) == ("tell", "me"):
        return True
    return first in {"does", "do", "did", "is", "are", "was", "can"} and second not in {
        "not",
        "",
        "come",
        "visit",
        ",",
        "enjoy",
        "try",
        "write",
    }


def _has_choice(sentence: Sentence) -> bool:
    """`plums or bread`: two values of one type with `or` between them, and no negation."""
    words = sentence.words
    if "or" not in words or lx.NEGATIONS & set(words):
        return False
    at = words.index("or")
    left = {m.type for m in sentence.mentions if m.end <= at}
    return any(m.type in left for m in sentence.mentions if m.start > at)


def _mark_negations(clause: Clause) -> None:
    """Note the words, and the mentions, that stand after a negation in their clause."""
    words, negated = clause.sentence.words, False
    starts = {m.start: m for m in clause.mentions}
    for i in range(clause.start, clause.end):
        if negated:
            clause.negated.add(i)
            if i in starts:
                starts[i].negated = True
        after = words[i + 1] if i + 1 < len(words) else ""
        if words[i] == "but":
            negated = False
        elif words[i] in lx.NEGATIONS:
            praise = after in {"only", "beats", "one", "better", "scares"}
            praise = praise or words[i + 1 : i + 3] == ["is", "better"]  # nobody is better at it
            interjection = (
                i == 0
                and words[i] == "no"
                and (after in {",", "the", "it", "he", "she"} or 1 in starts)
            )
            negated = negated or not (praise or interjection)
        elif (words[i], after) in {("instead", "of"), ("rather", "than")}:
            negated = True


def _is_negated(clause: Clause, value: Mention, subject: Mention | None) -> bool:
    """A negation counts before the value, or between the value and a subject that follows it."""
    if subject is None or subject.start < value.start:
        return value.negated
    between = clause.sentence.words[value.end : subject.start]
    return value.negated or bool(lx.NEGATIONS & set(between))


def _joined(clause: Clause, mentions: list[Mention]) -> list[Mention]:
    """The first mention and those linked to it by nothing but `, and the`."""
    words, chain = clause.sentence.words, mentions[:1]
    for mention in mentions[1:]:
        a, b = sorted((chain[-1], mention), key=lambda m: m.start)
        between = words[a.end : b.start]
        if not between or not set(between) <= {"and", ",", "the", "both", "or"}:
            break
        chain.append(mention)
    return chain


def _starts_without_subject(clause: Clause) -> bool:
    """Whether the first real word is a value, a cue or a verb, and not an unknown noun."""
    starts = {m.start for m in clause.mentions}
    for i in range(clause.start, clause.end):
        word = clause.sentence.words[i]
        if i in starts:
            return True
        if word in lx.FILLERS or word in BREAKS:
            continue
        cue = any(word in cues for cues in lx.CUES.values())
        return cue or word in lx.PREPOSITIONS or word in lx.AUXILIARIES or word in lx.NEGATIONS
    return False


def _is_fragment(clause: Clause) -> bool:
    """`In the old mill`, `It is the old mill, of course`, `Mira does`: no words of its own."""
    if len({(m.type, m.name) for m in clause.mentions}) > 3:
        return False
    small = (
        lx.FILLERS
        | lx.PRONOUNS
        | lx.AUXILIARIES
        | lx.PREPOSITIONS
        | lx.NEGATIONS
        | lx.CONJUNCTIONS
        | {"i", "think", "maybe", "perhaps", "might", "probably", "river", "town"}
        | {"as", "called", "somebody", "people", "believe", "guess", "would", "say", "mostly"}
    )
    return sum(w not in small for _, w in clause.free) <= 1


def _colour_ends(clause: Clause, value: Mention) -> bool:
    words = clause.sentence.words
    if value.end >= len(words) or words[value.end] in AFTER_COLOUR:
        return True
    return any(m.start == value.end for m in clause.mentions)


def _job_fits(clause: Clause, job: Mention, subject: Mention | None) -> bool:
    """`is a baker`, `works as a baker`, `Mira, the baker`; but not `is kind to the baker`."""
    words = clause.sentence.words
    lead = [w for w in words[max(clause.start, job.start - 4) : job.start] if w != ","]
    if subject and subject.start >= job.end:
        between = set(words[job.end : subject.start])
        return bool(between & lx.BE) or not between or between == {","}
    if not lead or lead[-1] not in {"a", "an", "the", "as", "be", "is", "town"}:
        return False
    before = lead[-2] if len(lead) > 1 else ""
    if before in lx.BE or before in {"as", "not", "also", "still", "of", "called"}:
        return True
    return bool(subject and job.start - subject.end <= 2)


def _nearest_cue(
    clause: Clause, value: Mention, mine: frozenset[str], other: frozenset[str]
) -> bool:
    """Which of two relations stands nearest before the value (else: anywhere after it)?"""
    for i, word in reversed(clause.free):
        if i < value.start and (word in mine or word in other):
            return word in mine
    return any(i > value.start and word in mine for i, word in clause.free)
