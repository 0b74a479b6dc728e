"""Right and wrong answers to the exercises of chapter 03; see test_exercises.py."""

import numpy as np
import torch
import torch.nn.functional as F


def labels_by_slice(prompt, answer, end):
    row = prompt + answer + [end]
    row[: len(prompt)] = [-100] * len(prompt)
    return row


def labels_by_place(prompt, answer, end):
    ids = torch.tensor(prompt + answer + [end])
    return ids.masked_fill(torch.arange(len(ids)) < len(prompt), -100)


def loss_by_cross_entropy(logits, tokens, mask):
    labels = torch.where(mask.bool(), tokens, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)


def loss_by_loop(logits, tokens, mask):
    total, count = 0.0, 0
    for b in range(len(tokens)):
        for t in range(1, tokens.shape[1]):
            if mask[b, t]:
                total = total - logits[b, t - 1].log_softmax(0)[tokens[b, t]]
                count += 1
    return total / count


def kls_by_kl_div(p, q):
    return F.kl_div(q.log(), p, reduction="sum"), F.kl_div(p.log(), q, reduction="sum")


def kls_in_numpy(p, q):
    p, q = p.numpy(), q.numpy()
    return float((p * np.log(p / q)).sum()), float((q * np.log(q / p)).sum())


def lora_merged(x, weight, a, b, alpha):
    return F.linear(x, weight + alpha / a.shape[0] * b @ a)


def lora_apart(x, weight, a, b, alpha):
    return torch.einsum("ni,oi->no", x, weight) + (x @ a.T) @ b.T * (alpha / b.shape[1])


def size_by_parts(matrices, inputs, outputs, rank):
    return sum(rank * inputs + outputs * rank for _ in range(matrices))


def size_of_tensors(matrices, inputs, outputs, rank):
    a, b = torch.empty(rank, inputs, device="meta"), torch.empty(outputs, rank, device="meta")
    return matrices * (a.numel() + b.numel())


RIGHT = {
    "check_labels": [labels_by_slice, labels_by_place],
    "check_sft_loss": [loss_by_cross_entropy, loss_by_loop],
    "check_two_kls": [kls_by_kl_div, kls_in_numpy],
    "check_lora": [lora_merged, lora_apart],
    "check_lora_size": [size_by_parts, size_of_tensors],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_labels", lambda p, a, e: p + a + [e], "prompt is scored"),
    ("check_labels", lambda p, a, e: [-100] * len(p) + a, "end is missing"),
    ("check_sft_loss", lambda lo, t, m: -loss_by_loop(lo, t, m), "minus is missing"),
    (
        "check_sft_loss",
        lambda lo, t, m: F.cross_entropy(lo[m.bool()], t[m.bool()]),
        "nothing is shifted",
    ),
    ("check_two_kls", lambda p, q: kls_by_kl_div(q, p), "exchanged"),
    ("check_two_kls", lambda p, q: (kls_in_numpy(p, q)[0],) * 2, "same direction"),
    ("check_lora", lambda x, w, a, b, s: lora_merged(x, w, a, b, len(a)), "factor alpha / r"),
    ("check_lora", lambda x, w, a, b, s: lora_merged(x, w, a, b, s * len(a)), "alpha alone"),
    ("check_lora_size", lambda m, i, o, r: m * i * o, "full fine-tuning"),
    ("check_lora_size", lambda m, i, o, r: r * (i + o), "one matrix"),
    ("check_sft_loss", torch.no_grad()(loss_by_loop), "no gradient reaches `logits`"),
    (
        "check_sft_loss",
        lambda lo, t, m: loss_by_loop(lo, t, m).item(),
        "no gradient reaches `logits`",
    ),
]
