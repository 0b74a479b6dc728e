"""Checks of chapter 08: PPO-ptx and the alignment tax."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Check, numbers


def objective(
    scores: Tensor,
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor,
    text: Tensor,
    beta: float,
    gamma: float,
) -> Tensor:
    """student(scores (B,), logprobs (B, R), reference (B, R), mask (B, R), text (N,), beta, gamma).

    It returns InstructGPT's Eq. 2, a number to be maximised; `text` holds the policy's log-probs
    of N tokens of pretraining text.
    """
    kl = losses.masked_sum(logprobs - reference, mask)
    return (scores - beta * kl).mean() + gamma * text.mean()


def _with(change: Callable[[float, float], tuple[float, float]]) -> Callable[..., Tensor]:
    """The objective with another beta and gamma."""
    return lambda *inputs: objective(*inputs[:5], *change(*inputs[5:]))


def _priced(price: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The objective with another price, of log-ratios (B, R) without padding and of the mask."""
    return lambda s, p, q, m, x, b, g: s.mean() - b * price((p - q) * m, m) + g * x.mean()


check_objective = Check(
    objective,
    cases=[
        {
            "scores": numbers(1.0, -0.5),
            "logprobs": numbers([-1.0, -0.5, -2.0], [-0.3, -1.2, -9.0]),
            "reference": numbers([-1.5, -0.7, -1.0], [-0.9, -1.0, -1.0]),
            "mask": numbers([1, 1, 1], [1, 1, 0]),
            "text": numbers(-0.7, -2.0, -0.1, -1.6),
            "beta": 0.2,
            "gamma": 0.5,
        },
        {
            "scores": numbers(0.3, 2.0),
            "logprobs": numbers([-0.2, -0.5], [-0.3, -3.0]),
            "reference": numbers([-1.2, -0.7], [-0.8, -1.0]),
            "mask": numbers([1, 1], [1, 0]),
            "text": numbers(-0.4, -3.0),
            "beta": 0.05,
            "gamma": 3.0,
        },
    ],
    mistakes={
        "padding counts: multiply the log-ratio by the mask before "
        "you add it up": lambda s, p, q, m, *rest: objective(s, p, q, m**0, *rest),
        "the KL is a mean over tokens: Eq. 2 has the log-ratio of the whole answer, "
        "the sum over its tokens": _priced(lambda kl, m: (kl.sum(-1) / m.sum(-1)).mean()),
        "the KL is a mean over the tokens of all answers: Eq. 2 has the log-ratio "
        "of a whole answer, the sum over its tokens": _priced(lambda kl, m: kl.sum() / m.sum()),
        "the KL is a mean over answers and tokens: add up over the tokens, "
        "sum(-1), and take the mean over answers": _priced(lambda kl, m: kl.mean()),
        "the KL is a sum over all answers: add up over the tokens, "
        "and take the mean over answers, as with the scores": _priced(lambda kl, m: kl.sum()),
        "the log-ratio is weighed by the policy's probability; the answers are sampled from "
        "the policy, so each token counts once": lambda s, p, q, m, x, b, g: (
            (s - b * (p.exp() * (p - q) * m).sum(-1)).mean() + g * x.mean()
        ),
        "you pay for being far from the reference: the KL is subtracted, "
        "and its log-ratio is policy less reference": _with(lambda b, g: (-b, g)),
        "the sign of gamma: log-probabilities of the text are to go up too, "
        "so they are added to what is maximised": _with(lambda b, g: (b, -g)),
        "that is the loss; the objective is what goes up, so without the minus": lambda *inputs: (
            -objective(*inputs)
        ),
        "the text enters with probabilities; "
        "Eq. 2 has their logarithms": lambda s, p, q, m, x, *rest: objective(
            s, p, q, m, x.exp(), *rest
        ),
        "a sum over the text: take the mean over its tokens, so that gamma does not depend on how "
        "much text is mixed in": lambda s, p, q, m, x, *rest: objective(
            s, p, q, m, x * len(x), *rest
        ),
        "the text is missing: this is the objective of PPO without pretraining text": _with(
            lambda b, g: (b, 0.0)
        ),
        "the KL is missing: what is far from the reference should cost": _with(
            lambda b, g: (0.0, g)
        ),
        "beta has no effect: it is the price of one nat of KL": _with(lambda b, g: (1.0, g)),
        "gamma has no effect: it is the weight of the text": _with(lambda b, g: (b, 1.0)),
        "neither beta nor gamma has an effect: "
        "one is the price of KL, the other the weight of the text": _with(lambda b, g: (1.0, 1.0)),
        "beta and gamma are exchanged: "
        "beta is the price of KL, gamma the weight of the text": _with(lambda b, g: (g, b)),
    },
    success="right: score, less the price of distance, plus gamma times the text's log-likelihood",
)


def _picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def ptx_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """student(logits (B, T, V), tokens (B, T)) -> mean next-token loss on a text, a scalar."""
    return losses.ptx_loss(logits, tokens)


_random = torch.Generator().manual_seed(0)


