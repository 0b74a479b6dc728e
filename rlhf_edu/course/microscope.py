"""The token microscope: what policy, reference, reward model and critic say of each token."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.course.widgets import HIGH, LOW, WIDE, Panel
from rlhf_edu.generation import generate
from rlhf_edu.losses import gae, shaped_rewards
from rlhf_edu.models import response_logprobs, response_values, reward_scores
from rlhf_edu.tokens import Sequences, encode_answer, encode_prompt, join

QUANTITIES = {
    "log-prob": "log-probability under the policy, nats",
    "KL": "log(policy / reference), nats",
    "reward": "reward of the token: -beta KL, and the score at the end",
    "value": "what the critic expected before the token",
    "advantage": "better (+) or worse (-) than expected",
}


@dataclass(frozen=True)
class Slide:
    """What the microscope sees: R tokens of an answer, and R numbers for each quantity."""

    tokens: list[str]
    numbers: dict[str, list[float]]


class Microscope(Panel):
    """A prompt and an answer, token by token, under two models.

    Colours show the chosen quantity: orange above zero, blue below. Without a reward model the
    score is 0, without a critic all values are; a function (prompt, answer) -> float will do for
    a reward model.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        reward: PreTrainedModel | Callable[[str, str], float] | None = None,
        critic: PreTrainedModel | None = None,
        prompt: str = "Where does the otter live?",
        answer: str | None = None,
        beta: float = 0.05,
        quantity: str = "KL",
    ) -> None:
        """Put an answer under the microscope; None: the likeliest answer of the policy."""
        super().__init__()
        self.tokenizer, self.policy, self.reference = tokenizer, policy, reference
        self.reward, self.critic, self.beta = reward, critic, beta
        self.prompt = ipywidgets.Text(prompt, description="prompt", layout=WIDE)
        # An answer may have several lines.
        self.answer = ipywidgets.Textarea(
            self._answer(prompt) if answer is None else answer,
            description="answer",
            rows=2,
            layout=WIDE,
        )
        self.quantity = ipywidgets.ToggleButtons(
            options=list(QUANTITIES), value=quantity, style={"button_width": "90px"}
        )
        self.ask = ipywidgets.Button(description="let the policy answer", layout={"width": "180px"})
        self._build([self.prompt, ipywidgets.HBox([self.answer, self.ask]), self.quantity])
        for control in (self.prompt, self.answer, self.quantity):
            control.observe(self.refresh, "value")
        self.ask.on_click(self._on_ask)

    def _answer(self, prompt: str) -> str:
        rollout = generate(self.policy, self.tokenizer, [prompt], temperature=0)
        return rollout.texts(self.tokenizer)[0]

    def _on_ask(self, _button: Any) -> None:
        self.answer.value = self._answer(self.prompt.value)

    @torch.no_grad()
    def look(self) -> Slide:
        """Every quantity of every token of the answer, its end-of-text included."""
        ids = encode_answer(self.tokenizer, self.answer.value)
        row = join([encode_prompt(self.tokenizer, self.prompt.value)], [ids], 0)
        row = row.to(self.policy.device)
        logprobs = response_logprobs(self.policy, row)
        kl = logprobs - response_logprobs(self.reference, row)
        score = torch.tensor([self._score(row)], device=row.tokens.device)
        rewards = shaped_rewards(score, logprobs, logprobs - kl, row.mask, self.beta)
        before = torch.zeros_like(logprobs)
        if self.critic is not None:
            before = response_values(self.critic, row)
        advantages, _ = gae(rewards, before, row.mask)
        found = (logprobs, kl, rewards, before, advantages)
        numbers = {name: x[0].tolist() for name, x in zip(QUANTITIES, found, strict=True)}
        return Slide([self.tokenizer.decode([i]) for i in ids], numbers)

    def _score(self, row: Sequences) -> float:
        if self.reward is None:
            return 0.0
        if isinstance(self.reward, PreTrainedModel):
            return reward_scores(self.reward, row).item()
        return float(self.reward(self.prompt.value, self.answer.value))

    def view(self) -> str:
        """The tokens in colour, each with its number below."""
        slide, name = self.look(), self.quantity.value
        numbers = slide.numbers[name]
        largest = max(max(map(abs, numbers)), 1e-9)
        cells = "".join(
            _cell(token, number, largest)
            for token, number in zip(slide.tokens, numbers, strict=True)
        )
        prompt = f"<div><i>{html.escape(self.prompt.value)}</i></div>"
        caption = f"{name}: {QUANTITIES[name]}; sum {_signed(sum(numbers))}"
        if self.critic is None and name in ("value", "advantage"):
            caption += " (no critic was given: every value is 0)"
        return f"<div>{prompt}<div>{cells}</div><div>{html.escape(caption)}</div></div>"

    def words(self) -> str:
        """The chosen quantity in a sentence."""
        slide, name = self.look(), self.quantity.value
        total = _signed(sum(slide.numbers[name]), 1)
        tokens = f"{len(slide.tokens)} tokens of {self.answer.value!r}"
        return f"Microscope, {tokens}: {name} adds up to {total}."


def _signed(number: float, digits: int = 2) -> str:
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def _cell(token: str, number: float, largest: float) -> str:
    """One token on its colour, and its number."""
    strength = min(1.0, abs(number) / largest) * 0.75
    hue = HIGH if number > 0 else LOW
    colour = ",".join(str(round(255 - strength * (255 - part))) for part in hue)
    text = html.escape(token).replace("\n", "↵").replace(" ", "&nbsp;") or "&nbsp;"
    return (
        '<span style="display:inline-block;text-align:center;margin:1px">'
        f'<span style="display:block;background:rgb({colour});color:black;padding:2px 3px;'
        f'font-family:monospace">{text}</span><small>{_signed(number)}</small></span>'
    )
