"""The kinds of tasks of this world, each in one place: what `prompts`, `demonstrations`, `pages`,
`labelers` and `judge` import. A new kind is a new `Kind` in one of these files, and a line here.
"""

from rlhf_edu.tinyweb.tasks import chat, knowledge, texts, writing

# use case -> (weight, kind)
TASKS = {
    "generation": [
        (6, knowledge.DESCRIBE),
        (2, writing.ADVERT),
        (1.5, writing.STORY),
        (0.5, writing.THANKS),
    ],
    "open_qa": [(6, knowledge.ASK), (2, knowledge.WHICH), (2, knowledge.YESNO)],
    "brainstorming": [(1, knowledge.LIST)],
    "chat": [(1, chat.GREET), (2, chat.FEEL), (1, chat.INSULT)],
    "rewrite": [(1, texts.POLITE), (1, texts.PAST)],
    "summarisation": [(1, texts.SUMMARISE)],
    "classification": [(1, texts.CLASSIFY)],
    "other": [(1, texts.ODD)],
    "closed_qa": [(1, texts.CLOSED)],
    "extract": [(1, texts.EXTRACT)],
}
KINDS = {kind.name: kind for pairs in TASKS.values() for _, kind in pairs}
KINDS[knowledge.PREMISE.name] = knowledge.PREMISE
FACTUAL = frozenset(name for name, kind in KINDS.items() if kind.factual)