check_ptx_loss = Check(
    ptx_loss,
    cases=[
        {
            "logits": torch.randn(*shape, 5, generator=_random, dtype=torch.float64),
            "tokens": torch.randint(5, shape, generator=_random),
        }
        for shape in ((2, 4), (1, 3))
    ],
    mistakes={
        "each token is predicted from itself: the logits at place t are a guess at token t + 1, "
        "so leave out the last logits and the first token": lambda x, t: -_picked(x, t).mean(),
        "shifted the wrong way: the logits at place t are a guess at token t + 1": lambda x, t: (
            -_picked(x[:, 1:], t[:, :-1]).mean()
        ),
        "the minus is missing: the text should become likelier, "
        "and an optimiser goes down": lambda x, t: -ptx_loss(x, t),
        "a sum over all tokens: take the mean, or gamma would "
        "depend on the length of the text": lambda x, t: ptx_loss(x, t) * (t.numel() - len(t)),
        "a sum over each text: take the mean over all tokens, or gamma "
        "would depend on the length of the text": lambda x, t: ptx_loss(x, t) * (t.shape[1] - 1),
        "probabilities instead of log-probabilities": lambda x, t: (
            -_picked(x[:, :-1], t[:, 1:]).exp().mean()
        ),
        "logits are not log-probabilities yet: take log_softmax over the vocabulary "
        "first": lambda x, t: -x[:, :-1].gather(-1, t[:, 1:, None]).squeeze(-1).mean(),
        "roll brings the first token round to the end, where nothing comes next: "
        "leave out the last logits, logits[:, :-1]": lambda x, t: -_picked(x, t.roll(-1, 1)).mean(),
    },
    success="right: equal to rlhf_edu.losses.ptx_loss, the same loss as in pretraining",
    learns=("logits",),
    value=False,
)


def harmless_gamma(ppo: Tensor, ptx: Tensor) -> Tensor:
    """student(ppo (P,), ptx (P,)) -> smallest gamma >= 0 with which a step harms no web text."""
    return (-(ppo @ ptx) / (ptx @ ptx)).clamp(min=0)


check_harmless_gamma = Check(
    harmless_gamma,
    cases=[
        {"ppo": numbers(1.0, -2.0, 0.5), "ptx": numbers(-0.5, 3.0, 1.0)},
        {"ppo": numbers(1.0, 2.0, 0.0), "ptx": numbers(0.5, 1.0, 3.0)},
        {"ppo": numbers(0.0, 2.0), "ptx": numbers(1.0, -0.5)},
    ],
    mistakes={
        "where the two gradients agree no help is needed: gamma is at least 0": lambda g, h: (
            -(g @ h) / (h @ h)
        ),
        "the sign: there is harm where the product of the two gradients is negative": lambda g, h: (
            (g @ h) / (h @ h)
        ).clamp(min=0),
        "where the two gradients agree no help is needed, and gamma is 0: "
        "clamp, no abs": lambda g, h: (g @ h).abs() / (h @ h),
        "you divide by the square of PPO's gradient; gamma multiplies the other one": lambda g, h: (
            -(g @ h) / (g @ g)
        ).clamp(min=0),
        "divide by the squared length: gamma h has the product gamma |h|^2 with h": lambda g, h: (
            -(g @ h) / h.norm()
        ).clamp(min=0),
        "that is minus the cosine; gamma depends on how long the gradients are": lambda g, h: (
            -(g @ h) / (g.norm() * h.norm())
        ).clamp(min=0),
        "that makes both parts equally long; ask when the product "
        "of the mixed gradient with h is no longer negative": lambda g, h: g.norm() / h.norm(),
    },
    success="right: gamma only has to undo the part of PPO's step that goes against the text",
)


def tax_removed(base: Tensor, ppo: Tensor, ptx: Tensor) -> Tensor:
    """student(base (S,), ppo (S,), ptx (S,)) -> share of the tax that ptx removes, mean over S."""
    return (1 - (ptx - base) / (ppo - base)).mean()


check_tax_removed = Check(
    tax_removed,
    cases=[
        {"base": numbers(0.8, 0.9), "ppo": numbers(1.0, 1.4), "ptx": numbers(0.85, 0.8)},
        {"base": numbers(69.75), "ppo": numbers(51.95), "ptx": numbers(65.0)},
    ],
    mistakes={
        "that is the share of the tax that is left; one less it is removed": lambda b, p, x: (
            (x - b) / (p - b)
        ).mean(),
        "you divide the means: take the share in each run first, "
        "then the mean of the shares": lambda b, p, x: 1 - (x - b).mean() / (p - b).mean(),
        "the tax is measured from the base model: subtract it above and below": lambda b, p, x: (
            1 - x / p
        ).mean(),
        "that is how much is removed, in nats; divide by the whole tax": lambda b, p, x: (
            p - x
        ).mean(),
        "one number a run: take their mean at the end": lambda b, p, x: 1 - (x - b) / (p - b),
        "divided by the base model's loss: "
        "divide by PPO's tax, its loss less that of the base": lambda b, p, x: ((p - x) / b).mean(),
    },
    success=(
        "right: 1 is the base model's level, 0 is PPO's, and it works for losses and for scores"
    ),
)
