"""How soon a trainer is as good as TRL's PPO: `… bench --stage race --trl-ppo-python …`.

Everybody starts from the shipped SFT model, in the tiny web: our PPO and TRL's with the same reward
model, prompts, batch, learning rate and price of KL; our DPO, beside them, with the rankings that
the reward model learned from. Every few steps the judge examines the policy, while the clock of CPU
seconds stands still. The goal is the gold score that TRL ends with, at no more KL to the SFT model.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from rlhf_edu import data_folder
from rlhf_edu.bench.plan import Plan, run_worker
from rlhf_edu.bench.worker import Job, classifier, make_ppo_trainer
from rlhf_edu.data import Prompt, read_prompts, read_rankings
from rlhf_edu.dpo import train_dpo
from rlhf_edu.experiments.exam import answer_all, kl_to_reference
from rlhf_edu.experiments.grid import Cells, run_grid
from rlhf_edu.experiments.ladder import Recipe
from rlhf_edu.intervals import Estimate, over_seeds
from rlhf_edu.models import load_policy, load_scalar_model, load_tokenizer, scalar_head
from rlhf_edu.ppo import train_ppo
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.judge import Judge

OURS = ("ppo", "dpo")
SIDES = ("trl", *OURS)
GOALS = ("end", "first time there")
MODELS = data_folder() / "models"
EXAM = 512


@dataclass(frozen=True)
class Race:
    """What one process does.

    Attributes:
        side: "trl", TRL's PPO; or "ppo" or "dpo", ours.
        seed: of prompts, samples and data order.
        steps: of PPO; each has a batch of the ladder's recipe.
        every: steps between two examinations; DPO is examined as often in all.
    """

    side: str
    seed: int
    steps: int = 50
    every: int = 5


class Course:
    """Examines a policy as it runs, with the clock stopped."""

    def __init__(self, race: Race) -> None:
        self.race, self.tokenizer = race, load_tokenizer(MODELS / "sft-1M")
        self.sft, self.judge = load_policy(MODELS / "sft-1M"), Judge(World(0))
        self.exam = read_prompts(data_folder() / "prompts_test.jsonl")[:EXAM]
        self.looks: list[dict[str, float]] = []
        self.away, self.start = 0.0, time.process_time()

    def look(self, policy: PreTrainedModel, seen: int) -> None:
        """Note CPU seconds and answers or comparisons so far, gold, and KL in nats per answer."""
        before = time.process_time()
        answers = answer_all(policy, self.tokenizer, self.judge, self.exam, seed=7)
        kl = kl_to_reference(policy, self.sft, answers.rollout)
        look = {"seconds": before - self.start - self.away, "seen": seen}
        look |= {"gold": answers.mean("gold").mean, "kl": sum(kl) / len(kl)}
        self.looks.append({name: round(number, 4) for name, number in look.items()})
        self.away += time.process_time() - before

    def begin(self) -> None:
        """The preparations are over."""
        self.away, self.start = 0.0, time.process_time()


# --- the runners ---------------------------------------------------------------------------------


def run_ppo(course: Course) -> None:
    """Our PPO with the ladder's recipe."""
    race, reward_model = course.race, load_scalar_model(MODELS / "reward-model-1M")
    config = replace(Recipe().ppo, steps=race.steps, seed=race.seed)
    roles = SeparateRoles(course.sft, reward_model)
    prompts = [prompt.text for prompt in _prompts()]

    def on_step(record: dict[str, Any]) -> None:
        if (record["step"] + 1) % race.every == 0:
            course.look(roles.policy, (record["step"] + 1) * config.batch_size)

    course.begin()
    train_ppo(roles, course.tokenizer, prompts, config, on_step)


def run_dpo(course: Course) -> None:
    """Our DPO with the ladder's recipe, on all shipped rankings."""
    rankings = read_rankings(data_folder() / "rankings.jsonl")
    policy, config = load_policy(MODELS / "sft-1M"), replace(Recipe().dpo, seed=course.race.seed)
    each = len(rankings) // config.batch_size * course.race.every // course.race.steps

    def on_step(record: dict[str, Any]) -> None:
        if (record["step"] + 1) % each == 0:
            course.look(policy, (record["step"] + 1) * config.batch_size)

    course.begin()
    train_dpo(policy, course.sft, course.tokenizer, rankings, config, on_step)


def _prompts() -> list[Prompt]:
    return read_prompts(data_folder() / "prompts_train.jsonl")


class _Look(TrainerCallback):
    def __init__(self, course: Course, policy: PreTrainedModel, batch: int) -> None:
        self.course, self.policy, self.batch = course, policy, batch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.course.race.every == 0:
            self.policy.eval()
            self.course.look(self.policy, state.global_step * self.batch)


