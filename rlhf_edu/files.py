"""Write a file or a folder whole, or not at all."""

import os
import shutil
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file with Unix line ends; a crash half-way leaves the old file as it was.

    Raises:
        OSError: it cannot be written, as when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} was not written ({error}); make room on the disk") from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, taking the place of a folder that is there already."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
