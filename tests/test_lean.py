"""Fewer operations for a token, and the same logits."""

import copy

import pytest
import tiny_models as tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig, Qwen2Config
from transformers.integrations.sdpa_attention import repeat_kv

from rlhf_edu.engine import lean
from rlhf_edu.generation import generate

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}


def other(kind: type, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 280}
    config = kind(**sizes, **GROUPED, **options, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


MODELS = {
    "llama": lambda: tiny.llama(**GROUPED),
    "eager": lambda: tiny.llama(**GROUPED, attn_implementation="eager"),
    "gpt2": tiny.gpt2,
    "qwen2": lambda: other(Qwen2Config),
    "mistral": lambda: other(MistralConfig, sliding_window=None),
    "lora": lambda: tiny.lora_roles(lambda: tiny.llama(**GROUPED)).policy,
    "lora on gpt2": lambda: tiny.lora_roles(tiny.gpt2).policy,
}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """After two prompts, one padded, and after one more token."""
    ids = torch.arange(5, 19).view(2, 7)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    positions, cache = (mask.cumsum(1) - 1).clamp(min=0), DynamicCache()
    shown = {"past_key_values": cache, "use_cache": True}
    model(ids, attention_mask=mask[:, :7], position_ids=positions[:, :7], **shown)
    last = model(ids[:, :1], attention_mask=mask, position_ids=positions[:, 7:], **shown)
    return last.logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_model_says_stays_the_same(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype)
    usual, before = logits(model), [dict(vars(module)) for module in model.modules()]
    additions = []
    for _ in range(2):
        with lean.lean(model, additions):
            found = logits(model)
    tolerance = 1e-5 if dtype == torch.float32 else 0.04 * usual.abs().max()
    torch.testing.assert_close(found, usual, atol=float(tolerance), rtol=0)
    assert before == [dict(vars(module)) for module in model.modules()]
    assert torch.equal(logits(model), usual)


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = tiny.lora_roles().policy
    with pytest.raises(KeyboardInterrupt), lean.lean(model, []):
        assert model.config._attn_implementation == lean.FOLDED
        raise KeyboardInterrupt
    assert model.config._attn_implementation == "sdpa"
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_an_adapter_is_brought_up_to_date_where_it_lies() -> None:
    roles, additions = tiny.lora_roles(), []
    with lean.lean(roles.policy, additions):
        logits(roles.policy)
    places = [x.data_ptr() for pair in additions for x in pair]
    with torch.no_grad():
        for parameter in roles.policy_parameters():
            parameter.mul_(1.5)
    with lean.lean(roles.policy, additions):
        found = logits(roles.policy)
    torch.testing.assert_close(found, logits(roles.policy), atol=1e-5, rtol=0)
    assert places == [x.data_ptr() for pair in additions for x in pair]


@pytest.mark.parametrize("groups", [1, 3])
def test_heads_that_share_keys_are_rows_of_one_query(groups: int) -> None:
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, n, t, 8, generator=random) for n, t in ((2 * groups, 1), (2, 9), (2, 9))
    )
    mask = torch.zeros(2, 1, groups, 9)
    mask[0, ..., :4] = -torch.inf
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    weights = (query @ keys.transpose(2, 3) * 0.3 + mask[:, :, :1]).softmax(-1)
    module = torch.nn.Module()
    found, _ = lean._attend(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, (weights @ values).transpose(1, 2))


# Views and what is there already; all else is work for a GPU.
FREE = {"view", "_unsafe_view", "transpose", "t", "numpy_T", "unsqueeze", "squeeze", "slice"}
FREE |= {"select", "expand", "detach", "alias", "permute", "split", "flatten", "reshape", "to"}
FREE |= {"dropout", "unflatten", "unbind", "contiguous"}


class Count(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found += function.overloadpacket.__name__ not in FREE
        return function(*args, **(kwargs or {}))


def a_layer(make) -> float:
    """Operations that a layer dispatches for one token."""
    found = []
    for layers in (1, 3):
        for tokens in (1, 5):
            model = make(layers)
            model.generation_config.eos_token_id = 279
            with Count() as count:
                generate(model, tiny.tokenizer(), ["The cat", "x"], tokens, static=True)
            found.append(count.found)
    return ((found[3] - found[2]) - (found[1] - found[0])) / 8


def test_a_token_takes_few_operations() -> None:
    def llama(layers: int) -> torch.nn.Module:
        return tiny.llama(**GROUPED, num_hidden_layers=layers).bfloat16()

    def gpt2(layers: int) -> torch.nn.Module:
        config = copy.deepcopy(tiny.gpt2().config)
        config.n_layer = layers
        return AutoModelForCausalLM.from_config(config).eval()

    # In the models' own way they are 36, 19 and 64.
    assert a_layer(llama) <= 20
    assert a_layer(gpt2) <= 12
    assert a_layer(lambda n: tiny.lora_roles(lambda: llama(n)).policy) <= 34
