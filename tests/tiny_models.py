"""Random models of a few thousand parameters, one RoPE and one with learned positions."""

import functools
from types import SimpleNamespace

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_edu import lora, models, roles
from rlhf_edu.data import Demonstration, Prompt, Ranking
from rlhf_edu.pretrain import train_tokenizer

TEXTS = [
    f"The {a} is {b}. Is the {a} {b}? Yes!" for a in ("cat", "dog", "hen") for b in ("old", "wet")
]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 5, vocab_size=280)


def llama(seed: int = 0, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    start = {"vocab_size": 280, "initializer_range": 0.3, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**shape | heads | ids | start | options)).eval()


def gpt2(seed: int = 0, **options) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "vocab_size": 280}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(**shape, **ids, **{"initializer_range": 0.3} | options)
    ).eval()


class Bigram(torch.nn.Module):
    """A language model by hand: row i of a table (V, V) holds log-probs of what follows token i."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, input_ids, past_key_values=None, logits_to_keep: int = 0, **options):
        if past_key_values is not None:
            past_key_values.update(*[torch.zeros(*input_ids.shape, 1, 1).transpose(1, 2)] * 2, 0)
        return SimpleNamespace(logits=self.table[input_ids[:, -logits_to_keep:]])


def chain(text: str) -> Bigram:
    """A model that goes on from each letter of a text with the next one; after others, anyhow."""
    table, ids = torch.zeros(280, 280), [tokenizer().encode(letter)[0] for letter in text]
    table[ids[:-1], ids[1:]] = 1e4
    return Bigram(table)


def both() -> list[PreTrainedModel]:
    return [llama(), gpt2()]


def prompt(i: int) -> Prompt:
    return Prompt(
        f"p{i}", "c", "chat", f"Is the {('cat', 'dog', 'hen')[i % 3]} " + "wet " * (i % 4)
    )


def demonstrations(n: int) -> list[Demonstration]:
    return [Demonstration(prompt(i), ("Yes!", "Is the dog old?")[i % 2]) for i in range(n)]


def rankings(n: int, k: int = 3) -> list[Ranking]:
    answers = ("Yes!", "Old old old", "wet", "hen cat dog")[:k]
    return [Ranking(prompt(i), answers, (True,) * k, tuple(range(1, k + 1))) for i in range(n)]


def spread(adapter: lora.Adapter, seed: int = 0) -> lora.Adapter:
    """The adapter as if it had been trained: its B, 0 at first, is not 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: 0.2 * torch.randn(weight.shape, generator=generator) if "lora_B" in name else weight
        for name, weight in adapter.weights.items()
    }
    return lora.Adapter(adapter.config, weights)


def policy_adapter(make=llama, rank: int = 4, seed: int = 0) -> lora.Adapter:
    return spread(lora.take_off(lora.new_adapter(make(), rank, seed=seed)), seed)


def reward_adapter(make=llama, rank: int = 2, seed: int = 1) -> lora.Adapter:
    model = lora.new_adapter(models.scalar_model_from(make(), seed=seed), rank, seed=seed)
    return spread(lora.take_off(model), seed)


def lora_roles(make=llama, **options) -> roles.LoraRoles:
    return roles.LoraRoles(make(), policy_adapter(make), reward_adapter(make), **options)
