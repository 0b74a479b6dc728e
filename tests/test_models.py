"""Models: padding on either side, positions, saving; roles; pretraining and the tokenizer."""

import math
import random
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import models, pretrain, tokens
from rlhf_edu.losses import ptx_loss
from rlhf_edu.roles import SeparateRoles

TOK = tiny.tokenizer()
ROWS = [[1, 40, 41, 42, 43, 2], [1, 50, 2], [1, 60, 61, 62, 2, 63, 64, 65, 2]]


# --- tokenizer and tokens ----------------------------------------------------------------------


def test_special_tokens_are_distinct_and_first() -> None:
    assert (TOK.pad_token_id, TOK.bos_token_id, TOK.eos_token_id) == (0, 1, 2)
    assert len(TOK) == 280


@pytest.mark.parametrize("text", ["The cat is old.", "Žluťoučký 🐎\tkůň\n\n x", " two  spaces "])
def test_any_text_survives(text: str) -> None:
    assert TOK.decode(tokens.encode_text(TOK, text)) == text


def test_special_tokens_in_a_text_are_letters() -> None:
    assert not {0, 1, 2} & set(tokens.encode_text(TOK, "a</s><s><pad>b"))


def test_prompt_and_answer_are_tokenised_apart() -> None:
    prompt, answer = tokens.encode_prompt(TOK, "Is it?"), tokens.encode_answer(TOK, "Yes!")
    assert prompt[0] == 1 and answer[-1] == 2
    assert TOK.decode(prompt[1:]) == "Is it?\n" and TOK.decode(answer[:-1]) == "Yes!"
    assert tokens.encode_answer(TOK, "Yes!", ended=False) == answer[:-1]


def test_a_long_prompt_keeps_its_cue() -> None:
    ids = tokens.encode_prompt(TOK, "x" * 1000, max_tokens=50)
    assert len(ids) == 50 and ids[0] == 1 and TOK.decode(ids).endswith("x\n")


def test_pack() -> None:
    blocks = pretrain.pack(TOK, tiny.TEXTS, block=16)
    ids = blocks.flatten().tolist()
    assert blocks.shape[1] == 16 and ids[0] == 1 and ids[ids.index(2) + 1] == 1
    with pytest.raises(ValueError, match="do not fill"):
        pretrain.pack(TOK, ["a"])
    with pytest.raises(ValueError, match="at least 259"):
        pretrain.train_tokenizer(["a"], 100)


# --- sizes, saving -----------------------------------------------------------------------------


def test_sizes_span_two_orders_of_magnitude() -> None:
    counts = {size: models.count_parameters(models.new_llama(size)) for size in models.SIZES}
    ratio = counts["6M"] / counts["0.05M"]
    print(counts, f"ratio {ratio:.1f}")
    assert ratio >= 100
    with pytest.raises(ValueError, match="one of 0.05M"):
        models.new_llama("7B")