def run_trl(course: Course) -> None:
    """TRL's PPO with the same settings, as far as it has them."""
    race, recipe = course.race, Recipe().ppo
    sizes = {"batch": recipe.batch_size, "epochs": recipe.epochs, "tokens": recipe.max_new_tokens}
    job = Job("trl", "ppo", warmup=0, steps=race.steps, seed=race.seed, **sizes)
    policy, frozen = (load_policy(MODELS / "sft-1M") for _ in range(2))
    models = {"model": policy, "ref_model": frozen}
    models |= {name: _scorer() for name in ("reward_model", "value_model")}
    look, own = _Look(course, policy, job.batch), {"learning_rate": recipe.lr}
    trainer = make_ppo_trainer(job, _prompts(), models, look, kl_coef=recipe.beta, **own)
    course.begin()
    trainer.train()


def _scorer() -> PreTrainedModel:
    """The shipped reward model as TRL wants it; it reads the head at the last token too."""
    ours = load_scalar_model(MODELS / "reward-model-1M")
    model = classifier(ours)
    model.score = nn.Linear(ours.config.hidden_size, 1)
    model.score.load_state_dict(scalar_head(ours).state_dict())
    return model


RUNNERS: dict[str, Callable[[Course], None]] = {"trl": run_trl, "ppo": run_ppo, "dpo": run_dpo}


# --- what they come to ---------------------------------------------------------------------------


def goal_of(looks: list[dict[str, float]]) -> tuple[float, float]:
    """Gold and KL that TRL ends with: means of its last three examinations."""
    last = looks[-3:]
    return tuple(sum(look[name] for look in last) / len(last) for name in ("gold", "kl"))


def reached(looks: list[dict[str, float]], gold: float, kl: float) -> dict[str, float] | None:
    """The first examination with that gold, or more, at that KL, or less."""
    found = (look for look in looks if look["gold"] >= gold and look["kl"] <= kl)
    return next(found, None)


def report(cells: Cells, seeds: int) -> str:
    """A line for each seed and side, and how many times sooner than TRL each of ours was there.

    Against TRL's end, and against the first examination in which TRL itself was there.
    """
    lines = ["seed  side            CPU s      seen    gold      KL"]
    ratios: dict[tuple[str, str], list[float]] = {(a, b): [] for a in OURS for b in GOALS}
    for seed in range(seeds):
        runs = {side: cells[f"{side} seed {seed}"]["looks"] for side in SIDES}
        gold, kl = goal_of(runs["trl"])
        trl = {"TRL ends": runs["trl"][-1] | {"gold": gold, "kl": kl}}
        trl["TRL is there"] = reached(runs["trl"], gold, kl) or trl["TRL ends"]
        lines += [_line(seed, name, look) for name, look in trl.items()]
        for side in OURS:
            there = reached(runs[side], gold, kl)
            lines.append(_line(seed, side, there))
            for goal, name in zip(GOALS, trl, strict=True):
                if there:
                    ratios[side, goal].append(trl[name]["seconds"] / there["seconds"])
    for (side, goal), found in ratios.items():
        count = f"{len(found)} of {seeds} seeds"
        lines.append(f"{side} against TRL's {goal}: there in {count}{_times(found)}")
    return "\n".join(lines)


def _line(seed: int, name: str, look: dict[str, float] | None) -> str:
    if look is None:
        return f"{seed:4}  {name:13}  not there"
    numbers = f"{look['seconds']:8.1f}{look['seen']:10,}{look['gold']:8.2f}{look['kl']:8.2f}"
    return f"{seed:4}  {name:13}{numbers}"


def _times(found: list[float]) -> str:
    """The geometric mean of ratios of time, with its interval over seeds."""
    if len(found) < 2:
        return ""
    logs = over_seeds([math.log(ratio) for ratio in found])
    times = Estimate(*(math.exp(x) for x in (logs.mean, logs.low, logs.high)))
    return f", {times} times sooner by CPU time"


def race(plan: Plan, folder: Path | None = None) -> str:
    """Let all sides run, as far as there is no result yet, and return the table.

    Raises:
        ValueError: TRL's environment is missing.
    """
    trl = plan.python("trl", "ppo")
    if trl is None:
        raise ValueError("the race is against TRL: add --against trl --trl-ppo-python PATH")
    cells = {}
    for seed in range(plan.repeats):
        for side in SIDES:
            python = trl if side == "trl" else plan.python("ours", "ppo")
            job = asdict(Race(side, seed))
            run = (plan, python, "rlhf_edu.bench.race", job)
            cells[f"{side} seed {seed}"] = lambda run=run: run_worker(*run)
    return report(run_grid("race", plan.command(), cells, folder), plan.repeats)


if __name__ == "__main__":
    there = Course(Race(**json.loads(sys.argv[1])))
    RUNNERS[there.race.side](there)
    print("\n" + json.dumps({"looks": there.looks, **asdict(there.race)}))
