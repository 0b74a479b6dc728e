"""How soon a trainer is as good as TRL's PPO: `… bench --stage race --trl-ppo-python …`.

Everybody starts from the shipped SFT model, in the tiny web: our PPO and TRL's with the same reward
model, prompts, batch, learning rate and price of KL; our DPO, beside them, with the rankings that
the reward model learned from. Every few steps the judge examines the policy, while the clock of CPU
seconds stands still. The goal is the gold score that TRL ends with, at no more KL to the SFT model.
"""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from rlhf_edu import data_folder
from rlhf_edu.bench.job import Job
from rlhf_edu.bench.plan import Plan, run_worker
from rlhf_edu.bench.trl import classifier, make_ppo_trainer
from rlhf_edu.bench.worker import answer
from rlhf_edu.data import read_prompts
from rlhf_edu.dpo import train_dpo
from rlhf_edu.engine.checks import OnStep, Record
from rlhf_edu.experiments.exam import mean_kl
from rlhf_edu.experiments.grid import Cells, by_seed, each_seed, run_grid
from rlhf_edu.experiments.ladder import Recipe
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.intervals import Estimate, over_seeds
from rlhf_edu.models import scalar_head
from rlhf_edu.ppo import train_ppo
from rlhf_edu.roles import SeparateRoles

OURS = ("ppo", "dpo")
SIDES = ("trl", *OURS)  # TRL's PPO, and what we have
GOALS = ("end", "first time there")
EXAM = 512
STEPS, EVERY = 50, 5  # of PPO, and between two examinations; DPO is examined as often in all


class Racer(Shipped):
    """Examines a policy as it runs, with the clock stopped."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.device)
        self.job, self.sft = job, self.load("sft")
        self.train_prompts = read_prompts(data_folder() / "prompts_train.jsonl")
        self.exam = read_prompts(data_folder() / "prompts_test.jsonl")[:EXAM]
        self.looks: list[dict[str, float]] = []
        self.away, self.start = 0.0, time.process_time()

    def look(self, policy: PreTrainedModel, seen: int) -> None:
        """Note CPU seconds and answers or comparisons so far, gold, and KL in nats per answer."""
        before = time.process_time()
        answers = self.answer(policy, self.exam)
        look = {
            "seconds": before - self.start - self.away,
            "seen": seen,
            "gold": answers.mean("gold").mean,
            "kl": mean_kl(policy, self.sft, answers.rollout),
        }
        self.looks.append({name: round(number, 4) for name, number in look.items()})
        self.away += time.process_time() - before

    def watch(self, policy: PreTrainedModel, every: int, batch: int) -> OnStep:
        """A callback for a trainer of a policy: a look every so many steps, each of a batch."""

        def on_step(record: Record) -> None:
            done = record["step"] + 1
            if done % every == 0:
                self.look(policy, done * batch)

        return on_step

    def begin(self) -> None:
        """The preparations are over."""
        self.away, self.start = 0.0, time.process_time()


# --- the runners ---------------------------------------------------------------------------------


def run_ppo(racer: Racer) -> None:
    """Our PPO with the ladder's recipe."""
    config = replace(Recipe().ppo, steps=racer.job.steps, seed=racer.job.seed)
    roles = SeparateRoles(racer.sft, racer.load("reward-model"))
    prompts = [prompt.text for prompt in racer.train_prompts]
    look = racer.watch(roles.policy, EVERY, config.batch_size)
    racer.begin()
    train_ppo(roles, racer.tokenizer, prompts, config, look)


def run_dpo(racer: Racer) -> None:
    """Our DPO with the ladder's recipe, on all shipped rankings."""
    policy, config = racer.load("sft"), replace(Recipe().dpo, seed=racer.job.seed)
    every = len(racer.rankings) // config.batch_size * EVERY // racer.job.steps
    look = racer.watch(policy, every, config.batch_size)
    racer.begin()
    train_dpo(policy, racer.sft, racer.tokenizer, racer.rankings, config, look)


class _Look(TrainerCallback):
    def __init__(self, racer: Racer, policy: PreTrainedModel) -> None:
        self.racer, self.policy = racer, policy

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % EVERY == 0:
            self.policy.eval()
            self.racer.look(self.policy, state.global_step * self.racer.job.batch)


