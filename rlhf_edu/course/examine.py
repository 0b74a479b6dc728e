"""Ask a function from a returned notebook what it computes, in a process of its own.

Nobody knows what stands in a returned notebook. So only the statements that define the function
run, not the notebook; they run in another process, which has a limit of time and of memory, an
empty folder to write to, no network and no other programs; and what comes back are numbers. The
caller judges them, so nothing that a notebook does to its own process can change a verdict.

That is a guard against accidents. It is no prison: who expects attacks runs it in a container.
"""

import ast
import contextlib
import json
import linecache
import multiprocessing
import os
import re
import symtable
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from rlhf_edu.course.checks import Answer, Check, Result
from rlhf_edu.course.exercises import Exercise, exercises

SECONDS = 20  # for a function
MEMORY, FILE, MESSAGE = 2 << 30, 1 << 20, 4 << 20  # bytes; memory beyond what was there before
REFUSED = (
    *("socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "socket.gethostby"),
    *("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill"),
    *("os.startfile", "pty.spawn", "signal.pthread_kill"),
)
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod")
CHANGES += ("os.chown", "os.truncate", "os.utime", "shutil.")


# --- the caller's side -------------------------------------------------------------------------


def check_of(exercise: Exercise) -> Check:
    """The check of an exercise that has one."""
    return getattr(import_module(f"rlhf_edu.course.checks.ch{exercise.chapter}"), exercise.check)


def examine(cells: Sequence[str], exercise: Exercise) -> Result:
    """What the check says to the function that stands in these code cells.

    Whatever the cells do, this returns, `SECONDS` after its process has started at the latest.
    """
    named = re.compile(rf"\b{exercise.function}\b")
    if [cell for cell in cells if named.search(cell)] == [exercise.stub]:
        return Result("not attempted", "the stub is as it was")
    check = check_of(exercise)
    try:
        said = json.loads(_ask_elsewhere(list(cells), exercise))
        if "answers" in said:
            return check.judge(_answers(said["answers"], check))
        status = said["status"] if said["status"] in ("wrong", "not attempted") else "error"
        return Result(status, str(said["message"])[:1000])
    except TimeoutError:
        says = f"stopped after {SECONDS} seconds: is there a loop without an end?"
    except (EOFError, OSError):
        says = "its process ended before there was an answer"
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        says = "what came back is no answer"
    return Result("error", says)


def _ask_elsewhere(cells: list[str], exercise: Exercise) -> bytes:
    """What `_main` sends from another process; EOFError, OSError or TimeoutError if nothing."""
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ours:
        process = context.Process(target=_main, args=(theirs, folder, cells, exercise), daemon=True)
        process.start()
        theirs.close()
        # A timer, since a message may begin and never end.
        timer = threading.Timer(SECONDS, process.kill)
        try:
            ours.recv_bytes(MESSAGE)  # "ready", from our own code
            timer.start()
            return ours.recv_bytes(MESSAGE)
        except EOFError:
            if timer.finished.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
            process.kill()
            process.join()


def _context() -> Any:
    """Processes that fork from one that has imported torch, where there is such a thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork must find no threads
    context = multiprocessing.get_context("forkserver")
    checks = sorted({f"rlhf_edu.course.checks.ch{e.chapter}" for e in exercises()})
    context.set_forkserver_preload([__name__, *checks])
    return context


def _answers(rows: list[Any], check: Check) -> list[Answer]:
    """Answers as `_main` has sent them; ValueError if they are not one for each case."""

    def tensors(parts: list[Any] | None) -> Any:
        if parts is None:
            return None
        return [torch.tensor(n).double().reshape(shape) for shape, n in parts]

    found = [Answer(tensors(value), tensors(gradients)) for value, gradients in rows]
    learned = {len(answer.gradients) for answer in found if answer.gradients}
    if len(found) != len(check.cases) or not learned <= {len(check.learns)}:
        raise ValueError("not one answer for each case")
    return found


# --- the other process -------------------------------------------------------------------------


def _main(pipe: Connection, folder: str, cells: list[str], exercise: Exercise) -> None:
    check = check_of(exercise)
    pipe.send_bytes(b"ready")
    _shut_in(folder, pipe.fileno())
    where = "what stands above your function"
    try:
        function = _defined(cells, exercise.function)
        where = "your function"
        said = check.ask(function)
    except BaseException as error:  # sys.exit too
        said = Result("error", f"{where} stopped with {type(error).__name__}: {error}")
    if isinstance(said, Result):
        message = {"status": said.status, "message": " ".join(said.message.split())[:1000]}
    else:
        message = {"answers": [(_lists(a.value), _lists(a.gradients)) for a in said]}
    pipe.send_bytes(json.dumps(message).encode())


def _lists(tensors: list[torch.Tensor] | None) -> list[Any] | None:
    return None if tensors is None else [(list(x.shape), x.flatten().tolist()) for x in tensors]


def _shut_in(folder: str, pipe: int) -> None:
    """From here on: limits, silence, and a guard that refuses what an exercise never needs."""
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    with contextlib.suppress(ImportError, OSError, ValueError):  # there are none on Windows
        import resource

        os.closerange(3, pipe)  # the lines between other processes are nobody's business
        os.closerange(pipe + 1, 1024)
        resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    inside = os.path.realpath(folder)

    def guard(event: str, values: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & _WRITES
        if event.startswith(REFUSED):
            raise PermissionError(f"an exercise needs no {event}")
        if writes or event.startswith(CHANGES):
            paths = [v for v in values[:2] if isinstance(v, (str, bytes, os.PathLike))]
            places = [os.path.realpath(os.fsdecode(path)) for path in paths]
            if not places or os.path.commonpath([inside, *places]) != inside:
                raise PermissionError("an exercise writes to its own folder alone")

    sys.addaudithook(guard)


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _defined(cells: list[str], name: str) -> Any:
    """The function called `name`, as the last cell that defines it has it.

    Raises:
        Exception: whatever the statements raise that it needs.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    for code in _needed(cells, name):
        exec(code, space)
    return space.get(name, lambda *inputs: ...)


def _needed(cells: list[str], name: str) -> list[Any]:
    """Compiled statements that define `name`, and those that define what they use.

    They stand in the last cell that defines it, and above. Calls bind nothing, so no training
    runs unless the function uses what was trained.
    """
    parsed, broken = [], None
    for number, cell in enumerate(cells, 1):
        try:
            parsed.append(list(_statements(cell, f"cell {number}")))
        except SyntaxError as error:
            broken = error if re.search(rf"\b{name}\b", cell) else broken
    while parsed and not any(name in bound for _, bound, _ in parsed[-1]):
        parsed.pop()
    if broken and not parsed:
        raise broken
    statements = [row for rows in parsed for row in rows]
    wanted, before, chosen = {name}, set(), []
    while wanted != before:  # a function may use what is defined below it
        chosen = [row for row in statements if row[1] & (wanted | {"*"})]
        before, wanted = wanted, wanted.union(*(used for _, _, used in chosen))
    return [code for code, _, _ in chosen]


def _statements(cell: str, file: str) -> Iterator[tuple[Any, set[str], set[str]]]:
    """Each statement of a cell, compiled, with the names it binds and uses."""
    source = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.MULTILINE)
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    for node in ast.parse(source, file).body:
        star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        bound, used = ({"*"}, set()) if star else names(ast.unparse(node))
        yield compile(ast.Module([node], []), file, "exec"), bound, used


def names(source: str) -> tuple[set[str], set[str]]:
    """The globals that a piece of code binds, and those that it uses, inside its functions too."""
    top = symtable.symtable(source, "cell", "exec")
    symbols = top.get_symbols()
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    used, tables = set(), [top]
    for table in tables:  # grows while we go through it: every function, class and comprehension
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table is top):
                used.add(symbol.get_name())
    return bound, used
