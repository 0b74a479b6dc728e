"""The formulas: worked by hand, against plain loops, and against properties they must have."""

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from rlhf_edu import losses

NAN = float("nan")
LOG2 = math.log(2)
# Rows of length 4, 2 and 1, as rollouts have them.
MASK = tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def poison(x: Tensor, mask: Tensor = MASK, value: float = NAN) -> Tensor:
    return torch.where(mask.bool(), x, value)


def log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def close(actual: Tensor, expected: object, tolerance: float = 1e-5) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(loss, parameter)[0]


def test_imports_torch_alone() -> None:
    tree = ast.parse(Path(losses.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {module.split(".")[0] for module in modules} == {"itertools", "math", "torch"}


# --- masks -------------------------------------------------------------------------------------


def test_masked_sum_and_mean_by_hand() -> None:
    x = poison(tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0]]))
    close(losses.masked_sum(x, MASK), [10.0, 30.0, 7.0])
    close(losses.masked_sum(x, MASK, dim=0), [18.0, 22.0, 3.0, 4.0])
    # Over tokens: a mean of row means would be (2.5 + 15 + 7) / 3.
    close(losses.masked_mean(x, MASK), 47 / 7)
    for mask in (MASK.bool(), MASK.float()):
        assert losses.masked_mean(x, mask) == losses.masked_mean(x, MASK)


def test_masked_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="masked_mean: the mask is all zeros"):
        losses.masked_mean(torch.ones(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(shift_mean: bool) -> None:
    x = normal(3, 4, scale=3) + 5
    real = x[MASK.bool()]
    white = losses.whiten(poison(x), MASK, shift_mean)
    got = white[MASK.bool()]
    close(got.mean(), 0.0 if shift_mean else real.mean())
    close(got.var(unbiased=False), 1.0)
    assert torch.equal(white[MASK == 0], torch.zeros(5))
    assert torch.equal(got.argsort(), real.argsort())


def test_whiten_survives_equal_values() -> None:
    assert torch.equal(losses.whiten(torch.full((3, 4), 2.0), MASK), torch.zeros(3, 4))


# --- token probabilities -----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_against_a_loop(temperature: float) -> None:
    logits = normal(2, 3, 5, scale=3)
    tokens = tensor([[0, 4, 2], [1, 1, 3]])
    logprobs = losses.token_logprobs(logits, tokens, temperature)
    assert logprobs.shape == (2, 3)
    for b, t in itertools.product(range(2), range(3)):
        weights = [math.exp(float(x) / temperature) for x in logits[b, t]]
        expected = math.log(weights[int(tokens[b, t])] / sum(weights))
        assert float(logprobs[b, t]) == pytest.approx(expected, abs=1e-5)


def test_token_logprobs_of_a_known_bigram_model() -> None:
    # Row i holds P(next = j | token i); the logits of a causal model after tokens 0, 1, 2.
    bigram = tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
    text = tensor([[0, 1, 2, 0]])
    logits = bigram[text].log()
    # The response is the last two tokens: a prompt of P = 2 takes logits[:, P - 1 : -1].
    close(losses.token_logprobs(logits[:, 1:-1], text[:, 2:]).exp(), [[0.8, 1 / 3]])


def test_token_logprobs_sum_to_one_and_leave_the_logits_alone() -> None:
    logits = normal(1, 6, 6, scale=2)
    before = logits.clone()
    everything = losses.token_logprobs(logits[:, :1].expand(1, 6, 6), torch.arange(6)[None], 0.7)
    close(everything.exp().sum(), 1.0)
    losses.entropy(logits, 0.7)
    assert torch.equal(logits, before)


def test_token_logprobs_are_computed_in_fp32() -> None:
    logits = normal(4, 16, 1024, scale=4).bfloat16()
    tokens = torch.randint(1024, (4, 16), generator=torch.Generator().manual_seed(1))
    logprobs = losses.token_logprobs(logits, tokens)
    assert logprobs.dtype == torch.float32
    close(logprobs, losses.token_logprobs(logits.float(), tokens), 1e-6)
    # In bf16 all the way a whole answer is off by far more.
    assert (
        logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] - logprobs
    ).abs().max() > 0.01
    assert losses.token_logprobs(logits.double(), tokens).dtype == torch.float64


def test_token_logprobs_of_huge_logits_are_finite() -> None:
    logits = tensor([[[1e4, -1e4, 0.0]]]).expand(1, 3, 3)
    logprobs = losses.token_logprobs(logits, tensor([[0, 1, 2]]))
    close(logprobs, [[0.0, -2e4, -1e4]])


def test_token_logprobs_gradient_is_onehot_minus_softmax() -> None:
    logits = normal(1, 1, 4).requires_grad_()
    got = gradient(losses.token_logprobs(logits, tensor([[2]]), 0.5).sum(), logits)
    close(got, (F.one_hot(tensor([[2]]), 4) - (logits.detach() / 0.5).softmax(-1)) / 0.5)


@pytest.mark.parametrize("bad", [-100, 5])
def test_token_outside_the_vocabulary(bad: int) -> None:
    with pytest.raises(ValueError, match="ids must be from 0 to 4: mark padding in the mask"):
        losses.token_logprobs(normal(1, 2, 5), tensor([[0, bad]]))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    for call in (losses.token_logprobs, lambda x, _, t: losses.entropy(x, t)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            call(normal(1, 1, 5), tensor([[0]]), temperature)


def test_sampling_law_is_the_scored_law() -> None:
    # 1e5 samples at T = 0.7 against exp(logprob): chi-square, 5 degrees of freedom, p = 0.001.
    logits = normal(1, 6, seed=3)
    random = torch.Generator().manual_seed(0)
    samples = torch.multinomial((logits[0] / 0.7).softmax(0), 100_000, True, generator=random)
    expected = losses.token_logprobs(logits.expand(6, 1, 6), torch.arange(6)[:, None], 0.7).exp()[
        :, 0
    ]
    counts = samples.bincount(minlength=6)
    chi_square = ((counts - 1e5 * expected) ** 2 / (1e5 * expected)).sum()
    assert chi_square < 20.5


def test_entropy() -> None:
    close(losses.entropy(torch.zeros(1, 2, 8)), [[math.log(8)] * 2])
    close(losses.entropy(tensor([[[0.5, 0.25, 0.25]]]).log()), [[1.5 * LOG2]])
    close(losses.entropy(2 * tensor([[[0.5, 0.25, 0.25]]]).log(), 2.0), [[1.5 * LOG2]])
    close(losses.entropy(tensor([[[1e4, 0.0, -1e4]]])), [[0.0]])
    excluded = tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    close(losses.entropy(excluded), [[LOG2]])
    assert gradient(losses.entropy(excluded).sum(), excluded).isfinite().all()


# --- supervised fine-tuning --------------------------------------------------------------------


def test_sft_loss_is_a_mean_over_tokens() -> None:
    close(losses.sft_loss(poison(-torch.arange(12.0).view(3, 4)), MASK), (6 + 9 + 8) / 7)


def test_micro_batches_weighted_by_tokens_give_the_full_gradient() -> None:
    logprobs = normal(3, 4).requires_grad_()
    old, advantages = normal(3, 4, seed=1), normal(3, 4, seed=2)
    losses_of = {
        "sft": lambda rows: losses.sft_loss(logprobs[rows], MASK[rows]),
        "policy": lambda rows: losses.policy_loss(
            logprobs[rows], old[rows], advantages[rows], MASK[rows]
        )[0],
        "value": lambda rows: losses.value_loss(
            logprobs[rows], old[rows], advantages[rows], MASK[rows]
        ),
    }
    for name, loss_of in losses_of.items():
        full = gradient(loss_of(slice(0, 3)), logprobs)
        parts = sum(
            gradient(loss_of(slice(b, b + 1)) * MASK[b].sum() / MASK.sum(), logprobs)
            for b in range(3)
        )
        torch.testing.assert_close(full, parts, atol=1e-6, rtol=1e-6, msg=name)


def test_ptx_loss_shifts_once() -> None:
    logits, tokens = normal(2, 5, 7), tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 7), tokens[:, 1:].reshape(-1))
    close(losses.ptx_loss(logits, tokens), expected)
    # A model that names the token it has just read must do badly; one that names the next, well.
    sure = 50.0 * F.one_hot(tokens, 7)
    assert losses.ptx_loss(sure, tokens) > 40
    assert losses.ptx_loss(sure.roll(-1, 1), tokens) < 1e-6


