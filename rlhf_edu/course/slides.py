"""Slides: the notebooks as lectures, in one folder that works without a network, anywhere.

    python -m rlhf_edu notebooks slides [05 …]      build/slides

Arrow keys walk all slides; with `?short` behind the address, those of a short path: where a section
begins, what to predict, and figures. "S" opens the speaker's view: the minute, what to ask and what
will come out, as the notebook has it.
"""

import html
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from rlhf_edu.course.editions import checkout, find, kind, read, tags_of
from rlhf_edu.files import write_text

TEMPLATE = Path(__file__).with_name("slides.html.j2")
MINUTES = re.compile(r"(\d+) minutes as a lecture")
PREDICT = re.compile(r"\*\*Predict.*?(?=\n\n|\Z)", re.DOTALL)
EXERCISE = re.compile(r"\*\*Exercise \d+ · \w+ · (\d+) minutes\*\*")
# Whatever begins so is about something else than what was to be predicted.
NEW = re.compile(r"#|\*\*Exercise|.*?\*\*Predict", re.DOTALL)


def slides(names: Sequence[str] = ()) -> None:
    """Write the lectures to build/slides, one HTML page each, and a page that lists them.

    Raises:
        RuntimeError: what the slides are shown with is not installed.
    """
    from nbconvert import SlidesExporter
    from traitlets.config import Config

    folder = checkout() / "build" / "slides"
    copy_assets(folder / "assets")
    # A cell tagged `figure` only draws: the lecture shows the picture without the code.
    hidden = {"enabled": True, "remove_input_tags": ["figure"]}
    exporter = SlidesExporter(
        template_name="reveal",
        raw_template=TEMPLATE.read_text(encoding="utf-8"),
        reveal_url_prefix="assets/reveal",
        reveal_theme="white",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config=Config({"TagRemovePreprocessor": hidden}),
    )
    for path in find(names):
        notebook = read(path)
        resources = {"metadata": {"name": path.stem}, "minutes": minutes(notebook)}
        page, _ = exporter.from_notebook_node(lecture(notebook), resources)
        target = folder / f"{path.stem}.html"
        write_text(target, page)
        print(target.relative_to(checkout()).as_posix())
    write_text(folder / "index.html", contents(folder))


def packaged(package: str, place: str, extra: str) -> Path:
    """A file or folder inside an installed package.

    Raises:
        RuntimeError: it is not installed; says which extra of the course has it.
    """
    try:
        return Path(str(files(package) / place))
    except ModuleNotFoundError:
        raise RuntimeError(
            f"{package} is not installed: pip install -c constraints.txt -e '.[{extra}]'"
        ) from None


def copy_assets(target: Path) -> None:
    """Copy reveal.js with its notes and fonts, and MathJax, out of the packages that have them."""
    reveal = packaged("sphinx_revealjs", "_static/revealjs", "lecture")
    mathjax = packaged("sphinx-mathjax-offline", "static/mathjax/tex-svg.js", "lecture")
    ignored = shutil.ignore_patterns("*.map", "*.esm.js")
    for part in ("dist", "plugin/notes"):
        shutil.copytree(reveal / part, target / "reveal" / part, ignore=ignored, dirs_exist_ok=True)
    shutil.copy(mathjax, target)


def contents(folder: Path) -> str:
    """A page with a link to each lecture in the folder, whole and short."""
    lines = []
    for path in find():
        page = f"{path.stem}.html"
        if (folder / page).exists():
            notebook = read(path)
            title = html.escape(notebook.cells[0].source.split("\n")[0].lstrip("# "))
            short = f'<a href="{page}?short">short, {minutes(notebook)} minutes</a>'
            lines.append(f'<li><a href="{page}">{title}</a> · {short}</li>')
    head = '<!DOCTYPE html><meta charset="utf-8"><title>Slides</title>'
    style = "<style>body {font: 20px/1.8 sans-serif; margin: 3em} li {list-style: none}</style>"
    keys = "<p>→ next, ← back, S speaker's view, Esc all slides, F full screen</p>"
    return "\n".join([head, style, "<h1>Slides</h1>", keys, "<ul>", *lines, "</ul>\n"])


