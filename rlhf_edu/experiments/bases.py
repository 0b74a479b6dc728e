"""The family of base models: three sizes that have read the tiny web and nothing else."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.engine.checks import OnStep
from rlhf_edu.engine.devices import fast_in_bf16
from rlhf_edu.models import new_llama, round_weights
from rlhf_edu.pretrain import PretrainConfig, pack, pretrain, train_tokenizer
from rlhf_edu.tinyweb.facts import World
from rlhf_edu.tinyweb.pages import web

TOKENIZER_PAGES = 20_000  # the same for all sizes, so that they can score each other's tokens
SAVE_EVERY = 100  # steps


@dataclass(frozen=True)
class Syllabus:
    """What a base model reads: so many pages (about 42 tokens each), at this learning rate."""

    pages: int
    lr: float


BASES = {
    "0.05M": Syllabus(570_000, 1e-2),
    "1M": Syllabus(950_000, 6e-3),
    "6M": Syllabus(570_000, 3e-3),
}


def make_base(
    size: str,
    world: World,
    seed: int = 0,
    pages: int | None = None,
    on_step: OnStep | None = None,
    checkpoints: str | None = None,
    device: str | torch.device = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Pretrain a base model on the web of a world, and round it to 16 bits as it is shipped.

    Args:
        size: a key of `BASES`.
        world: whose web to read.
        seed: of the web, the initial weights and the order of reading.
        pages: how many to read; None: as many as `BASES` says.
        on_step: called with the record of each step.
        checkpoints: a folder; a run that was cut off goes on from there.
        device: where to train.
    """
    reading = BASES[size]
    texts = web(world, max(pages or reading.pages, TOKENIZER_PAGES), seed)
    tokenizer = train_tokenizer(texts[:TOKENIZER_PAGES])
    model = new_llama(size, len(tokenizer), seed).to(device)
    blocks = pack(tokenizer, texts[: pages or reading.pages]).to(device)
    every = SAVE_EVERY if checkpoints else 0
    config = PretrainConfig(
        lr=reading.lr,
        seed=seed,
        bf16=fast_in_bf16(device),
        checkpoint_every=every,
        checkpoint_folder=checkpoints,
    )
    model, _ = pretrain(model, blocks, config, on_step)
    return round_weights(model), tokenizer
