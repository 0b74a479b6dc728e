"""One click: codespace, Binder and Colab install what the project asks for, and open chapter 00."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from rlhf_edu.__main__ import _parser
from rlhf_edu.course import cloud, editions
from rlhf_edu.course.copies import student_edition

ROOT = Path(__file__).resolve().parent.parent
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
CONTAINER = ".devcontainer/devcontainer.json"
HERE, NAME = "https://github.com/ada/rlhf", "ada/rlhf"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [CONTAINER, "binder/postBuild", ".github/workflows/colab.yml"])
def test_the_commands_of_the_course_exist(file: str) -> None:
    commands = re.findall(r"python -m rlhf_edu ([^\n]*?)(?:\",|$)", read(file), re.M)
    assert commands
    for command in commands:
        _parser().parse_args(shlex.split(command))


# --- codespaces --------------------------------------------------------------------------------


def test_a_codespace_installs_and_opens_the_first_chapter() -> None:
    container = json.loads(read(CONTAINER))
    assert container["postCreateCommand"].startswith("make install && .venv/bin/python -m ")
    # Or VS Code would open its files before they are made.
    assert container["waitFor"] == "postCreateCommand"
    (opened,) = container["customizations"]["codespaces"]["openFiles"]
    assert opened == f"my/{editions.find()[0].name}"


@pytest.mark.skipif(os.name == "nt" or not shutil.which("make"), reason="there is no make here")
def test_a_codespace_gets_a_torch_without_cuda() -> None:
    env = os.environ | json.loads(read(CONTAINER))["containerEnv"]
    command = ["make", "-n", "install", "VENV=nowhere"]
    planned = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stdout
    assert re.search(rf'pip install --index-url {CPU_TORCH} "torch==[\d.]+"\n', planned)


# --- binder ------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Binder is Linux")
def test_binder_installs_the_tested_versions_without_cuda(tmp_path: Path) -> None:
    """Its script runs here beside a pip and a python that only write down what they are asked."""
    log, bin = tmp_path / "log", tmp_path / "bin"
    bin.mkdir()
    for name in ("pip", "python"):
        (bin / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{log}"\n')
        (bin / name).chmod(0o755)
    path = f"{bin}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "NB_PYTHON_PREFIX": str(tmp_path / "env")}
    subprocess.run([ROOT / "binder" / "postBuild"], cwd=ROOT, env=env, check=True)
    torch = re.search(r"^torch==\S+$", read("constraints.txt"), re.M)[0]
    assert log.read_text().splitlines() == [
        f"pip install --no-cache-dir --index-url {CPU_TORCH} {torch}",
        "pip install --no-cache-dir -c constraints.txt -e .[notebooks]",
        "python -m rlhf_edu notebooks copies",
    ]
    settings = tmp_path / "env" / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    assert settings.read_text() == read("notebooks/.lab/overrides.json")


# --- badges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [NAME, HERE, f"{HERE}.git", f"{HERE}/", "git@github.com:ada/rlhf.git"]
    + ["ssh://git@github.com/ada/rlhf", "https://ada:secret@github.com/ada/rlhf.git"],
)
def test_a_repository_is_known_by_any_of_its_addresses(address: str) -> None:
    assert cloud.repository(address) == NAME


@pytest.mark.parametrize("address", ["", "rlhf", "/home/ada/rlhf", "../rlhf", "a/b/c", "a b/c"])
def test_what_is_not_on_github_is_said(address: str) -> None:
    with pytest.raises(ValueError, match="no repository on GitHub; say --repository OWNER/NAME"):
        cloud.repository(address)


def test_git_is_asked_where_nobody_says_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cloud, "checkout", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="Git's remote `origin` is no repository"):
        cloud.repository()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    remote = ["remote", "add", "origin", "https://ada:secret@github.com/ada/rlhf.git"]
    subprocess.run(["git", "-C", tmp_path, *remote], check=True)
    assert cloud.repository() == NAME


def test_badges_are_written_in_their_place(tmp_path: Path, monkeypatch) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(cloud, "checkout", lambda: tmp_path)
    cloud.put_badges("grace/course")
    lines = cloud.put_badges(NAME)  # again, after a move
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "grace" not in text and text.count(lines) == 1 == text.count("<!-- /badges -->")
    for address in (
        f"https://codespaces.new/{NAME}",
        f"https://mybinder.org/v2/gh/{NAME}/HEAD?urlpath=lab/tree/my/00_start_here.ipynb",
        f"https://colab.research.google.com/github/{NAME}/blob/colab/00_start_here.ipynb",
    ):
        assert f".svg)]({address})\n" in text
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(ValueError, match="lacks the lines <!-- badges -->"):
        cloud.put_badges(NAME)


# --- colab -------------------------------------------------------------------------------------


def on_colab(chapter: str) -> list:
    (path,) = editions.find([chapter])
    return cloud.colab_edition(editions.read(path), chapter, NAME).cells


@pytest.mark.parametrize("chapter", ["00", "11"])  # 11 has a cell of its own for Colab
def test_the_first_cell_installs_the_course_on_colab(chapter: str) -> None:
    cells = on_colab(chapter)
    first, second, *_ = [cell for cell in cells if cell.cell_type == "code"]
    assert first.source == cloud.INSTALL.format(address=HERE)
    assert second.source.startswith("from rlhf_edu.course import hint, solution\n")
    assert sum("install" in cell.metadata.get("tags", []) for cell in cells) == 1
    folded = [c for c in cells if c.metadata.get("jupyter", {}).get("source_hidden")]
    assert folded and all(cell.metadata.cellView == "form" for cell in folded)


@pytest.mark.parametrize("chapter", ["00", "11"])
def test_links_of_colab_leave_it(chapter: str) -> None:
    text = "\n".join(c.source for c in on_colab(chapter) if c.cell_type == "markdown")
    places = [part.split(")")[0] for part in text.split("](")[1:]]
    assert places and all(place.startswith("https://") for place in places)
    assert f"https://colab.research.google.com/github/{NAME}/blob/colab/03_" in text


def test_the_course_is_installed_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    done: list[list[str]] = []
    monkeypatch.setattr(subprocess, "check_call", lambda command: done.append(command))
    cell = cloud.INSTALL.format(address=HERE)
    exec(cell, {})  # the course is here
    assert not done
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(cell, {})
    (tmp_path / "course").mkdir()  # fetched before, as where an installation was cut off
    exec(cell, {})
    clone, install = ["git", "clone", "-q", "--depth", "1", HERE, "course"], "-e course torchvision"
    assert done[0] == clone and clone not in done[1:]
    assert [" ".join(command[-3:]) for command in done[1:]] == [install, install]


def test_a_copy_asks_for_nothing_before_it_is_installed() -> None:
    (path,) = editions.find(["11"])
    copy = student_edition(editions.read(path), "11")
    (cell,) = (c for c in copy.cells if "install" in c.metadata.get("tags", []))
    assert "rlhf_edu" not in cell.source
