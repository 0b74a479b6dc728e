"""The four roles of RLHF: policy, reference, reward model and critic.

`SeparateRoles` are four networks; `LoraRoles` four adapters on one frozen backbone.
"""

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_edu.lora import Adapter, _fill, put_on, take_off
from rlhf_edu.models import Model, require_kind, response_logprobs, response_values, reward_scores
from rlhf_edu.tokens import Sequences, by_length


class Roles(Protocol):
    """What PPO needs from policy, reference, reward model and critic, however they are stored.

    Taught in chapter 06.
    """

    @property
    def policy(self) -> PreTrainedModel:
        """The model that is being trained, ready to generate and to predict text."""

    def response_logprobs(self, rollout: Sequences, temperature: float) -> Tensor:
        """Log-probs (B, R) under the policy, with gradient."""

    def reference_logprobs(self, rollout: Sequences, temperature: float) -> Tensor:
        """Log-probs (B, R) under the reference, without gradient."""

    def rewards(self, rollout: Sequences) -> Tensor:
        """Scores (B,) of the reward model, without gradient."""

    def values(self, rollout: Sequences) -> Tensor:
        """Values (B, R) of the critic, with gradient; [:, t] was estimated before token t."""

    def policy_parameters(self) -> list[nn.Parameter]:
        """What the policy's optimiser changes."""

    def critic_parameters(self) -> list[nn.Parameter]:
        """What the critic's optimiser changes."""


class RolesOfModels:
    """Roles that have a model each: policy, reference, reward_model and critic."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: PreTrainedModel | None
    critic: PreTrainedModel | None

    def response_logprobs(self, rollout: Sequences, temperature: float = 1.0) -> Tensor:
        """See `Roles`."""
        return by_length(lambda x: response_logprobs(self.policy, x, temperature), rollout)

    @torch.no_grad()
    def reference_logprobs(self, rollout: Sequences, temperature: float = 1.0) -> Tensor:
        """See `Roles`."""
        return by_length(lambda x: response_logprobs(self.reference, x, temperature), rollout)

    def rewards(self, rollout: Sequences) -> Tensor:
        """See `Roles`."""
        return reward_scores(self.reward_model, rollout)

    def values(self, rollout: Sequences) -> Tensor:
        """See `Roles`."""
        return by_length(lambda x: response_values(self.critic, x), rollout)


class SeparateRoles(RolesOfModels):
    """Four networks, as in InstructGPT. Policy and critic learn; the other two are frozen.

    Taught in chapter 06.

    All four are copies: the models passed in stay as they are.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reward_model: PreTrainedModel | None,
        reference: PreTrainedModel | None = None,
        critic: PreTrainedModel | None = None,
        use_critic: bool = True,
    ) -> None:
        """Start from a policy and a reward model.

        Args:
            policy: usually the SFT model.
            reward_model: from `train_reward`; None where `train_ppo` has a reward of its own.
            reference: where the KL penalty is measured from; None: the policy as it is now.
            critic: None: the reward model as it is now (InstructGPT C.4).
            use_critic: False for RLOO and GRPO: then no memory is held for one.

        Raises:
            ValueError: a reward model stands for a language model, or the reverse.
        """
        critic = reward_model if critic is None else critic
        require_kind(policy, "SeparateRoles: the policy")
        require_kind(policy if reference is None else reference, "SeparateRoles: the reference")
        for model, name in ((reward_model, "reward model"), (critic, "critic")):
            if model is not None:
                require_kind(model, f"SeparateRoles: the {name}", scalar=True)
        # Copies: what PPO does to the policy must not reach the SFT model it came from, and the
        # critic must not change the reward model that it starts as.
        self.policy = _trainable(policy)
        self.critic = _trainable(critic) if critic is not None and use_critic else None
        self.reference = _frozen(policy if reference is None else reference)
        self.reward_model = None if reward_model is None else _frozen(reward_model)

    def policy_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self.policy.parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return [] if self.critic is None else list(self.critic.parameters())


def _trainable(model: Model) -> Model:
    return copy.deepcopy(model).eval().requires_grad_(True)


def _frozen(model: Model) -> Model:
    return copy.deepcopy(model).eval().requires_grad_(False)


