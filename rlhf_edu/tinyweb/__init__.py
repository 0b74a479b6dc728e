"""The tiny web: a small closed world whose truth is known."""

from rlhf_edu.tinyweb.facts import Entity, Fact, World

__all__ = ["Entity", "Fact", "World"]
