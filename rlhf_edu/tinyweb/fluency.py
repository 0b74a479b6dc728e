"""Is a sentence English? A few rules that no plain sentence breaks and word salad soon does.

Every word gets one tag; some pairs of neighbouring tags are faults (`the lives`, `of is`,
`otter mill`). A sentence also needs a verb, unless it is a short fragment or a list, and mostly
words that are known. One fault makes a sentence half broken, two make it broken.
"""

from rlhf_edu.tinyweb import lexicon as lx
from rlhf_edu.tinyweb.reading import ADJECTIVE_TYPES, Mention, Sentence

START, END = "<start>", "<end>"
BROKEN = 2
BARE_NOUN = 0.5  # `otter lives in the old mill`
FRAGMENT_WORDS = 4
MANY_SINGLE_WORDS = 2
UNKNOWN_SHARE = 0.4

_TAGS = {
    **dict.fromkeys(lx.FINITE, "finite"),
    **dict.fromkeys(lx.AUXILIARIES, "aux"),
    **dict.fromkeys(lx.PREPOSITIONS, "prep"),
    **dict.fromkeys(lx.ARTICLES, "article"),
    **dict.fromkeys(lx.POSSESSIVES, "article"),
    **dict.fromkeys(lx.CONJUNCTIONS, "conj"),
    **dict.fromkeys(lx.SUBJECT_PRONOUNS, "i"),
    **dict.fromkeys(lx.PAST - lx.AUXILIARIES, "past"),
    **dict.fromkeys(lx.MODALS, "modal"),
    "it": "it",
    "not": "not",
    ",": "comma",
    ";": "comma",
    ":": "comma",
}
_MAY_REPEAT = lx.NO_REPEAT_CHECK | lx.PREPOSITIONS | lx.ARTICLES  # the last two clash anyway
_BEFORE_A_SHOUT = lx.DETERMINERS | frozenset(", ; : say said says and oh to with".split())
_NOUNS = {"thing", "name", "value", "job"}
_BAD_NEXT = {
    "article": {
        "article",
        "prep",
        "aux",
        "finite",
        "past",
        "conj",
        "i",
        "it",
        "not",
        "comma",
        END,
        "full",
        "name",
    },
    "possessive": {"article", "prep", "finite", "conj", "i", "it", "full", "name"},
    "prep": {"prep", "finite", "past", "aux", "conj", "i"},
    "past": {"past", "finite", "aux", "i"},
    "finite": {"finite", "past", "aux", "i", "job"},
    "aux": {"finite", "job"},
    "modal": {"finite", "past", "thing", "name", "value", "full", "job", "prep", "modal", "conj"},
    "conj": {"conj", END, "comma"},
    "i": {"article", "prep", "full", "name", "thing", "value", "i", "it", "comma", END},
    "it": {"thing", "name", "i", "it"},
    "thing": {"thing", "name", "value", "job", "article", "i", "it"},
    "name": {"thing", "name", "value", "job", "full", "article"},
    "value": {"thing", "name", "value", "full", "article"},
    "full": {"thing", "name", "value", "full", "article"},
    "comma": {"comma"},
}
# what it eats is, the month it was born in is
_RELATIVE_PAIRS = {("finite", "aux"), ("prep", "aux")}


def _mention_tag(mention: Mention, words: list[str]) -> str:
    if mention.type in ("animal", "thing"):
        plural = words[mention.start] == mention.name + "s"
        return "value" if plural else "thing"
    if mention.type in ("person", "town"):
        return "name"
    if mention.type in ADJECTIVE_TYPES:
        return "adjective"
    if mention.type == "skill" and words[mention.start] in lx.VERBS:
        return "word"
    if mention.type == "job":
        return "job"
    return "full" if words[mention.start] == "the" else "value"


def _word_tag(word: str, raw: str, before: str) -> str:
    if word == "'s" and before in ("name", "thing"):
        return "possessive"
    if raw[0].isupper() and word not in lx.KNOWN:
        return "name"  # of somebody from another world
    return _TAGS.get(word, "word")


