"""What is made from the notebooks for a class: slides, looked at in a browser, and the site.

The tools for it are the extras `lecture` and `site`, and a Chromium; tests that need what is not
there are skipped.
"""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rlhf_edu.course import editions, site, slides

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Addresses that a page loads by itself; a link that a reader clicks is none.
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']([^"']+)""")

needs_reveal = pytest.mark.skipif(not find_spec("sphinx_revealjs"), reason="pip: .[lecture]")
needs_sphinx = pytest.mark.skipif(not find_spec("furo"), reason="pip: .[site]")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def cell(make, source: str, kind: str, *tags: str, **more):
    return make(source, metadata={"slideshow": {"slide_type": kind}, "tags": list(tags)}, **more)


def small() -> list:
    """A chapter with a bit of everything that a lecture treats in its own way."""
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "Gold rises by 2."}
    printed = new_output("stream", text="· not attempted yet\n")
    text, code = new_markdown_cell, new_code_cell
    return [
        cell(text, "# 42 · Small\n\n30 minutes as a lecture, see `rlhf_edu/ppo.py`.", "slide"),
        cell(text, "Chapter 43 is next.\n\n**Predict**: what rises?\n\nMore words.", "subslide"),
        cell(code, "show(figure)", "-", "figure", outputs=[new_output("display_data", picture)]),
        cell(text, "Gold does, $x^2$.\n\nAnd so on.", "subslide"),
        cell(text, "**Exercise 1 · easy · 5 minutes** — *x.*", "slide"),
        cell(code, "check_x(my_x)", "-", "exercise", outputs=[printed]),
        cell(code, "x_solution = 1", "skip", "solution"),
        cell(code, "helper = 1", "skip"),
        cell(text, "## Three questions", "subslide"),
        cell(text, "<details><summary>Answers</summary>\n\n1. Yes.\n</details>", "skip", "answer"),
    ]


def chapter(cells: list):
    return editions.tidy(new_notebook(cells=cells))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two small chapters, as the course has them."""
    monkeypatch.setattr(editions, "data_folder", lambda: tmp_path / "data")
    (tmp_path / "rlhf_edu").mkdir()
    shutil.copy(ROOT / "rlhf_edu" / "ppo.py", tmp_path / "rlhf_edu")
    badges = "<!-- badges -->\n![a](https://example.org/badge.svg)\n<!-- /badges -->"
    (tmp_path / "README.md").write_text(f"# A course\n\n{badges}\n\nOpening.\n\n## More\n")
    editions.write(tmp_path / "notebooks" / "42_small.ipynb", chapter(small()))
    other = chapter([new_markdown_cell("# 43 · Next")])
    editions.write(tmp_path / "notebooks" / "43_next.ipynb", other)
    (tmp_path / "notebooks" / "README.md").write_text("# The lecturer's page\n")
    return tmp_path


# --- slides ------------------------------------------------------------------------------------


def deck(cells: list) -> list[list]:
    lecture = slides.lecture(new_notebook(cells=cells))
    return slides.slides_of(lecture.cells)


def test_a_prediction_comes_with_its_answer_for_the_speaker() -> None:
    _, asked, *_ = deck(small())
    notes = "\n".join(c.source for c in asked if slides.kind(c) == "notes")
    assert "**Predict**: what rises?" in notes and "More words" not in notes
    assert "Gold rises by 2.\n\nGold does, $x^2$." in notes and "And so on" not in notes


def test_what_was_printed_is_the_answer_where_there_is_no_figure() -> None:
    printed = cell(new_code_cell, "f()", "-", outputs=[new_output("stream", text="7\n")])
    assert slides.outcome([printed]) == "```\n7\n```"
    another = cell(new_markdown_cell, "**Predict**: and then?", "slide")
    assert slides.outcome([another, printed]) == ""


def test_the_lecture_shows_no_solution_and_no_attempt() -> None:
    shown = "".join(json.dumps(c) for slide in deck(small()) for c in slide)
    assert "check_x" in shown and "5 minutes for the exercise" in shown
    assert not re.search("not attempted|solution|helper|details", shown)
    assert slides.kind(deck(small())[-1][-1]) == "notes"  # the answers to the three questions


def test_the_short_path_is_marked_and_takes_the_minutes_of_the_lecture() -> None:
    made = deck(small())
    marked = [slide[0].metadata.slideshow.data.get("state") == "path" for slide in made]
    assert marked == [True, True, False, False, False]
    assert [slide[1].source for slide in made][:3] == [
        "Minute 0 of 30.",
        "Minute 15 of 30.",
        "Not on the short path.",
    ]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_a_short_path_that_fits_its_minutes(path: Path) -> None:
    notebook = editions.read(path)
    assert any(slides.MINUTES.search(c.source) for c in notebook.cells[:3])
    minutes = slides.minutes(notebook)
    slides.lecture(notebook)
    starts = [c for c in notebook.cells if slides.kind(c) == "slide"]
    short = [c for c in starts if c.metadata.slideshow.data.get("state")]
    assert minutes / 3 < len(short) < min(1.2 * minutes, len(starts))
    asked = [c.source for c in notebook.cells if "**What comes out**" in c.source]
    assert len(asked) >= 3
    assert sum(source.rstrip().endswith("**") for source in asked) <= 2  # mostly it can be told


