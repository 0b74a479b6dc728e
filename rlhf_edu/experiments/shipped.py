"""The shipped models, on one device, and what is needed to train from them and to examine them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu import data_folder
from rlhf_edu.data import Demonstration, Prompt, Ranking, read_demonstrations, read_rankings
from rlhf_edu.engine.devices import device_of
from rlhf_edu.engine.loading import load_config
from rlhf_edu.experiments.exam import Answers, answer_all
from rlhf_edu.models import load_policy, load_scalar_model, load_tokenizer
from rlhf_edu.pretrain import lm_loss, pack
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.labelers import Population
from rlhf_edu.tinyweb.pages import web
from rlhf_edu.tinyweb.prompts import make_prompts


class Shipped:
    """A folder of models, on one device, in world 0 with its judge.

    Attributes:
        device: where models are loaded to.
        models: the folder that holds one folder per model.
    """

    def __init__(self, device: str | torch.device = "cpu", models: Path | None = None) -> None:
        self.device = device_of(str(device))
        self.models = models or data_folder() / "models"

    @cached_property
    def world(self) -> World:
        """The tiny web's facts."""
        return World(0)

    @cached_property
    def judge(self) -> Judge:
        """The gold score: judge(prompt, answer, ended) -> Verdict."""
        return Judge(self.world)

    @cached_property
    def population(self) -> Population:
        """The labelers."""
        return Population(self.world)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one tokenizer of all shipped models."""
        return load_tokenizer(self.folder("base"))

    @cached_property
    def demonstrations(self) -> list[Demonstration]:
        """What the shipped SFT model learned from."""
        return read_demonstrations(data_folder() / "demonstrations.jsonl")

    @cached_property
    def rankings(self) -> list[Ranking]:
        """What the shipped reward model and DPO learned from."""
        return read_rankings(data_folder() / "rankings.jsonl")

    @cached_property
    def blocks(self) -> Tensor:
        """(N, T) pages of the web that nobody has read in training."""
        return pack(self.tokenizer, web(self.world, 300, seed=10_001)).to(self.device)

    def folder(self, name: str) -> Path:
        """The folder of a model: "base" means the standard size, "base-0.05M" that one.

        Raises:
            FileNotFoundError: there is no such model; the message lists what there is.
        """
        for candidate in (self.models / name, self.models / f"{name}-1M"):
            if (candidate / "config.json").is_file():
                return candidate
        there = ", ".join(sorted(f.parent.name for f in self.models.glob("*/config.json")))
        raise FileNotFoundError(
            f"no model called {name!r}; there are: {there or 'none'}. "
            "`python -m rlhf_edu build` makes those that are missing"
        )

    def has(self, *names: str) -> bool:
        """Whether all of these models have been built."""
        try:
            return all(self.folder(name) for name in names)
        except FileNotFoundError:
            return False

    def load(self, name: str) -> PreTrainedModel:
        """A new copy of a language model, reward model or critic, by name; fp32, eval mode."""
        folder = self.folder(name)
        scalar = load_config(folder).num_labels == 1
        return (load_scalar_model if scalar else load_policy)(folder).to(self.device)

    def prompts(self, n: int, split: str = "train", seed: int = 0) -> list[Prompt]:
        """`n` different prompts of simulated customers, of the split train, validation or test."""
        return make_prompts(self.world, split, n, seed)

    def answer(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], temperature: float = 1.0
    ) -> Answers:
        """What a model answers to some prompts; the same random numbers for every model."""
        return answer_all(model, self.tokenizer, self.judge, prompts, temperature, seed=7)

    def web_loss(self, model: PreTrainedModel) -> float:
        """Next-token loss on pages of the web, nats per token."""
        return lm_loss(model, self.blocks)
