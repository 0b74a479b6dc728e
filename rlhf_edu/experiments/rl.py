"""What the price of KL does, and what happens without one (F19, F20, F24, F25, F29, F40).

    python -m rlhf_edu experiment rl [--seeds N]

Every run starts from the shipped SFT model, with the shipped reward model or the rankings it
learned from, and is shorter than the ladder's: 40 steps of 64 episodes; where a run is pressed, up
to 80 at twice the learning rate, so that over-optimisation shows. A seed draws the prompts,
the samples and their order. The exam is the first 256 test prompts; the answers to a few of them
are stored, and a curve of the training.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_edu.dpo import train_dpo
from rlhf_edu.experiments import grid
from rlhf_edu.experiments.exam import Answers, mean_kl
from rlhf_edu.experiments.ladder import Recipe
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.intervals import Estimate, over_seeds
from rlhf_edu.models import reward_scores
from rlhf_edu.ppo import PPOConfig, train_ppo
from rlhf_edu.pretrain import pack
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.tinyweb.pages import web
from rlhf_edu.tinyweb.prompts import make_prompts

BETAS = (0.0, 0.05, 0.15, 0.5, 2.0)
GAMMAS = (0.3, 1.0)
DPO_BETAS = (0.1, 0.3, 1.0)
BETA = 0.05  # of the runs with pretraining gradients; 40 times it is among the BETAS
LONG, EVERY = 80, 10  # pressed steps without a price, and how often to look
EARLY = (4, 6, 8)  # more looks at the beginning, where gold turns
PRESSED = 50  # pressed steps at each of the other prices
PRICES = (*BETAS, 8.0)  # of the pressed runs: from none to one that holds the policy where it is
NEAR = 0.25  # points of gold that are called no difference
SHOWN = 6  # answers of every run are stored


class FromSFT(Shipped):
    """Runs that start from the shipped SFT model."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        super().__init__(device)
        self.seed = seed
        self.sft, self.reward_model = self.load("sft"), self.load("reward-model")
        self.test = self.prompts(256, "test")
        train = make_prompts(self.world, "train", 3000, seed + 100, exclude=self.test)
        self.train_prompts = [prompt.text for prompt in train]
        self.config = PPOConfig(
            steps=40, batch_size=64, epochs=1, lr=5e-4, seed=seed, max_kl=float("inf")
        )
        self.pressed = replace(self.config, lr=1e-3)

    def look(self, policy: PreTrainedModel) -> dict[str, float]:
        """Gold and the reward model's score of its answers, KL (nats), words, web loss."""
        return self._numbers(policy, self.answer(policy, self.test))

    def _numbers(self, policy: PreTrainedModel, answers: Answers) -> dict[str, float]:
        return {
            "gold": answers.mean("gold").mean,
            "reward": reward_scores(self.reward_model, answers.rollout).mean().item(),
            "kl": mean_kl(policy, self.sft, answers.rollout),
            "words": mean(len(text.split()) for text in answers.texts),
            "web_loss": self.web_loss(policy),
        }

    def measure(
        self, policy: PreTrainedModel, history: Sequence[dict[str, Any]] = (), every: int = 4
    ) -> dict[str, Any]:
        """`look`, a curve of the training with every so many records, and some answers."""
        names = ("step", "reward", "kl", "length", "loss", "margin")
        curve = [{k: round(r[k], 3) for k in names if k in r} for r in history[::every]]
        exam, asked = self.answer(policy, self.test), [p.text for p in self.test[:SHOWN]]
        answers = dict(zip(asked, exam.texts[:SHOWN], strict=True))
        return {**self._numbers(policy, exam), "curve": curve, "answers": answers}

    def ppo(self, config: PPOConfig, blocks: Tensor | None = None) -> dict[str, Any]:
        """Train with PPO, or with `blocks` (N, T) of pretraining text PPO-ptx, and measure."""
        roles, history = train_ppo(
            self.roles(), self.tokenizer, self.train_prompts, config, ptx_blocks=blocks
        )
        return self.measure(roles.policy, history)

    def roles(self) -> SeparateRoles:
        """Policy, reference and critic as PPO starts with them."""
        return SeparateRoles(policy=self.sft, reward_model=self.reward_model)


def before(start: FromSFT) -> dict[str, Any]:
    """The SFT model and the base model, for comparison."""
    base_web_loss = start.web_loss(start.load("base"))
    return start.measure(start.sft) | {"base_web_loss": base_web_loss}


def by_beta(start: FromSFT, beta: float) -> dict[str, Any]:
    """PPO at a price of KL."""
    return start.ppo(replace(start.config, beta=beta))


def pressed(start: FromSFT, beta: float) -> dict[str, Any]:
    """PPO at a price of KL, at twice the learning rate and for longer."""
    return start.ppo(replace(start.pressed, beta=beta, steps=PRESSED))


def by_gamma(start: FromSFT, gamma: float) -> dict[str, Any]:
    """PPO-ptx at a weight of pretraining text."""
    blocks = pack(start.tokenizer, web(start.world, 5000, start.seed)).to(start.device)
    return start.ppo(replace(start.config, beta=BETA, ptx_coef=gamma), blocks)


