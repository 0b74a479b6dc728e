"""Checks of chapter 11: LoRA on one backbone, and what RLHF takes in memory."""

from collections.abc import Sequence

from torch import Tensor

from rlhf_edu.course.checks import Check, numbers
from rlhf_edu.engine import ledger

Shapes = Sequence[tuple[int, int]]


def merge(w: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """student(W (out, in), A (r, in), B (out, r), alpha) -> the layer's weight with the adapter."""
    return w + alpha / len(a) * b @ a


check_merge = Check(
    merge,
    # Square, so that a product the wrong way round has a name instead of an exception.
    cases=[
        {
            "W": numbers([1.0, 0.5, -1.0], [0.0, 2.0, 1.0], [0.3, -0.7, 1.5]),
            "A": numbers([1.0, -2.0, 0.5], [0.4, 0.1, -0.3]),
            "B": numbers([0.5, 1.0], [-1.0, 0.2], [0.3, 0.6]),
            "alpha": 5.0,
        },
        {
            "W": numbers([0.2, 1.0, 0.1, 0.4]).expand(4, 4).clone(),
            "A": numbers([0.7, 0.1, -0.9, 0.2], [1.0, 0.4, 0.0, -1.2], [0.1, 0.3, 0.8, 0.6]),
            "B": numbers([0.1, 0.2, 0.5], [0.6, 0.9, -0.4], [-1.0, 0.7, 0.3], [0.2, 0.0, 1.1]),
            "alpha": 4.0,
        },
    ],
    mistakes={
        "the scale is missing: the product is multiplied by alpha / rank": lambda w, a, b, alpha: (
            w + b @ a
        ),
        "alpha is divided by the rank, "
        "or a larger rank would also mean larger steps": lambda w, a, b, alpha: w + alpha * b @ a,
        "you divide by the width of the layer; the "
        "rank is the number of rows of A": lambda w, a, b, alpha: w + alpha / a.shape[1] * b @ a,
        "W is missing: the product is added to the frozen weight, "
        "not put in its place": lambda w, a, b, alpha: alpha / len(a) * b @ a,
        "transposed: the product is B A, (out, r) by (r, in); "
        "it fits a square layer only": lambda w, a, b, alpha: w + alpha / len(a) * (b @ a).T,
        "the sign: the adapter is added": lambda w, a, b, alpha: w - alpha / len(a) * b @ a,
    },
    success="right: once merged, the layer is an ordinary one again, and costs nothing extra",
)


def adapter_size(shapes: Shapes, rank: int) -> int:
    """student(shapes, rank) -> parameters of an adapter on layers of shapes [(out, in), ...]."""
    return sum(rank * (out + into) for out, into in shapes)


check_adapter_size = Check(
    adapter_size,
    cases=[
        {"shapes": [(128, 128), (344, 128), (128, 344)], "rank": 8},
        {"shapes": [(64, 32), (16, 40)], "rank": 3},
    ],
    mistakes={
        "that is the frozen layers themselves: count A and B instead": lambda shapes, rank: sum(
            o * i for o, i in shapes
        ),
        "in + out, not in times out: A is (rank, in) and B is (out, rank)": lambda shapes, rank: (
            rank * sum(o * i for o, i in shapes)
        ),
        "only A is counted: B adds rank times out": lambda shapes, rank: (
            rank * sum(i for _, i in shapes)
        ),
        "only B is counted: A adds rank times in": lambda shapes, rank: (
            rank * sum(o for o, _ in shapes)
        ),
        "only the first layer is counted: "
        "every layer has an A and a B of its own": lambda shapes, rank: rank * sum(shapes[0]),
        "the rank is missing: A has so many rows, and B so many columns": lambda shapes, rank: sum(
            o + i for o, i in shapes
        ),
    },
    success="right: rank times (in + out) for each layer, where the layer itself has in times out",
)


def four_networks(policy: float, reward: float) -> float:
    """student(policy, reward) -> bytes of the four networks of PPO in fp32, with AdamW.

    Both are numbers of parameters: of policy and reference, and of reward model and critic.
    """
    return sum(network.total for network in ledger.four_networks(policy, reward).values())


check_four_networks = Check(
    four_networks,
    cases=[{"policy": 175e9, "reward": 6e9}, {"policy": 1e6, "reward": 2e6}],
    mistakes={
        "you count numbers, not bytes: an fp32 number takes 4": lambda p, r: 5 * (p + r),
        "only the weights are counted: "
        "what is trained has a gradient and two averages": lambda p, r: 8 * (p + r),
        "4 bytes a parameter are missing: a trained one takes 4 numbers (weight, gradient, "
        "two averages), and the frozen networks take one as well": lambda p, r: 16 * (p + r),
        "all four are counted as trained; reference and reward model are frozen: "
        "weights and nothing else": lambda p, r: 32 * (p + r),
        "all four are counted with the policy's size; the other pair has its own": lambda p, r: (
            40 * p
        ),
        "the wrong two learn: policy and critic are trained, one of either size": lambda p, r: (
            32 * p + 8 * r
        ),
        "reward model and critic are missing": lambda p, r: 20 * p,
    },
    success=(
        "right: 16 bytes for a trained parameter, 4 for a frozen one, and one of each for a size"
    ),
)


def one_backbone(base: float, adapter: float, head: float) -> float:
    """student(base, adapter, head) -> bytes of four roles on one frozen model, fp32, AdamW.

    All are numbers of parameters: of the model, of one adapter, and of one scalar head.
    """
    roles = ledger.one_backbone(base, adapter, head)
    return sum(network.total for network in roles.values())


check_one_backbone = Check(
    one_backbone,
    cases=[
        {"base": 1000.0, "adapter": 60.0, "head": 7.0},
        {"base": 500.0, "adapter": 20.0, "head": 3.0},
    ],
    mistakes={
        "the backbone takes 4 bytes a parameter: "
        "it is there once, and it is not trained": lambda b, a, h: 16 * b + 40 * a + 20 * h,
        "the reference is missing: with adapters off you get the base, not the SFT model, "
        "so it has an adapter of its own, frozen": lambda b, a, h: 4 * b + 36 * a + 20 * h,
        "reference and reward model are missing: "
        "frozen adapters take 4 bytes a parameter": lambda b, a, h: 4 * b + 32 * a + 16 * h,
        "all four adapters are counted as trained; two of them are frozen": lambda b, a, h: (
            4 * b + 64 * a + 32 * h
        ),
        "four heads: only reward model and critic have one": lambda b, a, h: (
            4 * b + 40 * a + 40 * h
        ),
        "the reward model's head is missing: frozen, 4 bytes a parameter": lambda b, a, h: (
            4 * b + 40 * a + 16 * h
        ),
        "the critic's head is missing: it is trained, 16 bytes a parameter": lambda b, a, h: (
            4 * b + 40 * a + 4 * h
        ),
        "the wrong two have heads: policy and critic are trained, "
        "but reward model and critic have the heads": lambda b, a, h: 4 * b + 40 * a + 32 * h,
        "the heads are missing: a frozen one and a trained one": lambda b, a, h: 4 * b + 40 * a,
        "only weights are counted: the two trained "
        "adapters have gradients and averages": lambda b, a, h: 4 * b + 16 * a + 8 * h,
        "the backbone is missing: it is frozen, and it is there": lambda b, a, h: 40 * a + 20 * h,
    },
    success="right: the backbone once, and 16 bytes a parameter only for what is small",
)
