"""Our side of the benchmark."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from rlhf_edu import dpo, ppo, reward, sft
from rlhf_edu.bench.job import LR, Job, load_pairs, load_prompts, load_rankings, make_policy
from rlhf_edu.bench.job import tokenizer as shipped_tokenizer
from rlhf_edu.bench.machine import Clock
from rlhf_edu.engine.groups import Group, make_group
from rlhf_edu.engine.training import plan_batches
from rlhf_edu.models import scalar_model_from
from rlhf_edu.roles import SeparateRoles
from rlhf_edu.tokens import encode_prompt


def matrix_flops(model: PreTrainedModel, tokens: float, predicted: float) -> float:
    """Operations of one forward pass in its matrices, attention's own products left out.

    Counted for real tokens: what a trainer does for padding is its own affair.

    Args:
        model: a GPT-2.
        tokens: read, in all rows.
        predicted: tokens that the output layer is needed for; 0 for a reward model.
    """
    blocks = sum(p.numel() for p in model.base_model.h.parameters() if p.dim() == 2)
    return 2.0 * (blocks * tokens + model.config.vocab_size * model.config.n_embd * predicted)


def _settings(job: Job, epochs: int) -> dict[str, Any]:
    """What all of our trainers are told."""
    shared = {"lr": LR, "batch_size": job.batch, "epochs": epochs}
    return shared | {"bf16": job.bf16, "seed": job.seed}


def run_sft(job: Job, clock: Clock) -> None:
    """`train_sft`: a unit is a token of prompt or answer."""
    model, (records, epochs) = make_policy(job), load_pairs(job)
    tokenizer, config = shipped_tokenizer(), sft.SFTConfig(**_settings(job, epochs))
    pairs = sft.encode_demonstrations(tokenizer, records, config.max_answer_tokens)
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    for _, rows in plan_batches(lengths, job.batch, epochs, job.seed):
        read, said = sum(lengths[i] for i in rows), sum(len(pairs[i][1]) for i in rows)
        clock.note(read, read, 3 * matrix_flops(model, read, said))
    sft.train_sft(model, tokenizer, records, config, clock.mark)


def _note_groups(
    job: Job, clock: Clock, groups: Sequence[Group], epochs: int, flops: Callable[[int, int], float]
) -> None:
    """Note what each step reads; `flops` of so many tokens read, and of so many in answers."""
    for _, rows in plan_batches([group.longest for group in groups], job.batch, epochs, job.seed):
        batch = [groups[i] for i in rows]
        read = sum(len(group.tokens) for group in batch)
        said = read - sum(len(group.prompt) for group in batch)
        clock.note(sum(len(group.pairs) for group in batch), read, flops(read, said))


def run_reward(job: Job, clock: Clock) -> None:
    """`train_reward`: a unit is a comparison; every answer is read once."""
    model, (rankings, epochs) = scalar_model_from(make_policy(job)), load_rankings(job)
    tokenizer = shipped_tokenizer()
    groups = [make_group(tokenizer, ranking) for ranking in rankings]
    # Forward, and twice as much backward.
    _note_groups(job, clock, groups, epochs, lambda read, _: 3 * matrix_flops(model, read, 0))
    config = reward.RewardConfig(**_settings(job, epochs))
    reward.train_reward(model, tokenizer, rankings, config, clock.mark)


def run_dpo(job: Job, clock: Clock) -> None:
    """`train_dpo`: a unit is a comparison. The reference's pass before training counts too."""
    policy, (rankings, epochs) = make_policy(job), load_rankings(job)
    tokenizer, config = shipped_tokenizer(), dpo.DPOConfig(**_settings(job, epochs))
    groups = dpo.make_groups(tokenizer, rankings)
    _note_groups(job, clock, groups, epochs, lambda *tokens: 4 * matrix_flops(policy, *tokens))
    dpo.train_dpo(policy, policy, tokenizer, rankings, config, clock.mark, on_phase=clock.phase)


def run_ppo(job: Job, clock: Clock) -> None:
    """`train_ppo` with four networks: a unit is an episode, a token one of an answer."""
    policy, tokenizer = make_policy(job), shipped_tokenizer()
    texts = [prompt.text for prompt in load_prompts(job)]
    asked = sum(len(encode_prompt(tokenizer, text)) for text in texts) / len(texts)

    def on_step(record: dict[str, Any]) -> None:
        said = job.batch * record["length"]
        read = said + job.batch * asked
        both = matrix_flops(policy, read, said) + matrix_flops(policy, read, 0)
        # Generation and reference, reward model and critic; then the epochs.
        clock.note(job.batch, round(said), (2 + 3 * job.epochs) * both)
        clock.mark()

    config = ppo.PPOConfig(
        steps=job.total,
        minibatch=job.batch,
        max_new_tokens=job.tokens,
        critic_lr=LR,
        **_settings(job, job.epochs),
    )
    roles = SeparateRoles(policy, scalar_model_from(policy))
    ppo.train_ppo(roles, tokenizer, texts, config, on_step, on_phase=clock.phase)


RUNNERS = {"sft": run_sft, "reward": run_reward, "dpo": run_dpo, "ppo": run_ppo, "rloo": run_ppo}
