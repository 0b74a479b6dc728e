"""The project around the package: thread policy, offline tests, and files that must agree."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from no_network import NetworkBlocked, is_loopback

import rlhf_edu

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("notebooks", "test")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh Python whose thread and Hugging Face settings are not set yet."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "HF_", "TRANSF"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def requirement_names(text: str) -> set[str]:
    """Names in lines such as `torch>=2.11` or `nbval==0.11.0 ; marker`, in their normal form."""
    names = re.findall(r"^([A-Za-z0-9][\w.-]*?)\s*(?:[<>=!~;\[]|$)", text, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def pyproject_requirements() -> list[str]:
    # Python 3.10 has no tomllib; the lists are simple enough to read by pattern.
    lists = ("dependencies", *EXTRAS, "lecture", "site")
    bodies = [
        re.search(rf"^{name} = \[(.*?)\]", read("pyproject.toml"), re.M | re.S) for name in lists
    ]
    return [item for body in bodies for item in re.findall(r'"([^"]+)"', body.group(1))]


# --- importing the package ---------------------------------------------------------------------


def test_import_sets_thread_policy_without_torch() -> None:
    names = "OMP_WAIT_POLICY OMP_NUM_THREADS HF_HUB_OFFLINE HF_HUB_DISABLE_TELEMETRY"
    code = (
        "import sys, os, rlhf_edu\n"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules)\n"
        f"print([os.environ[name] for name in '{names}'.split()], sorted(heavy))"
    )
    result = run_python(code)
    assert result.stdout.strip() == "['PASSIVE', '1', '1', '1'] []"
    assert result.stderr == ""


def test_import_keeps_what_the_user_set() -> None:
    code = "import os, rlhf_edu; print(os.environ['OMP_NUM_THREADS'], os.environ['HF_HUB_OFFLINE'])"
    assert run_python(code, OMP_NUM_THREADS="4", HF_HUB_OFFLINE="0").stdout.split() == ["4", "0"]


def test_torch_really_gets_one_thread() -> None:
    code = "import rlhf_edu, torch; print(torch.get_num_threads())"
    assert run_python(code).stdout.strip() == "1"


# A stand-in module: what counts is that torch is loaded, and the real one takes seconds.
TORCH_FIRST = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import rlhf_edu"


def test_import_after_torch_warns() -> None:
    error = run_python(TORCH_FIRST).stderr
    assert "RuntimeWarning: torch was imported before rlhf_edu" in error
    assert "put `import rlhf_edu` first" in error


def test_import_after_torch_is_silent_if_the_policy_was_set() -> None:
    result = run_python(TORCH_FIRST, OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="2")
    assert result.stderr == ""


# --- the data folder ---------------------------------------------------------------------------


@pytest.fixture
def installed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend that the package lies in another folder."""
    monkeypatch.setattr(rlhf_edu, "__file__", str(tmp_path / "rlhf_edu" / "__init__.py"))
    return tmp_path.resolve()


def test_data_folder_of_a_wheel_says_how_to_get_the_course(installed_in: Path) -> None:
    (installed_in / "data").mkdir()  # somebody else's: site-packages is shared
    for create in (False, True):
        with pytest.raises(
            FileNotFoundError, match=r"editable checkout: git clone .*pip install -e \."
        ):
            rlhf_edu.data_folder(create=create)


def test_data_folder_missing_from_a_checkout_says_how_to_rebuild(installed_in: Path) -> None:
    (installed_in / "pyproject.toml").touch()
    with pytest.raises(FileNotFoundError, match="python -m rlhf_edu build"):
        rlhf_edu.data_folder()
    assert not (installed_in / "data").exists()
    assert rlhf_edu.data_folder(create=True) == installed_in / "data"
    assert rlhf_edu.data_folder().is_dir()


# --- no network --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.socket().connect(("192.0.2.1", 80)),
        lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        lambda: socket.create_connection(("example.invalid", 443), timeout=1),
        lambda: socket.getaddrinfo("example.invalid", 443),
        lambda: socket.gethostbyname("example.invalid"),
    ],
    ids=["connect", "connect_ex", "sendto", "create_connection", "getaddrinfo", "gethostbyname"],
)
def test_network_is_blocked(reach) -> None:
    with pytest.raises(NetworkBlocked, match="tests work offline"):
        reach()


