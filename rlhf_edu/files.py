"""Write a file or a folder whole, or not at all; say in one line what cannot be read."""

import codecs
import contextlib
import gzip
import io
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

# A longer line, or JSON value over many lines, is no row but a damaged or hostile file.
LONGEST = 2**28


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


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A place to write a folder, all or nothing; it takes the place of an older one at the end.

    Raises:
        OSError: it cannot be written, as when the disk is full; the older one is still there.
    """
    folder = Path(folder)
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        _replace_folder(new, folder)
    except Exception as error:
        # What a failed write raises: in `tokenizers` a bare Exception.
        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:
            raise
        said = str(error).strip().split("\n")[0]
        raise OSError(f"{folder} was not written ({said}); make room and start again") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace_folder(new: Path, folder: Path) -> None:
    for path in new.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave a folder of empty files
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


class UnfitModel(ValueError):
    """A folder that can be read, but holds another model than the one that was asked for."""


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn what libraries say at length of a model or data set into one line with advice."""
    try:
        yield
    except UnfitModel:  # says it all
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} was not found ({_first_line(error)}); check the name"
        ) from None
    except Exception as error:
        said = f"{type(error).__name__} {error} {type(error.__cause__).__name__}".lower()
        if "gated" in said or "401" in said or "403" in said:
            advice = "it is gated: accept its terms on its page, then run `hf auth login`"
        elif "not a valid model identifier" in said or "404" in said or "notfound" in said:
            advice = "there is no such id on the hub, or it is private: check the spelling"
        else:
            advice = "check the name, the files and, for a hub id, the connection"
        raise ValueError(f"{name} cannot be loaded; {advice} ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line, with its end; only a line feed ends one.

    Raises:
        ValueError: the file is damaged, a line is no text, or it is longer than `LONGEST`.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            marks = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
            encoding = "utf-16" if file.peek(2)[:2] in marks else "utf-8-sig"
            # Escaped first and looked at then, so that a bad byte has the number of its line.
            text = io.TextIOWrapper(file, encoding, "surrogateescape", newline="\n")
            for number, line in enumerate(iter(lambda: text.readline(LONGEST + 1), ""), 1):
                _require_text(line, f"{path}, line {number}")
                yield number, line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); is it a whole file, in UTF-8?"
        ) from None


def _require_text(line: str, where: str) -> None:
    if len(line) > LONGEST:
        raise ValueError(f"{where}: longer than {LONGEST:,} letters; give one row on a line")
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        raise ValueError(f"{where}: byte {byte:#x} is not UTF-8; save the file as UTF-8") from None
