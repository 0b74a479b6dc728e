"""What CONTRIBUTING promises of the house: its rooms, its arrows, and the size of its functions."""

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "rlhf_edu"
WINGS = ("engine", "tinyweb", "experiments", "real", "bench", "course")
# Who may import whom. The core and its engine room see no world and no command.
MAY_IMPORT = {
    "core": {"core", "engine"},
    "engine": {"core", "engine"},
    "tinyweb": {"core", "tinyweb"},
    "experiments": {"core", "engine", "tinyweb", "experiments"},
    "real": {"core", "engine", "real"},
    "bench": {"core", "engine", "tinyweb", "experiments", "real", "bench"},
    "course": {"core", "engine", "tinyweb", "experiments", "real", "course"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if ".ipynb_checkpoints" in file.parts:  # of whoever opened a file in JupyterLab
            continue
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = modules()


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else "core"


def imported(node: ast.ImportFrom | ast.Import) -> Iterator[str]:
    """Modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in MODULES)
    elif node.module in MODULES:
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name if name in MODULES else node.module for name in inside)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, at its top or in functions."""
    nodes = (n for n in ast.walk(tree(module)) if isinstance(n, ast.Import | ast.ImportFrom))
    return frozenset(name for node in nodes for name in imported(node))


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


@pytest.mark.parametrize("module", [name for name in MODULES if name != "rlhf_edu.__main__"])
def test_imports_go_one_way(module: str) -> None:
    for other in imports(module) - {"rlhf_edu", module}:
        assert room(other) in MAY_IMPORT[room(module)], f"{module} imports {other}"


def test_only_the_command_line_knows_all() -> None:
    assert not [name for name in MODULES if "rlhf_edu.__main__" in imports(name)]


def test_no_imports_go_in_a_circle() -> None:
    arrows = {name: imports(name) - {"rlhf_edu", name} for name in MODULES}
    while arrows:
        free = [name for name, to in arrows.items() if not to & set(arrows)]
        assert free, f"these import one another: {sorted(arrows)}"
        arrows = {name: to for name, to in arrows.items() if name not in free}


def test_names_of_the_core_stand_once() -> None:
    found: dict[str, list[str]] = {}
    for module in (name for name in MODULES if room(name) in ("core", "engine")):
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Assign)
        for node in (n for n in tree(module).body if isinstance(n, kinds)):
            assigned = [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
            for name in assigned or [getattr(node, "name", "_")]:
                found.setdefault(name, []).append(module)
    # Every trainer has one; they do the same for different data.
    del found["check_step_0"]
    twice = {n: where for n, where in found.items() if len(where) > 1 and not n.startswith("_")}
    assert not twice


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_says_what_it_is(wing: str) -> None:
    words = ast.get_docstring(tree(f"rlhf_edu.{wing}"))
    assert words and "import" in words, "say who may import it"


def test_the_front_door_is_small() -> None:
    core = [name for name in MODULES if room(name) == "core"]
    assert len(core) <= 20, core


def test_functions_are_short_enough_to_project() -> None:
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert not {name: length for name, length in lengths.items() if length > 60}
    every = sorted(lengths.values())
    assert every[len(every) // 2] <= 8 and every[int(0.9 * len(every))] <= 22


def test_every_function_says_what_it_returns() -> None:
    assert not [name for name, node in functions() if node.returns is None]


def test_importing_the_package_loads_no_torch() -> None:
    code = "import rlhf_edu, sys; dir(rlhf_edu); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_public_face_is_there() -> None:
    package = importlib.import_module("rlhf_edu")
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"):
        package.train_everything  # noqa: B018
