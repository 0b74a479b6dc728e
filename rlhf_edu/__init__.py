"""RLHF that really happens on a laptop CPU: from a base model to an aligned one.

Importing the package sets environment variables that torch and the Hugging Face libraries read
once, when they are loaded, so `import rlhf_edu` comes before `import torch`. It imports neither.
A variable that is already set is left alone: `OMP_NUM_THREADS=4 python …` means four threads.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Waiting OpenMP threads spin by default; beside any other busy program that makes small models
# several times slower. At these sizes one thread is also the fastest, and the only number that
# adds floating-point numbers up in the same order on every machine.
_THREAD_POLICY = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}

# What a model's folder lacks is an error here (`loading.load_language_model`), so that transformers
# need not warn of it as well; its other warnings are for programmers.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def lazy(package: str, where: dict[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """A package's public names, each loaded from its file when it is first asked for.

    Args:
        package: its name.
        where: from a file, without `.py`, to its public names, separated by spaces.

    Returns:
        The package's `__all__` and its `__getattr__` (PEP 562).
    """
    files = {name: file for file, names in where.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in files and name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{files.get(name, name)}")
        return getattr(module, name) if name in files else module

    return [*files], load


# `import rlhf_edu` alone loads no torch.
__all__, __getattr__ = lazy(
    __name__,
    {
        "losses": "",
        "data": "Prompt Task Demonstration Ranking read_prompts read_demonstrations read_rankings",
        "tokens": "Sequences encode_prompt encode_answer join",
        "models": "load_policy load_scalar_model load_tokenizer save_model scalar_model_from"
        " scalar_head new_llama count_parameters response_logits response_logprobs reward_scores",
        "lora": "Adapter new_adapter load_adapter save_adapter",
        "roles": "Roles SeparateRoles LoraRoles",
        "sampling": "Rollout",
        "generation": "generate",
        "pretrain": "PretrainConfig pack lm_loss",
        "sft": "SFTConfig train_sft",
        "reward": "RewardConfig train_reward evaluate_reward score_answers",
        "ppo": "PPOConfig Formulas train_ppo",
        "dpo": "DPOConfig PREFERENCES train_dpo",
        "intervals": "Estimate bootstrap win_rate over_seeds",
    },
)
__all__ += ["data_folder", "losses"]


def _set_environment() -> None:
    """Set the thread policy and the offline switches, where the user has not set them."""
    missing = [name for name in _THREAD_POLICY if name not in os.environ]
    if missing and "torch" in sys.modules:
        warnings.warn(
            "torch was imported before rlhf_edu, so the thread policy comes too late and training"
            " may be several times slower: put `import rlhf_edu` first and restart Python",
            RuntimeWarning,
            stacklevel=3,
        )
    for name, value in {**_THREAD_POLICY, **_OFFLINE}.items():
        os.environ.setdefault(name, value)


def data_folder(create: bool = False) -> Path:
    """Return the `data/` folder of the checkout: prompts, labels and the shipped models.

    Args:
        create: make the folder if the checkout has none (for the command that builds it).

    Raises:
        FileNotFoundError: the package was installed without its checkout, or `data/` is missing.
    """
    checkout = Path(__file__).resolve().parent.parent
    # An installed wheel lives in site-packages, where a `data` folder would be somebody else's.
    if not (checkout / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"rlhf_edu is installed in {checkout} without its data/. The course works from an"
            " editable checkout: git clone the project, then run `pip install -e .` inside it"
        )
    folder = checkout / "data"
    if create:
        folder.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: restore it with `git checkout -- data`, or rebuild it with"
            " `python -m rlhf_edu build`"
        )
    return folder


_set_environment()
