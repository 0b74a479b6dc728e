"""How far a student is, and how far a class is: every exercise of returned notebooks, judged.

    python -m rlhf_edu progress            the copies in my/, chapter by chapter
    python -m rlhf_edu grade FOLDER        a class: grades.csv, class.png and class.html in FOLDER

FOLDER holds notebooks in any order: a folder a student, or one file each with the student's name
in it. Experiments have no single right answer, and are for a person to read.
"""

import csv
import html
import io
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from tqdm import tqdm

from rlhf_edu.course.editions import find
from rlhf_edu.course.examine import check_of, examine
from rlhf_edu.course.exercises import Exercise, exercises
from rlhf_edu.course.notebook import picture_html, png
from rlhf_edu.experiments.plots import PINK, SKY, YELLOW
from rlhf_edu.files import write_text

MOST_BYTES = 50_000_000  # of a notebook
# What a grade can be, with the letter and the colour of its place in the picture.
GRADES = {
    "right": ("✓", SKY),
    "named mistake": ("m", YELLOW),
    "refused": ("✗", PINK),
    "not attempted": ("·", "#dddddd"),
    "unreadable": ("?", "#ffffff"),
}


@dataclass(frozen=True)
class Grade:
    """One student's answer to one exercise: `grade` is a key of GRADES, `message` says more."""

    student: str
    exercise: Exercise
    grade: str
    message: str
    file: str


# --- notebooks ---------------------------------------------------------------------------------


def code_cells(path: Path) -> list[str]:
    """The code cells of a notebook from anybody, which may be any file.

    Raises:
        ValueError: it is no notebook.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES // 1_000_000} MB")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("not a notebook") from None
    return sources


def chapter_of(path: Path, cells: Sequence[str] = ()) -> str:
    """Which chapter this is: what most of its checks say, or its file name; "" if neither does."""
    named = re.findall(r"rlhf_edu\.course\.checks\.ch(\d\d)\b", "\n".join(cells))
    named = [most for most, _ in Counter(named).most_common()]
    named += re.findall(r"(?<!\d)(\d\d)(?!\d)", path.stem)
    known = {e.chapter for e in exercises()}
    return next((chapter for chapter in named if chapter in known), "")


def student_of(path: Path, folder: Path, chapter: str) -> str:
    """Who returned this file: the name of its folder, or what its own adds to the chapter's."""
    inside = path.relative_to(folder).parent.as_posix()
    if inside != ".":
        return inside
    added = path.stem.replace(find([f"{chapter}_"])[0].stem, "")
    for alone in (r"[^\W_]", r"\d"):  # the 05 of s05_05 is the second, the one of anna05 the only
        added, done = re.subn(rf"(?<!{alone}){chapter}(?!{alone})", "", added, count=1)
        if done:
            break
    return added.strip(" _-.") or folder.resolve().name


# --- grades ------------------------------------------------------------------------------------


def judge(cells: Sequence[str], exercise: Exercise) -> tuple[str, str]:
    """The verdict on one exercise: a key of GRADES, and what the check says."""
    result = examine(cells, exercise)
    if result.status in ("passed", "not attempted"):
        return result.status.replace("passed", "right"), result.message
    known = result.message in check_of(exercise).mistakes
    return "named mistake" if known else "refused", result.message


def grades(paths: Sequence[Path], folder: Path) -> list[Grade]:
    """Every exercise of every notebook below a folder, judged, several at a time.

    A file that cannot be read costs its own rows only; one of no chapter is named, and left out.
    """
    todo: list[tuple[Path, list[str], str, Exercise]] = []
    for path in paths:
        cells, problem = [], ""
        try:
            cells = code_cells(path)
        except (ValueError, OSError) as error:
            problem = str(error)
        if chapter := chapter_of(path, cells):
            todo += [(path, cells, problem, e) for e in exercises(chapter) if e.check]
        else:
            print(f"{path}: {problem or 'no chapter of this course'}; left out")

    def graded(row: tuple[Path, list[str], str, Exercise]) -> Grade:
        path, cells, problem, e = row
        verdict = ("unreadable", problem) if problem else judge(cells, e)
        name = path.relative_to(folder).as_posix()
        return Grade(student_of(path, folder, e.chapter), e, *verdict, name)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(graded, todo), "grading", len(todo), unit="answer"))
    return sorted(found, key=lambda g: (g.student, g.exercise.place, g.file))


# --- a class -----------------------------------------------------------------------------------


