"""Right and wrong answers to the exercises of chapter 08; see test_exercises.py."""

import torch
import torch.nn.functional as F


def objective_by_rows(scores, logprobs, reference, mask, text, beta, gamma):
    total = 0.0
    for score, p, q, m in zip(scores, logprobs, reference, mask, strict=True):
        total = total + score - beta * sum((a - b) * c for a, b, c in zip(p, q, m, strict=True))
    return total / len(scores) + gamma * text.sum() / len(text)


def objective_in_one_line(scores, logprobs, reference, mask, text, beta, gamma):
    paid = beta * torch.einsum("br,br->", logprobs - reference, mask) / len(scores)
    return scores.mean() - paid + gamma * text.mean()


def ptx_by_cross_entropy(logits, tokens):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def ptx_by_loop(logits, tokens):
    found = []
    for row, ids in zip(logits, tokens, strict=True):
        for t in range(len(ids) - 1):
            found.append(torch.logsumexp(row[t], 0) - row[t, ids[t + 1]])
    return torch.stack(found).mean()


def gamma_by_projection(ppo, ptx):
    length = ptx.norm()
    return max(0.0, float(-(ppo @ (ptx / length)) / length))


def gamma_by_sums(ppo, ptx):
    product = sum(a * b for a, b in zip(ppo.tolist(), ptx.tolist(), strict=True))
    return 0.0 if product > 0 else -product / sum(b * b for b in ptx.tolist())


def removed_by_loop(base, ppo, ptx):
    shares = [(p - x) / (p - b) for b, p, x in zip(base, ppo, ptx, strict=True)]
    return sum(shares) / len(shares)


def removed_by_tensors(base, ppo, ptx):
    return torch.mean((ppo - ptx) / (ppo - base)).item()


RIGHT = {
    "check_objective": [objective_by_rows, objective_in_one_line],
    "check_ptx_loss": [ptx_by_cross_entropy, ptx_by_loop],
    "check_harmless_gamma": [gamma_by_projection, gamma_by_sums],
    "check_tax_removed": [removed_by_loop, removed_by_tensors],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    (
        "check_objective",
        lambda s, p, q, m, x, b, g: objective_by_rows(s, p, q, m, x, b, -g),
        "the sign of gamma",
    ),
    (
        "check_objective",
        lambda s, p, q, m, x, b, g: (s - b * (p - q).sum(1)).mean() + g * x.mean(),
        "padding counts",
    ),
    (
        "check_ptx_loss",
        lambda logits, t: F.cross_entropy(logits.flatten(0, 1), t.flatten()),
        "predicted from itself",
    ),
    (
        "check_ptx_loss",
        lambda logits, t: F.cross_entropy(logits[:, 1:].flatten(0, 1), t[:, :-1].flatten()),
        "shifted the wrong way",
    ),
    (
        "check_ptx_loss",
        lambda logits, t: ptx_by_cross_entropy(logits.detach(), t),
        "no gradient",
    ),
    ("check_harmless_gamma", lambda g, h: -(g @ h) / (h @ h), "at least 0"),
    ("check_harmless_gamma", lambda g, h: abs(float(g @ h / (h @ h))), "no abs"),
    ("check_tax_removed", lambda b, p, x: 1 - removed_by_loop(b, p, x), "that is left"),
    (
        "check_tax_removed",
        lambda b, p, x: (p.sum() - x.sum()) / (p.sum() - b.sum()),
        "divide the means",
    ),
    (
        "check_ptx_loss",
        lambda logits, t: ptx_by_cross_entropy(logits, t).item(),
        "no gradient reaches `logits`",
    ),
]
