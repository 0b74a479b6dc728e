"""The ladder: base, prompted, SFT, best-of-16, PPO, PPO-ptx and DPO, trained and measured.

    python -m rlhf_edu ladder [--seed N] [--world-seed N] [--from-scratch] [--json FILE]

Read `Ladder.run` from top to bottom: it is the whole InstructGPT recipe, and DPO beside it.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_edu import data_folder
from rlhf_edu.data import Demonstration, Prompt, Ranking
from rlhf_edu.dpo import DPOConfig, train_dpo
from rlhf_edu.engine.devices import device_of, versions
from rlhf_edu.experiments.bases import make_base
from rlhf_edu.experiments.exam import (
    Answers,
    answer_all,
    colder,
    few_shot_prefix,
    judge_all,
    labelers_prefer,
    mean_entropy,
    mean_kl,
    reward_accuracy,
    row,
    sample_all,
    skills,
)
from rlhf_edu.experiments.plots import STAGES
from rlhf_edu.intervals import Estimate, bootstrap, win_rate
from rlhf_edu.losses import best_of_n, best_of_n_kl, penalise_missing_end
from rlhf_edu.models import (
    count_parameters,
    load_policy,
    load_tokenizer,
    reward_scores,
    round_weights,
    scalar_model_from,
)
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.pretrain import lm_loss, pack
from rlhf_edu.reward import RewardConfig, normalise_reward, train_reward
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.sft import SFTConfig, train_sft
from rlhf_edu.tinyweb.demonstrations import demonstrate
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge
from rlhf_edu.tinyweb.labelers import Population, ceiling
from rlhf_edu.tinyweb.pages import web
from rlhf_edu.tinyweb.prompts import make_prompts, stratified_prompts


@dataclass(frozen=True)
class Recipe:
    """Every number of the ladder that is a choice."""

    size: str = "1M"
    pages: int | None = None  # to pretrain on; None: what `bases.BASES` says
    demonstrations: int = 600
    ranked_prompts: int = 3000
    answers_per_prompt: tuple[int, ...] = (4, 4, 4, 5, 6, 9)
    strangers: int = 1  # of these answers are the prompted model's, the others the SFT model's
    ppo_prompts: int = 3000
    examples: int = 5  # in the few-shot prefix
    best_of: int = 16
    test_prompts: int = 1024
    per_use_case: int = 26
    sft: SFTConfig = SFTConfig(lr=5e-4, epochs=6)
    reward: RewardConfig = RewardConfig(lr=1e-3, batch_size=8, epochs=2)
    ppo: PPOConfig = PPOConfig(steps=60, batch_size=128, epochs=1, lr=5e-4, beta=0.25)
    ptx_coef: float = 1.0
    dpo: DPOConfig = DPOConfig(beta=0.3)


class Ladder:
    """One run of all stages in one world.

    After `run`, `models` holds the trained models by name (`base`, `sft`, `reward_model`,
    `critic`, `ppo`, `ppo_ptx`, `dpo`), `rows` the table, and `answers` what every stage said.
    """

    def __init__(
        self,
        seed: int = 0,
        world_seed: int = 0,
        from_scratch: bool = False,
        recipe: Recipe | None = None,
        quiet: bool = False,
        device: str = "cpu",
    ) -> None:
        self.seed, self.recipe, self.quiet = seed, recipe or Recipe(), quiet
        self.device = device_of(device)
        self.from_scratch = from_scratch or world_seed != 0
        self.world = World(world_seed)
        self.judge, self.population = Judge(self.world), Population(self.world)
        self.models: dict[str, Any] = {}
        self.answers: dict[str, Answers] = {}
        self.greedy: dict[str, Answers] = {}
        self.stratified: dict[str, Answers] = {}
        self.rows: list[dict[str, Any]] = []
        self.minutes: dict[str, float] = {}
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self._deal_prompts()

    def _deal_prompts(self) -> None:
        recipe, world, seed = self.recipe, self.world, self.seed
        # The exam is the same for every seed; nothing in it occurs in training.
        self.test = make_prompts(world, "test", recipe.test_prompts)
        self.test_stratified = stratified_prompts(world, "test", recipe.per_use_case, 100)
        exam = self.test + self.test_stratified
        self.validation = make_prompts(world, "validation", 128, seed, exclude=exam)
        n, m = recipe.demonstrations, recipe.ranked_prompts
        train = make_prompts(world, "train", n + m + recipe.ppo_prompts, seed, exclude=exam)
        self.train = {"sft": train[:n], "rank": train[n : n + m], "ppo": train[n + m :]}
        self.demonstrations = demonstrate(world, self.train["sft"], seed)
        self.web_test = web(world, 1500, seed=10_001)

    # --- the stages -------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train and measure every stage. Returns what `--json` writes."""
        # 1. A base model that has read the tiny web and nothing else.
        self.measure("base", self.base)
        # 2. The same model with a few examples before each prompt.
        self.measure("prompted", self.choose_examples)
        # 3. Supervised fine-tuning on demonstrations.
        self.measure("sft", self.supervised)
        # 4. People rank answers of the SFT model; a reward model learns to rank like them.
        with self.timed("reward_model"):
            self.rankings = self.collect_rankings(self.train["rank"], self.seed + 1)
            self.train_reward_model()
        self.reward_model = self.measure_reward_model()
        # 5. Best of 16: what the reward model is worth without any reinforcement learning.
        self.measure_best_of_n()
        # 6. PPO against the reward model, with a KL penalty to the SFT model.
        self.measure("ppo", self.ppo)
        # How much of that is a sharper distribution? The SFT model, sampled as cold as PPO is.
        self.measure_colder()
        # 7. The same with pretraining gradients mixed in.
        self.measure("ppo_ptx", self.ppo_ptx)
        # 8. DPO: the same rankings, no reward model, no rollouts.
        self.measure("dpo", self.dpo)
        # 9. What if the whole label budget had bought demonstrations?
        self.measure("sft_whole_budget", self.supervised_whole_budget)
        return self.report()

    def base(self) -> None:
        """Load the shipped base model, or make one from nothing."""
        if not self.from_scratch:
            folder = data_folder() / "models" / f"base-{self.recipe.size}"
            base, self.tokenizer = load_policy(folder), load_tokenizer(folder)
        else:
            base, self.tokenizer = make_base(
                self.recipe.size,
                self.world,
                self.seed,
                self.recipe.pages,
                self.bar("base"),
                checkpoints=str(self.base_folder()),
                device=self.device,
            )
        self.models["base"] = base.to(self.device)
        self.web_blocks = pack(self.tokenizer, self.web_test).to(self.device)
        self.prefix = ""

    def base_folder(self) -> Path:
        """Where the checkpoints of this world's base model are: it takes an hour to make."""
        name = f"base-{self.recipe.size}-world-{self.world.seed}-seed-{self.seed}"
        return data_folder().parent / "build" / (name + f"-{self.recipe.pages or 'all'}-pages")

    def choose_examples(self) -> None:
        """Few-shot: of four sets of training examples take the one that serves validation best."""
        k = self.recipe.examples
        sets = [self.demonstrations[i * k : (i + 1) * k] for i in range(4)]
        prefixes = [few_shot_prefix([(d.prompt.text, d.answer) for d in s]) for s in sets]
        gold = [self._gold_with(prefix) for prefix in self.progress("prompted", prefixes)]
        self.prefix = prefixes[gold.index(max(gold))]
        self.models["prompted"] = self.models["base"]

    def _gold_with(self, prefix: str) -> float:
        """Gold of the base model's answers to validation prompts, with examples before each."""
        base = self.models["base"]
        found = answer_all(base, self.tokenizer, self.judge, self.validation, prefix=prefix)
        return found.mean("gold").mean

    def supervised(self) -> None:
        """Fine-tune the base model on the demonstrations."""
        self.models["sft"] = self._sft("sft", self.demonstrations)

    def supervised_whole_budget(self) -> None:
        """Fine-tune on demonstrations bought with all the labels the ladder used."""
        more = demonstrate(self.world, self.train["rank"], self.seed + 1)
        config = replace(self.recipe.sft, epochs=2)  # twenty times the data: fewer rounds will do
        self.models["sft_whole_budget"] = self._sft(
            "sft_whole_budget", self.demonstrations + more, config
        )

    def _sft(
        self, name: str, demonstrations: list[Demonstration], config: SFTConfig | None = None
    ) -> Any:
        model, config = copy.deepcopy(self.models["base"]), config or self.recipe.sft
        model, self.histories[name] = train_sft(
            model, self.tokenizer, demonstrations, config, on_step=self.bar(name)
        )
        return round_weights(model)

    def collect_rankings(self, prompts: list[Prompt], seed: int) -> list[Ranking]:
        """K answers to each prompt, ranked by one labeler each.

        Most are the SFT model's. Some are the prompted model's, where there is one: who has only
        seen answers to the point does not learn that an answer must be one.
        """
        ks = self.recipe.answers_per_prompt
        others = self.recipe.strangers if "prompted" in self.models else 0
        counts = [ks[i % len(ks)] for i in range(len(prompts))]
        own = self._say("sft", [k - others for k in counts], prompts, seed)
        theirs = self._say("prompted", [others] * len(counts), prompts, seed)
        rankings = []
        for prompt, ours, more in zip(prompts, own, theirs, strict=True):
            texts, ended = zip(*(ours + more), strict=True)
            ranking = self.population.ranking(prompt, list(texts), list(ended), "sft", self.seed)
            sources = ("sft",) * len(ours) + ("prompted",) * len(more)
            rankings.append(replace(ranking, sources=sources))
        return rankings

    def _say(
        self, stage: str, counts: list[int], prompts: list[Prompt], seed: int
    ) -> list[list[tuple[str, bool]]]:
        """So many answers of a stage to each prompt, each with whether it ended."""
        if not sum(counts):
            return [[] for _ in prompts]
        many = [p for p, k in zip(prompts, counts, strict=True) for _ in range(k)]
        prefix = self.prefix if stage == "prompted" else ""
        model = self.models[stage]
        texts, ended, _ = sample_all(model, self.tokenizer, many, seed=seed, prefix=prefix)
        pairs = iter(zip(texts, ended, strict=True))
        return [[next(pairs) for _ in range(k)] for k in counts]

    def measure_reward_model(self, unseen: list[Ranking] | None = None) -> dict[str, Any]:
        """How often the reward model orders two new answers as labelers do, and as gold does."""
        if unseen is None:
            unseen = self.collect_rankings(self.validation, self.seed + 2)
        by_gold = [replace(r, ranks=gold_ranks(self.judge, r), labeler="gold") for r in unseen]
        model, tokenizer = self.models["reward_model"], self.tokenizer
        found = {
            "label_accuracy": reward_accuracy(model, tokenizer, unseen),
            "gold_accuracy": reward_accuracy(model, tokenizer, by_gold),
            "agreement": self.population.agreement(self.rankings[:1000], self.seed),
        }
        numbers: dict[str, float] = {}
        for name, shares in found.items():
            numbers |= _named(name, bootstrap(shares))
        return numbers | {"ceiling": ceiling(numbers["agreement"])}

    def train_reward_model(self) -> None:
        """K-wise reward model on the SFT model's body; demonstrations score 0."""
        model = scalar_model_from(self.models["sft"], self.seed)
        model, self.histories["reward_model"] = train_reward(
            model, self.tokenizer, self.rankings, self.recipe.reward, on_step=self.bar("reward")
        )
        model = round_weights(model)
        normalise_reward(model, self.tokenizer, self.demonstrations)
        self.models["reward_model"] = model

    def ppo(self) -> None:
        """PPO with a KL penalty."""
        self.models["ppo"], self.models["critic"] = self._ppo("ppo", self.recipe.ppo, None)

    def ppo_ptx(self) -> None:
        """PPO with pretraining gradients mixed in."""
        config = replace(self.recipe.ppo, ptx_coef=self.recipe.ptx_coef)
        blocks = pack(self.tokenizer, web(self.world, 20_000, self.seed)).to(self.device)
        self.models["ppo_ptx"], _ = self._ppo("ppo_ptx", config, blocks)

    def _ppo(self, name: str, config: PPOConfig, blocks: Tensor | None) -> tuple[Any, Any]:
        roles = SeparateRoles(
            policy=copy.deepcopy(self.models["sft"]),
            reference=self.models["sft"],
            reward_model=self.models["reward_model"],
            critic=copy.deepcopy(self.models["reward_model"]),
        )
        prompts = [p.text for p in self.train["ppo"]]
        _, self.histories[name] = train_ppo(
            roles, self.tokenizer, prompts, config, on_step=self.bar(name), ptx_blocks=blocks
        )
        return round_weights(roles.policy), round_weights(roles.critic)

    def dpo(self) -> None:
        """DPO on the same rankings."""
        policy = copy.deepcopy(self.models["sft"])
        policy, self.histories["dpo"] = train_dpo(
            policy,
            self.models["sft"],
            self.tokenizer,
            self.rankings,
            self.recipe.dpo,
            on_step=self.bar("dpo"),
        )
        self.models["dpo"] = round_weights(policy)

    # --- measuring --------------------------------------------------------------------------

    def measure(self, stage: str, train: Callable[[], None]) -> None:
        """Train a stage, let it answer the exam, and add its row to the table."""
        with self.timed(stage):
            train()
        model, prefix = self.models[stage], self.prefix if stage == "prompted" else ""
        answers = self.answer(model, self.test, prefix=prefix)
        self.answers[stage] = answers
        self.stratified[stage] = self.answer(model, self.test_stratified, prefix=prefix)
        self.greedy[stage] = self.answer(model, self.test, 0.0, prefix=prefix)
        kl = None
        if stage not in ("base", "prompted"):
            kl = mean_kl(model, self.models["sft"], answers.rollout)
        self._add_row(
            stage,
            kl=kl,
            web_loss=lm_loss(model, self.web_blocks),
            skills=skills(model, self.tokenizer, self.world),
            parameters=count_parameters(model),
        )

    def answer(
        self, model: Any, prompts: list[Prompt], temperature: float = 1.0, prefix: str = ""
    ) -> Answers:
        """What a model answers to some prompts; the same random numbers for every model."""
        return answer_all(
            model, self.tokenizer, self.judge, prompts, temperature, seed=7, prefix=prefix
        )

    def _add_row(self, stage: str, **more: Any) -> None:
        answers = self.answers[stage]
        self.rows.append(
            row(
                stage,
                answers,
                **more,
                gold_stratified=self.stratified[stage].mean("gold").mean,
                by_asked=self._gold_by_asked(answers),
                labels=self._labels(stage),
                minutes=self.minutes[stage],
                **self._greedy(stage),
            )
        )

    def _greedy(self, stage: str) -> dict[str, float | None]:
        """Gold and flawless answers at temperature 0; nothing where a stage has no such answers."""
        if stage not in self.greedy:
            names = ("gold_greedy", "gold_greedy_low", "gold_greedy_high", "flawless_greedy")
            return dict.fromkeys(names)
        answers = self.greedy[stage]
        flawless = answers.mean("flawless").mean
        return _named("gold_greedy", answers.mean("gold")) | {"flawless_greedy": flawless}

    def _labels(self, stage: str) -> dict[str, int]:
        """The label budget of a stage: what people wrote and ranked for it."""
        shown, ranked = self.recipe.demonstrations, self.recipe.ranked_prompts
        by_stage = {"base": (0, 0), "prompted": (self.recipe.examples, 0), "sft": (shown, 0)}
        by_stage["sft_whole_budget"] = (shown + ranked, 0)
        shown, ranked = by_stage.get(stage, (shown, ranked))
        return {"demonstrations": shown, "rankings": ranked}

    def _wins(self, stage: str) -> dict[str, float]:
        """Win rate over the SFT model, by the gold judge and by labelers no model learned from."""
        ours, sft = self.answers[stage], self.answers["sft"]
        gold = win_rate(ours.gold, sft.gold)
        labelers = labelers_prefer(self.population, ours, sft)
        ties = fmean(a == b for a, b in zip(ours.gold, sft.gold, strict=True))
        found = _named("win_rate", gold) | _named("labeler_win_rate", labelers) | {"ties": ties}
        if stage in self.greedy:
            greedy = win_rate(self.greedy[stage].gold, self.greedy["sft"].gold)
            found |= _named("win_rate_greedy", greedy)
        return found

    def _gold_by_asked(self, answers: Answers) -> dict[str, float]:
        """Gold on prompts about subjects asked in training, and about those never asked."""
        groups: dict[bool, list[float]] = {True: [], False: []}
        for prompt, gold in zip(answers.prompts, answers.gold, strict=True):
            if prompt.task.subject in self.world.entities:
                groups[prompt.task.subject in self.world.never_asked].append(gold)
        mean = {known: sum(g) / max(1, len(g)) for known, g in groups.items()}
        return {"asked": mean[False], "never_asked": mean[True]}

    def measure_best_of_n(self) -> None:
        """Best of n of the SFT model by the reward model; its KL is the known bound."""
        n, stage = self.recipe.best_of, "best_of_16"
        with self.timed(stage):
            self.answers[stage] = self._best_of(self.test, n)
        self.stratified[stage] = self._best_of(self.test_stratified, n)
        sft = self._of_the_sft_model()
        sft["parameters"] += count_parameters(self.models["reward_model"])
        self._add_row(stage, kl=best_of_n_kl(n), **sft)

    def measure_colder(self) -> None:
        """The SFT model at the temperature at which its entropy per token is PPO's."""
        stage, sft = "sft_colder", self.models["sft"]
        prompts = self.test[:256]
        with self.timed(stage):
            goal = mean_entropy(self.models["ppo"], self.answers["ppo"].rollout)
            temperature = colder(sft, self.tokenizer, prompts, goal)
        self.answers[stage] = self.answer(sft, self.test, temperature)
        self.stratified[stage] = self.answer(sft, self.test_stratified, temperature)
        same = self._of_the_sft_model()
        self._add_row(stage, kl=None, temperature=temperature, entropy=goal, **same)

    def _of_the_sft_model(self) -> dict[str, Any]:
        """What a stage that only samples the SFT model in another way has from it."""
        sft = next(r for r in self.rows if r["stage"] == "sft")
        return {key: sft[key] for key in ("web_loss", "skills", "parameters")}

    def _best_of(self, prompts: list[Prompt], n: int) -> Answers:
        many = [p for p in prompts for _ in range(n)]
        texts, ended, rollout = sample_all(self.models["sft"], self.tokenizer, many, seed=8)
        found = reward_scores(self.models["reward_model"], rollout).cpu()
        penalty = self.recipe.ppo.missing_eos_penalty
        found = penalise_missing_end(found, rollout.ended.cpu(), penalty)
        best = best_of_n(found.view(-1, n)) + torch.arange(len(prompts)) * n
        picked = best.tolist()
        kept = [texts[i] for i in picked], [ended[i] for i in picked], rollout.rows(best)
        return judge_all(self.judge, prompts, *kept)

    # --- reporting --------------------------------------------------------------------------

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the minutes that a stage took to train."""
        start = time.perf_counter()
        yield
        self.minutes[stage] = (time.perf_counter() - start) / 60

    def progress(self, name: str, items: list[Any]) -> Any:
        """The items with a progress bar."""
        return tqdm(items, desc=f"{name:>16}", disable=self.quiet)

    def bar(self, name: str) -> Callable[[dict[str, Any]], None]:
        """A callback that draws a trainer's progress."""
        bar = tqdm(desc=f"{name:>16}", disable=self.quiet, unit="step")

        def on_step(record: dict[str, Any]) -> None:
            shown = ("loss", "reward", "kl", "accuracy")
            bar.set_postfix({k: f"{record[k]:.3f}" for k in shown if record.get(k) is not None})
            bar.update()

        return on_step

    def report(self) -> dict[str, Any]:
        """The run as JSON: the ladder's stages, what stands beside it, budgets and versions."""
        for stage_row in self.rows:  # base and prompted were measured before there was an SFT model
            stage_row.update(self._wins(stage_row["stage"]))
        return {
            "stages": [r for r in self.rows if r["stage"] in STAGES],
            "beside": [r for r in self.rows if r["stage"] not in STAGES],
            "reward_model": self.reward_model,
            "minutes": self.minutes,
            "seed": self.seed,
            "world_seed": self.world.seed,
            "versions": versions(),
        }


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as three numbers of a report."""
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def gold_ranks(judge: Judge, ranking: Ranking) -> tuple[int, ...]:
    """Ranks of a ranking's answers by gold, 1 the best; equal gold is a tie."""
    answers = zip(ranking.answers, ranking.ended, strict=True)
    gold = [judge(ranking.prompt, answer, ended).gold for answer, ended in answers]
    return tuple(1 + sum(other > score for other in gold) for score in gold)