def tags(sentence: Sentence) -> list[str]:
    """One tag a word, one for a whole mention, with START and END around them."""
    words, found, i = sentence.words, [START], 0
    mentions = {m.start: m for m in sentence.mentions}
    while i < len(words):
        if i in mentions:
            found.append(_mention_tag(mentions[i], words))
            i = mentions[i].end
        else:
            found.append(_word_tag(words[i], sentence.raw[i], found[-1]))
            i += 1
    return [*found, END]


def has_verb(sentence: Sentence) -> bool:
    """Whether any word can be a verb; an unknown word gets the benefit of the doubt."""
    places = range(len(sentence.words))
    if any(map(sentence.is_verb, places)):
        return True
    inside = {i for m in sentence.mentions for i in range(m.start, m.end)}
    return any(
        i not in inside and raw.islower() and raw.isalpha() and raw not in lx.KNOWN
        for i, raw in enumerate(sentence.raw)
    )


def is_enumeration(tagged: list[str]) -> bool:
    """`Otter, fox and owl.`: nothing but names and values with commas or `and` between them."""
    inner = [t for t in tagged[1:-1] if t != "article"]
    nouns = [t in _NOUNS or t in ("full", "adjective") for t in inner]
    return (
        bool(inner)
        and all(nouns[::2])
        and nouns[-1]
        and not any(a and b for a, b in zip(nouns, nouns[1:], strict=False))
        and all(n or t in ("comma", "conj") for n, t in zip(nouns, inner, strict=True))
    )


def faults(sentence: Sentence, given: frozenset[str] = frozenset()) -> float:
    """How many rules a sentence breaks; `given` are more words that are known."""
    words, tagged = sentence.words, tags(sentence)
    count = _unknown_words(sentence, given)
    if not has_verb(sentence):
        return count + _fragment_faults(sentence, tagged)
    relative = words[0] in lx.QUESTION_WORDS or words[:2] == ["the", "month"]
    asking = tagged[1] in ("modal", "aux") or sentence.end == "?"
    count += sum(
        b in _BAD_NEXT.get(a, ())
        and not (relative and (a, b) in _RELATIVE_PAIRS)
        and not (asking and a == "modal")
        for a, b in zip(tagged, tagged[1:], strict=False)
    )
    return count + _word_faults(sentence) + _bare_nouns(sentence)


def _unknown_words(sentence: Sentence, given: frozenset[str]) -> int:
    inside = {i for m in sentence.mentions for i in range(m.start, m.end)}
    plain = [w for i, w in enumerate(sentence.words) if i not in inside and w[0].isalnum()]
    names = given | {raw.lower() for raw in sentence.raw if raw[0].isupper()}
    odd = sum(w not in lx.KNOWN and w not in names and not _is_inflected(w) for w in plain)
    total = len(plain) + len(sentence.mentions)
    return BROKEN if odd > UNKNOWN_SHARE * total else 0


def _is_inflected(word: str) -> bool:
    for ending in ("s", "es", "ed", "d", "ing", "ly", "er", "y"):
        stem = word[: -len(ending)]
        if word.endswith(ending) and (stem in lx.KNOWN or stem + "e" in lx.KNOWN):
            return True
    return False


def _fragment_faults(sentence: Sentence, tagged: list[str]) -> float:
    """Without a verb a sentence is a short fragment, a list, or no sentence."""
    words, size = sentence.words, len([t for t in tagged[1:-1] if t not in ("comma", "article")])
    count = sum(b in _BAD_NEXT.get(a, ()) for a, b in zip(tagged, tagged[1:], strict=False))
    if is_enumeration(tagged):
        return count
    count += _bare_nouns(sentence) if size > 1 else 0
    triples = zip(tagged, tagged[1:], tagged[2:], strict=False)
    ends = _NOUNS | {"full", "adjective"}
    if any(a in _NOUNS and b == "word" and c in ends for a, b, c in triples):
        count += BROKEN  # `otter home the old mill`
    longest = FRAGMENT_WORDS + 3 * (words[0] in lx.INTERJECTIONS)
    count += _shouts(words) + _repeats(words)
    count += _stray_capitals(sentence) + _lacks_of(sentence) + _bad_ending(sentence)
    return count + (BROKEN if size > longest else 0)


