"""What one process measures, and the model and the data that both sides get."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlhf_edu import data_folder
from rlhf_edu.data import (
    Demonstration,
    Prompt,
    Ranking,
    read_demonstrations,
    read_prompts,
    read_rankings,
)
from rlhf_edu.models import load_tokenizer
from rlhf_edu.tokens import limit_prompts

# Width, layers and heads of a GPT-2 with the course's vocabulary, by its parameters.
SIZES = {
    "2M": (192, 4, 4),
    "4M": (256, 5, 4),
    "8M": (320, 6, 5),
    "17M": (448, 7, 7),
    "87M": (768, 12, 12),
    "309M": (1024, 24, 16),
}
# Width, layers, heads, heads of keys and values, inner width, vocabulary of a Llama: the shapes of
# SmolLM2-135M and of Qwen2.5-0.5B, and one to try things with.
SHAPES = {
    "tiny": (16, 2, 2, 1, 32, 1536),
    "135M": (576, 30, 9, 3, 1536, 49_152),
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
}
CONTEXT = 512
LR = 1e-4
RANK = 16  # of LoRA
SPECIAL = ("<pad>", "<s>", "</s>")
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        side: "ours" or "trl".
        stage: sampling, sft, reward, dpo, ppo, rloo or grpo.
        way: of sampling static, growing or transformers; of training "LoRA", or whole networks.
        device: cpu or cuda.
        size: of the model, a key of `SIZES` or of `SHAPES`.
        warmup, steps: steps that are not timed, and that are.
        batch: demonstrations, rankings (each with all of its answers) or episodes per step.
        answers: of each ranking, only the first so many; 0: all.
        epochs: passes over a rollout, in one minibatch each.
        prompt: tokens of a prompt, made of random words as its answers are; 0: the tiny web's.
        tokens: longest answer of a rollout, and of a made one.
        micro_batch: rows whose activations are held at once; 0: all.
        bf16: whether matrices are multiplied in bfloat16.
        loss: of DPO, see `dpo.PREFERENCES`.
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
    loss: str = "dpo"
    seed: int = 0

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.warmup + self.steps

    @property
    def width(self) -> int:
        """Of the model."""
        return (SHAPES | SIZES)[self.size][0]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights: 16 bits below an adapter, where the device is quick with them."""
        frozen = self.way == "LoRA" or self.stage == "sampling"
        return torch.bfloat16 if frozen and self.device == "cuda" else torch.float32


# --- the model -----------------------------------------------------------------------------------


def make_policy(job: Job) -> PreTrainedModel:
    """A model with random weights from seed 0, made where it is used, which takes no time."""
    torch.manual_seed(0)
    with torch.device(job.device):
        if job.size in SHAPES:
            return LlamaForCausalLM._from_config(llama_config(job), dtype=job.dtype).eval()
        return GPT2LMHeadModel(_gpt2_config(job.size)).eval()


def _gpt2_config(size: str) -> GPT2Config:
    """Without dropout, and with the fused GELU."""
    width, layers, heads = SIZES[size]
    return GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # the default one takes seven passes
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **ENDS,
    )


def llama_config(job: Job) -> LlamaConfig:
    """A Llama of the job's shape, embeddings tied."""
    width, layers, heads, key_heads, inner, words = SHAPES[job.size]
    return LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=inner,
        vocab_size=words,
        max_position_embeddings=job.prompt + job.tokens,
        tie_word_embeddings=True,
        **ENDS,
    )


# --- words ---------------------------------------------------------------------------------------


def tokenizer(job: Job | None = None) -> PreTrainedTokenizerBase:
    """The shipped one; for made texts one whose every token is a word: "w3", "w4", …

    So that a text has as many tokens as it has words, on either side, whatever a model says.
    """
    if job is None or not job.prompt:
        return load_tokenizer(data_folder() / "models" / "sft-1M")
    vocabulary = {_word(i): i for i in range(SHAPES[job.size][-1])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=_word(0)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    found = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    limit_prompts(found, job.prompt)
    return found


def _word(i: int) -> str:
    return SPECIAL[i] if i < len(SPECIAL) else f"w{i}"


def _made_texts(job: Job, count: int, tokens: int, seed: str) -> list[str]:
    """Texts of random words, each with so many tokens once its start or its end is there."""
    draw, words = random.Random(f"{seed} {job.seed}"), range(len(SPECIAL), SHAPES[job.size][-1])
    return [" ".join(map(_word, draw.choices(words, k=tokens - 1))) for _ in range(count)]


# --- data ----------------------------------------------------------------------------------------


def _enough(records: Sequence[Any], job: Job) -> tuple[list[Any], int]:
    """As many records as the steps need, in full batches, and how often they come."""
    batches = min(len(records) // job.batch, job.total)
    return list(records[: batches * job.batch]), -(-job.total // batches)


def load_prompts(job: Job) -> list[Prompt]:
    """Prompts for all rollouts."""
    if not job.prompt:
        return _enough(read_prompts(data_folder() / "prompts_train.jsonl"), job)[0]
    texts = _made_texts(job, job.batch * job.total, job.prompt, "prompts")
    return [Prompt(str(i), "made", "chat", text) for i, text in enumerate(texts)]


def load_pairs(job: Job) -> tuple[list[Demonstration], int]:
    """Demonstrations, and epochs."""
    if not job.prompt:
        return _enough(read_demonstrations(data_folder() / "demonstrations.jsonl"), job)
    prompts = load_prompts(job)
    answers = _made_texts(job, len(prompts), job.tokens, "answers")
    return list(map(Demonstration, prompts, answers)), 1


def load_rankings(job: Job) -> tuple[list[Ranking], int]:
    """Rankings that prefer something, and epochs."""
    if job.prompt:
        return [_made_ranking(job, prompt) for prompt in load_prompts(job)], 1
    rankings = read_rankings(data_folder() / "rankings.jsonl")
    if job.answers:
        rankings = [_first_answers(ranking, job.answers) for ranking in rankings]
    return _enough([r for r in rankings if len(set(r.ranks)) > 1], job)


def _made_ranking(job: Job, prompt: Prompt) -> Ranking:
    answers = tuple(_made_texts(job, job.answers, job.tokens, prompt.prompt_id))
    return Ranking(prompt, answers, (True,) * job.answers, tuple(range(1, job.answers + 1)))


def _first_answers(r: Ranking, n: int) -> Ranking:
    return replace(
        r, answers=r.answers[:n], ended=r.ended[:n], ranks=r.ranks[:n], sources=r.sources[:n]
    )