def test_ptx_loss_mask_is_of_the_predicted_token() -> None:
    logits, tokens = normal(1, 4, 7), tensor([[1, 2, 3, 0]])
    close(
        losses.ptx_loss(logits, tokens, tensor([[1, 1, 1, 0]])),
        F.cross_entropy(logits[0, :2], tokens[0, 1:3]),
    )
    with pytest.raises(ValueError, match="two tokens or more"):
        losses.ptx_loss(logits[:, :1], tokens[:, :1])


# --- reward model ------------------------------------------------------------------------------


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = tensor([2.0, 0.0, -1.0]), tensor([0.5, 0.0, 3.0])
    expected = -(log_sigmoid(1.5) + log_sigmoid(0.0) + log_sigmoid(-4.0)) / 3
    close(losses.bradley_terry_loss(chosen, rejected), expected)
    with_margin = -(log_sigmoid(1.0) + log_sigmoid(-0.5) + log_sigmoid(-4.5)) / 3
    close(losses.bradley_terry_loss(chosen, rejected, 0.5), with_margin)
    close(losses.bradley_terry_loss(chosen, rejected, torch.full((3,), 0.5)), with_margin)


def test_bradley_terry_is_log_2_at_equal_scores_and_blind_to_shifts() -> None:
    scores, others = normal(5), normal(5, seed=1)
    close(losses.bradley_terry_loss(scores, scores), LOG2)
    close(
        losses.bradley_terry_loss(scores + 7, others + 7), losses.bradley_terry_loss(scores, others)
    )