# --- one lecture -------------------------------------------------------------------------------


def minutes(notebook: NotebookNode) -> int:
    """How long a chapter is as a lecture, by its own words."""
    said = (MINUTES.search(cell.source) for cell in notebook.cells)
    return next((int(found[1]) for found in said if found), 40)


def lecture(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook, changed in place, as a row of slides with notes for the speaker."""
    total = minutes(notebook)
    cells = [shown for cell in notebook.cells if (shown := on_screen(cell))]
    deck = slides_of(with_notes(cells))
    short, seen = sum(map(on_short_path, deck)), 0
    notebook.cells = []
    for slide in deck:
        on_path, said = on_short_path(slide), "Not on the short path."
        if on_path:
            said = f"Minute {round(total * seen / short)} of {total}."
            seen += 1
        data = NotebookNode(state="path") if on_path else NotebookNode()
        slide[0].metadata.slideshow = NotebookNode(slide_type="slide", data=data)
        notebook.cells += [slide[0], note(said), *slide[1:]]
    return notebook


def on_screen(cell: NotebookNode) -> NotebookNode | None:
    """The cell as a lecture has it, answers as notes; None: not at all."""
    tags = tags_of(cell)
    if "answer" in tags and cell.source.startswith("<details>"):
        return note(re.sub(r"</?details>|<summary>.*?</summary>", "", cell.source))
    if "solution" in tags or kind(cell) == "skip":
        return None
    if "exercise" in tags:
        cell.outputs = []
    return cell


def with_notes(cells: Sequence[NotebookNode]) -> Iterator[NotebookNode]:
    """The cells, and behind what asks the class for something a note on it."""
    for i, cell in enumerate(cells):
        yield cell
        if cell.cell_type != "markdown" or kind(cell) == "notes":
            continue
        if asked := PREDICT.search(cell.source):
            yield note(f"{asked[0]}\n\n**What comes out**\n\n{outcome(cells[i + 1 :])}")
        if exercise := EXERCISE.search(cell.source):
            yield note(f"{exercise[1]} minutes for the exercise.")


def outcome(cells: Sequence[NotebookNode]) -> str:
    """What the cells below a prediction show, and the first words that are said of it."""
    found: list[str] = []
    for cell in cells:
        if cell.cell_type == "code":
            found += [said for output in cell.outputs if (said := _said(output))]
        elif NEW.match(cell.source):
            break
        elif found:
            return "\n\n".join([*found, cell.source.split("\n\n")[0]])
    return "\n\n".join(found)


def _said(output: NotebookNode) -> str:
    """The sentence below a figure, or what was printed."""
    if "image/png" in output.get("data", {}):
        return output.data["text/plain"]
    return f"```\n{output.text.rstrip()}\n```" if "text" in output else ""


def slides_of(cells: Iterable[NotebookNode]) -> list[list[NotebookNode]]:
    """Cells, slide by slide."""
    deck: list[list[NotebookNode]] = []
    for cell in cells:
        if not deck or kind(cell) in ("slide", "subslide"):
            deck.append([])
        deck[-1].append(cell)
    return deck


def on_short_path(slide: Sequence[NotebookNode]) -> bool:
    """Whether a slide begins a section, asks for a prediction, or has a figure; no exercise."""
    if any(EXERCISE.search(cell.source) for cell in slide):
        return False
    section = kind(slide[0]) == "slide" and slide[0].cell_type == "markdown"
    if section or any(PREDICT.search(cell.source) for cell in slide):
        return True
    return any("image/png" in o.get("data", {}) for c in slide for o in c.get("outputs", []))


def note(text: str) -> NotebookNode:
    """A cell for the speaker alone."""
    return new_markdown_cell(text, metadata={"slideshow": {"slide_type": "notes"}})
