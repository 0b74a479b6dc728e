"""The same numbers as TRL, where it is installed (`pip install trl`): log-probs, DPO, reward loss.

TRL has no PPO any more; generalised advantages are checked against loops in `test_losses.py`.
"""

import copy

import pytest
import tiny_models as tiny
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_edu import losses, models
from rlhf_edu.tokens import encode_answer, encode_prompt, join

pytest.importorskip("trl")
TOK = tiny.tokenizer()
PAIRS = [  # prompt, chosen, rejected
    ("Where is it?", "In the hall.", "Who asks?"),
    ("Name a town.", "Oak.", "I have no idea at all, none."),
    ("Hello!", "Good day to you, dear friend.", "Go."),
]
IDS = [[encode_prompt(TOK, p), *(encode_answer(TOK, a) for a in answers)] for p, *answers in PAIRS]


def other(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with other weights."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def summed(model: torch.nn.Module, answer: int) -> torch.Tensor:
    """Log-probs (3,) of the chosen (1) or rejected (2) answers."""
    both = join([ids[0] for ids in IDS], [ids[answer] for ids in IDS], TOK.pad_token_id)
    return (models.response_logprobs(model, both) * both.mask).sum(1).detach()


def test_logprobs() -> None:
    from trl.trainer.utils import selective_log_softmax

    logits, tokens = torch.randn(3, 7, 50), torch.randint(0, 50, (3, 7))
    for temperature in (1.0, 0.7):
        ours = losses.token_logprobs(logits, tokens, temperature)
        theirs = selective_log_softmax(logits / temperature, tokens)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_dpo_from_models_to_loss(tmp_path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy = tiny.llama()
    reference = other(policy)
    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in PAIRS]
    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(TOK),
    )
    trainer.model.eval()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = trainer.data_collator([dict(zip(names, ids, strict=True)) for ids in IDS])
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, dict(batch))
    logprobs = [summed(model, answer) for model in (policy, reference) for answer in (1, 2)]
    ours, _, _ = losses.dpo_loss(*logprobs, beta=0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_reward_loss_of_two_answers(tmp_path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    config = copy.deepcopy(tiny.llama().config)
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    rows = [{"chosen": f"{p}\n{c}", "rejected": f"{p}\n{r}"} for p, c, r in PAIRS]
    arguments = RewardConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(TOK),
    )
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    with torch.no_grad():
        theirs, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    assert (chosen != rejected).all()
    grouped = losses.kwise_batch_loss(
        torch.stack([chosen, rejected], 1), torch.tensor([[1, 2]] * len(rows))
    )
    torch.testing.assert_close(losses.bradley_terry_loss(chosen, rejected), theirs)
    torch.testing.assert_close(grouped, theirs, rtol=1e-5, atol=1e-5)
