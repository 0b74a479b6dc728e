"""Every formula of the course, one pure function each: tensors in, tensors out.

Shapes: B rows, T tokens of a row, V words of the vocabulary, N pairs, K answers to one prompt.
Log-probabilities, KL divergences and entropies are in nats. A mask holds 1 (or True) on real
tokens and 0 on padding; what lies under a 0, NaN included, changes neither a result nor a
gradient. Sixteen-bit input is computed in fp32, where the difference of two log-probabilities
still means something. Every function raises ValueError for shapes that do not fit together,
since silent broadcasting of (B, T) against (B,) is a bug that trains.

Papers, by the name used below:
    GAE          Schulman et al. 2015, arXiv 1506.02438
    PPO          Schulman et al. 2017, arXiv 1707.06347
    Ziegler      Ziegler et al. 2019, arXiv 1909.08593
    Schulman     "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html
    InstructGPT  Ouyang et al. 2022, arXiv 2203.02155
    Gao          Gao et al. 2022, arXiv 2210.10760
    DPO          Rafailov et al. 2023, arXiv 2305.18290
    IPO          Azar et al. 2023, arXiv 2310.12036
    KTO          Ethayarajh et al. 2024, arXiv 2402.01306
    GRPO         Shao et al. 2024 (DeepSeekMath), arXiv 2402.03300
    RLOO         Ahmadian et al. 2024, arXiv 2402.14740
    DAPO         Yu et al. 2025, arXiv 2503.14476
    Dr. GRPO     Liu et al. 2025, arXiv 2503.20783
    CISPO        MiniMax 2025 (MiniMax-M1), arXiv 2506.13585
    GSPO         Zheng et al. 2025, arXiv 2507.18071
    Codex        Chen et al. 2021, arXiv 2107.03374
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.cuda import is_current_stream_capturing

# e**20 is far outside any clip range and far inside what fp32 can hold.
_MAX_LOG_RATIO = 20.0
_LOOKS, _LOOK_EVERY = itertools.count(), 53


# --- checks and masks --------------------------------------------------------------------------


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _holds(condition: Tensor) -> bool:
    """Whether a condition on data holds; on a GPU, where to look is to wait, every so many looks.

    A prime number of them: every check of a training step has its turn. While a GPU records what
    it is to do again (a CUDA graph), never: there is nothing to see.
    """
    if condition.is_cuda and (is_current_stream_capturing() or next(_LOOKS) % _LOOK_EVERY):
        return True
    return bool(condition)


def _require_same_shape(function: str, dims: int | None = None, **tensors: Tensor) -> None:
    """Raise ValueError unless the tensors share one shape (with `dims` dimensions, if given)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    _require(len(set(shapes.values())) == 1, f"{function}: give these the same shape: {listed}")
    if dims is not None:
        fits = len(next(iter(shapes.values()))) == dims
        _require(fits, f"{function}: give these {dims} dimension(s): {listed}")


def _require_response_mask(function: str, mask: Tensor) -> None:
    """Raise ValueError unless every row of the (B, T) mask is ones, at least one, then zeros."""
    real = mask.bool()
    starts = _holds(real[:, 0].all()) if real.shape[1] else False
    whole = starts and _holds(~(real[:, 1:] & ~real[:, :-1]).any())
    advice = "pass response tokens alone, padded on the right"
    _require(whole, f"{function}: each row of mask must be ones, then zeros: {advice}")


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    # A product with the mask would keep NaN, as NaN * 0 = NaN, in the value and in the gradient.
    return torch.where(mask.bool(), _full_precision(x), 0.0)


