"""Talk to the shipped models: `python -m rlhf_edu chat [--stage …] [--prompt TEXT]`."""

import contextlib

from rlhf_edu import data_folder
from rlhf_edu.experiments.exam import MAX_NEW_TOKENS
from rlhf_edu.generation import generate
from rlhf_edu.models import load_policy, load_tokenizer

STAGES = {"base": "base-1M", "sft": "sft-1M", "ppo": "ppo-1M", "ppo_ptx": "ppo-ptx-1M"}
STAGES |= {"dpo": "dpo-1M"}


def chat(stage: str | None = None, prompt: str | None = None, greedy: bool = False) -> None:
    """Print the answers of one stage, or of all side by side, to a prompt or to what is typed.

    Raises:
        ValueError: there is no such stage.
    """
    if stage is not None and stage not in STAGES:
        raise ValueError(f"no stage {stage!r}; choose one of {', '.join(STAGES)}")
    models = data_folder() / "models"
    folders = {name: models / STAGES[name] for name in ([stage] if stage else STAGES)}
    if stage is None:
        missing = [name for name, folder in folders.items() if not folder.is_dir()]
        folders = {name: folder for name, folder in folders.items() if name not in missing}
        if missing:
            print(f"not built yet: {', '.join(missing)}; `python -m rlhf_edu build` makes them")
    loaded = {name: (load_policy(f), load_tokenizer(f)) for name, f in folders.items()}
    if prompt is not None:
        _answer(loaded, prompt, greedy)
        return
    print("Type a question, for example: Where does the otter live?  (an empty line ends)")
    with contextlib.suppress(EOFError):  # Ctrl-D
        while text := input("> ").strip():
            _answer(loaded, text, greedy)


def _answer(loaded: dict[str, tuple], text: str, greedy: bool) -> None:
    text = text.encode(errors="replace").decode()  # bytes that are no UTF-8 came as surrogates
    for name, (model, tokenizer) in loaded.items():
        temperature = 0.0 if greedy else 1.0
        rollout = generate(model, tokenizer, [text], MAX_NEW_TOKENS, temperature)
        said = rollout.texts(tokenizer)[0].replace("\n", " / ")
        print(f"{name:>8}  {said}")