def test_what_is_not_installed_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"no_such_package is not installed: pip .*\[lecture\]"):
        slides.packaged("no_such_package", "x", "lecture")


def outside(folder: Path) -> set[str]:
    """What the pages in a folder load and that is not in the folder."""
    found = set()
    for page in folder.rglob("*.html"):
        for address in LOADED.findall(page.read_text(encoding="utf-8")):
            place = page.parent / address.split("?")[0].split("#")[0]
            if not address.startswith(("data:", "#")) and not place.exists():
                found.add(address)
    return found


@needs_reveal
def test_slides_are_a_folder_that_has_all_it_needs(checkout: Path) -> None:
    slides.slides()
    folder = checkout / "build" / "slides"
    assert outside(folder) == set()
    page = (folder / "42_small.html").read_text(encoding="utf-8")
    assert str(checkout) not in page and "show(figure)" not in page
    assert 'href="42_small.html?short"' in (folder / "index.html").read_text(encoding="utf-8")


# Walks with the right arrow, and notes each slide's place, size, and what hangs over its edge.
WALK = """
<script>
addEventListener("load", async () => {
  await MathJax.startup.promise;
  while (!window.Reveal || !Reveal.isReady()) await new Promise((done) => setTimeout(done, 20));
  const seen = [], room = document.querySelector(".slides").getBoundingClientRect();
  for (let i = 0; i < 2000; i++) {
    const slide = Reveal.getCurrentSlide(), size = slide.getBoundingClientRect();
    const parts = [...slide.querySelectorAll("p, li, pre, table, img, mjx-container")];
    const over = parts.filter((part) => {
      const box = part.getBoundingClientRect();
      return box.right > innerWidth + 1 || box.bottom > innerHeight + 1;
    });
    seen[Reveal.getIndices().h] = {
      over: over.length + (size.height > room.height + 1), zoom: +(slide.style.zoom || 1)};
    if (Reveal.isLastSlide() && !Reveal.availableFragments().next) break;
    document.dispatchEvent(new KeyboardEvent("keydown", {keyCode: 39, bubbles: true}));
  }
  const all = document.querySelectorAll(".slides > section").length;
  const far = performance.getEntries().filter((entry) => /^https?:/.test(entry.name)).length;
  document.body.innerHTML = `<p id="seen">${JSON.stringify({seen, all, far})}</p>`;
});
</script>
"""


def walk(page: Path) -> dict:
    """What a browser without a network sees on the slides of a page."""
    walked = page.with_name("walked.html")
    walked.write_text(page.read_text(encoding="utf-8") + WALK, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --window-size=1280,720 --dump-dom"
    command = [CHROMIUM, *options.split(), "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=100000", f"--user-data-dir={page.parent / 'profile'}"]
    shown = subprocess.run(
        [*command, walked.as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    return json.loads(re.search(r'<p id="seen">(.*?)</p>', shown)[1])


@needs_reveal
@needs_chromium
def test_arrow_keys_walk_all_slides_and_nothing_hangs_over_the_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapter = next(path for path in CHAPTERS if path.name.startswith("08"))
    (tmp_path / "notebooks").mkdir()
    shutil.copy(chapter, tmp_path / "notebooks")
    monkeypatch.setattr(editions, "data_folder", lambda: tmp_path / "data")
    slides.slides()
    told = walk(tmp_path / "build" / "slides" / f"{chapter.stem}.html")
    assert told["far"] == 0
    assert len(told["seen"]) == told["all"] > 30 and None not in told["seen"]
    assert [i for i, slide in enumerate(told["seen"]) if slide["over"]] == []
    assert min(slide["zoom"] for slide in told["seen"]) > 0.6  # still to be read at the back


# --- the site ----------------------------------------------------------------------------------


@needs_sphinx
def test_the_site_is_a_book_with_links_and_without_the_network(checkout: Path) -> None:
    site.site()
    folder = checkout / "build" / "site"
    assert outside(folder) == set()
    page = (folder / "42_small.html").read_text(encoding="utf-8")
    assert 'href="43_next.html"' in page and 'href="code/rlhf_edu/ppo.py.html"' in page
    assert "def train_ppo" in re.sub(
        r"<[^>]+>", "", (folder / "code/rlhf_edu/ppo.py.html").read_text()
    )
    assert "not attempted" not in page and re.search(r"<details[^>]*hide", page)
    assert "rlhf_edu" in (folder / "searchindex.js").read_text(encoding="utf-8")
    assert "The lecturer" in (folder / "index.html").read_text(encoding="utf-8")


@needs_sphinx
def test_a_fault_in_a_page_is_an_error(checkout: Path, capsys) -> None:
    (checkout / "notebooks" / "README.md").write_text("# A\n\n[nowhere](nowhere.md)\n")
    with pytest.raises(RuntimeError, match="the site has faults"):
        site.site()
    assert "README.md:3: WARNING" in capsys.readouterr().err
    assert not (checkout / "build" / "site").exists()
