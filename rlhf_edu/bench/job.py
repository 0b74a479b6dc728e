"""What one process measures, and the model and the data that both sides get."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu import data_folder
from rlhf_edu.data import Prompt, Ranking, read_demonstrations, read_prompts, read_rankings
from rlhf_edu.models import load_tokenizer

# Width, layers and heads of a GPT-2 with the course's vocabulary, by its parameters.
SIZES = {
    "2M": (192, 4, 4),
    "4M": (256, 5, 4),
    "8M": (320, 6, 5),
    "17M": (448, 7, 7),
    "87M": (768, 12, 12),
    "309M": (1024, 24, 16),
}
CONTEXT = 512
LR = 1e-4


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        side: "ours" or "trl".
        stage: sft, reward, dpo, ppo or rloo; ours has no RLOO, and does PPO instead. At real size
            sampling or ppo.
        way: at real size, one of `real.WAYS`.
        device: cpu or cuda.
        size: of the model, a key of `SIZES` or of `real.SHAPES`.
        warmup, steps: steps that are not timed, and that are.
        batch: demonstrations, rankings (each with all of its answers) or episodes per step.
        answers: of each ranking, only the first so many; 0: all.
        epochs: passes over a rollout, in one minibatch each.
        prompt: tokens of a prompt; 0: as many as it has.
        tokens: longest answer of a rollout.
        micro_batch: episodes whose activations are held at once; 0: all.
        bf16: whether matrices are multiplied in bfloat16.
        seed: of the order of the data and of the samples; the weights have seed 0.
    """

    side: str
    stage: str
    way: str = ""
    device: str = "cpu"
    size: str = "2M"
    warmup: int = 2
    steps: int = 6
    batch: int = 32
    answers: int = 0
    epochs: int = 2
    prompt: int = 0
    tokens: int = 32
    micro_batch: int = 0
    bf16: bool = False
    seed: int = 0

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps


def make_policy(job: Job) -> PreTrainedModel:
    """A GPT-2 with random weights from seed 0, without dropout, and with the fused GELU."""
    width, layers, heads = SIZES[job.size]
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # the default one takes seven passes
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval().to(job.device)


def tokenizer() -> PreTrainedTokenizerBase:
    """The shipped one."""
    return load_tokenizer(data_folder() / "models" / "sft-1M")


def _enough(records: Sequence[Any], job: Job) -> tuple[list[Any], int]:
    """As many records as the steps need, in full batches, and how often they come."""
    batches = min(len(records) // job.batch, job.total)
    return list(records[: batches * job.batch]), -(-job.total // batches)


def load_pairs(job: Job) -> tuple[list[Any], int]:
    """Demonstrations, and epochs."""
    return _enough(read_demonstrations(data_folder() / "demonstrations.jsonl"), job)


def load_rankings(job: Job) -> tuple[list[Ranking], int]:
    """Rankings that prefer something, and epochs."""
    rankings = read_rankings(data_folder() / "rankings.jsonl")
    if job.answers:
        rankings = [_first_answers(ranking, job.answers) for ranking in rankings]
    return _enough([r for r in rankings if len(set(r.ranks)) > 1], job)


def _first_answers(r: Ranking, n: int) -> Ranking:
    return replace(
        r, answers=r.answers[:n], ended=r.ended[:n], ranks=r.ranks[:n], sources=r.sources[:n]
    )


def load_prompts(job: Job) -> list[Prompt]:
    """Prompts for all rollouts."""
    return _enough(read_prompts(data_folder() / "prompts_train.jsonl"), job)[0]