def test_seed_of_new_llama_leaves_the_global_one_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = models.new_llama("0.05M", 280), models.new_llama("0.05M", 280)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
def test_a_saved_policy_is_the_rounded_one(tmp_path: Path, model) -> None:
    folder = tmp_path / "policy"
    for _ in range(2):  # the second time it replaces a folder
        models.save_model(models.round_weights(model), TOK, folder, torch.bfloat16)
    loaded = models.load_policy(folder)
    ids = torch.tensor([ROWS[0]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.dtype == torch.float32 and not loaded.training
    assert models.load_tokenizer(folder).encode("cat") == TOK.encode("cat")
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]
    assert not list(folder.glob("*.bin")) and list(folder.glob("*.safetensors"))


def test_a_saved_reward_model_keeps_its_head(tmp_path: Path) -> None:
    model = models.scalar_model_from(tiny.llama())
    with torch.no_grad():
        models.scalar_head(model).bias.fill_(1.2345678)
    head = [p.clone() for p in models.scalar_head(model).parameters()]
    models.round_weights(model)
    assert all(map(torch.equal, head, models.scalar_head(model).parameters()))
    models.save_model(model, TOK, tmp_path / "rm", torch.bfloat16)
    loaded = models.load_scalar_model(tmp_path / "rm")
    stored = loaded.state_dict()
    assert all(torch.equal(stored[name], weight) for name, weight in model.state_dict().items())


def test_a_policy_may_have_one_label(tmp_path: Path) -> None:
    # As the base of a reward model, loaded in the place of a policy.
    model = tiny.llama(num_labels=1)
    models.save_model(models.round_weights(model), TOK, tmp_path / "policy", torch.bfloat16)
    assert torch.equal(models.load_policy(tmp_path / "policy").lm_head.weight, model.lm_head.weight)


def test_rounding_leaves_the_head_of_a_reward_model_alone() -> None:
    model = models.scalar_model_from(tiny.llama())
    head, body = (x.weight.clone() for x in (models.scalar_head(model), model.model.embed_tokens))
    models.round_weights(model)
    assert torch.equal(models.scalar_head(model).weight, head)
    assert torch.equal(model.model.embed_tokens.weight, body.bfloat16().float())
    assert not torch.equal(head, head.bfloat16().float())


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        models.load_policy(tmp_path)


# --- padding and positions ---------------------------------------------------------------------


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
def test_logprobs_do_not_depend_on_padding(model) -> None:
    prompts, answers = [[1, 40, 41], [1, 5, 6, 7, 8, 9, 10], [1]], [[50, 2], [51], [9, 8, 7, 2]]
    batch = tokens.join(prompts, answers, 0)
    together = models.response_logprobs(model, batch)
    for i, answer in enumerate(answers):
        alone = models.response_logprobs(model, tokens.join([prompts[i]], [answer], 0))
        torch.testing.assert_close(together[i, : len(answer)], alone[0], atol=1e-5, rtol=0)


def test_logprobs_by_hand() -> None:
    model = tiny.llama()
    prompt, answer = [1, 40, 41], [50, 51, 2]
    logits = model(torch.tensor([prompt + answer])).logits[0] / 0.7
    expected = [logits[2 + t].log_softmax(-1)[token] for t, token in enumerate(answer)]
    found = models.response_logprobs(model, tokens.join([prompt], [answer], 0), 0.7)
    torch.testing.assert_close(found[0], torch.stack(expected))


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad=eos"])
def test_scores_do_not_depend_on_padding(model, pad: int) -> None:
    rm = models.scalar_model_from(model)
    alone = [models.scores(rm, *tokens.pad_right([row], pad)) for row in ROWS]
    for side in (tokens.pad_left, tokens.pad_right):
        torch.testing.assert_close(
            models.scores(rm, *side(ROWS, pad)), torch.cat(alone), atol=1e-5, rtol=0
        )


def test_padding_gives_no_nan_in_gradients() -> None:
    model = tiny.llama()
    batch = tokens.join([[1, 4], [1, 5, 6, 7, 8, 9, 10]], [[50, 51, 2], [2]], 0)
    (models.response_logprobs(model, batch) * batch.mask).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_empty_rows_are_refused() -> None:
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="nothing to pad"):
            tokens.pad_left(rows, 0)


@pytest.mark.parametrize("model", tiny.both(), ids=["llama", "gpt2"])
def test_fresh_scores_are_of_order_one(model) -> None:
    rm = models.scalar_model_from(model)
    rows = torch.randint(3, 280, (200, 8), generator=torch.Generator().manual_seed(0))
    assert 0.1 < models.scores(rm, rows, torch.ones_like(rows)).std() < 3
    other = models.scalar_model_from(model)
    assert torch.equal(models.scalar_head(rm).weight, models.scalar_head(other).weight)


# --- roles -------------------------------------------------------------------------------------


@pytest.fixture
def roles() -> SeparateRoles:
    return SeparateRoles(tiny.llama(), models.scalar_model_from(tiny.llama(1)))


def test_the_critic_starts_as_the_reward_model(roles) -> None:
    ids, mask = tokens.pad_right(ROWS, 0)
    at_the_end = models.values(roles.critic, ids, mask)[torch.arange(3), mask.sum(1) - 1]
    torch.testing.assert_close(at_the_end, models.scores(roles.reward_model, ids, mask))


