"""Checks of chapter 08: PPO-ptx and the alignment tax."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_edu import losses
from rlhf_edu.course.checks import Mistake, Result, check, numbers


def check_objective(student: Callable[..., Any]) -> Result:
    """student(scores (B,), logprobs (B, R), reference (B, R), mask (B, R), text (N,), beta, gamma).

    It returns InstructGPT's Eq. 2, a number to be maximised; `text` holds the policy's log-probs
    of N tokens of pretraining text.
    """

    def right(
        scores: Tensor,
        logprobs: Tensor,
        reference: Tensor,
        mask: Tensor,
        text: Tensor,
        beta: float,
        gamma: float,
    ) -> Tensor:
        kl = losses.masked_sum(logprobs - reference, mask)
        return (scores - beta * kl).mean() + gamma * text.mean()

    def unmasked(s: Tensor, p: Tensor, q: Tensor, m: Tensor, x: Tensor, b: float, g: float) -> Any:
        return right(s, p, q, torch.ones_like(m), x, b, g)

    def per_token(s: Tensor, p: Tensor, q: Tensor, m: Tensor, x: Tensor, b: float, g: float) -> Any:
        kl = losses.masked_sum(p - q, m) / m.sum(-1)
        return (s - b * kl).mean() + g * x.mean()

    cases = [
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
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                unmasked,
                "padding counts: multiply the log-ratio by the mask before you add it up",
            ),
            Mistake(
                per_token,
                "the KL is a mean over tokens: Eq. 2 has the log-ratio of the whole answer, the "
                "sum over its tokens",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: (
                    s.mean() - b * ((p - q) * m).sum() / m.sum() + g * x.mean()
                ),
                "the KL is a mean over the tokens of all answers: Eq. 2 has the log-ratio of a "
                "whole answer, the sum over its tokens",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: s.mean() - b * ((p - q) * m).mean() + g * x.mean(),
                "the KL is a mean over answers and tokens: add up over the tokens, sum(-1), and "
                "take the mean over answers",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: s.mean() - b * ((p - q) * m).sum() + g * x.mean(),
                "the KL is a sum over all answers: add up over the tokens, and take the mean over "
                "answers, as with the scores",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: (
                    (s - b * (p.exp() * (p - q) * m).sum(-1)).mean() + g * x.mean()
                ),
                "the log-ratio is weighed by the policy's probability; the answers are sampled "
                "from the policy, so each token counts once",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: right(s, p, q, m, x, -b, g),
                "you pay for being far from the reference: the KL is subtracted, and its log-ratio "
                "is policy less reference",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: right(s, p, q, m, x, b, -g),
                "the sign of gamma: log-probabilities of the text are to go up too, so they are "
                "added to what is maximised",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: -right(s, p, q, m, x, b, g),
                "that is the loss; the objective is what goes up, so without the minus",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: right(s, p, q, m, x.exp(), b, g),
                "the text enters with probabilities; Eq. 2 has their logarithms",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: right(s, p, q, m, x * len(x), b, g),
                "a sum over the text: here it is the mean over its tokens, so that gamma does not "
                "depend on how much text is mixed in",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: right(s, p, q, m, x, b, 0.0),
                "gamma has no effect: this is the objective of PPO without pretraining text",
            ),
            Mistake(
                lambda s, p, q, m, x, b, g: right(s, p, q, m, x, 0.0, g),
                "beta has no effect: what is far from the reference should cost",
            ),
        ],
        "right: score, less the price of distance, plus gamma times the text's log-likelihood",
    )


def check_ptx_loss(student: Callable[..., Any]) -> Result:
    """student(logits (B, T, V), tokens (B, T)) -> mean next-token loss on a text, a scalar."""

    def picked(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)

    def right(logits: Tensor, tokens: Tensor) -> Tensor:
        return losses.ptx_loss(logits, tokens)

    random = torch.Generator().manual_seed(0)
    cases = [
        {
            "logits": torch.randn(*shape, 5, generator=random, dtype=torch.float64),
            "tokens": torch.randint(5, shape, generator=random),
        }
        for shape in ((2, 4), (1, 3))
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda logits, tokens: -picked(logits, tokens).mean(),
                "each token is predicted from itself: the logits at place t are a guess at token "
                "t + 1, so leave out the last logits and the first token",
            ),
            Mistake(
                lambda logits, tokens: -picked(logits[:, 1:], tokens[:, :-1]).mean(),
                "shifted the wrong way: the logits at place t are a guess at token t + 1",
            ),
            Mistake(
                lambda logits, tokens: -right(logits, tokens),
                "the minus is missing: the text should become likelier, and an optimiser goes down",
            ),
            Mistake(
                lambda logits, tokens: right(logits, tokens) * (tokens.numel() - len(tokens)),
                "a sum over all tokens: take the mean, or gamma would depend on the length of the "
                "text",
            ),
            Mistake(
                lambda logits, tokens: right(logits, tokens) * (tokens.shape[1] - 1),
                "a sum over each text: take the mean over all tokens, or gamma would depend on the "
                "length of the text",
            ),
            Mistake(
                lambda logits, tokens: -picked(logits[:, :-1], tokens[:, 1:]).exp().mean(),
                "probabilities instead of log-probabilities",
            ),
            Mistake(
                lambda logits, tokens: (
                    -logits[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1).mean()
                ),
                "logits are not log-probabilities yet: take log_softmax over the vocabulary first",
            ),
        ],
        "right: equal to rlhf_edu.losses.ptx_loss, the same loss as in pretraining",
        gradient="logits",
    )


def check_harmless_gamma(student: Callable[..., Any]) -> Result:
    """student(ppo (P,), ptx (P,)) -> smallest gamma >= 0 with which a step harms no web text."""

    def right(ppo: Tensor, ptx: Tensor) -> Tensor:
        return (-(ppo @ ptx) / (ptx @ ptx)).clamp(min=0)

    cases = [
        {"ppo": numbers(1.0, -2.0, 0.5), "ptx": numbers(-0.5, 3.0, 1.0)},
        {"ppo": numbers(1.0, 2.0, 0.0), "ptx": numbers(0.5, 1.0, 3.0)},
        {"ppo": numbers(0.0, 2.0), "ptx": numbers(1.0, -0.5)},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda g, h: -(g @ h) / (h @ h),
                "where the two gradients agree no help is needed: gamma is at least 0",
            ),
            Mistake(
                lambda g, h: ((g @ h) / (h @ h)).clamp(min=0),
                "the sign: there is harm where the product of the two gradients is negative",
            ),
            Mistake(
                lambda g, h: (g @ h).abs() / (h @ h),
                "where the two gradients agree no help is needed, and gamma is 0: clamp, no abs",
            ),
            Mistake(
                lambda g, h: (-(g @ h) / (g @ g)).clamp(min=0),
                "you divide by the square of PPO's gradient; gamma multiplies the other one",
            ),
            Mistake(
                lambda g, h: (-(g @ h) / h.norm()).clamp(min=0),
                "divide by the squared length: gamma h has the product gamma |h|^2 with h",
            ),
            Mistake(
                lambda g, h: (-(g @ h) / (g.norm() * h.norm())).clamp(min=0),
                "that is minus the cosine; gamma depends on how long the gradients are",
            ),
            Mistake(
                lambda g, h: g.norm() / h.norm(),
                "that makes both parts equally long; ask when the product of the mixed gradient "
                "with h is no longer negative",
            ),
        ],
        "right: gamma only has to undo the part of PPO's step that goes against the text",
    )


def check_tax_removed(student: Callable[..., Any]) -> Result:
    """student(base (S,), ppo (S,), ptx (S,)) -> share of the tax that ptx removes, mean over S."""

    def right(base: Tensor, ppo: Tensor, ptx: Tensor) -> Tensor:
        return (1 - (ptx - base) / (ppo - base)).mean()

    cases = [
        {
            "base": numbers(0.8, 0.9),
            "ppo": numbers(1.0, 1.4),
            "ptx": numbers(0.85, 0.8),
        },
        {"base": numbers(69.75), "ppo": numbers(51.95), "ptx": numbers(65.0)},
    ]
    return check(
        student,
        right,
        cases,
        [
            Mistake(
                lambda b, p, x: ((x - b) / (p - b)).mean(),
                "that is the share of the tax that is left; one less it is removed",
            ),
            Mistake(
                lambda b, p, x: 1 - (x - b).mean() / (p - b).mean(),
                "you divide the means: take the share in each run first, then the mean of the "
                "shares",
            ),
            Mistake(
                lambda b, p, x: (1 - x / p).mean(),
                "the tax is measured from the base model: subtract it above and below",
            ),
            Mistake(
                lambda b, p, x: (p - x).mean(),
                "that is how much is removed, in nats; divide by the whole tax",
            ),
            Mistake(
                lambda b, p, x: 1 - (x - b) / (p - b),
                "one number a run: take their mean at the end",
            ),
            Mistake(
                lambda b, p, x: ((p - x) / b).mean(),
                "divided by the base model's loss: divide by PPO's tax, its loss less that of the "
                "base",
            ),
        ],
        "right: 1 is the base model's level, 0 is PPO's, and it works for losses and for scores",
    )
