"""The course in one click, on machines of others: badges, and the edition for Colab.

    python -m rlhf_edu notebooks badges          into README.md: Codespaces, Binder, Colab
    python -m rlhf_edu notebooks colab [05 …]    build/colab: copies that install the course first

Both are made for one repository on GitHub: the one that Git knows as `origin`, or that of
`--repository OWNER/NAME`. Colab opens files of a branch: `.github/workflows/colab.yml` makes it.
"""

import re
import subprocess
from collections.abc import Sequence

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from rlhf_edu.course.copies import student_edition
from rlhf_edu.course.editions import checkout, find, read, tags_of, write
from rlhf_edu.files import write_text

GITHUB = re.compile(
    r"(?:(?:\w+://)?(?:[^/@\s]+@)?github\.com[:/])?([A-Za-z0-9-]+/[\w.-]+?)(?:\.git)?/?"
)
COLAB = "https://colab.research.google.com/github/{name}/blob/colab"
# Where the course opens: its badge, and the address of a chapter there.
PLACES = {
    "GitHub Codespaces": (
        "https://github.com/codespaces/badge.svg",
        "https://codespaces.new/{name}",
    ),
    "Binder": (
        "https://mybinder.org/badge_logo.svg",
        "https://mybinder.org/v2/gh/{name}/HEAD?urlpath=lab/tree/my/{chapter}",
    ),
    "Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        f"{COLAB}/{{chapter}}",
    ),
}
PLACE_OF_BADGES = re.compile(r"(<!-- badges -->\n).*?(<!-- /badges -->)", re.DOTALL)
CHAPTER_LINK = re.compile(r"\]\((\d\d_\w+\.ipynb)\)")
# pip keeps a torch that is new enough, since that fits the machine's GPU. An older one it replaces,
# and torchvision, which transformers imports and which goes with one torch only, along with it.
INSTALL = """# Where the course is missing, as on Colab: fetch and install it.
import os
import subprocess
import sys
from importlib.util import find_spec

COURSE = "{address}"
if not find_spec("rlhf_edu"):
    print("Installing the course: once, and it takes some minutes.")
    if not os.path.isdir("course"):
        git = ["git", "clone", "-q", "--depth", "1"]
        subprocess.check_call([*git, COURSE, "course"])
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.check_call([*pip, "-e", "course", "torchvision"])
    sys.path.insert(0, os.path.abspath("course"))"""


def repository(name: str | None = None) -> str:
    """OWNER/NAME of a repository on GitHub: of a name or address, or without one of `origin`.

    Raises:
        ValueError: it is not on GitHub.
    """
    found = GITHUB.fullmatch(_origin() if name is None else name)
    if not found:  # the address is not shown: it may hold a password
        where = "Git's remote `origin`" if name is None else name
        raise ValueError(f"{where} is no repository on GitHub; say --repository OWNER/NAME")
    return found[1]


def _origin() -> str:
    command = ["git", "remote", "get-url", "origin"]
    try:
        run = subprocess.run(command, cwd=checkout(), capture_output=True, text=True)
    except OSError:  # there is no git
        return ""
    return run.stdout.strip()


def badges(name: str) -> str:
    """Markdown: the badges of repository OWNER/NAME, one on a line."""
    chapter = find()[0].name
    return "\n".join(
        f"[![Open in {place}]({picture})]({address.format(name=name, chapter=chapter)})"
        for place, (picture, address) in PLACES.items()
    )


def put_badges(name: str) -> str:
    """Write the badges of repository OWNER/NAME into README.md, and return them.

    Raises:
        ValueError: README.md has no place for them.
    """
    readme, lines = checkout() / "README.md", badges(name)
    text, places = PLACE_OF_BADGES.subn(rf"\g<1>{lines}\n\g<2>", readme.read_text(encoding="utf-8"))
    if not places:
        raise ValueError("README.md lacks the lines <!-- badges --> and <!-- /badges -->")
    write_text(readme, text)
    return lines


def colab(names: Sequence[str], name: str) -> None:
    """Write the edition for Colab, which installs the course from OWNER/NAME, to build/colab."""
    for path in find(names):
        target = checkout() / "build" / "colab" / path.name
        write(target, colab_edition(read(path), path.name[:2], name))
        print(target.relative_to(checkout()).as_posix())


def colab_edition(notebook: NotebookNode, chapter: str, name: str) -> NotebookNode:
    """Return the notebook, changed in place, as a student opens it on Colab.

    The student's edition with a first code cell that installs the course, full addresses in its
    links, and folds that Colab understands too.
    """
    home, here = f"https://github.com/{name}", COLAB.format(name=name)
    copy = student_edition(notebook, chapter, root=f"{home}/blob/HEAD")
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = CHAPTER_LINK.sub(rf"]({here}/\1)", cell.source)
        elif cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.cellView = "form"
    # Chapter 11 brings a cell that installs what one types there: this is it, filled in.
    copy.cells = [c for c in copy.cells if "install" not in tags_of(c)]
    first = next(i for i, cell in enumerate(copy.cells) if cell.cell_type == "code")
    source, tags = INSTALL.format(address=home), NotebookNode(tags=["install"])
    copy.cells.insert(first, new_code_cell(source, id="install", metadata=tags))
    return copy