def test_a_value_does_not_know_the_token_it_precedes(roles) -> None:
    one = tokens.join([[1, 4], [1, 5, 6]], [[50, 51, 52], [53, 54, 55]], 0)
    other = tokens.join([[1, 4], [1, 5, 6]], [[50, 99, 98], [53, 97, 96]], 0)
    before, after = roles.values(one), roles.values(other)
    assert before.shape == (2, 3)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])


def test_only_policy_and_critic_learn(roles) -> None:
    given = tiny.llama()
    assert all(p.requires_grad for p in roles.policy_parameters() + roles.critic_parameters())
    frozen = [*roles.reference.parameters(), *roles.reward_model.parameters()]
    assert not any(p.requires_grad for p in frozen)
    with torch.no_grad():
        roles.policy_parameters()[0].add_(1)
    assert torch.equal(roles.reference.lm_head.weight, given.lm_head.weight)


def test_dropout_is_off_in_training_too() -> None:
    model = tiny.llama(attention_dropout=0.5)
    roles = SeparateRoles(model.train(), models.scalar_model_from(model))
    batch = tokens.join([[1, 4, 5]], [[50, 51, 2]], 0)
    first, second = roles.response_logprobs(batch), roles.response_logprobs(batch)
    assert torch.equal(first, second)
    assert torch.equal(roles.values(batch), roles.values(batch))


# --- pretraining -------------------------------------------------------------------------------

BLOCKS = pretrain.pack(TOK, tiny.TEXTS * 8, block=16)


def test_next_token_loss_is_the_formula() -> None:
    model = tiny.llama()
    formula = ptx_loss(model(BLOCKS).logits, BLOCKS)
    torch.testing.assert_close(pretrain.next_token_loss(model, BLOCKS), formula)
    assert pretrain.lm_loss(model, BLOCKS, 7) == pytest.approx(formula.item(), abs=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_pretraining_learns_and_repeats(bf16: bool) -> None:
    config = pretrain.PretrainConfig(lr=1e-2, batch_size=8, steps=25, warmup=5, bf16=bf16)
    runs = [pretrain.pretrain(tiny.llama(initializer_range=0.02), BLOCKS, config) for _ in "ab"]
    losses = [[record["loss"] for record in history] for _, history in runs]
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(math.log(280), abs=0.5) and losses[0][-1] < 3
    model = runs[0][0]
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"


def test_pretraining_stops_at_nan_and_keeps_what_an_interrupt_leaves() -> None:
    broken = tiny.llama()
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    with pytest.raises(RuntimeError, match="the loss is nan"):
        pretrain.pretrain(broken, BLOCKS)

    def stop(record) -> None:
        if record["step"] == 1:
            raise KeyboardInterrupt

    _, history = pretrain.pretrain(tiny.llama(), BLOCKS, on_step=stop)
    assert len(history) == 2
    with pytest.raises(ValueError, match="lr must be above 0"):
        pretrain.PretrainConfig(lr=0)


def test_by_length_changes_neither_values_nor_gradients() -> None:
    draw = random.Random(0)
    lengths = [(draw.randint(1, 30), draw.randint(1, 20)) for _ in range(23)]
    prompts = [[draw.randint(3, 90) for _ in range(n)] for n, _ in lengths]
    answers = [[draw.randint(3, 90) for _ in range(n)] for _, n in lengths]
    both, policy = tokens.join(prompts, answers, 0), tiny.llama()
    found = {}
    for size in (4, 100):
        policy.zero_grad()
        logprobs = tokens.by_length(lambda x: models.response_logprobs(policy, x), both, size)
        (logprobs * both.mask).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        found[size] = (logprobs * both.mask).detach(), gradient
    for ours, plain in zip(found[4], found[100], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_by_length_pads_less() -> None:
    seen = []

    def compute(part: tokens.Sequences) -> torch.Tensor:
        seen.append(part.tokens.shape)
        return part.attention_mask.sum(1)

    both = tokens.join([[5] * n for n in (1, 40, 2, 38)], [[6], [6] * 9, [6], [6] * 8], 0)
    assert tokens.by_length(compute, both, 2).tolist() == [2, 49, 3, 46]
    assert [tuple(shape) for shape in seen] == [(2, 3), (2, 49)]
