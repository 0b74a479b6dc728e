"""How many operations a step gives a GPU to do, one by one: `… bench --stage launches`.

Each costs a launch, some ten microseconds, before it costs arithmetic. The number depends on how
code is written, on layers and on passes, but hardly on width, so a thin model on a CPU tells it.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rlhf_edu import lora
from rlhf_edu.bench.job import (
    ENDS,
    RANK,
    SHAPES,
    Job,
    llama_config,
    load_pairs,
    load_rankings,
    tokenizer,
)
from rlhf_edu.bench.ours import roles_of
from rlhf_edu.bench.plan import Plan
from rlhf_edu.dpo import DPOConfig, train_dpo
from rlhf_edu.engine.economy import whole_batches
from rlhf_edu.engine.ledger import GB, ppo_ledger
from rlhf_edu.engine.training import make_optimizer
from rlhf_edu.experiments.grid import Cells, cell_name, run_grid
from rlhf_edu.experiments.tables import text_table
from rlhf_edu.generation import generate
from rlhf_edu.models import scalar_model_from
from rlhf_edu.ppo import PPOConfig, evaluate_rollout, learn
from rlhf_edu.reward import RewardConfig, train_reward
from rlhf_edu.sft import SFTConfig, train_sft

SECONDS = 1e-5  # of a launch
LAYERS = 24
EPISODES, PROMPT, ANSWER = 64, 32, 16
BATCHES = {"sft": 64, "reward": 16, "dpo": 16}  # demonstrations, or rankings of 4 answers
# Of PPO, `micro_batch` 8 and all at once; the other trainers read their batch at once.
STAGES = {"ppo": (8, EPISODES), **dict.fromkeys(BATCHES, (0,))}
WAYS = ("full", "LoRA")  # PPO's four networks, or one backbone


class Launches(TorchDispatchMode):
    """Counts operations, but for those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking takes time

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        looks = function.is_view or function is torch.ops.aten._unsafe_view.default
        self.count += not looks
        return function(*args, **kwargs or {})


def count(function: Callable[[], Any]) -> tuple[int, Any]:
    """Launches of a function, and what it returns."""
    with Launches() as launches:
        found = function()
    return launches.count, found


def _model(layers: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        vocab_size=len(tokenizer()),
        tie_word_embeddings=True,
        **ENDS,
    )
    return LlamaForCausalLM(config).eval()


def ppo_launches(way: str, micro_batch: int, layers: int = LAYERS) -> dict[str, int]:
    """Launches of a rollout, its evaluation and one epoch of learning."""
    roles = roles_of(lambda: _model(layers), RANK if way == "LoRA" else 0)
    config = PPOConfig(
        batch_size=EPISODES,
        minibatch=EPISODES,
        max_new_tokens=ANSWER,
        micro_batch=micro_batch,
    )
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, len(tokenizer()), (EPISODES, PROMPT), generator=draw).tolist()
    learners = {"policy": roles.policy_parameters(), "critic": roles.critic_parameters()}
    optimizers = {name: make_optimizer(weights, 1e-4) for name, weights in learners.items()}
    rows = torch.arange(EPISODES)
    wrote, rollout = count(
        lambda: generate(roles.policy, tokenizer(), prompts, ANSWER, static=True)
    )
    evaluate_rollout(roles, rollout, config)  # what is asked once is asked now
    looked, experience = count(lambda: evaluate_rollout(roles, rollout, config))
    learned, _ = count(lambda: learn(roles, experience, rows, optimizers, 1.0, config, None))
    return {"generate": wrote, "evaluate": looked, "learn": learned}


def step_launches(stage: str, way: str, micro_batch: int = 0, layers: int = LAYERS) -> int:
    """Launches of a step of SFT, of the reward model or of DPO, the first two left out."""
    job = Job("ours", stage, batch=BATCHES[stage], steps=1, warmup=2, answers=4)
    records = (load_pairs if stage == "sft" else load_rankings)(job)[0]
    model = scalar_model_from(_model(layers)) if stage == "reward" else _model(layers)
    model = lora.new_adapter(model, RANK) if way == "LoRA" else model
    settings = {"batch_size": job.batch, "epochs": 1, "micro_batch": micro_batch}
    seen: list[int] = []
    with Launches() as launches:
        given = tokenizer(), records

        def note(record: dict[str, Any]) -> None:
            seen.append(launches.count)

        if stage == "sft":
            train_sft(model, *given, SFTConfig(**settings), note)
        elif stage == "reward":
            train_reward(model, *given, RewardConfig(**settings), note)
        else:
            train_dpo(model, model, *given, DPOConfig(**settings), note)
    return seen[-1] - seen[-2]


