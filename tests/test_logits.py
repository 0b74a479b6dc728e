"""Log-probs whose logits are computed in parts are those of the model, whatever it does to them."""

import contextlib

import pytest
import tiny_models as tiny
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, OPTConfig
from transformers import PreTrainedModel as Model

from rlhf_edu import lora, models, pretrain, tokens
from rlhf_edu.engine import economy, logits
from rlhf_edu.engine.hollow import Live

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 280}
WIDTHS |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GATED = WIDTHS | {"intermediate_size": 32, "num_key_value_heads": 1, "initializer_range": 0.5}


def on_the_output_layer() -> Model:
    torch.manual_seed(0)
    adapter = lora.LoraConfig(target_modules=["lm_head", "q_proj"], r=2, init_lora_weights=False)
    return lora.get_peft_model(tiny.llama(tie_word_embeddings=False), adapter).eval()


def made(config) -> Model:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


# Gemma 2 bends its logits, Cohere and Granite scale them, OPT asks for its decoder.
FAMILIES = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "gemma2": lambda: made(Gemma2Config(**GATED, head_dim=8, final_logit_softcapping=2.0)),
    "cohere": lambda: made(CohereConfig(**GATED, logit_scale=0.3)),
    "granite": lambda: made(GraniteConfig(**GATED, logits_scaling=3.0)),
    "opt": lambda: made(OPTConfig(**WIDTHS, ffn_dim=32, word_embed_proj_dim=16, init_std=0.5)),
    "an adapter on the output layer": on_the_output_layer,
}
every_family = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)

PROMPTS, ANSWERS = [[1, 5], [1, 4, 6, 9], [1]], [[7, 8, 2], [9, 2], [11, 12, 13, 14, 2]]
ROWS = tokens.join(PROMPTS, ANSWERS, 0)


def loss_and_gradient(model: Model, in_parts: bool, micro_batch: int = 0) -> list[torch.Tensor]:
    wide = economy.whole_batches if in_parts else contextlib.nullcontext
    with wide(), economy.micro_batches(micro_batch):
        found = tokens.by_length(lambda rows: models.response_logprobs(model, rows, 0.7), ROWS)
    loss = (found * ROWS.mask * torch.arange(1.0, 6.0)).sum()
    learners = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, learners, allow_unused=True)
    return [found * ROWS.mask, *(g for g in gradients if g is not None)]


@every_family
def test_a_model_finishes_what_its_backbone_found(make) -> None:
    assert logits.finishes(logits.without_adapters(make()))


@every_family
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_logprobs_in_parts_are_those_of_all_logits(make, micro_batch: int, monkeypatch) -> None:
    model = make()
    wanted = loss_and_gradient(model, in_parts=False)
    monkeypatch.setattr(logits, "MOST_LOGITS", 4 * 280)  # so 15 tokens are four parts
    found = loss_and_gradient(model, in_parts=True, micro_batch=micro_batch)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_finish_goes_through_as_a_whole(monkeypatch) -> None:
    model = tiny.llama()
    wanted = loss_and_gradient(model, in_parts=False)
    monkeypatch.setattr(logits, "finishes", lambda model: False)
    monkeypatch.setattr(models, "logprobs_of", None)
    found = loss_and_gradient(model, in_parts=True)
    assert all(map(torch.equal, found, wanted))


def test_a_part_that_breaks_leaves_the_model_as_it_was() -> None:
    model = tiny.llama()
    with pytest.raises(RuntimeError):
        logits.logits_of(model, torch.zeros(3, 5), torch.tensor([1, 2, 3]))  # 5 is not its width
    assert "forward" not in vars(model.model)
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 280)


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch) -> None:
    model, ids = tiny.llama(vocab_size=4000), torch.randint(3, 250, (8, 20))
    rows = tokens.Sequences(ids, torch.ones_like(ids), 10)
    size = 8 * 10 * 4000 * 4

    def kept(wide) -> int:
        with wide(), Live() as live:
            logprobs = models.response_logprobs(model, rows)
        assert logprobs.requires_grad
        return live.now.total()

    before = kept(contextlib.nullcontext)
    assert before > size
    assert kept(economy.whole_batches) < before - size


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_text_in_parts_has_the_loss_of_text(micro_batch: int, monkeypatch) -> None:
    model, blocks = tiny.gpt2(), torch.randint(3, 250, (4, 9))
    wanted = pretrain.next_token_loss(model, blocks)
    monkeypatch.setattr(logits, "MOST_LOGITS", 5 * 280)
    with economy.whole_batches(), economy.micro_batches(micro_batch):
        found = pretrain.next_token_loss(model, blocks)
    torch.testing.assert_close(found, wanted)
    both = [torch.autograd.grad(loss, list(model.parameters())) for loss in (found, wanted)]
    for one, two in zip(*both, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