def test_loopback_is_open() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client:
            assert client.getpeername()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("::1", True), (b"localhost", True), ("127.8.9.1", True), (None, True)]
    + [("10.0.0.1", False), ("0.0.0.1", False), ("fe80::1%eth0", False), ("huggingface.co", False)],
)
def test_is_loopback(host: str | bytes | None, here: bool) -> None:
    assert is_loopback(host) is here


# --- files that must agree ---------------------------------------------------------------------


def test_constraints_fix_every_dependency() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+( ; .+)?$", line) for line in lines)
    wanted = requirement_names("\n".join(pyproject_requirements()))
    assert {"torch", "transformers", "pytest", "jupyterlab"} <= wanted
    assert wanted <= requirement_names("\n".join(lines))


def test_constraints_fix_torch_for_every_python_and_build() -> None:
    # `make install` reads this line; a local part such as +cpu would not exist everywhere.
    assert re.search(r"^torch==\d+\.\d+\.\d+$", read("constraints.txt"), re.M)


def test_environment_draws_on_pyproject_and_constraints() -> None:
    environment = read("environment.yml")
    assert "- -c constraints.txt\n" in environment
    assert f"- -e .[{','.join(EXTRAS)}]\n" in environment
    # Nothing but Python itself is asked for by conda, so that no version is said twice.
    conda = re.search(r"^dependencies:\n(.*?)  - pip:\n", environment, re.M | re.S).group(1)
    assert requirement_names(re.sub(r"^\s*- ", "", conda, flags=re.M)) == {"python", "pip"}


def test_every_python_that_is_promised_is_tested() -> None:
    promised = [f"3.{minor}" for minor in range(10, 15)]
    assert f"Python {promised[0]} to {promised[-1]}" in read("README.md")
    assert f'requires-python = ">={promised[0]}"' in read("pyproject.toml")
    assert f'target-version = "py{promised[0].replace(".", "")}"' in read("pyproject.toml")
    assert set(promised) == set(re.findall(r'"(3\.\d+)"', read(".github/workflows/ci.yml")))
    assert set(promised) == set(re.findall(r"python(3\.\d+)[ ;]", read("Makefile")))
    assert read("binder/runtime.txt").removeprefix("python-").strip() in promised


def test_ci_runs_the_test_command() -> None:
    commands = [line for line in read(".ci/run").splitlines() if not line.startswith("#")]
    assert commands == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "make test",
    ]
    assert os.name == "nt" or os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize(
    "target", ["lab", "test", "test-unit", "ladder", "build", "slides", "site", "lint"]
)
def test_makefile_has_the_documented_targets(target: str) -> None:
    makefile = read("Makefile")
    assert re.search(rf"^(\w+ )*{target}:", makefile, re.M)
    assert re.search(rf"^# make {target} ", makefile, re.M)


needs_make = pytest.mark.skipif(
    os.name == "nt" or shutil.which("make") is None, reason="there is no make here"
)


def make(folder: Path, *arguments: str) -> str:
    """What make prints, in a folder with a Makefile."""
    # Without what the make that runs these tests tells its own kind.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    run = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_make
def test_make_lab_opens_the_first_chapter_and_takes_options() -> None:
    *_, copies, command = make(ROOT, "-n", "lab", "ARGS=--port 8890").splitlines()
    assert copies.endswith("python -m rlhf_edu notebooks copies")
    assert "jupyter lab --" in command and command.endswith(" --port 8890")
    assert "default_url=/lab/tree/my/00_start_here.ipynb" in command
    assert ("--allow-root" in command) == (os.getuid() == 0)  # Jupyter refuses root without


@needs_make
def test_make_install_repairs_an_environment_without_pip(tmp_path: Path) -> None:
    """As Debian leaves one behind where python3-venv is missing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "env" / "bin").mkdir(parents=True)
    has_pip = 'case "$*" in "-m pip --version") test -e pip;; "-m venv env") touch pip;; esac'
    for python in (tmp_path / "env" / "bin" / "python", tmp_path / "system"):
        python.write_text(f'#!/bin/sh\necho "{python.name} $*" >> log\n{has_pip}\n')
        python.chmod(0o755)
    for _ in range(2):
        make(tmp_path, "install", "VENV=env", "PYTHON=./system")
        (tmp_path / "env" / ".installed").unlink()
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls.count("system -m venv env") == 1
    assert sum(call.startswith("python -m pip install") for call in calls) == 4


def test_version_is_the_same_everywhere() -> None:
    assert f"version: {rlhf_edu.__version__}\n" in read("CITATION.cff")
    assert f"## {rlhf_edu.__version__} " in read("CHANGELOG.md")