def measure(kind: str, setting: int, way: str) -> dict[str, int]:
    """Launches of a step by phase, in the large passes that a GPU makes."""
    with whole_batches():
        if kind == "ppo":
            return ppo_launches(way, setting)
        return {"learn": step_launches(kind, way, setting)}


def launches(plan: Plan, folder: Path | None = None) -> str:
    """Count what has no result yet; return the table."""
    return table(run_grid("launches", plan.command(), measure, _cells(), folder))


def _cells() -> Iterator[dict[str, Any]]:
    for stage, sizes in STAGES.items():
        for way in WAYS:
            yield from ({"kind": stage, "setting": size, "way": way} for size in sizes)


# --- a card that is lent for nothing --------------------------------------------------------------

# SmolLM2-135M with LoRA: 2,000 demonstrations and 2,000 rankings once, and as many steps of PPO as
# half an hour has room for by this estimate; no such card was at hand.
RECIPE = {"sft": 2000 // BATCHES["sft"], "reward": 2000 // BATCHES["reward"], "ppo": 80}
LENGTHS = (128, 64)  # tokens of a prompt and of an answer, at most
PASSES = {"sft": 4, "reward": 4, "ppo": 14}  # over all rows, of arithmetic: backward counts two
ROWS = {"sft": 64, "reward": 64, "ppo": EPISODES}
FLOPS = 4e12  # a second: half of what a T4 promises in fp32


def minutes(cells: Cells) -> float:
    """What the recipe takes there: arithmetic, and launches as if nothing were recorded."""
    layers = SHAPES["135M"][1]
    return sum(_seconds(cells, stage, steps, layers) for stage, steps in RECIPE.items()) / 60


def _seconds(cells: Cells, stage: str, steps: int, layers: int) -> float:
    size = EPISODES if stage == "ppo" else 0
    cell = cells[cell_name(stage, size, way="LoRA")]
    tokens = LENGTHS[1] / ANSWER  # the cell's answers are shorter
    launched = cell.get("generate", 0) * tokens + cell.get("evaluate", 0) + cell["learn"]
    arithmetic = PASSES[stage] * ROWS[stage] * sum(LENGTHS) * 2 * 135e6 / FLOPS
    return steps * (launched * layers / LAYERS * SECONDS + arithmetic)


def peak() -> float:
    """Bytes at most, of PPO in fp32, with all rows of a step read at once."""
    config = llama_config(Job("ours", "ppo", size="135M", prompt=LENGTHS[0], tokens=LENGTHS[1]))
    return ppo_ledger(config, EPISODES, EPISODES, *LENGTHS, RANK).peak


def table(cells: Cells) -> str:
    """Operations of each phase, and how long a GPU waits for them."""
    head = ("", "micro-batch", "generate", "evaluate", "learn", "seconds")
    return "\n".join(
        [
            f"Launches of a step, {LAYERS} layers; {EPISODES} episodes of {PROMPT} + {ANSWER}",
            *text_table([head, *map(_row, cells.values())], (14, 13, 10, 10, 10, 10)),
            f"seconds: {SECONDS * 1e6:.0f} microseconds each; a GPU records what is done for one",
            "token and repeats it without a launch, so sampling is left out there.",
            f"135M with LoRA, all stages, on a free card: {minutes(cells):.0f} minutes, "
            f"{peak() / GB:.1f} GB.",
        ]
    )


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    phases = [cell.get(name) for name in ("generate", "evaluate", "learn")]
    waiting = SECONDS * sum(filter(None, phases[1:]))
    numbers = ("" if count is None else f"{count:,}" for count in phases)
    size = "all" if cell["setting"] in (0, EPISODES) else str(cell["setting"])
    return f"{cell['kind']}, {cell['way']}", size, *numbers, f"{waiting:.2f}"
