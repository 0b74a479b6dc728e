"""Small things to click: a token microscope, a prompt box for every stage, a label form, a bill.

Each is an ipywidgets box whose parts can be set from Python (`.prompt.value = "…"`), so that it
can be tested and scripted without a browser. Where no kernel runs, on GitHub or in an exported
page, the picture it last made stays behind as plain HTML and as one line of text.
"""

from collections.abc import Sequence
from typing import Any

import ipywidgets

# Two hues that people with any colour vision can tell apart, and white for zero.
HIGH, LOW = (213, 94, 0), (0, 114, 178)
WIDE = {"width": "640px"}


class Panel(ipywidgets.VBox):
    """A box of controls above one HTML view, with a stable text for those who only see text.

    Subclasses make `controls`, then call `_build(controls)`, and define `view()` and `words()`.
    """

    def _build(self, controls: Sequence[ipywidgets.Widget]) -> None:
        self.page = ipywidgets.HTML(self.view())
        self.children = [*controls, self.page]

    def refresh(self, _change: Any = None) -> None:
        """Compute and draw again; what the controls call when they change."""
        self.page.value = self.view()

    def view(self) -> str:
        """The HTML below the controls."""
        raise NotImplementedError

    def words(self) -> str:
        """What the view says, in a sentence."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.words()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        return {**bundle, "text/plain": self.words(), "text/html": self.page.value}
