"""The tiny web: a small closed world whose truth is known.

It knows the records of `data` and nothing else of ours; `experiments`, `bench`, `course` and the
command line import it, the trainers never do.
"""

from rlhf_edu import lazy

__all__, __getattr__ = lazy(
    __name__,
    {
        "facts": "Entity Fact World",
        "judge": "Judge",
        "labelers": "Population",
        "prompts": "make_prompts",
        "demonstrations": "Manner PLAIN demonstrate",
        "pages": "PAGES page web",
    },
)