def _bare_nouns(sentence: Sentence) -> float:
    """Animals and things without `the`, `a` or `my` before them."""
    words, count = sentence.words, 0
    taken = {i: m for m in sentence.mentions for i in range(m.start, m.end)}
    for mention in sentence.mentions:
        if mention.type not in ("animal", "thing") or words[mention.start] != mention.name:
            continue
        i = mention.start - 1
        while i >= 0 and _may_describe(words[i], taken.get(i)):
            i -= 1
        joined = i > 0 and words[i] in ("and", "or", ",") and (i - 1) in taken
        owned = i >= 0 and words[i] == "'s"
        count += not (joined or owned or i >= 0 and words[i] in lx.DETERMINERS)
    return BARE_NOUN * count


def _may_describe(word: str, mention: Mention | None) -> bool:
    if mention:
        return mention.type in ADJECTIVE_TYPES or word.endswith("ing")
    if word in lx.DETERMINERS or not word[0].isalpha():
        return False
    return word in lx.ADJECTIVES or word not in lx.KNOWN or word.endswith(("y", "ful", "ed"))


def _lacks_of(sentence: Sentence) -> int:
    """`Afraid spiders`, `fond the plums`."""
    words, starts = sentence.words, {m.start for m in sentence.mentions}
    return sum(
        word in ("afraid", "scared", "fond") and (i in starts or words[i] in lx.ARTICLES)
        for i, word in enumerate(words[:-1], 1)
    )


def _shouts(words: list[str]) -> int:
    """`hello` and `thanks` in the middle of a sentence."""
    return sum(
        word in lx.SHOUTS and before not in _BEFORE_A_SHOUT
        for before, word in zip(words, words[1:], strict=False)
    )


def _stray_capitals(sentence: Sentence) -> int:
    """Known words with a capital in mid-sentence, as in shuffled text."""
    inside = {i for m in sentence.mentions for i in range(m.start, m.end)}
    return sum(
        raw[0].isupper() and raw != "I" and i not in inside and raw.lower() in lx.KNOWN
        for i, raw in enumerate(sentence.raw)
        if i > 0
    )


def _word_faults(sentence: Sentence) -> int:
    words, count = sentence.words, _stray_capitals(sentence) + _lacks_of(sentence)
    count += _repeats(words) + _shouts(words)
    starts = {m.start for m in sentence.mentions}
    for i, word in enumerate(words[:-1]):
        bare = i + 1 in starts or words[i + 1] in lx.ARTICLES
        count += word in lx.NEEDS_PREPOSITION and bare
    return count + _bad_ending(sentence)


def _bad_ending(sentence: Sentence) -> int:
    words = sentence.words
    last, wh = words[-1], lx.QUESTION_WORDS & set(words)
    spoken = bool({"it", "they", "he", "she", "i", "that", "so", "we"} & set(words[-3:-1]))
    if wh or sentence.end == "?":
        return 0
    count = (last in lx.BE and not spoken) or last in {"of", "the", "a", "and", "an", "to"}
    return count + (last in lx.NEEDS_PREPOSITION or last in {"from", "with", "at"})


def _repeats(words: list[str]) -> int:
    return sum(a == b and a not in _MAY_REPEAT for a, b in zip(words, words[1:], strict=False))


def fluency(sentences: list[Sentence], given: frozenset[str] = frozenset()) -> float:
    """Share of sentences that are English, in [0, 1]; sets `faults` on every sentence.

    `given` are words that count as known, such as those of the prompt.
    """
    if not sentences:
        return 0.0
    single = sum(len(s.words) == 1 for s in sentences)
    for sentence in sentences:
        chopped = single > MANY_SINGLE_WORDS and len(sentence.words) == 1
        broken = chopped or _is_bare_grammar(sentence)
        sentence.faults = BROKEN if broken else faults(sentence, given)
    return sum(max(0.0, 1 - s.faults / BROKEN) for s in sentences) / len(sentences)


def _is_bare_grammar(sentence: Sentence) -> bool:
    """`The`, `of a`: function words alone; `It does` and `Yes` are sentences."""
    return (
        not any(
            w in lx.INTERJECTIONS or _TAGS.get(w, "word") in ("word", "i", "it")
            for w in sentence.words
        )
        and not sentence.mentions
    )
