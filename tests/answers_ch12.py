"""Right and wrong answers to the exercises of chapter 12; see test_exercises.py."""

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


def mean_by_loop(x, mask):
    rows = [row[real.bool()].mean() for row, real in zip(x, mask, strict=True)]
    return sum(rows) / len(rows)


def mean_by_weights(x, mask):
    weights = mask / mask.sum(1, keepdim=True) / len(mask)
    return (weights * x).sum()


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
    "check_answer_mean": [mean_by_loop, mean_by_weights],
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
    ("check_answer_mean", lambda x, m: (x * m).sum() / m.sum(), "over all tokens"),
    ("check_answer_mean", lambda x, m: x.mean(1).mean(), "padding is counted"),
    ("check_kto_loss", lambda n, o, d, kl, b: kto_by_where(n, o, d, 0.0, b), "KL is missing"),
    ("check_kto_loss", lambda n, o, d, kl, b: -kto_by_where(n, o, d, kl, b), "swapped"),
    ("check_kto_loss", lambda n, o, d, kl, b: kto_by_where(n, o, d, kl, b).detach(), "no gradient"),
    ("check_answer_mean", lambda x, m: mean_by_weights(x, m).item(), "no gradient reaches `x`"),
]
