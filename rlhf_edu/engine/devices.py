"""Where a run happens: the device that a name stands for, and the versions of what it runs on."""

import platform
from importlib.metadata import version

import torch

from rlhf_edu import __version__


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one.

    Raises:
        ValueError: there is no such device, or torch does not see it.
    """
    there = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if there else "cpu"
    if name.startswith("cuda") and not there:
        raise ValueError(f"--device {name}: torch sees no such device here; choose auto or cpu")
    try:
        return torch.device(name)
    except (RuntimeError, UnicodeError):
        raise ValueError(f"--device {ascii(name)} is no device; choose auto, cpu or cuda") from None


def fast_in_bf16(device: str | torch.device) -> bool:
    """Whether the device multiplies in bf16 by itself; a CPU that does not is nine times slower."""
    return torch.device(device).type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def versions() -> dict[str, str]:
    """What a result depends on besides its seed."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"rlhf_edu": __version__, **libraries, "python": platform.python_version()}