def masked_sum(x: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Sum of `x` over the real positions along `dim`. Taught in chapter 06.

    With x = token log-probs (B, T) and dim = -1: log-probs of whole answers (B,), in nats.

    Args:
        x: any shape.
        mask: same shape; 1 = count, 0 = leave out.
    """
    _require_same_shape("masked_sum", x=x, mask=mask)
    return _zero_padding(x, mask).sum(dim)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over all real positions of the whole tensor, as a scalar. Taught in chapter 06.

    Long rows weigh more than short ones: this is a mean over tokens, not a mean of row means.

    Args:
        x: any shape.
        mask: same shape; 1 = count, 0 = leave out.

    Raises:
        ValueError: nothing is left to average.
    """
    _require_same_shape("masked_mean", x=x, mask=mask)
    count = mask.bool().sum()
    _require(_holds(count > 0), "masked_mean: the mask is all zeros; drop batches without tokens")
    return _zero_padding(x, mask).sum() / count


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the real positions to variance 1; padding comes back as 0. Taught in chapter 05.

    Advantages lose their mean too (Ziegler's code). Rewards keep it (`shift_mean=False`): moving
    every reward by a constant would pay, or fine, the policy for each token it writes.

    Args:
        x: (B, T).
        mask: (B, T); the padding has no part in the mean or the (biased) variance.
        shift_mean: True gives mean 0, False the mean that `x` had.

    Returns:
        (B, T), without gradient.
    """
    mean = masked_mean(x, mask)
    centred = _zero_padding(x, mask) - mean
    # Divided by all tokens, not by one less; a rollout of equal numbers becomes 0, not NaN.
    white = centred * torch.rsqrt(masked_mean(centred**2, mask) + 1e-8)
    return _zero_padding(white if shift_mean else white + mean, mask)


# --- token probabilities -----------------------------------------------------------------------


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token, log softmax(logits / temperature)[token], in nats.

    Taught in chapter 03.

    The logits must be aligned already: `logits[:, t]` predicts `tokens[:, t]`. For the response
    to a prompt of P tokens, a causal model's logits are `logits[:, P - 1 : -1]`.

    Args:
        logits: (B, T, V), any float type; left as they are.
        tokens: (B, T) ids from 0 to V - 1, on padding too.
        temperature: the one that the tokens were sampled at.

    Returns:
        (B, T), fp32 at least.

    Raises:
        ValueError: shapes do not fit, an id is not in the vocabulary, or temperature <= 0.
    """
    _require_tokens(logits, tokens)
    # Gather minus logsumexp needs no second (B, T, V) tensor, but is exact only in fp32.
    scaled = _temper(logits, temperature)
    chosen = scaled.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each next-token distribution, -sum p log p, in nats.

    Args:
        logits: (B, T, V), any float type; -inf (an excluded token) is fine.
        temperature: the one that tokens are sampled at.

    Returns:
        (B, T), from 0 to log V.
    """
    logprobs = _temper(logits, temperature).log_softmax(-1)
    # 0 * -inf would be NaN; the limit of p log p at p = 0 is 0.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)


def _require_tokens(logits: Tensor, tokens: Tensor) -> None:
    shapes = f"logits {tuple(logits.shape)}, tokens {tuple(tokens.shape)}"
    fits = logits.shape[:-1] == tokens.shape
    _require(fits, f"token_logprobs: give logits (B, T, V) for tokens (B, T), not {shapes}")
    size = logits.shape[-1]
    known = _holds(((tokens >= 0) & (tokens < size)).all())
    advice = "mark padding in the mask, not by an id such as -100"
    _require(known, f"token_logprobs: token ids must be from 0 to {size - 1}: {advice}")


def _temper(logits: Tensor, temperature: float) -> Tensor:
    _require(temperature > 0, f"temperature must be above 0 to score tokens, not {temperature}")
    # Not in place: the caller may use the same logits again.
    logits = _full_precision(logits)
    return logits if temperature == 1 else logits / temperature


# --- supervised fine-tuning --------------------------------------------------------------------


def sft_loss(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the demonstrations, nats per answer token (InstructGPT 3.5).

    Taught in chapter 03.

    Args:
        logprobs: (B, T) of the right tokens, from `token_logprobs`.
        mask: (B, T); 1 on answer tokens and their end-of-text, 0 on prompt and padding.
    """
    return -masked_mean(logprobs, mask)


def ptx_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Next-token loss on pretraining text, nats per token: the gamma term of InstructGPT Eq. 2.

    Taught in chapter 08.

    It shifts by itself: `logits[:, t]` is compared with `tokens[:, t + 1]`. The trainer adds
    gamma times this to the PPO loss before one backward pass and one optimiser step.

    Args:
        logits: (B, T, V), as the model returns them for `tokens`.
        tokens: (B, T).
        mask: (B, T); 0 on tokens that are not to be predicted. None: all real.
    """
    _require(tokens.shape[-1] >= 2, "ptx_loss: rows need two tokens or more to predict one")
    mask = torch.ones_like(tokens) if mask is None else mask
    _require_same_shape("ptx_loss", dims=2, tokens=tokens, mask=mask)
    _require_tokens(logits, tokens)
    return sft_loss(token_logprobs(logits[:, :-1], tokens[:, 1:]), mask[:, 1:])


# --- reward model ------------------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: float | Tensor = 0.0) -> Tensor:
    """Negative log-likelihood of the labels, -log sigmoid(chosen - rejected - margin), mean.

    Taught in chapter 04.

    InstructGPT Eq. 1 for K = 2; the margin is Eq. 2 of Llama 2 (arXiv 2307.09288).

    Args:
        chosen: (N,) scores of the preferred answers.
        rejected: (N,) scores of the others.
        margin: how far apart the scores should be; a number, or (N,).
    """
    _require_same_shape("bradley_terry_loss", dims=1, chosen=chosen, rejected=rejected)
    _require(len(chosen) > 0, "bradley_terry_loss: there are no pairs; drop empty batches")
    if isinstance(margin, Tensor) and margin.dim() > 0:
        _require_same_shape("bradley_terry_loss", chosen=chosen, margin=margin)
    # logsigmoid stays finite where log(sigmoid(x)) is log(0).
    return -F.logsigmoid(_full_precision(chosen) - _full_precision(rejected) - margin).mean()


def kwise_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """InstructGPT Eq. 1 for one prompt: mean pair loss over the C(K, 2) pairs without ties.

    Taught in chapter 04.

    Args:
        scores: (K,) scores of the answers to one prompt.
        ranks: (K,) whole numbers from 1, the best; equal ranks are ties and give no pair.

    Returns:
        Scalar; 0 if there is no pair (K = 1, or all tied).

    Raises:
        ValueError: a rank is below 1.
    """
    _require_same_shape("kwise_loss", dims=1, scores=scores, ranks=ranks)
    _require(_holds((ranks >= 1).all()), "kwise_loss: ranks start at 1 (best); remove others")
    return kwise_batch_loss(scores.unsqueeze(0), ranks.unsqueeze(0))


def kwise_batch_loss(scores: Tensor, ranks: Tensor) -> Tensor:
    """Mean over prompts of `kwise_loss`: each prompt counts once, whatever its K.

    Taught in chapter 04.

    Args:
        scores: (B, K), padded to the largest K.
        ranks: (B, K) whole numbers from 1, the best; 0 marks an absent answer.

    Returns:
        Scalar; prompts without a pair do not count, and 0 if none has one.

    Raises:
        ValueError: a rank is negative.
    """
    _require_same_shape("kwise_batch_loss", dims=2, scores=scores, ranks=ranks)
    _require(_holds((ranks >= 0).all()), "kwise_batch_loss: ranks are 1, 2, ... or 0 for absent")
    present = ranks > 0
    scores = _zero_padding(scores, present)
    # [b, i, j]: answer i was ranked above answer j.
    above = ranks.unsqueeze(2) < ranks.unsqueeze(1)
    above = above & present.unsqueeze(2) & present.unsqueeze(1)
    gaps = scores.unsqueeze(2) - scores.unsqueeze(1)
    # A mean in each prompt first: one with nine answers, 36 pairs, counts as much as one with four.
    pairs = above.sum((1, 2))
    pair_means = masked_sum(-F.logsigmoid(gaps), above, dim=(1, 2)) / pairs.clamp(min=1)
    return pair_means.sum() / (pairs > 0).sum().clamp(min=1)


@torch.no_grad()
def reward_bias(scores_of_demonstrations: Tensor) -> Tensor:
    """What to add to every score so that demonstrations score 0 on average (InstructGPT 3.5).

    Taught in chapter 04.

    The pair loss leaves this free: it sees differences of scores only.

    Args:
        scores_of_demonstrations: (N,).

    Returns:
        Scalar, without gradient.
    """
    _require(scores_of_demonstrations.numel() > 0, "reward_bias: give at least one demonstration")
    return -_full_precision(scores_of_demonstrations).mean()


# --- KL divergence -----------------------------------------------------------------------------


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 = log(policy / reference): unbiased for KL(policy || reference) (Schulman).

    Taught in chapter 06.

    A single value may be negative. Summed over an answer it is the KL of the PPO reward. As a
    loss it is useless: its expected gradient is 0.

    Args:
        logprobs: (B, T) of tokens *sampled from the policy*, in nats.
        ref_logprobs: (B, T) of the same tokens under the reference.
    """
    _require_same_shape("kl_k1", logprobs=logprobs, ref_logprobs=ref_logprobs)
    return _full_precision(logprobs) - _full_precision(ref_logprobs)


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = log(policy / reference)**2 / 2: never negative, biased (Schulman). Taught in chapter 06.

    Arguments and shapes as in `kl_k1`. As a loss it has the expected gradient of
    KL(policy || reference).
    """
    return kl_k1(logprobs, ref_logprobs) ** 2 / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 = (r - 1) - log r with r = reference / policy: never negative, unbiased (Schulman).

    Taught in chapter 06.

    Arguments and shapes as in `kl_k1`. As a loss it has the expected gradient of the other
    divergence, KL(reference || policy).
    """
    log_r = -kl_k1(logprobs, ref_logprobs)
    # expm1: near 0, exp(x) - 1 would lose the digits that matter.
    return torch.expm1(log_r) - log_r


def adaptive_kl(beta: float, kl: float, target: float, n: int, horizon: int) -> float:
    """The next KL coefficient: beta * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon).

    Taught in chapter 06.

    Ziegler section 2.2; that the step is in proportion to n / horizon is from its code.

    Args:
        beta: coefficient so far.
        kl: measured KL of whole answers (summed over tokens, mean over answers), nats.
        target: wanted KL, nats per answer.
        n: answers since the last call.
        horizon: answers over which beta may change by 20 %.

    Raises:
        ValueError: kl is not finite, or target or horizon is not positive.
    """
    kl = float(kl)
    _require(target > 0 and horizon > 0, "adaptive_kl: target and horizon must be above 0")
    _require(math.isfinite(kl), f"adaptive_kl: kl is {kl}; look for NaN in the log-probabilities")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return float(beta) * (1 + error * n / horizon)


# --- PPO ---------------------------------------------------------------------------------------


@torch.no_grad()
def shaped_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Reward of each token: -beta * k1, plus the answer's score on its last real token.

    Taught in chapter 06.

    Over an answer this adds up to r - beta log(policy / reference), the PPO part of InstructGPT
    Eq. 2 (Ziegler section 2.2 has the same).

    Args:
        scores: (B,) of the reward model.
        logprobs: (B, T) of the sampled tokens under the policy that sampled them, nats.
        ref_logprobs: (B, T) of the same tokens under the reference, nats.
        mask: (B, T); 1 through end-of-text, then 0.
        beta: reward per nat.

    Returns:
        (B, T), 0 on padding, without gradient.

    Raises:
        ValueError: shapes do not fit, or a row of the mask is not ones, then zeros.
    """
    where = "shaped_rewards"
    _require_same_shape(where, dims=2, logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    _require_response_mask(where, mask)
    _require_same_shape(where, scores=scores, **{"one number a row": mask[:, 0]})
    rewards = _zero_padding(-beta * kl_k1(logprobs, ref_logprobs), mask)
    # The score belongs to the whole answer; its last token, end-of-text if there is one, earns it.
    last = mask.bool().sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (GAE Eq. 16; PPO Eq. 11 and 12). Taught in chapter 05.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}

    The value after the last real token is 0, also when the answer was cut off by the token
    limit: such an answer has had all the reward that it will get.

    Args:
        rewards: (B, T).
        values: (B, T); `values[:, t]` was estimated *before* token t.
        mask: (B, T); ones, then zeros.
        gamma: discount; 1 for language models.
        lam: 0 trusts the critic after one step, 1 never.

    Returns:
        advantages (B, T), and returns = advantages + values (B, T), the critic's target. Both
        are 0 on padding and without gradient.

    Raises:
        ValueError: shapes do not fit, or a row of the mask is not ones, then zeros.
    """
    _require_same_shape("gae", dims=2, rewards=rewards, values=values, mask=mask)
    _require_response_mask("gae", mask)
    # Before the recursion: afterwards the padding's values would be in the real advantages.
    rewards, values = _zero_padding(rewards, mask), _zero_padding(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    # From the last token backwards, as each advantage is made from the one after it; behind the
    # last there is nothing to expect, so the recursion starts at 0.
    for t in reversed(range(values.shape[1])):
        # Was this token's reward, with what is expected after it, more than was expected before?
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        advantages[:, t], next_value = next_advantage, values[:, t]
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective (PPO Eq. 7) with the sign of a loss, mean over tokens.

    Taught in chapter 05.

    Args:
        logprobs: (B, T) of the sampled tokens under the policy being trained, nats. The only
            argument that gradients flow into.
        old_logprobs: (B, T) of the same tokens under the policy that sampled them, nats.
        advantages: (B, T).
        mask: (B, T).
        clip: the ratio's free range is 1 - clip to 1 + clip.

    Returns:
        The loss, and scalars to log, means over the real tokens and without gradient:
        clip_fraction (where clipping set the loss), approx_kl (KL(old || new) in nats per token,
        by k3) and ratio_mean.
    """
    log_ratio = _log_ratio("policy_loss", logprobs, old_logprobs, advantages, mask)
    ratio = log_ratio.exp()
    advantages = _zero_padding(advantages.detach(), mask)
    free, clipped = _free_and_clipped(ratio, advantages, clip)
    diagnostics = {
        "clip_fraction": masked_mean((clipped > free).float(), mask),
        "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask).detach(),
        "ratio_mean": masked_mean(ratio, mask).detach(),
    }
    return masked_mean(torch.maximum(free, clipped), mask), diagnostics


def _log_ratio(
    function: str, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """log(new / old probability) of each token, (B, T), 0 on padding."""
    tensors = {"logprobs": logprobs, "old_logprobs": old_logprobs, "advantages": advantages}
    _require_same_shape(function, **tensors, mask=mask)
    log_ratio = _zero_padding(kl_k1(logprobs, old_logprobs.detach()), mask)
    # exp of a large number is infinite, and infinity times 0 is NaN.
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _free_and_clipped(
    ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """-ratio * advantage without and with the clip; as losses, so that the larger one counts."""
    clip_high = clip if clip_high is None else clip_high
    _require(min(clip, clip_high) > 0, f"loss: clip must be above 0, not {clip} or {clip_high}")
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip_high)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """The critic's squared error, halved, with the value kept near its old one; token mean.

    Taught in chapter 06.

    0.5 * max((V - R)**2, (clip(V, V_old - clip, V_old + clip) - R)**2), as in Ziegler's code;
    PPO Eq. 9 has the unclipped error.

    Args:
        values: (B, T) of the critic being trained. The only argument that gradients flow into.
        old_values: (B, T) of the critic at the time of the rollout.
        returns: (B, T), from `gae`.
        mask: (B, T).
        clip: how far a value may move, in units of reward.
    """
    tensors = {"values": values, "old_values": old_values, "returns": returns}
    _require_same_shape("value_loss", **tensors, mask=mask)
    _require(clip > 0, f"value_loss: clip must be above 0, not {clip}")
    # Padding is zeroed first: the gradient of a square at NaN is NaN, even times 0.
    values = _zero_padding(values, mask)
    old_values = _zero_padding(old_values.detach(), mask)
    returns = _zero_padding(returns.detach(), mask)
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    # The larger of the two: clipping may hold the critic back, never flatter it.
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


# --- several answers to a prompt instead of a critic -------------------------------------------


@torch.no_grad()
def leave_one_out(rewards: Tensor) -> Tensor:
    """Each answer's reward less the mean of the other answers to its prompt (RLOO).

    Taught in chapter 12.

    The others were sampled without it, so that their mean is a baseline which leaves the policy
    gradient unbiased.

    Args:
        rewards: (B, K), K answers to each of B prompts.

    Returns:
        (B, K) advantages of whole answers, without gradient; each row sums to 0.

    Raises:
        ValueError: there are no other answers, K = 1.
    """
    k = _require_groups("leave_one_out", rewards)
    rewards = _full_precision(rewards)
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (k - 1)


@torch.no_grad()
def group_advantages(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """(reward - mean) / (std + eps) over the answers to each prompt (GRPO). Taught in chapter 12.

    The scale of the rewards drops out, and with it how much is at stake in this prompt. The std
    is the one of these K numbers (divisor K).

    Args:
        rewards: (B, K), K answers to each of B prompts.
        eps: answers that all score the same get 0, not 0 / 0.

    Returns:
        (B, K) advantages of whole answers, without gradient; each row sums to 0.

    Raises:
        ValueError: there is one answer only, K = 1.
    """
    _require_groups("group_advantages", rewards)
    centred = _full_precision(rewards) - _full_precision(rewards).mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)


def answer_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over answers of each answer's mean over its tokens, a scalar (GRPO).

    Taught in chapter 12.

    Every answer weighs the same, so a token of a long one weighs less; compare `masked_mean`.

    Args:
        x: (B, T).
        mask: (B, T).

    Raises:
        ValueError: shapes do not fit, or an answer has no token.
    """
    _require_same_shape("answer_mean", dims=2, x=x, mask=mask)
    lengths = mask.bool().sum(1)
    _require(len(x) > 0 and _holds((lengths > 0).all()), "answer_mean: an answer has no token")
    return (masked_sum(x, mask) / lengths).mean()


def _require_groups(function: str, rewards: Tensor) -> int:
    """Raise ValueError unless rewards are (B, K) with K >= 2; return K."""
    grouped = rewards.dim() == 2 and rewards.shape[1] > 1
    shape = tuple(rewards.shape)
    _require(grouped, f"{function}: give rewards (B, K) of K >= 2 answers a prompt, not {shape}")
    return rewards.shape[1]


# --- GRPO's loss, and what came after it -------------------------------------------------------
# Each takes what `policy_loss` takes, in the same order, so that `train_ppo` can use any of them.


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> Tensor:
    """PPO's clipped objective, as a loss: a mean over each answer's tokens, then over answers.

    Taught in chapter 12.

    GRPO Eq. 3, without its KL.

    Args:
        logprobs: (B, T) of the sampled tokens under the policy being trained, nats. The only
            argument that gradients flow into.
        old_logprobs: (B, T) under the policy that sampled them.
        advantages: (B, T); in GRPO all tokens of an answer have the same.
        mask: (B, T).
        clip, clip_high: the ratio's free range is 1 - clip to 1 + clip_high; None: 1 + clip.
    """
    each = _surrogate("grpo_loss", logprobs, old_logprobs, advantages, mask, clip, clip_high)
    return answer_mean(each, mask)


def dapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float = 0.28,
) -> Tensor:
    """A mean over all tokens, and more room upwards than downwards ("clip-higher", DAPO).

    Taught in chapter 12. Arguments as in `grpo_loss`.
    """
    each = _surrogate("dapo_loss", logprobs, old_logprobs, advantages, mask, clip, clip_high)
    return masked_mean(each, mask)


def dr_grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    length: int = 48,
) -> Tensor:
    """A sum over tokens, divided by a constant: no token's weight depends on any length (Dr. GRPO).

    Taught in chapter 12. Arguments as in `grpo_loss`; length is the longest answer allowed. The
    advantages that belong to it are not divided by the std.
    """
    _require(length > 0, f"dr_grpo_loss: length must be above 0, not {length}")
    each = _surrogate("dr_grpo_loss", logprobs, old_logprobs, advantages, mask, clip)
    return masked_sum(each, mask).mean() / length


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 3e-4,
    clip_high: float | None = None,
) -> Tensor:
    """One ratio for a whole answer, (new / old probability)**(1 / length), clipped (GSPO).

    Taught in chapter 12.

    Arguments as in `grpo_loss`, but one advantage an answer: that of its first token is taken. The
    paper has clip 3e-4 and clip_high 4e-4, as a mean over tokens moves far less than one of them.
    """
    log_ratio = _log_ratio("gspo_loss", logprobs, old_logprobs, advantages, mask)
    _require_response_mask("gspo_loss", mask)
    ratio = (masked_sum(log_ratio, mask) / mask.bool().sum(1)).exp()
    free, clipped = _free_and_clipped(ratio, advantages[:, 0].detach(), clip, clip_high)
    return torch.maximum(free, clipped).mean()


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """REINFORCE with each token weighed by min(ratio, 1 + clip), a constant (CISPO).

    Taught in chapter 12.

    A clipped token keeps a gradient here, where `policy_loss` gives it none. Token mean; arguments
    as in `grpo_loss`.
    """
    _require(clip > 0, f"cispo_loss: clip must be above 0, not {clip}")
    log_ratio = _log_ratio("cispo_loss", logprobs, old_logprobs, advantages, mask)
    weight = log_ratio.exp().clamp(max=1 + clip).detach()
    return -masked_mean(weight * _zero_padding(advantages.detach(), mask) * logprobs, mask)


