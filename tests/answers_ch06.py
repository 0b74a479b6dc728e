"""Right and wrong answers to the exercises of chapter 06; see test_exercises.py."""

import numpy as np
import torch
import torch.nn.functional as F


def row_by_loop(score, logprobs, ref_logprobs, beta):
    row = [-beta * (a - b).item() for a, b in zip(logprobs, ref_logprobs, strict=True)]
    row[-1] += score
    return row


def row_by_one_hot(score, logprobs, ref_logprobs, beta):
    last = torch.zeros_like(logprobs)
    last[-1] = 1.0
    return score * last + beta * (ref_logprobs - logprobs)


def mask_by_length(response, eos):
    rows = [row.tolist() for row in response]
    lengths = [row.index(eos) + 1 if eos in row else len(row) for row in rows]
    return torch.arange(response.shape[1])[None] < torch.tensor(lengths)[:, None]


def mask_by_shift(response, eos):
    over = F.pad((response == eos).long(), (1, 0))[:, :-1].cumsum(1)
    return (over == 0).long()


def estimators_by_ratio(logprobs, ref_logprobs):
    r = (ref_logprobs - logprobs).exp()
    return -r.log(), r.log() ** 2 / 2, r - 1 - r.log()


def estimators_in_numpy(logprobs, ref_logprobs):
    k1 = np.asarray(logprobs) - np.asarray(ref_logprobs)
    return k1, 0.5 * np.square(k1), np.expm1(-k1) + k1


def estimators_in_one_tensor(logprobs, ref_logprobs):
    return torch.stack(estimators_by_ratio(logprobs, ref_logprobs))


def estimators_in_one_array(logprobs, ref_logprobs):
    return np.stack(estimators_in_numpy(logprobs, ref_logprobs))


def estimators_by_lists(logprobs, ref_logprobs):
    return [k.tolist() for k in estimators_by_ratio(logprobs, ref_logprobs)]


def value_loss_by_where(values, old_values, returns, mask, clip):
    held = torch.clamp(values, old_values - clip, old_values + clip)
    free, near = (values - returns).square(), (held - returns).square()
    return torch.where(free > near, free, near)[mask.bool()].mean() / 2


def value_loss_by_loop(values, old_values, returns, mask, clip):
    total, count = 0.0, 0
    for v, old, wanted, real in zip(
        values.flatten(), old_values.flatten(), returns.flatten(), mask.flatten(), strict=True
    ):
        if real:
            held = old + (v - old).clamp(-clip, clip)
            total, count = total + max((v - wanted) ** 2, (held - wanted) ** 2), count + 1
    return 0.5 * total / count


RIGHT = {
    "check_reward_row": [row_by_loop, row_by_one_hot],
    "check_answer_mask": [mask_by_length, mask_by_shift],
    "check_kl_estimators": [
        estimators_by_ratio,
        estimators_in_numpy,
        estimators_in_one_tensor,
        estimators_in_one_array,
        estimators_by_lists,
    ],
    "check_value_loss": [value_loss_by_where, value_loss_by_loop],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_reward_row", lambda s, p, q, b: row_by_loop(s, q, p, b), "KL has the wrong sign"),
    ("check_reward_row", lambda s, p, q, b: s - b * (p - q), "arrives once"),
    ("check_answer_mask", lambda x, eos: (x != eos).long(), "never learn to stop"),
    (
        "check_answer_mask",
        lambda x, eos: ((x == eos).cumsum(1) < 1).long(),
        "end-of-text itself is left out",
    ),
    ("check_kl_estimators", lambda p, q: estimators_by_ratio(q, p), "other way round"),
    (
        "check_kl_estimators",
        lambda p, q: (p - q, (p - q) ** 2, estimators_by_ratio(p, q)[2]),
        "lacks its half",
    ),
    ("check_value_loss", lambda *xs: 2 * value_loss_by_loop(*xs), "half is missing"),
    (
        "check_value_loss",
        lambda v, old, r, m, c: 0.5 * (v - r).square()[m.bool()].mean(),
        "nothing is clipped",
    ),
    (
        "check_value_loss",
        lambda v, *rest: value_loss_by_where(v.detach(), *rest),
        "no gradient reaches `values`",
    ),
]
