"""Talk to the shipped models: `python -m rlhf_edu chat [--stage …] [--prompt TEXT]`."""

import contextlib

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_edu.experiments.exam import MAX_NEW_TOKENS
from rlhf_edu.experiments.plots import STAGES
from rlhf_edu.experiments.shipped import Shipped
from rlhf_edu.generation import generate

FOLDERS = {name: stage.folder for name, stage in STAGES.items() if stage.folder}


def chat(
    stage: str | None = None, prompt: str | None = None, greedy: bool = False, device: str = "cpu"
) -> None:
    """Print the answers of one stage, or of all side by side, to a prompt or to what is typed.

    Raises:
        ValueError: there is no such stage.
    """
    if stage is not None and stage not in FOLDERS:
        raise ValueError(f"no stage {stage!r}; choose one of {', '.join(FOLDERS)}")
    shipped = Shipped(device)
    asked = [stage] if stage else [name for name in FOLDERS if shipped.has(FOLDERS[name])]
    missing = [name for name in FOLDERS if not stage and name not in asked]
    if missing:
        print(f"not built yet: {', '.join(missing)}; `python -m rlhf_edu build` makes them")
    models = {name: shipped.load(FOLDERS[name]) for name in asked}
    if prompt is not None:
        _answer(models, shipped.tokenizer, prompt, greedy)
        return
    print("Type a question, for example: Where does the otter live?  (an empty line ends)")
    with contextlib.suppress(EOFError):  # Ctrl-D
        while text := input("> ").strip():
            _answer(models, shipped.tokenizer, text, greedy)


def _answer(
    models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, text: str, greedy: bool
) -> None:
    text = text.encode(errors="replace").decode()  # bytes that are no UTF-8 came as surrogates
    for name, model in models.items():
        temperature = 0.0 if greedy else 1.0
        rollout = generate(model, tokenizer, [text], MAX_NEW_TOKENS, temperature)
        said = rollout.texts(tokenizer)[0].replace("\n", " / ")
        print(f"{name:>8}  {said}")