def run_trl(racer: Racer) -> None:
    """TRL's PPO with the same settings, as far as it has them."""
    policy, recipe = racer.load("sft"), Recipe().ppo
    models = {"model": policy, "ref_model": racer.load("sft")}
    models |= {name: _scorer(racer) for name in ("reward_model", "value_model")}
    own = {"learning_rate": recipe.lr, "kl_coef": recipe.beta}
    look = _Look(racer, policy)
    trainer = make_ppo_trainer(racer.job, racer.train_prompts, models, look, **own)
    racer.begin()
    trainer.train()


def _scorer(shipped: Shipped) -> PreTrainedModel:
    """The shipped reward model as TRL wants it; it reads the head at the last token too."""
    ours = shipped.load("reward-model")
    model = classifier(ours)
    model.score = nn.Linear(ours.config.hidden_size, 1, device=ours.device)
    model.score.load_state_dict(scalar_head(ours).state_dict())
    return model


def run(job: Job) -> dict[str, Any]:
    """Do a job."""
    racer = Racer(job)
    if job.side == "trl":
        run_trl(racer)
    elif job.stage == "ppo":
        run_ppo(racer)
    else:
        run_dpo(racer)
    return {"looks": racer.looks, "steps": job.steps, "every": EVERY}


# --- what they come to ---------------------------------------------------------------------------


def goal_of(looks: list[dict[str, float]]) -> tuple[float, float]:
    """Gold and KL that TRL ends with: means of its last three examinations."""
    last = looks[-3:]
    return tuple(sum(look[name] for look in last) / len(last) for name in ("gold", "kl"))


def reached(looks: list[dict[str, float]], gold: float, kl: float) -> dict[str, float] | None:
    """The first examination with that gold, or more, at that KL, or less."""
    found = (look for look in looks if look["gold"] >= gold and look["kl"] <= kl)
    return next(found, None)


def report(cells: Cells) -> str:
    """A line for each seed and side, and how many times sooner than TRL each of ours was there.

    Against TRL's end, and against the first examination in which TRL itself was there.
    """
    lines = ["seed  side            CPU s      seen    gold      KL"]
    ratios: dict[tuple[str, str], list[float]] = {(a, b): [] for a in OURS for b in GOALS}
    runs = {side: each_seed(cells, side) for side in SIDES}
    for seed, trl in enumerate(runs["trl"]):
        gold, kl = goal_of(trl["looks"])
        end = trl["looks"][-1] | {"gold": gold, "kl": kl}
        first = reached(trl["looks"], gold, kl) or end
        lines += [_line(seed, "TRL ends", end), _line(seed, "TRL is there", first)]
        for side in OURS:
            there = reached(runs[side][seed]["looks"], gold, kl)
            lines.append(_line(seed, side, there))
            for goal, theirs in zip(GOALS, (end, first), strict=True):
                if there:
                    ratios[side, goal].append(theirs["seconds"] / there["seconds"])
    for (side, goal), found in ratios.items():
        count = f"{len(found)} of {len(runs['trl'])} seeds"
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
    if plan.python("trl", "ppo") is None:
        raise ValueError("the race is against TRL: add --against trl --trl-ppo-python PATH")
    cell, cells = partial(measure, plan), by_seed(dict.fromkeys(SIDES, ()), plan.repeats)
    return report(run_grid("race", plan.command(), cell, cells, folder))


def measure(plan: Plan, kind: str, setting: None, seed: int) -> dict[str, Any]:
    """One run, in a process of its own."""
    side, stage = ("trl", "ppo") if kind == "trl" else ("ours", kind)
    recipe = Recipe().ppo
    sizes = {"batch": recipe.batch_size, "epochs": recipe.epochs, "tokens": recipe.max_new_tokens}
    job = Job(side, stage, device=plan.device, warmup=0, steps=STEPS, seed=seed, **sizes)
    return run_worker(plan, plan.python(side, stage), "rlhf_edu.bench.race", job)


if __name__ == "__main__":
    answer(run)
