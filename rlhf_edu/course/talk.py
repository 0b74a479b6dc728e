"""Talk to every stage, in a notebook."""

import html
from pathlib import Path

import ipywidgets

from rlhf_edu.course.widgets import WIDE, Panel
from rlhf_edu.experiments.plots import STAGES
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.generation import generate
from rlhf_edu.models import load_tokenizer


class TalkToEveryStage(Panel):
    """Type a prompt, and read the answers of all stages that have been built, side by side."""

    def __init__(
        self,
        models: str | Path,
        prompt: str = "Where does the otter live?",
        size: str = "1M",
        max_new_tokens: int = 48,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Load the stages in a folder such as `data/models` to a device.

        Raises:
            FileNotFoundError: the folder has no stage of this size.
        """
        super().__init__()
        shipped = Shipped(device, Path(models))
        self.loaded = {}
        for stage in STAGES.values():
            name = f"{stage.folder}-{size}"
            if shipped.has(name):
                tokenizer = load_tokenizer(shipped.folder(name))
                self.loaded[stage.title] = (shipped.load(name), tokenizer)
        if not self.loaded:
            raise FileNotFoundError(f"no stage of size {size} to talk to in {Path(models).name}/")
        self.max_new_tokens = max_new_tokens
        self.prompt = ipywidgets.Text(prompt, description="prompt", layout=WIDE)
        self.temperature = ipywidgets.FloatSlider(
            value=0.0,
            min=0.0,
            max=1.5,
            step=0.1,
            description="temperature",
            style={"description_width": "initial"},  # the word is wider than the default
        )
        self.seed = ipywidgets.BoundedIntText(seed, min=0, max=9999, description="seed")
        for control in (self.prompt, self.temperature, self.seed):
            control.observe(self.refresh, "value")
        # The prompt is answered when Enter is pressed, not at every letter.
        self.prompt.continuous_update = self.temperature.continuous_update = False
        self._asked: tuple | None = None
        self._build([self.prompt, ipywidgets.HBox([self.temperature, self.seed])])

    def answers(self) -> dict[str, str]:
        """The answer of each stage to the prompt, at this temperature and seed."""
        asked = (self.prompt.value, self.temperature.value, self.seed.value)
        if asked != self._asked:
            self._asked, self._said = asked, self._ask(*asked)
        return self._said

    def _ask(self, prompt: str, temperature: float, seed: int) -> dict[str, str]:
        said = {}
        for name, (model, tokenizer) in self.loaded.items():
            rollout = generate(
                model, tokenizer, [prompt], self.max_new_tokens, round(temperature, 2), seed
            )
            text = rollout.texts(tokenizer)[0].strip()
            said[name] = text if rollout.ended[0] else f"{text} …"
        return said

    def view(self) -> str:
        """The answers as a table, one row a stage."""
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top;padding:4px 12px 4px 0">{name}</th>'
            f'<td style="text-align:left;padding:4px">'
            f"{html.escape(text).replace(chr(10), '<br>')}</td></tr>"
            for name, text in self.answers().items()
        )
        return f'<table style="max-width:760px">{rows}</table>'

    def words(self) -> str:
        """The answers as lines of text."""
        lines = [f"{name:>8}  {' / '.join(t.split(chr(10)))}" for name, t in self.answers().items()]
        return "\n".join([f"> {self.prompt.value}", *lines])