def _surrogate(
    function: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    clip_high: float | None = None,
) -> Tensor:
    """The clipped loss of each token, (B, T), 0 on padding."""
    ratio = _log_ratio(function, logprobs, old_logprobs, advantages, mask).exp()
    advantages = _zero_padding(advantages.detach(), mask)
    free, clipped = _free_and_clipped(ratio, advantages, clip, clip_high)
    return torch.maximum(free, clipped)


@torch.no_grad()
def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """What is added to the rewards of long answers: 0, falling to -1 at the limit (DAPO).

    Taught in chapter 12.

    Args:
        lengths: (B,) tokens.
        limit: tokens of the longest answer.
        buffer: tokens before the limit in which the penalty grows, in a line.
    """
    _require(0 < buffer <= limit, f"overlong_penalty: buffer must be from 1 to {limit}")
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)


@torch.no_grad()
def truncated_weights(
    logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float = 2.0
) -> Tensor:
    """min(trainer / sampler probability, cap) of each token: truncated importance sampling.

    Taught in chapter 12.

    For a rollout whose sampler is not quite the policy: other numbers, other kernels, old weights.
    Multiplied by them, the loss of such tokens has nearly the expected gradient of the policy's
    own; the cap keeps a single token from outweighing a batch (Yao et al. 2025,
    fengyao.notion.site/off-policy-rl).

    Args:
        logprobs: (B, T) under the policy as the trainer computes it, before any update, nats.
        sampler_logprobs: (B, T) as the sampler computed them.
        mask: (B, T).
        cap: the largest weight.

    Returns:
        (B, T), 0 on padding.
    """
    _require_same_shape("truncated_weights", logprobs=logprobs, mask=mask)
    _require(cap > 0, f"truncated_weights: cap must be above 0, not {cap}")
    log_ratio = _zero_padding(kl_k1(logprobs, sampler_logprobs), mask)
    return _zero_padding(log_ratio.clamp(max=_MAX_LOG_RATIO).exp().clamp(max=cap), mask)