def grade(folder: Path) -> str:
    """Grade all notebooks below a folder; write grades.csv, class.png and class.html there.

    Returns:
        What the picture shows, and the mistakes of the class, counted.

    Raises:
        ValueError: there is no notebook of the course.
    """
    paths = [p for p in sorted(folder.rglob("*.ipynb")) if p.is_file()]
    found = grades([p for p in paths if ".ipynb_checkpoints" not in p.parts], folder)
    if not found:
        raise ValueError(f"{folder}: no notebook of this course is in it")
    counted = mistakes(found)
    words, picture = summary(found), png(heat_map(found))
    write_text(folder / "grades.csv", table(found))
    (folder / "class.png").write_bytes(picture)
    rows = "".join(f"<li>{html.escape(row)}</li>" for row in counted)
    page = f"{picture_html(picture, words)}<h2>Mistakes, counted</h2><ol>{rows}</ol>"
    write_text(folder / "class.html", f'<meta charset="utf-8"><title>The class</title>{page}\n')
    return "\n".join([words, *counted])


def table(found: Sequence[Grade]) -> str:
    """The grades as CSV, a line an exercise."""

    def plain(cell: str) -> str:  # a spreadsheet would compute a cell that begins like a formula
        return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t") else cell

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["student", "exercise", "function", "grade", "message", "file"])
    for g in found:
        row = [g.student, g.exercise.place, g.exercise.function, g.grade, g.message, g.file]
        writer.writerow([plain(cell) for cell in row])
    return out.getvalue()


def mistakes(found: Sequence[Grade]) -> list[str]:
    """The named mistakes of a class, the most frequent first, each with its number."""
    made = Counter(
        (g.exercise.place, g.exercise.function[3:], g.message)
        for g in found
        if g.grade == "named mistake"
    )
    return [f"{n} × {place} {name}: {says}" for (place, name, says), n in made.most_common()]


def summary(found: Sequence[Grade]) -> str:
    """The finding in a sentence."""
    students, places = {g.student for g in found}, {g.exercise.place for g in found}
    parts = Counter(g.grade for g in found)
    shares = ", ".join(f"{parts[kind] / len(found):.0%} {kind}" for kind in GRADES if parts[kind])
    return f"{len(students)} students, {len(places)} exercises: {shares}."


def heat_map(found: Sequence[Grade]) -> Figure:
    """Students from top to bottom, exercises from left to right; each grade has colour and sign."""
    students = sorted({g.student for g in found})
    places = sorted({g.exercise.place for g in found})
    kinds = list(GRADES)
    squares = np.full((len(students), len(places)), kinds.index("unreadable"))
    size = max(6.4, 3 + 0.28 * len(places)), 1.8 + 0.26 * len(students)
    figure = Figure(figsize=size, layout="tight")
    axes = figure.subplots()
    for g in found:
        row, column = students.index(g.student), places.index(g.exercise.place)
        squares[row, column] = kinds.index(g.grade)
    for (row, column), kind in np.ndenumerate(squares):
        axes.text(column, row, GRADES[kinds[kind]][0], ha="center", va="center", fontsize=9)
    colours = ListedColormap([colour for _, colour in GRADES.values()])
    axes.imshow(squares, cmap=colours, vmin=0, vmax=len(kinds) - 1, aspect="auto")
    axes.set_xticks(range(len(places)), places, rotation=90, fontsize=8)
    axes.set_yticks(range(len(students)), [name[-24:] for name in students], fontsize=8)
    axes.grid(False)
    legend = "   ".join(f"{sign} {kind}" for kind, (sign, _) in GRADES.items())
    figure.suptitle(legend, fontsize=9)
    return figure


# --- one student -------------------------------------------------------------------------------


def progress(folder: Path) -> str:
    """What of the copies in a folder is solved, as they were last saved, and what comes next.

    Raises:
        FileNotFoundError: there are no copies.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no chapters yet: `make lab` makes your copies")
    found, lines, ahead = grades(paths, folder), [], []
    for path in paths:
        here = [g for g in found if g.file == path.name]
        right = [g for g in here if g.grade == "right"]
        ahead += [g for g in here if g.grade != "right"]
        bar = "█" * len(right) + "░" * (len(here) - len(right))
        title = path.stem[3:].replace("_", " ")
        lines.append(f"{path.stem[:2]}  {bar:<6} {len(right)} of {len(here)}  {title}")
    lines.append(f"\n{len(found) - len(ahead)} of {len(found)} exercises, and experiments besides.")
    if ahead:
        e = ahead[0].exercise
        lines.append(f"Next: {e.place}, {e.title} ({folder.name}/{ahead[0].file})")
        if ahead[0].grade != "not attempted":
            lines.append(f"  {ahead[0].message}")
    return "\n".join(lines)
