"""The tiny world: who and what lives in it, and every fact that is true there.

A world is made from one seed. Another seed is another world: other people, other towns, and
other facts about the same animals. Everything else in `tinyweb` (web pages, prompts, labelers,
the judge) is generated from the facts in this file.
"""

import random
from dataclasses import dataclass
from functools import cached_property

ANIMALS = (
    "otter fox badger heron hare owl toad goat hedgehog magpie mole swan weasel crow lynx beaver "
    "donkey pony goose robin bat bear snail newt stoat crane raven seal deer wren rabbit squirrel "
    "duck lizard frog wolf pigeon turtle cat mouse ferret falcon ibis jackdaw kestrel lark "
    "marten osprey partridge quail rook swallow thrush viper"
).split()
PEOPLE = (
    "Mira Tobin Anselm Greta Ludo Petra Oskar Hanna Emil Nora Felix Ida Bruno Wanda Casper Lotte "
    "Simon Vera Hugo Alma Edgar Rosa Jasper Clara Otto Freya Leo Agnes Milo Thea Arthur Selma "
    "Victor Elsa Rufus Dora Ivo Maud Silas Tilda Boris Cora Walter Ines Jonah Livia Magnus Nell "
    "Amos Bertha Conrad Daphne Erwin Flora Gideon Hedda Igor Judith Klaus Lydia Moritz Odette "
    "Percy Roland"
).split()
TOWNS = (
    "Larkhill Mossbury Fernvale Oakford Saltmere Winterby Ashdale Foxhollow Brightwater Thornbury "
    "Millbrook Ravenport Goldcrest Elmstead Harrowgate Willowby Stonebridge Duskfield Pinecombe "
    "Clearwell Highmoor Appleford Greywick Swanmere Coldharbour Honeybrook Ironbury Wolfsgate "
    "Summerlea Riverton"
).split()
THINGS = (
    "lantern kite kettle clock ladder boat cart ring mirror basket chest wagon crown bell anchor "
    "saddle umbrella telescope compass barrel sledge carpet statue bucket wheel key hammer vase "
    "candlestick spade trunk sundial hourglass pillow ladle anvil globe banner throne cradle "
    "bathtub teapot wardrobe rocket"
).split()

# Value types. An attribute is recognised by the kind of its subject and the type of its value,
# so within one kind no two attributes share a type.
VALUES = {
    "habitat": (
        "the old mill|the reed lake|the pine forest|the salt marsh|the stone quarry|the orchard|"
        "the rocky gorge|the clay pit|the misty meadow|the ruined castle|the willow grove|"
        "the church tower|the rose garden|the hollow oak|the deep cave|the wheat field"
    ).split("|"),
    "food": (
        "plums bread mushrooms honey beetles carrots walnuts cheese berries worms cabbage fish "
        "pears barley eggs soup onions cherries"
    ).split(),
    "colour": "brown grey black white red yellow green blue golden purple".split(),
    "fear": (
        "thunder|smoke|snow|fog|shadows|lightning|spiders|heights|fireworks|ghosts|loud music|"
        "deep water|strangers|bees"
    ).split("|"),
    "skill": (
        "chess singing juggling knitting dancing counting climbing painting sewing diving cooking "
        "whistling swimming digging"
    ).split(),
    "job": (
        "baker painter teacher miller sailor tailor farmer doctor potter hunter weaver judge "
        "gardener blacksmith carpenter fisher shepherd librarian"
    ).split(),
    "instrument": "fiddle flute drum harp trumpet piano lute horn guitar cello".split(),
    "month": (
        "January February March April May June July August September October November December"
    ).split(),
    "region": "the north|the south|the east|the west|the mountains|the valley|the islands".split(
        "|"
    ),
    "product": (
        "pottery candles ropes boots hats silk paper knives cider tea salt wool lamps furniture"
    ).split(),
    "river": "Ilse Tarn Moy Brend Lune Avel Wend Orr Sorrow Kesk".split(),
    "material": "copper oak glass tin leather clay silver iron marble straw bronze bone".split(),
    "room": (
        "the attic|the barn|the shed|the cellar|the kitchen|the library|the chapel|the stable|"
        "the pantry|the workshop|the hall|the garden house"
    ).split("|"),
}

ATTRIBUTES = {  # kind -> attribute -> value type ("person" and "town" are entities)
    "animal": {
        "home": "habitat",
        "food": "food",
        "colour": "colour",
        "fear": "fear",
        "skill": "skill",
    },
    "person": {
        "town": "town",
        "job": "job",
        "instrument": "instrument",
        "food": "food",
        "birthday": "month",
    },
    "town": {"region": "region", "product": "product", "river": "river", "mayor": "person"},
    "thing": {"material": "material", "colour": "colour", "owner": "person", "place": "room"},
}
POPULATION = {  # kind -> (names to draw from, how many)
    "animal": (ANIMALS, 50),
    "person": (PEOPLE, 50),
    "town": (TOWNS, 24),
    "thing": (THINGS, 36),
}
NEVER_ASKED_SHARE = 0.2
# The r-th best known of a kind, from 0, is spoken of in proportion to (r + 4)^-1.5: half of all
# that is said is about a few, and most are hardly ever named.
ZIPF_OFFSET, ZIPF_EXPONENT = 4.0, 1.5
MYTHS = 40  # facts about which most people are wrong


