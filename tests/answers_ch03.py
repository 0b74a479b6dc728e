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


def logprobs_by_cross_entropy(logits, tokens):
    rows = zip(logits, tokens, strict=True)
    found = [-F.cross_entropy(row[:-1], ids[1:], reduction="none") for row, ids in rows]
    return torch.stack(found)


def logprobs_in_numpy(logits, tokens):
    x, ids = logits.numpy(), tokens.numpy()
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    places = range(ids.shape[1] - 1)
    return np.array([[row[t, i[t + 1]] for t in places] for row, i in zip(logs, ids, strict=True)])


def loss_by_choice(logprobs, mask):
    return -logprobs[mask.bool()].mean()


def loss_by_loop(logprobs, mask):
    total, count = 0.0, 0
    for b in range(len(mask)):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                total = total - logprobs[b, t]
                count += 1
    return total / count


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
    "check_next_logprobs": [logprobs_by_cross_entropy, logprobs_in_numpy],
    "check_sft_loss": [loss_by_choice, loss_by_loop],
    "check_lora": [lora_merged, lora_apart],
    "check_lora_size": [size_by_parts, size_of_tensors],
}
# (check, a wrong answer, words of the message that names it)
WRONG = [
    ("check_labels", lambda p, a, e: p + a + [e], "prompt is scored"),
    ("check_labels", lambda p, a, e: [-100] * len(p) + a, "end is missing"),
    (
        "check_next_logprobs",
        lambda lo, t: lo.log_softmax(-1).gather(-1, t[..., None])[..., 0],
        "nothing is shifted",
    ),
    (
        "check_next_logprobs",
        lambda lo, t: lo[:, :-1].gather(-1, t[:, 1:, None])[..., 0],
        "raw logits",
    ),
    ("check_sft_loss", lambda x, m: -loss_by_loop(x, m), "minus is missing"),
    ("check_sft_loss", lambda x, m: -(x * m).mean(), "by all places"),
    ("check_lora", lambda x, w, a, b, s: lora_merged(x, w, a, b, len(a)), "factor alpha / r"),
    ("check_lora", lambda x, w, a, b, s: lora_merged(x, w, a, b, s * len(a)), "alpha alone"),
    ("check_lora_size", lambda m, i, o, r: m * i * o, "full fine-tuning"),
    ("check_lora_size", lambda m, i, o, r: r * (i + o), "one matrix"),
    ("check_sft_loss", torch.no_grad()(loss_by_loop), "no gradient reaches `logprobs`"),
    ("check_sft_loss", lambda x, m: loss_by_loop(x, m).item(), "no gradient reaches `logprobs`"),
]