@pytest.mark.parametrize(("gap", "value", "slope"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_huge_gaps_give_finite_losses_and_gradients(gap: float, value: float, slope: float) -> None:
    zero = torch.zeros(1)
    gaps = tensor([gap], requires_grad=True)
    both = tensor([gap, 0.0], requires_grad=True)
    for loss, leaf in (
        (losses.bradley_terry_loss(gaps, zero), gaps),
        (losses.kwise_loss(both, tensor([1, 2])), both),
        (losses.dpo_loss(gaps, zero, zero, zero, beta=1.0)[0], gaps),
        (
            losses.length_normalised_dpo_loss(gaps, zero, zero, zero, zero + 1, zero + 1, 1.0)[0],
            gaps,
        ),
    ):
        close(loss, value)
        close(gradient(loss, leaf)[0], slope)


def kwise_by_loop(scores: list[float], ranks: list[int]) -> float:
    terms = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        if ranks[i] == ranks[j] or 0 in (ranks[i], ranks[j]):
            continue
        better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
        terms.append(-log_sigmoid(scores[better] - scores[worse]))
    return sum(terms) / len(terms) if terms else 0.0


ANSWERS = st.lists(
    st.tuples(st.floats(-20, 20, width=32), st.integers(1, 4)), min_size=1, max_size=9
)


@given(ANSWERS)
def test_kwise_against_a_loop(answers: list[tuple[float, int]]) -> None:
    scores, ranks = zip(*answers, strict=True)
    close(losses.kwise_loss(tensor(scores), tensor(ranks)), kwise_by_loop(scores, ranks))


def test_kwise_of_two_is_bradley_terry() -> None:
    scores = tensor([0.3, -1.2])
    close(
        losses.kwise_loss(scores, tensor([1, 2])), losses.bradley_terry_loss(scores[:1], scores[1:])
    )
    close(
        losses.kwise_loss(scores, tensor([2, 1])), losses.bradley_terry_loss(scores[1:], scores[:1])
    )


@pytest.mark.parametrize("k", [2, 4, 9])
def test_kwise_is_the_mean_over_k_choose_2_pairs(k: int) -> None:
    scores, ranks = normal(k), torch.arange(1, k + 1)
    first, second = torch.combinations(torch.arange(k)).T
    assert len(first) == math.comb(k, 2)
    close(
        losses.kwise_loss(scores, ranks), losses.bradley_terry_loss(scores[first], scores[second])
    )
    close(losses.kwise_loss(torch.zeros(k), ranks), LOG2)


def test_kwise_without_pairs_is_zero_with_a_zero_gradient() -> None:
    for ranks in (tensor([1]), tensor([2, 2, 2])):
        scores = normal(len(ranks)).requires_grad_()
        loss = losses.kwise_loss(scores, ranks)
        assert float(loss.detach()) == 0
        assert torch.equal(gradient(loss, scores), torch.zeros(len(ranks)))


def test_kwise_batch_counts_each_prompt_once() -> None:
    scores = [
        [0.5, -1.0, 2.0, 0.1],
        [1.0, 3.0, NAN, NAN],
        [4.0, 4.0, NAN, NAN],
        [1.0, NAN, NAN, NAN],
    ]
    ranks = [[1, 3, 2, 3], [2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    leaf = tensor(scores, requires_grad=True)
    loss = losses.kwise_batch_loss(leaf, tensor(ranks))
    # Prompts three and four have no pair: they must not pull the mean down.
    expected = [kwise_by_loop(s, r) for s, r in zip(scores[:2], ranks[:2], strict=True)]
    close(loss, sum(expected) / 2)
    slopes = gradient(loss, leaf)
    assert torch.equal(slopes[leaf.isnan()], torch.zeros(7))
    close(slopes.sum(1), torch.zeros(4))  # only differences matter


def test_ranks_outside_their_range() -> None:
    with pytest.raises(ValueError, match="kwise_loss: ranks start at 1"):
        losses.kwise_loss(torch.zeros(2), tensor([0, 1]))
    with pytest.raises(ValueError, match="kwise_batch_loss: ranks are 1, 2, ... or 0"):
        losses.kwise_batch_loss(torch.zeros(1, 2), tensor([[-1, 1]]))


def test_reward_bias_puts_demonstrations_at_zero() -> None:
    scores = (normal(50) + 3).requires_grad_()
    bias = losses.reward_bias(scores)
    assert bias.shape == () and not bias.requires_grad
    assert abs(float((scores + bias).mean().detach())) < 1e-5
    close(losses.reward_bias(tensor([1.0, 2.0, 6.0])), -3.0)


# --- KL by enumeration: a vocabulary of 4, answers of 2 tokens, so 16 answers -------------------

V, T = 4, 2
ALL_ANSWERS = tensor(list(itertools.product(range(V), repeat=T)))


def answer_logprobs(first: Tensor, second: Tensor) -> Tensor:
    """(16, 2) token log-probs of all answers, from logits (V,) and, after each token, (V, V)."""
    logits = torch.stack([first.expand(16, V), second[ALL_ANSWERS[:, 0]]], dim=1)
    return losses.token_logprobs(logits, ALL_ANSWERS)


def table_model(seed: int) -> tuple[Tensor, Tensor]:
    return normal(V, seed=seed).double().requires_grad_(), normal(V, V, seed=seed + 1).double()


def enumerated(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with gradient, (16, 2) log-probs of the policy, and of the reference."""
    first, second = table_model(seed)
    with torch.no_grad():
        reference = answer_logprobs(*table_model(seed + 10))
    return first, answer_logprobs(first, second), reference


def test_expected_k1_and_k3_are_the_exact_kl_and_k2_is_not() -> None:
    _, logp, ref = (x.detach() for x in enumerated())
    probabilities = logp.sum(1).exp()
    close(probabilities.sum(), 1.0)
    exact = float((probabilities * (logp.sum(1) - ref.sum(1))).sum())
    assert exact > 0.1
    # Token values, then summed over the answer: E over second tokens is inside the sum.
    for estimator, unbiased in ((losses.kl_k1, True), (losses.kl_k2, False), (losses.kl_k3, True)):
        values = estimator(logp, ref)
        assert values.shape == (16, 2)
        mean = float((probabilities * values.sum(1)).sum())
        assert (abs(mean - exact) < 1e-9) is unbiased, estimator.__name__
        if estimator is not losses.kl_k1:
            assert (values >= 0).all()


def test_kl_estimators_by_hand() -> None:
    logp, ref = tensor([[-1.0, -2.0]]), tensor([[-1.5, -1.0]])
    close(losses.kl_k1(logp, ref), [[0.5, -1.0]])
    close(losses.kl_k2(logp, ref), [[0.125, 0.5]])
    close(losses.kl_k3(logp, ref), [[math.exp(-0.5) - 0.5, math.e - 2]])


def test_kl_estimators_on_gaussians_as_in_schulmans_post() -> None:
    # Policy N(0, 1), reference N(0.1, 1): KL 0.005, and k3's deviation is 1.417 times that.
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logp, ref = (-(x**2) / 2)[None], (-((x - 0.1) ** 2) / 2)[None]
    k1, k2, k3 = (f(logp, ref) for f in (losses.kl_k1, losses.kl_k2, losses.kl_k3))
    assert float(k1.std()) / 0.005 == pytest.approx(20.0, rel=0.02)
    for k, deviation in ((k2, 1.418), (k3, 1.417)):
        assert float(k.mean()) == pytest.approx(0.005, rel=0.02)
        assert float(k.std()) / 0.005 == pytest.approx(deviation, rel=0.02)


def test_k3_keeps_its_digits_near_zero() -> None:
    difference = 1e-5
    k3 = losses.kl_k3(tensor([[difference]]), tensor([[0.0]]))
    # exp(x) - 1 - x in fp32 is 0 or 1e-7 here; expm1 has the order of magnitude at least.
    assert float(k3) == pytest.approx(difference**2 / 2, rel=0.1)


def test_kl_is_exactly_zero_before_the_first_update() -> None:
    logp = poison(normal(3, 4))
    for estimator in (losses.kl_k1, losses.kl_k2, losses.kl_k3):
        answers = losses.masked_sum(estimator(logp, logp), MASK)
        assert torch.equal(answers, torch.zeros(3))


def test_expected_gradients_of_the_estimators_as_losses() -> None:
    # One token suffices: k1 gives nothing, k2 KL(policy || reference), k3 the reverse of it.
    logits, reference = (
        normal(V).double().requires_grad_(),
        normal(V, seed=5).double().log_softmax(0),
    )
    tokens = torch.arange(V)[:, None]
    logp = losses.token_logprobs(logits.expand(V, 1, V), tokens)
    weights, ref = logp.detach().exp(), reference[:, None]
    policy = logits.log_softmax(0)
    forward = gradient((policy.exp() * (policy - reference)).sum(), logits)
    reverse = gradient((reference.exp() * (reference - logits.log_softmax(0))).sum(), logits)
    expected = ((losses.kl_k1, 0 * forward), (losses.kl_k2, forward), (losses.kl_k3, reverse))
    for estimator, wanted in expected:
        got = torch.autograd.grad(
            (weights * estimator(logp, ref)).sum(), logits, retain_graph=True
        )[0]
        close(got, wanted, 1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_policy_gradient_with_shaped_rewards_is_the_gradient_of_the_objective(beta: float) -> None:
    first, logp, ref = enumerated()
    scores, ones = normal(16, seed=7).double(), torch.ones(16, T)
    answer = logp.sum(1)
    objective = (answer.exp() * (scores - beta * (answer - ref.sum(1)))).sum()
    exact = torch.autograd.grad(objective, first, retain_graph=True)[0]
    # lam = 1 and no critic: the advantage of a token is the reward still to come.
    rewards = losses.shaped_rewards(scores, logp, ref, ones, beta)
    advantages, _ = losses.gae(rewards, torch.zeros(16, T), ones, lam=1.0)
    weights = answer.detach().exp()[:, None] * 16 * T  # policy_loss takes a plain mean
    loss, _ = losses.policy_loss(logp, logp.detach(), advantages * weights, ones)
    close(-gradient(loss, first), exact, 1e-7)


def test_adaptive_kl_table() -> None:
    # target 6, horizon 10,000, 512 answers a step: at most 1 +- 0.2 * 0.0512.
    table = {0.0: 0.98976, 5.4: 0.99488, 6.0: 1.0, 6.6: 1.00512, 600.0: 1.01024}
    for kl, factor in table.items():
        new = losses.adaptive_kl(0.15, kl, 6.0, 512, 10_000)
        assert isinstance(new, float)
        assert new == pytest.approx(0.15 * factor, rel=1e-9)
    # Multiplicative: beta 10 times as large moves 10 times as much.
    assert losses.adaptive_kl(1.5, tensor(6.6), 6.0, 512, 10_000) == pytest.approx(
        1.50768, rel=1e-6
    )


@pytest.mark.parametrize(
    ("kl", "target", "horizon"), [(NAN, 6, 10), (math.inf, 6, 10), (1, 0, 10), (1, 6, 0)]
)
def test_adaptive_kl_refuses(kl: float, target: float, horizon: int) -> None:
    with pytest.raises(ValueError, match="adaptive_kl"):
        losses.adaptive_kl(0.1, kl, target, 8, horizon)


# --- rewards and advantages --------------------------------------------------------------------


def test_shaped_rewards_by_hand() -> None:
    logp = tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, NAN], [-0.5, NAN, NAN]])
    ref = tensor([[-1.5, -1.0, -3.0], [-1.0, -3.0, NAN], [-1.5, NAN, NAN]])
    mask = tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    rewards = losses.shaped_rewards(tensor([10.0, 20.0, 30.0]), logp, ref, mask, beta=0.1)
    close(rewards, [[-0.05, 0.1, 10.0], [0.0, 19.8, 0.0], [29.9, 0.0, 0.0]])


def test_shaped_rewards_add_up_to_score_minus_beta_kl() -> None:
    scores, logp, ref = (
        normal(3, seed=1),
        poison(normal(3, 4)),
        poison(normal(3, 4, seed=2), value=1e6),
    )
    rewards = losses.shaped_rewards(scores, logp, ref, MASK, beta=0.3)
    close(rewards.sum(1), scores - 0.3 * losses.masked_sum(losses.kl_k1(logp, ref), MASK))


def test_gae_of_three_tokens_by_hand() -> None:
    # delta = (0.2 - 0.5, 0.6 - 0.2, 1 - 0.6) + rewards (0, 0, .): lam 0.5, gamma 1.
    rewards, values = tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 0.2, 0.6]])
    advantages, returns = losses.gae(rewards, values, torch.ones(1, 3), lam=0.5)
    close(advantages, [[0.0, 0.6, 0.4]])
    close(returns, [[0.5, 0.8, 1.0]])
    # The same answer, ended one token earlier, in a padded batch.
    early = tensor([[0.0, 1.0, 0.0]])
    advantages, returns = losses.gae(early, values, tensor([[1, 1, 0]]), lam=0.5)
    close(advantages, [[-0.3 + 0.5 * 0.8, 0.8, 0.0]])
    close(returns, [[0.6, 1.0, 0.0]])


def gae_by_loop(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """GAE Eq. 16 as it is printed: a sum over what is still to come, not a recursion."""
    v = [*values, 0.0]
    delta = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(len(rewards))]
    return [
        sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, len(delta)))
        for t in range(len(delta))
    ]


@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_gae_against_a_loop(seed: int, gamma: float, lam: float) -> None:
    rewards, values = normal(3, 4, seed=seed), normal(3, 4, seed=seed + 1)
    advantages, returns = losses.gae(poison(rewards), poison(values), MASK, gamma, lam)
    for b, length in enumerate(MASK.sum(1).tolist()):
        r, v = rewards[b, :length].tolist(), values[b, :length].tolist()
        close(advantages[b, :length], gae_by_loop(r, v, gamma, lam))
        assert torch.equal(advantages[b, length:], torch.zeros(4 - length))
    close(returns, losses._zero_padding(advantages + values, MASK))


def test_gae_limits() -> None:
    rewards, values = normal(3, 4), normal(3, 4, seed=1)
    real_rewards = rewards * MASK
    to_go = real_rewards.flip(1).cumsum(1).flip(1) * MASK
    advantages, returns = losses.gae(rewards, values, MASK, lam=1.0)
    close(returns, to_go)
    close(advantages, (to_go - values) * MASK)
    next_values = F.pad(values[:, 1:], (0, 1)) * F.pad(MASK[:, 1:], (0, 1))
    td, _ = losses.gae(rewards, values, MASK, gamma=0.9, lam=0.0)
    close(td, (rewards + 0.9 * next_values - values) * MASK)


def test_gae_ignores_what_lies_in_the_padding() -> None:
    rewards, values = normal(3, 4), normal(3, 4, seed=1)
    clean = losses.gae(rewards, values, MASK)
    for value in (1e6, NAN):
        dirty = losses.gae(poison(rewards, value=value), poison(values, value=value), MASK)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_targets_carry_no_gradient() -> None:
    leaves = [normal(3, 4, seed=s).requires_grad_() for s in range(2)]
    scores = normal(3).requires_grad_()
    targets = [
        losses.shaped_rewards(scores, *leaves, MASK, 0.1),
        *losses.gae(*leaves, MASK),
        losses.whiten(leaves[0], MASK),
        losses.reward_bias(scores),
    ]
    assert not any(target.requires_grad for target in targets)


@pytest.mark.parametrize("mask", [[[0, 0, 0]], [[0, 1, 1]], [[1, 0, 1]]])
def test_response_mask_must_be_ones_then_zeros(mask: list[list[int]]) -> None:
    x = torch.zeros(1, 3)
    for call in (
        lambda: losses.gae(x, x, tensor(mask)),
        lambda: losses.shaped_rewards(torch.zeros(1), x, x, tensor(mask), 0.1),
    ):
        with pytest.raises(ValueError, match="each row of mask must be ones, then zeros"):
            call()


# --- PPO losses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.5, 2.0, -2.4, 0.0, 1.0),  # good token, already more likely: no further
        (1.5, -2.0, 3.0, 3.0, 0.0),  # bad token, more likely: all the way back
        (0.5, 2.0, -1.0, -1.0, 0.0),  # good token, less likely: all the way back
        (0.5, -2.0, 1.6, 0.0, 1.0),  # bad token, already less likely: no further
        (1.1, 2.0, -2.2, -2.2, 0.0),  # inside the range
    ],
)
def test_policy_loss_sign_cases(
    ratio: float, advantage: float, loss: float, slope: float, clipped: float
) -> None:
    logp = tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    one = torch.ones(1, 1)
    got, info = losses.policy_loss(logp, -one, advantage * one, one, clip=0.2)
    close(got, loss)
    close(gradient(got, logp), [[slope]])
    close(info["clip_fraction"], clipped)
    close(info["ratio_mean"], ratio)
    close(info["approx_kl"], ratio - 1 - math.log(ratio))
    # A wider range leaves 1.5 and 0.5 alone.
    close(losses.policy_loss(logp, -one, advantage * one, one, clip=0.6)[0], -ratio * advantage)


def test_policy_loss_before_the_first_update() -> None:
    logp = normal(3, 4).requires_grad_()
    advantages = normal(3, 4, seed=1)
    loss, info = losses.policy_loss(logp, logp, advantages, MASK)
    assert {name: float(x) for name, x in info.items()} == {
        "clip_fraction": 0.0,
        "approx_kl": 0.0,
        "ratio_mean": 1.0,
    }
    assert not any(x.requires_grad for x in info.values())
    close(loss, -losses.masked_mean(advantages, MASK))
    # The gradient of the ratio at the old policy is that of log pi, with factor one.
    close(gradient(loss, logp), -advantages * MASK / MASK.sum())


def test_only_the_trained_argument_gets_a_gradient() -> None:
    a, b, c = (normal(3, 4, seed=s, scale=0.1).requires_grad_() for s in range(3))
    for loss in (losses.policy_loss(a, b, c, MASK)[0], losses.value_loss(a, b, c, MASK)):
        got = torch.autograd.grad(loss, (a, b, c), allow_unused=True)
        assert got[0].abs().sum() > 0 and got[1] is None and got[2] is None


@pytest.mark.parametrize("value", [NAN, 1e6, math.inf])
def test_padding_changes_neither_losses_nor_gradients(value: float) -> None:
    a, b, c = (normal(3, 4, seed=s) for s in range(3))

    def run(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        a = a.clone().requires_grad_()
        policy, info = losses.policy_loss(a, b, c, MASK)
        results = [policy, losses.value_loss(a, b, c, MASK), losses.sft_loss(a, MASK)]
        return [*results, *(gradient(x, a) for x in results), *info.values()]

    clean = run(a, b, c)
    dirty = run(*(poison(x, value=value) for x in (a, b, c)))
    for wanted, got in zip(clean, dirty, strict=True):
        assert torch.equal(wanted, got)
    assert torch.equal(dirty[3][MASK == 0], torch.zeros(5))


def test_nan_on_a_real_token_is_not_hidden() -> None:
    logp = torch.zeros(3, 4)
    logp[1, 1] = NAN
    assert losses.policy_loss(logp, torch.zeros(3, 4), torch.ones(3, 4), MASK)[0].isnan()
    assert losses.sft_loss(logp, MASK).isnan()


def test_log_ratio_is_clamped() -> None:
    logp, one = tensor([[1e4]], requires_grad=True), torch.ones(1, 1)
    loss, info = losses.policy_loss(logp, 0 * one, -one, one)
    close(loss, math.exp(20))
    assert info["ratio_mean"].isfinite() and gradient(loss, logp).isfinite().all()
    # Still free well beyond the clip range: the way back must keep its gradient.
    far = tensor([[15.0]], requires_grad=True)
    close(gradient(losses.policy_loss(far, 0 * one, -one, one)[0], far), [[math.exp(15)]])


def test_diagnostics_are_masked_means() -> None:
    old = torch.zeros(3, 4)
    new = torch.full((3, 4), math.log(1.5))
    new[1:] = math.log(1.1)
    _, info = losses.policy_loss(poison(new), poison(old), torch.ones(3, 4), MASK)
    close(info["clip_fraction"], 4 / 7)
    close(info["ratio_mean"], (4 * 1.5 + 3 * 1.1) / 7)
    kl = [4 * (0.5 - math.log(1.5)), 3 * (0.1 - math.log(1.1))]
    close(info["approx_kl"], sum(kl) / 7)
    uniform = poison(torch.full((3, 4), math.log(8)))
    close(losses.masked_mean(uniform, MASK), math.log(8))  # entropy, say


def test_approx_kl_is_unbiased_for_old_against_new() -> None:
    old, new = (normal(V, seed=s, scale=0.3).double().log_softmax(0) for s in (0, 1))
    weights = old.exp() * V
    each = [
        losses.policy_loss(new[v].view(1, 1), old[v].view(1, 1), torch.ones(1, 1), torch.ones(1, 1))
        for v in range(V)
    ]
    mean = sum(float(weights[v] * info["approx_kl"]) for v, (_, info) in enumerate(each)) / V
    assert mean == pytest.approx(float((old.exp() * (old - new)).sum()), abs=1e-9)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.0, 0.0, 2.0, 0.5 * 1.8**2, 0.0),  # moved 1.0 towards the target: 0.2 counts
        (1.0, 0.0, -1.0, 0.5 * 2.0**2, 2.0),  # moved away: all of it counts
        (-1.0, 0.0, -2.0, 0.5 * 1.8**2, 0.0),
        (0.1, 0.0, 1.0, 0.5 * 0.9**2, -0.9),  # inside the range: a plain square
    ],
)
def test_value_loss_by_hand(
    value: float, old: float, target: float, loss: float, slope: float
) -> None:
    leaf, one = tensor([[value]], requires_grad=True), torch.ones(1, 1)
    got = losses.value_loss(leaf, old * one, target * one, one, clip=0.2)
    close(got, loss)
    close(gradient(got, leaf), [[slope]])
    close(
        losses.value_loss(leaf, old * one, target * one, one, clip=5.0), (value - target) ** 2 / 2
    )


def test_value_loss_is_a_mean_over_tokens() -> None:
    values = torch.zeros(3, 4)
    returns = torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 4)
    close(losses.value_loss(values, values, returns, MASK), 0.5 * (4 * 1 + 2 * 4 + 1 * 9) / 7)


# --- several answers to a prompt instead of a critic -------------------------------------------


def test_group_baselines_by_hand() -> None:
    rewards = tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    close(losses.leave_one_out(rewards), [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]])
    spread = math.sqrt((4 + 1 + 9) / 3)
    close(losses.group_advantages(rewards)[0] * spread, [-2.0, -1.0, 3.0])
    assert losses.group_advantages(rewards)[1].abs().max() == 0
    # Less its own mean is the same but for a factor: K / (K - 1).
    centred = rewards - rewards.mean(1, keepdim=True)
    close(losses.leave_one_out(rewards), 1.5 * centred)


def test_group_advantages_forget_the_scale_and_leave_one_out_does_not() -> None:
    rewards = normal(5, 4).double()
    close(losses.group_advantages(10 * rewards + 3, 0.0), losses.group_advantages(rewards, 0.0))
    close(losses.leave_one_out(10 * rewards + 3), 10 * losses.leave_one_out(rewards))
    # Of two answers it only sees which is better.
    close(losses.group_advantages(rewards[:, :2], 0.0).abs(), torch.ones(5, 2))


def test_leave_one_out_is_unbiased_and_dividing_by_the_std_is_not() -> None:
    """Over all groups of three answers: the expected estimate against the exact gradient."""
    probs, rewards = normal(5).double().softmax(0), normal(5, seed=1, scale=2.0).double()
    exact = probs * (rewards - probs @ rewards)
    groups = tensor(list(itertools.product(range(5), repeat=3)))
    scores = torch.eye(5).double() - probs

    def expected(advantages: Tensor) -> Tensor:
        estimates = (advantages[..., None] * scores[groups]).mean(1)
        return (probs[groups].prod(1)[:, None] * estimates).sum(0)

    close(expected(losses.leave_one_out(rewards[groups])), exact, 1e-12)
    scaled = expected(losses.group_advantages(rewards[groups]))
    assert F.cosine_similarity(scaled, exact, dim=0) < 0.999


def test_answer_mean_weighs_answers_and_masked_mean_tokens() -> None:
    x = poison(tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0]]))
    close(losses.answer_mean(x, MASK), (2.5 + 15 + 7) / 3)
    leaf = torch.zeros(3, 4, requires_grad=True)
    close(gradient(losses.answer_mean(leaf, MASK), leaf).sum(1), [1 / 3] * 3)


# --- GRPO's loss, and what came after it -------------------------------------------------------

RATIOS = tensor([[1.5, 0.5, 1.1, 1.0], [1.25, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
GOOD_BAD_GOOD = tensor([[2.0], [-1.0], [1.0]])


def of_group(loss, *more: float) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient by the log-probs, on three answers whose padding is NaN."""
    logp = poison(RATIOS.clamp(min=0.1).log()).requires_grad_()
    value = loss(logp, poison(torch.zeros(3, 4)), poison(GOOD_BAD_GOOD.expand(3, 4)), MASK, *more)
    slope = gradient(value, logp)
    assert torch.equal(slope[MASK == 0], torch.zeros(5))
    return value, slope


def test_grpo_and_dapo_by_hand() -> None:
    # -ratio * advantage, and no gradient where a good token is above the range already.
    each = tensor([[-2.4, -1.0, -2.2, -2.0], [1.25, 1.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.0]])
    slopes = tensor([[0.0, -1.0, -2.2, -2.0], [1.25, 1.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.0]])
    value, slope = of_group(losses.grpo_loss, 0.2)
    close(value, (-7.6 / 4 + 2.25 / 2 - 0.5) / 3)
    close(slope, slopes / MASK.sum(1, keepdim=True) / 3)
    value, slope = of_group(losses.dapo_loss, 0.2, 0.28)
    close(value, (-7.6 - 2 * 0.08 + 2.25 - 0.5) / 7)
    close(slope, slopes / 7)
    # More room upwards: the token at 1.5 is free again.
    close(of_group(losses.dapo_loss, 0.2, 0.6)[1][0, 0], -3.0 / 7)
    close(of_group(losses.dapo_loss, 0.2, 0.2)[0], each.sum() / 7)


def test_dr_grpo_weighs_tokens_the_same_in_every_batch() -> None:
    value, slope = of_group(losses.dr_grpo_loss, 0.2, 10)
    close(value, (-7.6 + 2.25 - 0.5) / 3 / 10)
    close(slope[1, :2], tensor([1.25, 1.0]) / 30)
    assert slope[MASK == 0].abs().max() == 0


def test_gspo_clips_whole_answers() -> None:
    first = (1.5 * 0.5 * 1.1) ** 0.25
    second = 1.25**0.5
    value, slope = of_group(losses.gspo_loss, 0.2)
    close(value, (-2 * first + second - 0.5) / 3)
    # All tokens of an answer share one slope: its ratio by its length.
    close(slope[0], [-2 * first / 4 / 3] * 4)
    close(slope[1, :2], [second / 2 / 3] * 2)
    # In a narrow range the good answer, likelier already, is left alone; so is no bad one.
    value, slope = of_group(losses.gspo_loss, 3e-4, 4e-4)
    close(slope[0, 0], -2 * first / 4 / 3)
    close(slope[1, 0], second / 2 / 3)


def test_cispo_keeps_a_gradient_where_the_clip_takes_it() -> None:
    _, slope = of_group(losses.cispo_loss, 0.2)
    close(slope[0], tensor([-2 * 1.2, -2 * 0.5, -2 * 1.1, -2 * 1.0]) / 7)
    close(slope[1, :2], tensor([1.2, 1.0]) / 7)
    assert of_group(losses.grpo_loss, 0.2)[1][0, 0] == 0


def test_on_fresh_samples_the_variants_differ_in_weights_alone() -> None:
    logp, advantages = normal(3, 4).requires_grad_(), normal(3, 1).expand(3, 4)
    rows = (logp, logp, advantages, MASK)
    weights = {
        losses.grpo_loss: 1 / MASK.sum(1, keepdim=True) / 3,
        losses.gspo_loss: 1 / MASK.sum(1, keepdim=True) / 3,
        losses.dapo_loss: torch.full((3, 1), 1 / 7),
        losses.cispo_loss: torch.full((3, 1), 1 / 7),
        losses.dr_grpo_loss: torch.full((3, 1), 1 / 3 / 48),
    }
    for loss, weight in weights.items():
        close(gradient(loss(*rows), logp), -advantages * weight * MASK)
    close(losses.dapo_loss(*rows), losses.policy_loss(*rows)[0])


def test_overlong_penalty_by_hand() -> None:
    lengths = tensor([10, 40, 42, 44, 48])
    close(losses.overlong_penalty(lengths, 48, 8), [0.0, 0.0, -0.25, -0.5, -1.0])
    with pytest.raises(ValueError, match="buffer must be from 1 to 48"):
        losses.overlong_penalty(lengths, 48, 0)


def test_truncated_weights() -> None:
    trainer = poison(RATIOS.clamp(min=0.1).log())
    weights = losses.truncated_weights(trainer, poison(torch.zeros(3, 4)), MASK, cap=1.2)
    close(weights, [[1.2, 0.5, 1.1, 1.0], [1.2, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])


def test_weights_make_a_sampler_unbiased_and_the_cap_undoes_some_of_it() -> None:
    """The expected gradient of REINFORCE from a sampler that is not quite the policy."""
    logits, rewards = normal(5).double(), normal(5, seed=1).double()
    sampler, policy = (logits + 0.7 * normal(5, seed=2)).softmax(0), logits.softmax(0)
    exact = policy * (rewards - policy @ rewards)
    slopes = torch.eye(5).double() - policy

    def expected(cap: float | None) -> Tensor:
        rows = policy.log()[:, None], sampler.log()[:, None], torch.ones(5, 1)
        weights = 1.0 if cap is None else losses.truncated_weights(*rows, cap)[:, 0]
        return ((sampler * weights * rewards)[:, None] * slopes).sum(0)

    close(expected(cap=100.0), exact, 1e-12)
    off = [(expected(cap) - exact).norm() for cap in (100.0, 1.2, None)]
    assert off[0] < off[1] < off[2]


def test_pass_at_k_counts_all_sets_of_k() -> None:
    solved = tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    for k in range(1, 6):
        chosen = list(itertools.combinations(range(5), k))
        hits = [solved[:, list(rows)].any(1).float() for rows in chosen]
        close(losses.pass_at_k(solved, k), torch.stack(hits).mean(0))
    close(losses.pass_at_k(solved, 1), [0.4, 0.0, 1.0])
    close(losses.pass_at_k(solved, 2), [1 - 3 / 10, 0.0, 1.0])


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of six answers, each right with probability 0.3."""
    outcomes = tensor(list(itertools.product([0.0, 1.0], repeat=6))).double()
    chance = (0.3 * outcomes + 0.7 * (1 - outcomes)).prod(1)
    for k in (1, 3, 6):
        close(chance @ losses.pass_at_k(outcomes, k), 1 - 0.7**k, 1e-12)
        naive = 1 - (1 - outcomes.mean(1)) ** k
        assert k == 1 or chance @ naive < 1 - 0.7**k - 0.01


def test_reverse_kl() -> None:
    student, teacher = tensor([[[0.5, 0.5]]]).log(), tensor([[[0.9, 0.1]]]).log()
    want = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    close(losses.reverse_kl(student + 3, teacher), [[want]])
    close(losses.reverse_kl(teacher, teacher), [[0.0]])
    a, b = normal(2, 3, 4).requires_grad_(), normal(2, 3, 4, seed=1).requires_grad_()
    slopes = torch.autograd.grad(losses.reverse_kl(a, b).sum(), (a, b), allow_unused=True)
    assert slopes[1] is None
    p = a.detach().softmax(-1)
    gap = a.detach().log_softmax(-1) - b.detach().log_softmax(-1)
    close(slopes[0], p * (gap - (p * gap).sum(-1, keepdim=True)))


@pytest.mark.parametrize("gamma", [0.0, 27.8])
def test_ppo_ptx_in_one_backward_adds_gamma_times_the_gradient(gamma: float) -> None:
    logits = normal(3, 5, 6).requires_grad_()
    tokens = torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(0))
    logp = losses.token_logprobs(logits[:, :-1], tokens[:, 1:])
    ppo, _ = losses.policy_loss(logp, logp.detach() - 0.1, normal(3, 4, seed=1), MASK)
    ptx = losses.ptx_loss(logits, tokens)
    parts = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ppo, ptx)]
    close(gradient(ppo + gamma * ptx, logits), parts[0] + gamma * parts[1])
    # Minimising it raises the likelihood of the pretraining text.
    onehot = F.one_hot(tokens[:, 1:], 6)
    close(parts[1][:, :-1], (logits.detach()[:, :-1].softmax(-1) - onehot) / 12)


# --- DPO ---------------------------------------------------------------------------------------

PAIRS = [normal(6, seed=s, scale=5) - 20 for s in range(4)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_dpo_against_a_loop(smoothing: float) -> None:
    loss, chosen, rejected = losses.dpo_loss(*PAIRS, beta=0.3, label_smoothing=smoothing)
    total = 0.0
    for i, (pc, pr, rc, rr) in enumerate(zip(*(x.tolist() for x in PAIRS), strict=True)):
        assert float(chosen[i]) == pytest.approx(0.3 * (pc - rc), abs=1e-5)
        assert float(rejected[i]) == pytest.approx(0.3 * (pr - rr), abs=1e-5)
        h = 0.3 * ((pc - rc) - (pr - rr))
        total -= (1 - smoothing) * log_sigmoid(h) + smoothing * log_sigmoid(-h)
    close(loss, total / 6)


def test_dpo_of_two_answers_by_hand() -> None:
    # Sums over the tokens of each answer: -1 - 2 = -3 and -4; the reference says -4 and -3.
    mask = tensor([[1, 1, 0], [1, 0, 0]])
    policy = losses.masked_sum(tensor([[-1.0, -2.0, NAN], [-4.0, NAN, NAN]]), mask)
    reference = losses.masked_sum(tensor([[-2.0, -2.0, NAN], [-3.0, NAN, NAN]]), mask)
    loss, chosen, rejected = losses.dpo_loss(
        policy[:1], policy[1:], reference[:1], reference[1:], beta=0.1
    )
    close(chosen, [0.1])
    close(rejected, [-0.1])
    close(loss, -log_sigmoid(0.2))


def test_dpo_starts_at_log_2_with_margins_zero() -> None:
    for smoothing in (0.0, 0.2):
        loss, chosen, rejected = losses.dpo_loss(*PAIRS[:2], *PAIRS[:2], 0.1, smoothing)
        close(loss, LOG2)
        assert torch.equal(chosen - rejected, torch.zeros(6))


def test_dpo_gradient_is_that_of_the_paper() -> None:
    leaves = [x.clone().requires_grad_() for x in PAIRS]
    loss, chosen, rejected = losses.dpo_loss(*leaves, beta=0.3)
    assert not (chosen.requires_grad or rejected.requires_grad)
    got = torch.autograd.grad(loss, leaves, allow_unused=True)
    weight = 0.3 * torch.sigmoid(rejected - chosen) / 6
    close(got[0], -weight)
    close(got[1], weight)
    assert got[2] is None and got[3] is None


def test_label_smoothing() -> None:
    half, _, _ = losses.dpo_loss(*PAIRS, 0.1, 0.5)
    swapped = [PAIRS[i] for i in (1, 0, 3, 2)]
    close(losses.dpo_loss(*swapped, 0.1, 0.5)[0], half)
    # The gradient vanishes where the model believes a label with probability 1 - e.
    margin = tensor([math.log(0.9 / 0.1)], requires_grad=True)
    zero = torch.zeros(1)
    close(gradient(losses.dpo_loss(margin, zero, zero, zero, 1.0, 0.1)[0], margin), [0.0])


def test_ipo() -> None:
    loss, chosen, rejected = losses.ipo_loss(*PAIRS, tau=0.5)
    h = PAIRS[0] - PAIRS[2] - (PAIRS[1] - PAIRS[3])
    close(loss, ((h - 1.0) ** 2).mean())
    close(chosen, 0.5 * (PAIRS[0] - PAIRS[2]))
    close(rejected, 0.5 * (PAIRS[1] - PAIRS[3]))
    close(losses.ipo_loss(*PAIRS[:2], *PAIRS[:2], tau=0.1)[0], 25.0)
    leaves = [x.clone().requires_grad_() for x in PAIRS]
    got = torch.autograd.grad(losses.ipo_loss(*leaves, tau=0.5)[0], leaves, allow_unused=True)
    close(got[0], 2 * (h - 1) / 6)
    assert got[2] is None and got[3] is None


def test_length_normalised_dpo() -> None:
    ones, lengths = torch.ones(6), tensor([1, 2, 3, 4, 5, 6])
    plain, normalised = losses.dpo_loss(*PAIRS, 0.3), losses.length_normalised_dpo_loss
    for got, wanted in zip(normalised(*PAIRS, ones, ones, 0.3), plain, strict=True):
        close(got, wanted)
    loss, chosen, rejected = normalised(*PAIRS, lengths, lengths.flip(0), 2.0)
    close(chosen, 2.0 * (PAIRS[0] - PAIRS[2]) / lengths)
    close(rejected, 2.0 * (PAIRS[1] - PAIRS[3]) / lengths.flip(0))
    margins = (chosen - rejected).tolist()
    close(loss, -sum(log_sigmoid(h) for h in margins) / 6)
    leaves = [x.clone().requires_grad_() for x in PAIRS]
    loss, chosen, rejected = normalised(*leaves, lengths, lengths.flip(0), 2.0)
    assert not (chosen.requires_grad or rejected.requires_grad)
    got = torch.autograd.grad(loss, leaves, allow_unused=True)
    close(got[0], -2.0 / lengths * torch.sigmoid(rejected - chosen) / 6)
    assert got[2] is None and got[3] is None


def test_hinge_by_hand() -> None:
    loss, chosen, rejected = losses.hinge_loss(*PAIRS, 0.3)
    close(chosen, 0.3 * (PAIRS[0] - PAIRS[2]))
    close(rejected, 0.3 * (PAIRS[1] - PAIRS[3]))
    close(loss, sum(max(0.0, 1 - h) for h in (chosen - rejected).tolist()) / 6)
    # A pair that is in order by enough is left alone.
    far = tensor([10.0], requires_grad=True)
    loss, _, _ = losses.hinge_loss(far, -far.detach(), far.detach() * 0, far.detach() * 0, 1.0)
    assert loss == 0 and gradient(loss, far) == 0


def test_simpo_by_hand() -> None:
    lengths = tensor([1, 2, 3, 4, 5, 6])
    leaves = [x.clone().requires_grad_() for x in PAIRS[:2]]
    loss, chosen, rejected = losses.simpo_loss(*leaves, lengths, lengths.flip(0), 2.0, 0.5)
    close(chosen, 2.0 * PAIRS[0] / lengths)
    close(rejected, 2.0 * PAIRS[1] / lengths.flip(0))
    close(loss, -sum(log_sigmoid(h - 0.5) for h in (chosen - rejected).tolist()) / 6)
    assert not (chosen.requires_grad or rejected.requires_grad)
    pull = torch.sigmoid(rejected - chosen + 0.5) / 6  # how far the pair is from being in order
    close(gradient(loss, leaves[0]), -2.0 / lengths * pull)


def test_orpo_by_hand() -> None:
    policy, lengths = [-PAIRS[i].abs() - 0.1 for i in (0, 1)], tensor([1, 2, 3, 4, 5, 6])
    loss, chosen, rejected = losses.orpo_loss(*policy, lengths, lengths.flip(0), 0.4)
    means = [policy[0] / lengths, policy[1] / lengths.flip(0)]
    odds = [[math.exp(m) / (1 - math.exp(m)) for m in mean.tolist()] for mean in means]
    ratios = [math.log(a / b) for a, b in zip(*odds, strict=True)]
    wanted = [-m - 0.4 * log_sigmoid(r) for m, r in zip(means[0].tolist(), ratios, strict=True)]
    close(loss, sum(wanted) / 6)
    close(chosen, 0.4 * means[0])
    close(rejected, 0.4 * means[1])
    # Even an answer that is certain has finite odds.
    sure = torch.zeros(6)
    assert losses.orpo_loss(sure, policy[1], lengths, lengths, 0.4)[0].isfinite()


def test_kto_by_hand() -> None:
    logprobs = tensor([-1.0, -2.0, -3.0], requires_grad=True)
    reference, thumbs = tensor([-2.0, -2.0, -2.5]), tensor([True, False, False])
    loss, rewards = losses.kto_loss(logprobs, reference, thumbs, 0.4, 0.5, 1.0, 2.0)
    ups = [0.5 * (1.0 - 0.4), 0.5 * (0.0 - 0.4), 0.5 * (-0.5 - 0.4)]
    each = [math.exp(log_sigmoid(-ups[0])), *(2 * math.exp(log_sigmoid(up)) for up in ups[1:])]
    close(loss, sum(each) / 3)
    close(rewards, [0.5, 0.0, -0.25])
    slope = gradient(loss, logprobs)
    assert slope[0] < 0 < slope[1] and slope[2] > 0  # up goes up, down goes down
    # A negative estimate of the KL counts as 0, and no gradient flows through it.
    below = losses.kto_loss(logprobs, reference, thumbs, tensor(-3.0), 0.5)[0]
    close(below, losses.kto_loss(logprobs, reference, thumbs, 0.0, 0.5)[0])
    each_its_own = losses.kto_loss(logprobs, reference, thumbs, torch.full((3,), 0.4), 0.5)[0]
    close(each_its_own, losses.kto_loss(logprobs, reference, thumbs, 0.4, 0.5)[0])


def test_kto_starts_at_one_half() -> None:
    same = normal(6)
    loss, rewards = losses.kto_loss(same, same, same > 0, 0.0, 0.1)
    close(loss, 0.5)
    close(rewards, torch.zeros(6))


def test_optimum_of_dpo_is_the_optimum_of_the_kl_penalised_reward() -> None:
    # With pi* = ref * exp(r / beta) / Z the implicit margins are the margins of the reward, so
    # labels drawn from r leave DPO no gradient, nor the objective at pi*: DPO Eq. 4 to 7.
    reference, reward, beta = normal(V).double().log_softmax(0), normal(V, seed=1).double(), 0.5
    logits = (reference + reward / beta).requires_grad_()
    policy = logits.log_softmax(0)
    objective = (policy.exp() * (reward - beta * (policy - reference))).sum()
    close(torch.autograd.grad(objective, logits, retain_graph=True)[0], torch.zeros(V), 1e-9)
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij"))
    truth = torch.sigmoid(reward[i] - reward[j])
    expected = sum(
        truth[n]
        * losses.dpo_loss(
            *(x[n : n + 1] for x in (policy[i], policy[j], reference[i], reference[j])), beta
        )[0]
        for n in range(V * V)
    )
    close(gradient(expected, logits), torch.zeros(V), 1e-9)


@pytest.mark.parametrize("call", [losses.dpo_loss, losses.ipo_loss])
def test_beta_and_tau_must_be_positive(call) -> None:
    with pytest.raises(ValueError, match="must be above 0, not 0"):
        call(*PAIRS, 0)


@pytest.mark.parametrize("smoothing", [-0.1, 0.6])
def test_label_smoothing_outside_its_range(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing must be from 0 to 0.5"):
        losses.dpo_loss(*PAIRS, 0.1, smoothing)


def test_lengths_must_be_positive() -> None:
    ones = torch.ones(6)
    with pytest.raises(ValueError, match="lengths must be 1 or more"):
        losses.length_normalised_dpo_loss(*PAIRS, ones, 0 * ones, 0.1)


# --- best of n ---------------------------------------------------------------------------------


def test_missing_end_never_pays() -> None:
    scores, ended = tensor([2.0, 5.0, -3.0, -3.0]), torch.tensor([True, False, False, True])
    found = losses.penalise_missing_end(scores, ended, 1.5)
    assert found.tolist() == [2.0, -1.5, -4.5, -3.0]


def test_best_of_n() -> None:
    scores = tensor([[0.0, 2.0, 1.0], [-1.0, -3.0, -2.0], [5.0, 5.0, 0.0]])
    assert losses.best_of_n(scores).tolist() == [1, 0, 0]
    assert losses.best_of_n(scores[:, :1]).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="a score is NaN"):
        losses.best_of_n(tensor([[0.0, NAN]]))


def test_best_of_n_kl() -> None:
    assert losses.best_of_n_kl(1) == 0.0
    assert losses.best_of_n_kl(2) == pytest.approx(LOG2 - 0.5)
    assert losses.best_of_n_kl(1000) == pytest.approx(5.9087, abs=1e-4)  # Gao: about 5.9 nats
    with pytest.raises(ValueError, match="n must be 1 or more"):
        losses.best_of_n_kl(0)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_kl_bounds_the_exact_kl_of_discrete_answers(n: int) -> None:
    # M equally likely answers with distinct scores: P(best is the m-th) = (m/M)^n - ((m-1)/M)^n.
    def exact(size: int) -> float:
        best = [(m / size) ** n - ((m - 1) / size) ** n for m in range(1, size + 1)]
        return sum(p * math.log(p * size) for p in best if p > 0)

    assert exact(4) < exact(64) < losses.best_of_n_kl(n)
    assert exact(20_000) == pytest.approx(losses.best_of_n_kl(n), abs=2e-3)


# --- precision and shapes ----------------------------------------------------------------------


def test_sixteen_bit_input_is_computed_in_fp32() -> None:
    a, b, c = (normal(3, 4, seed=s).bfloat16() for s in range(3))
    rows = [x.flatten() for x in (a, b, c, a)]
    for results in (
        losses.masked_mean(a, MASK),
        losses.kl_k1(a, b),
        losses.policy_loss(a, b, c, MASK)[0],
        losses.value_loss(a, b, c, MASK),
        losses.bradley_terry_loss(rows[0], rows[1]),
        losses.dpo_loss(*rows, 0.1)[0],
        losses.entropy(a[None]),
    ):
        assert results.dtype == torch.float32
    whole = losses.dpo_loss(*(x.float() for x in rows), 0.1)[0]
    close(losses.dpo_loss(*rows, 0.1)[0], whole, 1e-6)


ROW, BATCH, WRONG = torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.masked_sum(BATCH, WRONG),
        lambda: losses.masked_mean(BATCH, torch.ones(3)),
        lambda: losses.token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 4)),
        lambda: losses.ptx_loss(torch.zeros(2, 3, 4), BATCH, torch.ones(2, 2)),
        lambda: losses.bradley_terry_loss(ROW, WRONG),
        lambda: losses.bradley_terry_loss(WRONG, WRONG),
        lambda: losses.bradley_terry_loss(ROW, ROW, torch.zeros(2, 1)),
        lambda: losses.bradley_terry_loss(ROW[:0], ROW[:0]),
        lambda: losses.kwise_loss(BATCH, BATCH),
        lambda: losses.kwise_batch_loss(BATCH, torch.ones(2, 2)),
        lambda: losses.reward_bias(ROW[:0]),
        lambda: losses.kl_k1(BATCH, WRONG),
        lambda: losses.shaped_rewards(WRONG, BATCH, BATCH, BATCH + 1, 0.1),
        lambda: losses.shaped_rewards(ROW, BATCH, WRONG, BATCH + 1, 0.1),
        lambda: losses.shaped_rewards(ROW, BATCH[:, :0], BATCH[:, :0], BATCH[:, :0], 0.1),
        lambda: losses.gae(BATCH, WRONG, BATCH + 1),
        lambda: losses.policy_loss(BATCH, BATCH, WRONG, BATCH + 1),
        lambda: losses.policy_loss(BATCH, BATCH, BATCH, BATCH + 1, clip=0.0),
        lambda: losses.value_loss(BATCH, BATCH, WRONG, BATCH + 1),
        lambda: losses.value_loss(BATCH, BATCH, BATCH, BATCH + 1, clip=-1.0),
        lambda: losses.dpo_loss(ROW, ROW, ROW, torch.zeros(1), 0.1),
        lambda: losses.dpo_loss(BATCH, BATCH, BATCH, BATCH, 0.1),
        lambda: losses.dpo_loss(ROW[:0], ROW[:0], ROW[:0], ROW[:0], 0.1),
        lambda: losses.length_normalised_dpo_loss(ROW, ROW, ROW, ROW, WRONG, ROW, 0.1),
        lambda: losses.simpo_loss(ROW, ROW, WRONG, ROW, 0.1),
        lambda: losses.orpo_loss(ROW, ROW, WRONG, ROW, 0.1),
        lambda: losses.hinge_loss(ROW, WRONG, ROW, ROW, 0.1),
        lambda: losses.best_of_n(ROW),
        lambda: losses.leave_one_out(ROW),
        lambda: losses.leave_one_out(WRONG),
        lambda: losses.group_advantages(WRONG),
        lambda: losses.answer_mean(BATCH, WRONG),
        lambda: losses.answer_mean(BATCH, BATCH),
        lambda: losses.answer_mean(BATCH[:0], BATCH[:0]),
        lambda: losses.grpo_loss(BATCH, BATCH, WRONG, BATCH + 1),
        lambda: losses.grpo_loss(BATCH, BATCH, BATCH, BATCH + 1, 0.0),
        lambda: losses.grpo_loss(BATCH, BATCH, BATCH, BATCH + 1, 0.2, 0.0),
        lambda: losses.dapo_loss(BATCH, WRONG, BATCH, BATCH + 1),
        lambda: losses.dr_grpo_loss(BATCH, BATCH, BATCH, BATCH + 1, length=0),
        lambda: losses.gspo_loss(BATCH, BATCH, BATCH, BATCH),
        lambda: losses.cispo_loss(BATCH, BATCH, BATCH, BATCH + 1, 0.0),
        lambda: losses.truncated_weights(BATCH, WRONG, BATCH + 1),
        lambda: losses.truncated_weights(BATCH, BATCH, BATCH + 1, 0.0),
        lambda: losses.pass_at_k(ROW, 1),
        lambda: losses.pass_at_k(BATCH, 4),
        lambda: losses.reverse_kl(BATCH[None], BATCH),
        lambda: losses.kto_loss(ROW, ROW, WRONG, 0.0, 0.1),
        lambda: losses.kto_loss(ROW, ROW, ROW, BATCH[0], 0.1),
        lambda: losses.kto_loss(ROW, ROW, ROW, 0.0, 0.0),
        lambda: losses.kto_loss(ROW[:0], ROW[:0], ROW[:0], 0.0, 0.1),
    ],
)
def test_shapes_that_do_not_fit_are_a_one_line_error(call) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value) and ":" in str(error.value)


def test_on_a_gpu_only_some_checks_look(monkeypatch) -> None:
    class OnGpu:
        is_cuda, looks = True, 0

        def __bool__(self) -> bool:
            self.looks += 1
            return True

    condition = OnGpu()
    monkeypatch.setattr(losses, "_LOOKS", itertools.count())
    monkeypatch.setattr(losses, "is_current_stream_capturing", lambda: False)
    for _ in range(4 * 53):
        assert losses._holds(condition)
    assert condition.looks == 4
    monkeypatch.setattr(losses, "is_current_stream_capturing", lambda: True)
    for _ in range(53):
        assert losses._holds(condition)
    assert condition.looks == 4  # a question would spoil the recording
    assert not losses._holds(torch.tensor(False))  # on a CPU, where it is cheap, every check does
