"""Answers that share a row with their prompt get the numbers they would get alone."""

import pytest
import tiny_models as tiny
import torch

from rlhf_edu.data import Ranking
from rlhf_edu.engine import groups
from rlhf_edu.engine.economy import whole_batches
from rlhf_edu.engine.groups import Group, answer_logprobs, answer_scores, lay_out, make_group
from rlhf_edu.models import scalar_model_from

TOK = tiny.tokenizer()
GROUPS = [make_group(TOK, ranking) for k in (2, 3) for ranking in tiny.rankings(4, k=k)]
BOTH = pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])


def test_a_row_by_hand() -> None:
    rows = lay_out([Group([1, 5], [[6, 2], [7, 8, 2]], (2, 1)), Group([1], [[9, 2]], (1,))], 0)
    assert rows.tokens.tolist() == [[1, 5, 6, 2, 7, 8, 2], [1, 9, 2, 0, 0, 0, 0]]
    assert rows.answer.tolist() == [[0, 0, 1, 1, 2, 2, 2], [0, 1, 1, -1, -1, -1, -1]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 0, 0, 0, 0]]
    assert rows.before()[0, 2:].tolist() == [1, 2, 1, 4, 5]
    assert rows.before()[1, 1:3].tolist() == [0, 1] and rows.lengths() == [2, 3, 2]
    seen = [row.nonzero().flatten().tolist() for row in rows.attention()[0, 0]]
    assert seen[3:5] == [[0, 1, 2, 3], [0, 1, 4]] and seen[6] == [0, 1, 4, 5, 6]
    assert not rows.attention()[1, 0, :, 3:].any()
    assert Group([1, 5], [[6, 2], [7, 8, 2], [9]], (1, 2, 3)).longest == 5


@BOTH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logprobs_are_those_of_each_answer_alone(make, attention: str) -> None:
    model = make()
    model.set_attn_implementation(attention)
    found = answer_logprobs(model, GROUPS, 0)
    assert len({len(group.answers) for group in GROUPS}) == 2
    for group, answers in zip(GROUPS, found, strict=True):
        for ids, got in zip(group.answers, answers, strict=True):
            logits = model(input_ids=torch.tensor([group.prompt + ids])).logits[0]
            alone = logits[len(group.prompt) - 1 : -1].log_softmax(-1)
            alone = alone.gather(1, torch.tensor(ids)[:, None]).squeeze(1)
            torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("few_tokens", [0, groups.FEW_TOKENS])
def test_a_gpu_reads_few_tokens_an_answer_a_row(make, few_tokens: int, monkeypatch) -> None:
    model, read, right = make(), [], groups.last_hidden
    wanted = answer_logprobs(model, GROUPS, 0)

    def spy(model, ids, mask, positions) -> torch.Tensor:
        read.append((len(ids), mask is None))
        return right(model, ids, mask, positions)

    monkeypatch.setattr(groups, "FEW_TOKENS", few_tokens)
    monkeypatch.setattr(groups, "last_hidden", spy)
    with whole_batches():
        found = answer_logprobs(model, GROUPS, 0)
    answers = sum(len(group.answers) for group in GROUPS)
    assert read == [(answers, True) if few_tokens else (len(GROUPS), False)]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@BOTH
def test_scores_and_their_gradient_are_those_of_each_answer_alone(make) -> None:
    model = scalar_model_from(make())
    found = torch.cat(answer_scores(model, GROUPS, 0))
    rows = [group.prompt + ids for group in GROUPS for ids in group.answers]
    alone = torch.cat([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    weights, parameters = torch.linspace(-1, 1, len(rows)), list(model.parameters())
    wanted = torch.autograd.grad((alone * weights).sum(), parameters, allow_unused=True)
    got = torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(got, wanted, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_row_may_be_longer_than_the_context() -> None:
    model = tiny.gpt2()
    context = model.config.max_position_embeddings
    group = Group([1, 4], [[5] * (context - 3) + [2]] * 3, (1, 2, 3))
    assert len(group.tokens) > context >= group.longest
    [[a, b, _]] = answer_logprobs(model, [group], 0)
    torch.testing.assert_close(a, b)


def test_pairs_skip_ties_and_cut_answers_have_no_end() -> None:
    ranking = Ranking(tiny.prompt(0), ("a", "b", ""), (True, False, False), (2, 1, 2))
    group = make_group(TOK, ranking)
    assert group.pairs == [(1, 0), (1, 2)]
    assert group.answers[0][-1] == 2 and group.answers[1][-1] != 2 and group.answers[2]


def test_attention_that_takes_no_mask_is_refused() -> None:
    model = tiny.llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match='attn_implementation="sdpa"'):
        answer_logprobs(model, GROUPS, 0)
