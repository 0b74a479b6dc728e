"""Right and wrong answers to the exercises of chapter 11; see test_exercises.py."""

import numpy as np
import torch


def merge_by_einsum(weight, first, second, alpha):
    return weight + torch.einsum("or,ri->oi", second, first) * (alpha / first.shape[0])


def merge_in_numpy(weight, first, second, alpha):
    scale = alpha / second.shape[1]
    return weight.numpy() + scale * np.matmul(second.numpy(), first.numpy())


def size_by_loop(shapes, rank):
    total = 0
    for out, into in shapes:
        total += out * rank
        total += rank * into
    return total


def size_by_tensor(shapes, rank):
    return rank * torch.tensor(shapes).sum()


def four_by_role(policy, reward):
    trained, frozen = 4 + 4 + 2 * 4, 4
    return trained * policy + trained * reward + frozen * policy + frozen * reward


def four_in_short(policy, reward):
    return 20 * (policy + reward)


def one_by_role(base, adapter, head):
    learners = 16 * adapter + 16 * (adapter + head)
    return 4 * base + learners + 4 * adapter + 4 * (adapter + head)


def one_in_short(base, adapter, head):
    return torch.tensor([base, adapter, head]).double() @ torch.tensor([4.0, 40.0, 20.0]).double()


RIGHT = {
    "check_merge": [merge_by_einsum, merge_in_numpy],
    "check_adapter_size": [size_by_loop, size_by_tensor],
    "check_four_networks": [four_by_role, four_in_short],
    "check_one_backbone": [one_by_role, one_in_short],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_merge", lambda w, a, b, alpha: w + torch.mm(b, a), "scale is missing"),
    (
        "check_merge",
        lambda w, a, b, alpha: torch.addmm(w, b, a, alpha=alpha),
        "divided by the rank",
    ),
    ("check_adapter_size", lambda s, r: int(np.prod(s, axis=1).sum()), "frozen layers themselves"),
    ("check_adapter_size", lambda s, r: sum(r * o * i for o, i in s), "not in times out"),
    ("check_four_networks", lambda p, r: four_by_role(p, r) / 4, "numbers, not bytes"),
    ("check_four_networks", lambda p, r: 4 * (2 * p + 2 * r), "only the weights"),
    ("check_one_backbone", lambda b, a, h: one_by_role(4 * b, a, h), "it is there once"),
    ("check_one_backbone", lambda b, a, h: one_by_role(b, a, h) - 4 * a, "the SFT model"),
]