def without_penalty(start: FromSFT) -> dict[str, Any]:
    """A long run without any price of KL, looked at every few steps."""
    roles, config = start.roles(), replace(start.pressed, beta=0.0, steps=LONG)
    found = [{"step": 0, **start.look(start.sft)}]

    def look(record: dict[str, Any]) -> None:
        step = record["step"] + 1
        if step in EARLY or step % EVERY == 0:
            found.append({"step": step, **start.look(roles.policy)})

    train_ppo(roles, start.tokenizer, start.train_prompts, config, look)
    return {"steps": found, **start.measure(roles.policy)}


def by_dpo(start: FromSFT, beta: float) -> dict[str, Any]:
    """DPO on the rankings that the reward model learned from."""
    config = replace(Recipe().dpo, beta=beta, seed=start.seed)
    policy, history = train_dpo(
        copy.deepcopy(start.sft), start.sft, start.tokenizer, start.rankings, config
    )
    return start.measure(policy, history, every=16)


# Every kind of run, and its settings.
RUNS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[float, ...]]] = {
    "sft": (before, ()),
    "long": (without_penalty, ()),
    "ppo": (by_beta, BETAS),
    "ptx": (by_gamma, GAMMAS),
    "pressed": (pressed, PRICES[1:]),
    "dpo": (by_dpo, DPO_BETAS),
}
KINDS = {kind: settings for kind, (_, settings) in RUNS.items()}


def measure(kind: str, setting: float | None, seed: int, device: str = "cpu") -> dict[str, Any]:
    """One cell."""
    start, train = FromSFT(seed, device), RUNS[kind][0]
    return train(start) if setting is None else train(start, setting)


def run(seeds: int, device: str = "cpu") -> str:
    """Run what is missing and return the table."""
    return table(grid.run_experiment("rl", measure, grid.by_seed(KINDS, seeds), seeds, device))


def table(found: grid.Cells) -> str:
    """Gold, score, KL and web loss of every kind of run, over seeds."""
    columns = ("gold", "reward", "kl", "web_loss", "words")
    lines: list[Sequence[Any]] = [("run", *columns)]
    for kind, setting in grid.rows(KINDS):
        if kind != "long":  # which is a curve
            cells = grid.each_seed(found, kind, setting)
            lines.append(
                (grid.row_name(kind, setting), *(grid.over(cells, key) for key in columns))
            )
    return "\n".join(text_table(lines, (10, 24, 24, 24, 24, 24)))


# --- verdicts ----------------------------------------------------------------------------------


def by_price(cells: grid.Cells) -> dict[float, list[dict[str, Any]]]:
    """The pressed runs of every price of KL, one a seed, after as many steps."""
    free = [_after(cell["steps"], PRESSED) for cell in grid.each_seed(cells, "long")]
    return {PRICES[0]: free} | {beta: grid.each_seed(cells, "pressed", beta) for beta in PRICES[1:]}