@dataclass(frozen=True)
class Entity:
    """Somebody or something with facts: an animal, a person, a town or a thing."""

    name: str
    kind: str

    @property
    def phrase(self) -> str:
        """How the entity stands in a sentence: `the otter`, `Mira`."""
        return f"the {self.name}" if self.kind in ("animal", "thing") else self.name


@dataclass(frozen=True)
class Fact:
    """One true statement: the `attribute` of `subject` (a name) is `value`."""

    subject: str
    attribute: str
    value: str


class World:
    """All entities and facts of the world with this seed.

    Attributes: `entities` (name -> Entity), `facts` ((subject, attribute) -> value), `popularity`
    (name -> share of what is said about its kind), `myths` ((subject, attribute) -> the wrong value
    that most people believe) and `never_asked` (names that no demonstration, comparison or training
    prompt asks about).
    """

    def __init__(self, seed: int = 0) -> None:
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"the world seed must be a whole number from 0 on, not {seed!r}")
        self.seed = seed
        rng = random.Random(f"world {seed}")
        self.entities = {
            name: Entity(name, kind)
            for kind, (names, count) in POPULATION.items()
            for name in sorted(rng.sample(names, count))
        }
        self.facts: dict[tuple[str, str], str] = {}
        for kind, attributes in ATTRIBUTES.items():
            for attribute, value_type in attributes.items():
                self._assign(rng, kind, attribute, value_type)
        self.never_asked = frozenset(
            name
            for kind in ATTRIBUTES
            for name in rng.sample(self.names(kind), round(NEVER_ASKED_SHARE * self.count(kind)))
        )
        self.popularity = {n: p for kind in ATTRIBUTES for n, p in self._fame(kind, rng)}
        self.myths = {(f.subject, f.attribute): self._error(f, rng) for f in self._mythical(rng)}

    def _assign(self, rng: random.Random, kind: str, attribute: str, value_type: str) -> None:
        """Deal the values out like cards, so that no answer is much more likely than another."""
        deck: list[str] = []
        for name in self.names(kind):
            if not deck:
                deck = list(self.values(value_type))
                rng.shuffle(deck)
            self.facts[name, attribute] = deck.pop()

    def _fame(self, kind: str, rng: random.Random) -> list[tuple[str, float]]:
        """The names of a kind, best known first, each with its share of all that is said."""
        names = rng.sample(self.names(kind), self.count(kind))
        weights = [(rank + ZIPF_OFFSET) ** -ZIPF_EXPONENT for rank in range(len(names))]
        return [(name, w / sum(weights)) for name, w in zip(names, weights, strict=True)]

    def _mythical(self, rng: random.Random) -> list[Fact]:
        """One fact each about those of middling fame: enough is said of them to get it wrong."""
        middle = [
            name
            for kind in ATTRIBUTES
            for name in self.by_fame(kind)[self.count(kind) // 8 : self.count(kind) // 2]
        ]
        return [rng.choice(self.about(name)) for name in rng.sample(middle, MYTHS)]

    def _error(self, fact: Fact, rng: random.Random) -> str:
        values = self.values(self.value_type(fact.subject, fact.attribute))
        return rng.choice([value for value in values if value != fact.value])

    def by_fame(self, kind: str) -> list[str]:
        """Names of a kind, best known first."""
        return sorted(self.names(kind), key=lambda name: -self.popularity[name])

    def names(self, kind: str) -> list[str]:
        """Names of all entities of a kind (`animal`, `person`, `town`, `thing`)."""
        return [name for name, entity in self.entities.items() if entity.kind == kind]

    def count(self, kind: str) -> int:
        """How many entities of this kind there are."""
        return len(self.names(kind))

    def values(self, value_type: str) -> list[str]:
        """Every value of a type; for `person` and `town` these are the entities' names."""
        return self.names(value_type) if value_type in ATTRIBUTES else list(VALUES[value_type])

    def kind(self, name: str) -> str:
        """The kind of an entity. Raises `KeyError` for a name that is not in this world."""
        if name not in self.entities:
            raise KeyError(f"nobody and nothing called {name!r} in world {self.seed}")
        return self.entities[name].kind

    def phrase(self, name: str) -> str:
        """The entity as it stands in a sentence, `the otter` or `Mira`."""
        return self.entities[name].phrase

    def attributes(self, name: str) -> list[str]:
        """The attributes that this entity has, in a fixed order."""
        return list(ATTRIBUTES[self.kind(name)])

    def value(self, name: str, attribute: str) -> str:
        """The true value of an attribute."""
        return self.facts[name, attribute]

    def value_type(self, name: str, attribute: str) -> str:
        """The type of an attribute's values, such as `food`."""
        return ATTRIBUTES[self.kind(name)][attribute]

    def about(self, name: str) -> list[Fact]:
        """All facts about one entity."""
        return [Fact(name, a, self.facts[name, a]) for a in self.attributes(name)]

    def having(self, kind: str, attribute: str, value: str) -> list[str]:
        """Names of all entities of a kind for which the attribute has this value."""
        return [name for name in self.names(kind) if self.facts[name, attribute] == value]

    @cached_property
    def all_facts(self) -> list[Fact]:
        """Every fact of the world."""
        return [Fact(s, a, v) for (s, a), v in self.facts.items()]
