"""The site: the chapters with their outputs as a book, with search, a dark mode and links.

    python -m rlhf_edu notebooks site               build/site

Nothing in it comes from the network, neither when it is made nor when it is read: it may be opened
from the disk, or put on any web server. Texts in `notebooks/` that are no chapters get a page too.
"""

import re
import shutil
import sys
from pathlib import Path

from nbformat import NotebookNode

from rlhf_edu.course.copies import linked
from rlhf_edu.course.editions import checkout, find, is_folded, read, tags_of, write
from rlhf_edu.course.slides import packaged
from rlhf_edu.files import new_folder, write_text

CODE = "code"  # the folder of the pages that show source files
FILE_LINK = re.compile(rf"\]\({CODE}/([^)]+)\)")
BADGES = re.compile("<!-- badges -->.*?<!-- /badges -->", re.DOTALL)  # pictures from the web
STYLE = """body {
  --mystnb-source-bg-color: var(--color-code-background);
  --mystnb-source-border-color: var(--color-background-border);
  --mystnb-stdout-bg-color: var(--color-background-secondary);
  --mystnb-stdout-border-color: var(--color-background-border);
}
"""
SETTINGS = {
    "project": "rlhf_edu",
    "copyright": "the rlhf_edu authors, CC BY 4.0",
    "extensions": ["myst_nb", "sphinx.ext.mathjax"],
    "html_theme": "furo",
    "html_title": "rlhf_edu",
    "html_static_path": ["_static"],
    "html_css_files": ["site.css"],
    "html_copy_source": False,
    "html_show_search_summary": False,  # it would read pages, which a browser forbids on a disk
    "mathjax_path": "tex-svg.js",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "suppress_warnings": ["myst.header"],  # a level of headings may be left out
}


def site() -> None:
    """Write the book to build/site.

    Raises:
        RuntimeError: what makes it is not installed, or a page has a fault, such as a dead link.
    """
    for package in ("myst_nb", "furo"):
        packaged(package, "", "site")
    build = checkout() / "build"
    source = build / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    write_sources(source)
    with new_folder(build / "site") as target:
        build_html(source, target)
    print((build / "site" / "index.html").relative_to(checkout()).as_posix())


def build_html(source: Path, target: Path) -> None:
    """Let Sphinx make the pages; errors as `site`."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            srcdir=source,
            confdir=None,
            outdir=target,
            doctreedir=source / ".doctrees",
            buildername="html",
            confoverrides=dict(SETTINGS),
            status=None,
            warning=sys.stderr,
            warningiserror=True,
        )
        app.build()
    if app.statuscode:
        raise RuntimeError("the site has faults, such as dead links: see above")


def write_sources(folder: Path) -> None:
    """Write what Sphinx reads: chapters, texts, pages of the files they name, and a first page."""
    chapters, texts = find(), sorted((checkout() / "notebooks").glob("*.md"))
    for path in chapters:
        write(folder / path.name, page(read(path)))
    for path in texts:
        write_text(folder / path.name, site_links(path.read_text(encoding="utf-8")))
    written = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    named = sorted({name.removesuffix(".md") for name in FILE_LINK.findall(written)})
    for name in named:
        write_text(folder / CODE / f"{name}.md", code_page(name))
    write_text(folder / "index.md", first_page(chapters, texts, named))
    write_text(folder / "_static" / "site.css", STYLE)
    mathjax = packaged("sphinx-mathjax-offline", "static/mathjax/tex-svg.js", "site")
    shutil.copy(mathjax, folder / "_static")


def page(notebook: NotebookNode) -> NotebookNode:
    """The notebook, changed in place, with links; helpers, figures' code and solutions folded."""
    for cell in notebook.cells:
        tags = tags_of(cell)
        if cell.cell_type == "markdown":
            cell.source = site_links(cell.source)
            continue
        if "exercise" in tags:
            cell.outputs = []  # "not attempted yet"
        if "solution" in tags:
            cell.metadata.tags = ["hide-cell"]
        elif is_folded(cell):
            cell.metadata.tags = ["hide-input"]
    return notebook


def site_links(text: str) -> str:
    """Markdown with links to chapters, to papers and to pages of source files."""
    return FILE_LINK.sub(rf"]({CODE}/\1.md)", linked(text, CODE))


def code_page(name: str) -> str:
    """A page that shows a source file."""
    up = "../" * (name.count("/") + 3)  # out of code/, site-source/ and build/
    language = {".py": "python", ".json": "json"}.get(Path(name).suffix, "text")
    options = f":language: {language}\n:lineno-match:"
    return f"# {name}\n\n```{{literalinclude}} {up}{name}\n{options}\n```\n"


def first_page(chapters: list[Path], texts: list[Path], files: list[str]) -> str:
    """What the README begins with, and the tables of contents."""
    opening = (checkout() / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    opening = BADGES.sub("", opening)
    parts = {
        "Chapters": [path.stem for path in chapters],
        "More": [path.stem for path in texts],
        "Source files": [f"{CODE}/{name}" for name in files],
    }
    trees = [
        "```{toctree}\n:maxdepth: 1\n:caption: " + f"{caption}\n\n" + "\n".join(pages) + "\n```"
        for caption, pages in parts.items()
        if pages
    ]
    return "\n\n".join([opening.strip(), *trees]) + "\n"