class LoraRoles(RolesOfModels):
    """One frozen model with four adapters: what four networks do in the memory of little over one.

    Taught in chapter 11.

    The reference is a frozen copy of the policy's first adapter. Where that one is new (B = 0),
    the SFT model being the base itself, this is the base; where SFT trained an adapter, the base
    is *not* the reference, so that adapters are never just turned off. Reward model and critic have
    a head each.

    The backbone stays in the role it had last, so that a backward pass, which may compute parts
    again, finds what the forward pass ran.
    """

    NAMES = ("policy", "reference", "reward", "critic")

    def __init__(
        self,
        base: PreTrainedModel,
        policy: Adapter,
        reward_model: Adapter | None,
        reference: Adapter | None = None,
        critic: Adapter | None = None,
        use_critic: bool = True,
    ) -> None:
        """Start from a policy and a reward model that were trained on the same base.

        Args:
            base: a causal language model. It is changed, not copied: the adapters go into it.
            policy: usually the adapter from SFT; copied, as the others are.
            reward_model: with its head; None where `train_ppo` has a reward of its own.
            reference: where the KL penalty is measured from; None: the policy as it is now.
            critic: None: the reward model as it is now (InstructGPT C.4).
            use_critic: False for RLOO and GRPO: then no memory is held for one.

        Raises:
            ValueError: an adapter does not fit the base, or the reward model has no head.
        """
        scalar = {
            "reward": reward_model,
            "critic": (critic or reward_model) if use_critic else None,
        }
        scalar = {name: adapter for name, adapter in scalar.items() if adapter is not None}
        self.backbone = put_on(base, policy, "policy")
        if scalar:
            _attach_head(self.backbone.get_base_model(), list(scalar.values()))
        for name, adapter in {"reference": reference or policy, **scalar}.items():
            with torch.random.fork_rng(devices=[]):
                self.backbone.add_adapter(name, copy.deepcopy(adapter.config))
            _fill(self.backbone, name, adapter)
        self.backbone.eval().requires_grad_(False)
        learners = ["policy", *(name for name in scalar if name == "critic")]
        self._learners = {name: self._parameters_of(name) for name in learners}
        self._role = ""
        # Generation and pretraining text ask for the policy first.
        self._as("policy")

    def _parameters_of(self, role: str) -> list[nn.Parameter]:
        named = self.backbone.named_parameters()
        return [parameter for name, parameter in named if f".{role}." in name]

    def _as(self, role: str) -> PeftModel:
        """The backbone in a role."""
        if role != self._role:
            self.backbone.set_adapter(role, inference_mode=True)
            # Both learn, whichever is active: a gradient may still be on its way to the other.
            for parameter in self.policy_parameters() + self.critic_parameters():
                parameter.requires_grad_(True)
            self._role = role
        return self.backbone

    @property
    def policy(self) -> PeftModel:
        """The model that is being trained, until another role is asked for."""
        return self._as("policy")

    @property
    def reference(self) -> PeftModel:
        """The policy as it was, until another role is asked for."""
        return self._as("reference")

    @property
    def reward_model(self) -> PeftModel | None:
        """The reward model, if there is one, until another role is asked for."""
        return self._as("reward") if "reward" in self.backbone.peft_config else None

    @property
    def critic(self) -> PeftModel | None:
        """The critic, if there is one, until another role is asked for."""
        return self._as("critic") if "critic" in self._learners else None

    def policy_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self._learners["policy"])

    def critic_parameters(self) -> list[nn.Parameter]:
        """See `Roles`."""
        return list(self._learners.get("critic", []))

    def adapter(self, role: str) -> Adapter:
        """Return a copy of the adapter of one of the four `NAMES`."""
        return take_off(self.backbone, role)


def _attach_head(model: PreTrainedModel, adapters: Sequence[Adapter]) -> None:
    """Give a language model the place where peft switches the heads of reward model and critic."""
    if not all(adapter.head for adapter in adapters):
        raise ValueError(
            "LoraRoles: the reward model's adapter has no head; give one that train_reward made"
        )
    weight = adapters[0].head["weight"]
    head = nn.Linear(weight.shape[1], 1, dtype=weight.dtype, device=model.device)
    # It is never used, but it is part of the run: the same in every process.
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    model.score = head