def _after(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
    return next(row for row in rows if row["step"] == step)


def _interior(cells: grid.Cells) -> tuple[str, str]:
    runs = by_price(cells)
    best = max(PRICES, key=lambda beta: grid.over(runs[beta], "gold").mean)
    ends = {beta: grid.less(runs[best], runs[beta], "gold") for beta in (PRICES[0], PRICES[-1])}
    gaps = "; ".join(f"{gap} above beta {beta:g}" for beta, gap in ends.items())
    ours = f"gold is best at beta {best:g}: {gaps}"
    above_both = best not in ends and all(gap.low > 0 for gap in ends.values())
    return ours, grid.verdict(above_both, best in ends)


def over_path(cells: grid.Cells, kind: str, beta: float, part: str = "gold") -> list[float]:
    """By seed: the end of a run with a price, less the long run without one at the same KL."""
    paths = {cell["seed"]: cell["steps"] for cell in grid.each_seed(cells, "long")}
    gaps = []
    for end in grid.each_seed(cells, kind, beta):
        path = paths[end["seed"]]
        roots = [max(0.0, row["kl"]) ** 0.5 for row in path]
        there = np.interp(end["kl"] ** 0.5, roots, [row[part] for row in path])
        gaps.append(end[part] - float(there))
    return gaps


def _like_stopping_early(cells: grid.Cells) -> tuple[str, str]:
    gaps = {beta: over_seeds(over_path(cells, "pressed", beta)) for beta in PRICES[1:]}
    ours = "gold less that of the path: " + "; ".join(f"beta {b:g} {g}" for b, g in gaps.items())
    on_it = all(gap.low > -NEAR and gap.high < NEAR for gap in gaps.values())
    return ours, grid.verdict(on_it, any(gap.low > 0 for gap in gaps.values()))


SCALES: dict[str, Callable[[Any], Any]] = {
    "root of KL": np.sqrt,
    "KL": lambda kl: kl,
    "log KL": np.log,
}


def straightness(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """R^2 of a line through the score of a run's first half, over each scale of KL."""
    rows = [row for row in steps if 0 < row["step"] <= LONG / 2]
    kl, reward = np.array([[row["kl"], row["reward"]] for row in rows]).T
    return {name: float(np.corrcoef(f(kl), reward)[0, 1] ** 2) for name, f in SCALES.items()}


def _root_of_kl(cells: grid.Cells) -> tuple[str, str]:
    fits = [straightness(cell["steps"]) for cell in grid.each_seed(cells, "long")]
    root, *others = SCALES
    more = {name: over_seeds([fit[root] - fit[name] for fit in fits]) for name in others}
    ours = "R^2 of a line in the root, less that in " + ", in ".join(
        f"{name} {gap}" for name, gap in more.items()
    )
    best = all(gap.low > 0 for gap in more.values())
    return ours, grid.verdict(best, any(gap.high < 0 for gap in more.values()))


def _over_optimisation(cells: grid.Cells) -> tuple[str, str]:
    runs = [cell["steps"] for cell in grid.each_seed(cells, "long")]
    first, last = ([run[i] for run in runs] for i in (0, -1))
    peak = [max(run, key=lambda row: row["gold"]) for run in runs]
    proxy, fall = grid.less(last, first, "reward"), grid.less(last, peak, "gold")
    rise, end = grid.less(peak, first, "gold"), grid.less(last, first, "gold")
    steps = f"after {mean(row['step'] for row in peak):.0f} of {LONG} steps"
    ours = f"score {proxy}; gold rises by {rise} until {steps}, then falls by {fall}; in all {end}"
    up_and_down = proxy.low > 0 and rise.low > 0 and end.high < 0
    return ours, grid.verdict(up_and_down, fall.low > -0.1)


def _tax(cells: grid.Cells) -> tuple[str, str]:
    base = grid.each_seed(cells, "sft")[0]["base_web_loss"]
    plain, high = grid.each_seed(cells, "ppo", BETA), grid.each_seed(cells, "ppo", BETAS[-1])
    best = max(GAMMAS, key=lambda g: -grid.over(grid.each_seed(cells, "ptx", g), "web_loss").mean)

    def removed(runs: list[dict[str, Any]]) -> Estimate:
        pairs = zip(runs, plain, strict=True)
        return over_seeds([1 - (a["web_loss"] - base) / (b["web_loss"] - base) for a, b in pairs])

    mixed = removed(grid.each_seed(cells, "ptx", best))
    lost = grid.less(high, plain, "reward")
    ours = f"gamma {best:g} removes {mixed} of the tax; beta {BETAS[-1]:g} removes {removed(high)}"
    ours += f" and changes the score by {lost}"
    mixing_alone = mixed.low > 0.8 and removed(high).high < 0.8
    return ours, grid.verdict(mixing_alone, mixed.high < 0.8)


def _frontier(cells: grid.Cells) -> tuple[str, str]:
    shares = []
    for dpo, ppo in zip(_all_of(cells, "dpo"), _all_of(cells, "ppo"), strict=True):
        beaten = [any(d["gold"] >= p["gold"] and d["kl"] <= p["kl"] for d in dpo) for p in ppo]
        shares.append(mean(beaten))
    share = over_seeds(shares)
    ours = f"a DPO run is better at no more KL for {share} of PPO's runs"
    return ours, grid.above(share, 0.5)


def _all_of(cells: grid.Cells, kind: str) -> list[tuple[dict[str, Any], ...]]:
    """For each seed, the runs of a kind in all of its settings."""
    return list(zip(*(grid.each_seed(cells, kind, s) for s in KINDS[kind]), strict=True))


FINDINGS = [
    grid.Finding(
        "F19",
        "the price of KL has an optimum inside",
        "beta 0 and 2 both poor, 0.01 to 0.02 best (InstructGPT E.7)",
        "gold is best at a price inside, above both ends, intervals above zero",
        _interior,
    ),
    grid.Finding(
        "F20",
        "without a price of KL the score rises, and gold rises and falls",
        "Stiennon Fig. 5, a figure",
        "score and gold's peak rise, and gold ends below its start, all by interval",
        _over_optimisation,
    ),
    grid.Finding(
        "F24",
        "a price of KL is no better than stopping early",
        "Gao et al. 3.6",
        "runs with a price lie within 0.25 points of gold of the path without one, by interval",
        _like_stopping_early,
    ),
    grid.Finding(
        "F25",
        "reward grows with the root of KL",
        "Bai et al. 4.3",
        "a line in the root fits better than one in KL and one in log KL, by interval",
        _root_of_kl,
    ),
    grid.Finding(
        "F29",
        "pretraining gradients remove the alignment tax, a high beta does not",
        "SQuADv2 69.75 (GPT-3), 51.95 (PPO), 69.93 (PPO-ptx)",
        "PPO-ptx removes more than 80 % of the tax, the highest beta less, by intervals",
        _tax,
    ),
    grid.Finding(
        "F40",
        "DPO's frontier of reward and KL lies above PPO's",
        "26 of 27, 28 of 29 and 34 of 35 points of the others beaten (DPO Fig. 2); but tuned PPO"
        " beat DPO 0.718 to 0.611 on HH (Xu et al. 2024)",
        "more than half of PPO's runs beaten, by interval",
        _frontier,
    ),
]
