"""Right and wrong answers to the exercises of chapter 12; see test_exercises.py."""

import itertools
import math

import torch


def others_by_loop(rewards):
    rows = []
    for row in rewards.tolist():
        mean = [(sum(row) - r) / (len(row) - 1) for r in row]
        rows.append([r - m for r, m in zip(row, mean, strict=True)])
    return torch.tensor(rows)


def others_by_factor(rewards):
    k = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * k / (k - 1)


def group_by_std(rewards):
    std, mean = torch.std_mean(rewards, dim=1, keepdim=True, correction=0)
    return (rewards - mean) / (std + 1e-8)


def group_as_in_trl(rewards):
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True, correction=0)
    return (rewards - mean) / (std + 1e-4)


def group_where_it_differs(rewards):
    rows = []
    for row in rewards:
        away = row - row.sum() / len(row)
        length = away.norm() / len(row) ** 0.5
        rows.append(away / length if length > 0 else torch.zeros_like(row))
    return torch.stack(rows)


def grpo_by_loop(logprobs, old_logprobs, advantages, mask, clip=0.2):
    rows = []
    for new, old, good, real in zip(logprobs, old_logprobs, advantages, mask.bool(), strict=True):
        ratio, good = (new[real] - old[real]).exp(), good[real]
        near = ratio.clamp(1 - clip, 1 + clip)
        rows.append(torch.minimum(ratio * good, near * good).mean())
    return -sum(rows) / len(rows)


def grpo_by_losses(logprobs, old_logprobs, advantages, mask, clip=0.2):
    ratio = logprobs.exp() / old_logprobs.exp()
    clipped = torch.clip(ratio, 1 - clip, 1 + clip)
    each = torch.max(-advantages * ratio, -advantages * clipped)
    weights = mask / mask.sum(1, keepdim=True) / len(mask)
    return (weights * each).sum()


def grpo_over_tokens(logprobs, old_logprobs, advantages, mask, clip=0.2):
    ratio = (logprobs - old_logprobs).exp()
    near = ratio.clamp(1 - clip, 1 + clip)
    each = torch.minimum(ratio * advantages, near * advantages) * mask
    return -each.sum() / mask.sum()


def pass_by_comb(solved, k):
    n = solved.shape[1]
    right = solved.sum(1).long().tolist()
    return [1 - math.comb(n - c, k) / math.comb(n, k) for c in right]


def pass_by_sets(solved, k):
    sets = itertools.combinations(range(solved.shape[1]), k)
    return torch.stack([solved[:, list(rows)].amax(1) for rows in sets]).mean(0)


def kto_by_where(logprobs, reference, desirable, kl, beta):
    value = torch.sigmoid(beta * (logprobs - reference - kl))
    return torch.where(desirable, 1 - value, value).mean()


def kto_by_loop(logprobs, reference, desirable, kl, beta):
    total = 0.0
    for new, old, good in zip(logprobs, reference, desirable, strict=True):
        ratio = new - old
        total = total - torch.sigmoid(beta * (ratio - kl) if good else beta * (kl - ratio))
    return total / len(logprobs)  # without the 1: a constant has no gradient


RIGHT = {
    "check_leave_one_out": [others_by_loop, others_by_factor],
    "check_group_advantages": [group_by_std, group_where_it_differs, group_as_in_trl],
    "check_grpo_loss": [grpo_by_loop, grpo_by_losses],
    "check_pass_at_k": [pass_by_comb, pass_by_sets],
    "check_kto_loss": [kto_by_where, kto_by_loop],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_leave_one_out", lambda r: r - r.mean(1, keepdim=True), "itself included"),
    ("check_leave_one_out", lambda r: -others_by_factor(r), "wrong way round"),
    ("check_group_advantages", lambda r: others_by_factor(r), "that is RLOO"),
    (
        "check_group_advantages",
        lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0),
        "NaN",
    ),
    (
        "check_group_advantages",
        lambda r: (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-6),
        "divisor K - 1",
    ),
    ("check_grpo_loss", grpo_over_tokens, "over all tokens"),
    ("check_grpo_loss", lambda *rows: -grpo_by_loop(*rows), "sign is that of an objective"),
    ("check_grpo_loss", lambda n, o, a, m, c: grpo_by_loop(n, o, a, m, 9.0), "nothing is clipped"),
    ("check_grpo_loss", lambda n, *rows: grpo_by_loop(n.detach(), *rows), "no gradient reaches"),
    ("check_pass_at_k", lambda s, k: 1 - (1 - s.mean(1)) ** k, "puts each answer back"),
    ("check_pass_at_k", lambda s, k: s[:, :k].any(1).double(), "first k answers"),
    ("check_pass_at_k", lambda s, k: pass_by_sets(s, k).mean(), "one number for each prompt"),
    ("check_kto_loss", lambda n, o, d, kl, b: kto_by_where(n, o, d, 0.0, b), "KL is missing"),
    ("check_kto_loss", lambda n, o, d, kl, b: -kto_by_where(n, o, d, kl, b), "swapped"),
    ("check_kto_loss", lambda n, o, d, kl, b: kto_by_where(n, o, d, kl, b).detach(), "no gradient"),
]