@torch.no_grad()
def pass_at_k(solved: Tensor, k: int) -> Tensor:
    """How probably one of k answers to a prompt is right, from n >= k of them (Codex).

    Taught in chapter 12.

    1 - C(n - c, k) / C(n, k) with c right ones: of all sets of k out of the n answers, the share
    that holds a right one. 1 - (1 - c / n)**k would be biased.

    Args:
        solved: (B, n), 1 for a right answer, 0 for a wrong one.
        k: from 1 to n.

    Returns:
        (B,), from 0 to 1.
    """
    _require(solved.dim() == 2, f"pass_at_k: give solved (B, n), not {tuple(solved.shape)}")
    n = solved.shape[1]
    _require(1 <= k <= n, f"pass_at_k: k must be from 1 to the {n} answers, not {k}")
    wrong = n - solved.double().sum(1, keepdim=True)
    drawn = torch.arange(k, device=solved.device)
    # The k draws one after the other: how probably each is wrong, if all before it were.
    return 1 - ((wrong - drawn).clamp(min=0) / (n - drawn)).prod(1)


def reverse_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher) of each next-token distribution, over the whole vocabulary, nats.

    Taught in chapter 12.

    Averaged over the student's own answers it is the loss of on-policy distillation (Agarwal et
    al. 2023, arXiv 2306.13649).

    Args:
        logits: (B, T, V) of the student; gradients flow into these alone.
        teacher_logits: (B, T, V) of the teacher, at the same tokens.

    Returns:
        (B, T), never negative but for rounding.
    """
    _require_same_shape("reverse_kl", dims=3, logits=logits, teacher_logits=teacher_logits)
    ours = _full_precision(logits).log_softmax(-1)
    theirs = _full_precision(teacher_logits.detach()).log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


# --- direct preference optimisation ------------------------------------------------------------


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO Eq. 7; with label smoothing e, -(1 - e) log sigmoid(h) - e log sigmoid(-h).

    Taught in chapter 09.

    h is the difference of the implicit rewards beta * log(policy / reference). The smoothed form
    ("conservative DPO", Mitchell 2023) takes each label to be wrong with probability e.

    Args:
        policy_chosen, policy_rejected: (N,) log-probs of whole answers under the policy, nats:
            *sums* over tokens, not means. Gradients flow into these two only.
        ref_chosen, ref_rejected: (N,) the same under the reference.
        beta: reward per nat.
        label_smoothing: e, from 0 to 0.5.

    Returns:
        The loss, a mean over pairs, and the implicit rewards of the chosen and the rejected
        answers, (N,) each, without gradient.
    """
    _require(beta > 0, f"dpo_loss: beta must be above 0, not {beta}")
    known = 0 <= label_smoothing <= 0.5
    _require(known, f"dpo_loss: label_smoothing must be from 0 to 0.5, not {label_smoothing}")
    chosen, rejected = _log_ratios(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    # logsigmoid and not the log of a sigmoid, which is log 0 where the model is very wrong.
    h = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)
    return losses.mean(), beta * chosen.detach(), beta * rejected.detach()


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """IPO Eq. 17: (difference of the log-ratios - 1 / (2 tau))**2, mean over pairs.

    Taught in chapter 09.

    The margin has a target, where DPO pushes it on for ever.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: (N,) as in `dpo_loss`.
        tau: strength of the pull towards the reference; the beta of DPO.

    Returns:
        The loss, and tau * log(policy / reference) of the chosen and the rejected answers, (N,)
        each, without gradient.
    """
    _require(tau > 0, f"ipo_loss: tau must be above 0, not {tau}")
    chosen, rejected = _log_ratios(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    losses = (chosen - rejected - 1 / (2 * tau)) ** 2
    return losses.mean(), tau * chosen.detach(), tau * rejected.detach()


def length_normalised_dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO Eq. 7 with each log-ratio divided by the answer's length (Tulu 3, arXiv 2411.15124).

    Taught in chapter 12.

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: (N,) *sums*, as in `dpo_loss`.
        chosen_lengths, rejected_lengths: (N,) tokens summed over, end-of-text included.
        beta: reward per (nat per token), so larger than in `dpo_loss`.

    Returns:
        As `dpo_loss`, with rewards beta * log(policy / reference) / length.
    """
    where = "length_normalised_dpo_loss"
    _require(beta > 0, f"{where}: beta must be above 0, not {beta}")
    chosen, rejected = _log_ratios(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    chosen = _per_token(where, beta * chosen, chosen_lengths)
    rejected = _per_token(where, beta * rejected, rejected_lengths)
    return -F.logsigmoid(chosen - rejected).mean(), chosen.detach(), rejected.detach()


def hinge_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """max(0, 1 - h), h as in `dpo_loss`: a pair that is in order by enough is left alone.

    Taught in chapter 12.

    The hinge of SLiC (Zhao et al. 2023, arXiv 2305.10425) on DPO's rewards, as in Liu et al. 2023,
    arXiv 2309.06657. Arguments and results as in `dpo_loss`.
    """
    _require(beta > 0, f"hinge_loss: beta must be above 0, not {beta}")
    chosen, rejected = _log_ratios(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    losses = F.relu(1 - beta * (chosen - rejected))
    return losses.mean(), beta * chosen.detach(), beta * rejected.detach()


def simpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    margin: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, Eq. 6): mean log-probs, and no reference.

    Taught in chapter 12.

    -log sigmoid(beta * (mean log-prob of the chosen - of the rejected answer) - margin)

    Args:
        policy_chosen, policy_rejected: (N,) *sums* over tokens, nats; gradients flow into both.
        chosen_lengths, rejected_lengths: (N,) tokens summed over, end-of-text included.
        beta: reward per (nat per token).
        margin: by how much the chosen answer's reward shall be larger, gamma in the paper.

    Returns:
        The loss, a mean over pairs, and the rewards beta * mean log-prob, (N,), without gradient.
    """
    _require(beta > 0, f"simpo_loss: beta must be above 0, not {beta}")
    chosen = beta * _per_token("simpo_loss", policy_chosen, chosen_lengths)
    rejected = beta * _per_token("simpo_loss", policy_rejected, rejected_lengths)
    losses = -F.logsigmoid(chosen - rejected - margin)
    return losses.mean(), chosen.detach(), rejected.detach()


def orpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """ORPO (Hong et al. 2024, arXiv 2403.07691, Eq. 6 and 7): SFT and preference in one.

    Taught in chapter 12.

    -(mean log-prob of the chosen answer) - beta log sigmoid(log(odds of chosen / odds of rejected))

    with odds(y) = p / (1 - p) and log p the mean log-prob of its tokens. There is no reference.
    Arguments as in `simpo_loss`; beta is the paper's lambda.

    Returns:
        The loss, a mean over pairs, and beta * mean log-prob, (N,) each, without gradient.
    """
    _require(beta > 0, f"orpo_loss: beta must be above 0, not {beta}")
    chosen = _per_token("orpo_loss", policy_chosen, chosen_lengths)
    rejected = _per_token("orpo_loss", policy_rejected, rejected_lengths)
    odds = _log_odds(chosen) - _log_odds(rejected)
    losses = -chosen - beta * F.logsigmoid(odds)
    return losses.mean(), beta * chosen.detach(), beta * rejected.detach()


def _per_token(function: str, sums: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-probs (N,) of answers, from their sums and lengths."""
    _require_same_shape(function, dims=1, sums=sums, lengths=lengths)
    _require(len(sums) > 0, f"{function}: there are no pairs; drop empty batches")
    positive = _holds((lengths > 0).all())
    _require(positive, f"{function}: lengths must be 1 or more; count the end-of-text token")
    return _full_precision(sums) / lengths


def _log_odds(logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; p is kept a little below 1, where the odds would be infinite."""
    logprobs = logprobs.clamp(max=-1e-6)
    return logprobs - torch.log(-torch.expm1(logprobs))


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    kl: float | Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """KTO's loss on single answers, each with a thumb up or down, mean over answers.

    Taught in chapter 12.

    desirable:    w_d (1 - sigmoid(beta (log(policy / reference) - kl)))
    undesirable:  w_u (1 - sigmoid(beta (kl - log(policy / reference))))

    Args:
        logprobs: (N,) log-probs of whole answers under the policy, nats. The only argument that
            gradients flow into.
        ref_logprobs: (N,) the same under the reference.
        desirable: (N,) booleans, True for a thumb up.
        kl: KL(policy || reference) in nats, a number or (N,): the point that an answer is
            compared with. Taken as 0 where an estimate is below it.
        beta: reward per nat.
        desirable_weight, undesirable_weight: lambda_D and lambda_U, for unequal numbers.

    Returns:
        The loss, and the implicit rewards beta * log(policy / reference), (N,), without gradient.
    """
    _require(beta > 0, f"kto_loss: beta must be above 0, not {beta}")
    tensors = {"logprobs": logprobs, "ref_logprobs": ref_logprobs, "desirable": desirable}
    _require_same_shape("kto_loss", dims=1, **tensors)
    _require(len(logprobs) > 0, "kto_loss: there are no answers; drop empty batches")
    ratios = kl_k1(logprobs, ref_logprobs.detach())
    if isinstance(kl, Tensor) and kl.dim() > 0:
        _require_same_shape("kto_loss", logprobs=logprobs, kl=kl)
    point = torch.as_tensor(kl, dtype=ratios.dtype, device=ratios.device).detach().clamp(min=0)
    up, thumb = beta * (ratios - point), desirable.bool()
    losses = torch.where(
        thumb, desirable_weight * torch.sigmoid(-up), undesirable_weight * torch.sigmoid(up)
    )
    return losses.mean(), beta * ratios.detach()


def _log_ratios(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> tuple[Tensor, Tensor]:
    """log(policy / reference) of the chosen and of the rejected answers, (N,) each, in nats."""
    policy = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    reference = {"ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    _require_same_shape("preference loss", dims=1, **policy, **reference)
    _require(len(policy_chosen) > 0, "preference loss: there are no pairs; drop empty batches")
    chosen = kl_k1(policy_chosen, ref_chosen.detach())
    return chosen, kl_k1(policy_rejected, ref_rejected.detach())


# --- best of n ---------------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n, in nats: KL(best of n || the policy sampled from), at most (Gao).

    Taught in chapter 07.

    Equality needs answers that never repeat and scores that never tie; with discrete text it is
    an upper bound (Beirami et al. 2024, arXiv 2401.01879).

    Raises:
        ValueError: n is below 1.
    """
    _require(n >= 1, f"best_of_n_kl: n must be 1 or more, not {n}")
    return math.log(n) - (n - 1) / n


def penalise_missing_end(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """Scores (B,) in which an answer that never ended earns less than a demonstration.

    Taught in chapter 06.

    A reward model has hardly seen such answers, and what it says of them is a guess, often a
    flattering one: a score above 0, the demonstrations' mean, counts as 0, and the penalty (in
    points of reward) comes off. Stiennon et al. 2020 (arXiv 2009.01325) used a fixed low score.

    Args:
        scores: (B,) of a normalised reward model.
        ended: (B,) booleans.
    """
    # At most 0 before the penalty: else a long answer could buy itself free with a good score.
    return torch.where(ended, scores, scores.clamp(max=0.0) - penalty)


def best_of_n(scores: Tensor) -> Tensor:
    """Index of the best-scored of the n answers to each prompt; the first of equals.

    Taught in chapter 07.

    Args:
        scores: (B, n).

    Returns:
        (B,) indices from 0 to n - 1.

    Raises:
        ValueError: a score is NaN, which torch would take for the best.
    """
    _require(scores.dim() == 2 and scores.shape[1] > 0, "best_of_n: give scores of shape (B, n)")
    _require(_holds(~scores.isnan().any()), "best_of_n: a score is NaN; check the reward model")
    return scores.argmax(1)
