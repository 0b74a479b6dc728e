"""The notebooks as files: every rule that can be checked without running them.

Running them, and comparing what they show, is `pytest --nbval notebooks`.
"""

import ast
import builtins
import contextlib
import importlib.util
import inspect
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rlhf_edu.course import copies
from rlhf_edu.course import editions as tools
from rlhf_edu.course.editions import tags_of as tags
from rlhf_edu.course.examine import names
from rlhf_edu.course.exercises import exercises

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CELL_LINES, SOLUTION_LINES, COLUMNS, BYTES = 14, 20, 79, 1_500_000
SLIDE_TYPES = {"slide", "subslide", "fragment", "notes", "skip", "-"}
PATHS = re.compile(r"/(?:home|work|tmp|root|Users|mnt)/\w|[A-Z]:\\\\?\w")
EXERCISE = re.compile(r"\*\*Exercise \d+ · (easy|medium|hard) · \d+ minutes\*\*")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def lines(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


# --- the notebooks -----------------------------------------------------------------------------


@each
def test_every_code_cell_was_run_in_order(path: Path) -> None:
    cells = code(tools.read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each
def test_file_is_as_the_execute_command_writes_it(path: Path) -> None:
    notebook = tools.read(path)
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    tools.tidy(notebook)
    assert nbformat.writes(notebook, version=4).rstrip("\n") + "\n" == text
    assert len(text.encode()) < BYTES
    assert "widgets" not in notebook.metadata


@each
def test_cells_are_short_and_fit_a_slide(path: Path) -> None:
    for cell in code(tools.read(path)):
        limit = SOLUTION_LINES if "solution" in tags(cell) else CELL_LINES
        assert len(lines(cell)) <= limit, cell.source
        assert all(len(line) <= COLUMNS for line in cell.source.splitlines()), cell.source


@each
def test_every_cell_has_its_place_in_the_lecture(path: Path) -> None:
    cells = tools.read(path).cells
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells]
    assert set(kinds) <= SLIDE_TYPES
    assert kinds[0] == "slide"
    hidden = {"solution", "answer"}
    assert all(k == "skip" for k, c in zip(kinds, cells, strict=True) if hidden & tags(c))


@each
def test_figures_say_what_they_show(path: Path) -> None:
    for cell in code(tools.read(path)):
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                assert len(data["text/plain"]) > 30, "say the finding in a sentence"
                assert "<Figure" not in data["text/plain"]
                assert re.search(r'<img alt="[^"]{30,}"', data["text/html"])


@each
def test_outputs_are_clean(path: Path) -> None:
    for cell in code(tools.read(path)):
        for output in cell.outputs:
            assert output.output_type != "error" or "raises-exception" in tags(cell)
            assert output.get("name") != "stderr", output.get("text")
            data = output.get("data", {})
            for text in (output.get("text", ""), data.get("text/plain", "")):
                assert not PATHS.search(text), text
                assert not re.search(r" at 0x[0-9a-f]{6,}|it/s\]", text), text


@each
def test_verdicts_come_from_the_register(path: Path) -> None:
    """A finding that is named is looked up, and praised as the paper's only if it came out so."""
    notebook = tools.read(path)
    source = "\n".join(cell.source for cell in code(notebook))
    named = set(re.findall(r"\bF\d\d?\b", words(notebook))) - {"F1"}  # a score of benchmarks, too
    assert named <= set(re.findall(r'look_up\("(F\d+)"\)', source))
    assert "FINDINGS" not in source, "ask look_up of rlhf_edu.experiments"
    for cell, after in itertools.pairwise(notebook.cells):
        if "look_up(" in cell.source and after.cell_type == "markdown":
            printed = "".join(output.get("text", "") for output in cell.outputs)
            same = "not reproduced" not in printed and "inconclusive" not in printed
            assert same or "as in the paper" not in after.source, after.source


@each
def test_cells_that_are_not_compared_say_why(path: Path) -> None:
    cells = [c for c in code(tools.read(path)) if "nbval-ignore-output" in tags(c)]
    assert all(cell.source.startswith("# Not compared") for cell in cells)
    assert len(cells) <= 6


@each
def test_has_the_parts_of_a_chapter(path: Path) -> None:
    notebook = tools.read(path)
    number, opening = path.name[:2], "\n".join(c.source for c in notebook.cells[:3])
    assert opening.startswith(f"# {number} · ")
    for part in ("**Objectives**", "**Prerequisites**", "minutes", "**You will have made**"):
        assert part in opening, part
    first = next(cell for cell in code(notebook) if "install" not in tags(cell))
    assert "start(" in first.source
    text = words(notebook)
    for part in ("## Recap", "## Three questions", "## References", "## Where next"):
        assert part in text, part
    assert len(re.findall(r"\*\*Predict", text)) >= 3


@each
def test_names_the_files_it_is_about(path: Path) -> None:
    opening = tools.read(path).cells[1].source
    found = re.search(r"\*\*Files\*\*: ([^*]+)\.$", opening)
    assert found, "say it at the end of the opening: **Files**: `rlhf_edu/sft.py`, …"
    files = re.findall(r"`(rlhf_edu/[\w/]+\.py)`", found[1])
    assert 2 <= len(files) <= 5
    assert [file for file in files if not (ROOT / file).is_file()] == []


def core_imports(notebook) -> list:
    """The functions and classes of the core, the files that lie in rlhf_edu/, that it imports."""
    trees = [ast.parse(cell.source) for cell in code(notebook)]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    ours = [n for n in nodes if re.fullmatch(r"rlhf_edu(\.\w+)?", n.module)]
    found = [getattr(import_module(n.module), a.name, None) for n in ours for a in n.names]
    things = [thing for thing in found if inspect.isfunction(thing) or inspect.isclass(thing)]
    return [thing for thing in things if re.fullmatch(r"rlhf_edu\.\w+", thing.__module__)]


@each
def test_what_it_imports_from_the_core_says_where_it_is_taught(path: Path) -> None:
    chapters = {notebook.name[:2] for notebook in NOTEBOOKS}
    for thing in core_imports(tools.read(path)):
        taught = re.findall(r"Taught in chapter (\d\d)", inspect.getdoc(thing) or "")
        assert taught and set(taught) <= chapters, thing


@each
def test_has_exercises_with_solutions(path: Path) -> None:
    notebook = tools.read(path)
    stubs = [cell for cell in code(notebook) if "exercise" in tags(cell)]
    solutions = [cell for cell in code(notebook) if "solution" in tags(cell)]
    heads = EXERCISE.findall(words(notebook))
    assert len(stubs) >= 4 and len(solutions) == len(stubs) == len(heads)
    assert any("experiment" in tags(cell) for cell in stubs)
    assert words(notebook).count("<summary>Hint</summary>") >= len(stubs)
    for cell in stubs:
        shown = "".join(o.get("text", "") for o in cell.outputs)
        assert "experiment" in tags(cell) or "not attempted yet" in shown, cell.source
    for cell in solutions:
        assert cell.metadata.jupyter.source_hidden is True


def imports_before(notebook, cell) -> str:
    """Every import that stands in a code cell above."""
    found = []
    for above in code(notebook):
        if above.id == cell.id:
            break
        tree = ast.parse(above.source)
        found += [ast.unparse(n) for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return "\n".join(found)


SOLUTIONS = [
    pytest.param(path, cell.id, id=f"{path.stem[:2]}-{cell.id}")
    for path in NOTEBOOKS
    for cell in code(tools.read(path))
    if "solution" in tags(cell) and "experiment" not in tags(cell)
]


@pytest.mark.parametrize(("path", "cell_id"), SOLUTIONS)
def test_solution_passes_its_check(path: Path, cell_id: str) -> None:
    """A solution needs the imports above it and nothing else."""
    notebook = tools.read(path)
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        names: dict = {}
        exec(imports_before(notebook, cell), names)
        exec(cell.source, names)
    assert "✓" in shown.getvalue(), shown.getvalue() or "the solution runs no check"


# --- what a student without the solutions has --------------------------------------------------


@each
def test_no_cell_needs_what_only_a_solution_has(path: Path) -> None:
    seen, in_solutions = set(dir(builtins)), set()
    for cell in code(tools.read(path)):
        bound, used = names(cell.source)
        if "solution" in tags(cell):
            in_solutions |= bound
        else:
            seen |= bound
            assert not used & (in_solutions - seen), cell.source


def test_names_are_found_inside_functions() -> None:
    source = "import a.b as c\nx = 1\ndef f(p):\n    y = [F(z) for z in p]\n    return x + y"
    assert names(source) == ({"c", "x", "f"}, {"F", "x"})


class Nameless(ast.NodeTransformer):
    """The shape of an expression: every variable, and every place in a table, is called _."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name("_", ast.Load())

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant):
            return ast.Name("_", ast.Load())
        return self.generic_visit(node)


OPERATIONS = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call)


def shapes(nodes: Iterable[ast.AST], least: int = 4) -> set[str]:
    """The shapes of those expressions that take `least` operations or more."""
    found = set()
    for node in nodes:
        size = sum(isinstance(part, OPERATIONS) for part in ast.walk(node))
        if isinstance(node, OPERATIONS) and size >= least:
            found.add(ast.unparse(Nameless().visit(ast.parse(ast.unparse(node)))))
    return found


def everything(source: str) -> set[str]:
    return shapes(ast.walk(ast.parse(source)))


def answers_of(solution: str) -> set[str]:
    """What a solution computes in one go: the values that it returns or gives a name."""
    steps = (n for n in ast.walk(ast.parse(solution)) if isinstance(n, (ast.Return, ast.Assign)))
    return shapes(step.value for step in steps if step.value)


@each
def test_no_later_cell_shows_the_answer_of_an_exercise(path: Path) -> None:
    """Not in the open: a cell that needs the formula is folded, like the solution."""
    answers: set[str] = set()
    for cell in code(tools.read(path)):
        if "solution" in tags(cell) and "experiment" not in tags(cell):
            answers |= answers_of(cell.source)
        elif not cell.metadata.get("jupyter", {}).get("source_hidden"):
            assert not answers & everything(cell.source), cell.source


def test_an_answer_is_known_by_its_shape() -> None:
    answer = answers_of("def f(p, q):\n    return (p * (p / q).log()).sum()")
    assert answer & everything('kl = (said["a"] * (said["a"] / base).log()).sum()\nprint(kl)')
    assert not answer & everything("kl = (p * (q / p).exp()).sum()")


slow = pytest.mark.skipif("RLHF_EDU_SLOW" not in os.environ, reason="minutes: RLHF_EDU_SLOW=1")


@slow
@each
@pytest.mark.parametrize("solved", [False, True])
def test_a_students_copy_runs_to_its_end(path: Path, solved: bool) -> None:
    copy = copies.student_edition(tools.read(path), path.name[:2])
    if solved:
        solutions = {e.stub: e.solution for e in exercises(path.name[:2])}
        for cell in copy.cells:
            cell.source += "\n\n" + solutions.get(cell.source, "")
    tools.run_notebook(copy, path)


OWN = [path for path in NOTEBOOKS if "mine_or_ours(" in path.read_text(encoding="utf-8")]


@slow
@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_what_a_student_has_solved_is_what_trains(path: Path) -> None:
    """With every solution under the student's name nothing of ours is used, and all still holds."""
    notebook = tools.read(path)
    for cell in code(notebook):
        if "solution" in tags(cell):
            cell.source = re.sub(r"\b(\w+)_solution\b", r"my_\1", cell.source)
    tools.run_notebook(notebook, path)
    said = "".join(o.get("text", "") for cell in code(notebook) for o in cell.outputs)
    assert ": yours" in said and "not solved yet" not in said


def test_settings_of_jupyterlab_exist() -> None:
    """`make lab` changes some of JupyterLab's settings; one that was renamed would do nothing."""
    share = Path(sys.prefix) / "share" / "jupyter"
    settings = json.loads((ROOT / "notebooks" / ".lab" / "overrides.json").read_text("utf-8"))
    for plugin, values in settings.items():
        places = share.glob(f"**/schemas/{plugin.replace(':', '/')}.json")
        schema = next(places, None)
        if schema is None and plugin.startswith("jupyterlab-rise"):
            continue  # it comes with the extra `lecture`
        assert set(values) <= set(json.loads(schema.read_text("utf-8"))["properties"])


# --- the tools ---------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one small notebook; returns its path."""
    monkeypatch.setattr(tools, "checkout", lambda: tmp_path)
    slide = {"slideshow": {"slide_type": "slide"}}
    solution = {"tags": ["solution"], "slideshow": {"slide_type": "skip"}}
    cells = [
        new_markdown_cell("# A title", metadata=slide),
        new_code_cell("import sys\nprint('one')\nprint('two')\nsys.stdout.write('three')"),
        new_code_cell("print('the solution')", metadata=solution),
        new_code_cell("import ipywidgets\nipywidgets.IntSlider(3)"),
        new_code_cell(
            "from IPython.display import display\ndisplay({'text/html': 'a style'}, raw=True)"
        ),
    ]
    path = tmp_path / "notebooks" / "42_small.ipynb"
    path.parent.mkdir()
    tools.write(path, new_notebook(cells=cells))
    return path


def test_execute_stores_outputs_and_is_repeatable(small: Path, capsys) -> None:
    tools.execute(["42"])
    first = small.read_bytes()
    tools.execute()
    assert small.read_bytes() == first
    cells = code(tools.read(small))
    assert cells[0].outputs[0].text.startswith("one\ntwo\nthree")
    assert list(cells[2].outputs[0].data) == ["text/plain"]  # the widget's id is gone
    assert cells[3].outputs == []  # and so is what only dresses the page
    assert b"widget-state" not in first
    assert capsys.readouterr().out.startswith("42_small: ")


def test_execute_leaves_the_file_alone_if_a_cell_fails(small: Path) -> None:
    notebook = tools.read(small)
    notebook.cells.append(new_code_cell("1 / 0"))
    tools.write(small, notebook)
    before = small.read_bytes()
    with pytest.raises(RuntimeError, match="42_small: a cell failed(.|\n)*ZeroDivisionError"):
        tools.execute()
    assert small.read_bytes() == before


def test_execute_says_which_notebooks_there_are(small: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no notebook called 77; there are: 42_small"):
        tools.execute(["77"])


def test_handouts_have_no_solutions_and_no_outputs(small: Path, monkeypatch) -> None:
    monkeypatch.setattr(copies, "checkout", lambda: small.parents[1])
    notebook = tools.read(small)
    notebook.cells[1].outputs = [new_output("stream", text="seen")]
    tools.write(small, notebook)
    copies.handouts()
    made = (small.parents[1] / "build" / "handouts" / small.name).read_text(encoding="utf-8")
    assert "A title" in made and "the solution" not in made and "seen" not in made


# --- how outputs are compared ------------------------------------------------------------------


@pytest.fixture(scope="module")
def same():
    where = ROOT / "notebooks" / "conftest.py"
    spec = importlib.util.spec_from_file_location("notebooks_conftest", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.same


@pytest.mark.parametrize(
    ("stored", "fresh", "equal"),
    [
        ("loss 0.444", "loss 0.445", True),
        ("loss 0.444", "loss 0.474", False),
        ("loss 0.444", "cost 0.444", False),
        ("0.999 nats", "1.000 nats", True),
        ("-0.00", "0.00", True),
        (" 9.99", "10.00", True),
        ("12.5 points", "12.7 points", False),
        ("3 of 4", "2 of 4", False),
        ("1.0e-17", "3.1e-16", True),
        ("1.0e-5", "3.0e-5", False),
        ("0.50 then 0.60", "0.60 then 0.50", False),
        ("version 1.2.3", "version 1.2.4", False),
        ("a\nb", "a b", False),
        ("[0.1, 0.2]", "[0.1, 0.3]", True),  # one unit of the last digit
    ],
)
def test_outputs_are_compared_with_tolerance(same, stored: str, fresh: str, equal: bool) -> None:
    assert same(stored, fresh) is equal
    assert same(fresh, stored) is equal


def test_the_glossary_has_a_word_in_each_language_for_what_chapters_teach() -> None:
    text = (ROOT / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    table = [row for row in rows if len(row) == 6][2:]
    terms = [row[0] for row in table]
    assert all(all(row) for row in table) and terms == sorted(set(terms), key=str.lower)
    taught = {path.name[:2] for path in NOTEBOOKS}
    assert {chapter for row in table for chapter in row[5].split(", ")} <= taught
    # Whoever looks up a word of chapter 00 finds it here too.
    first = words(tools.read(NOTEBOOKS[0])).lower().split("### glossary")[1]
    first = re.findall(r"^\| ([^|]+?) \| [^|]+ \| \d\d \|$", first, re.MULTILINE)
    asked = {word for words in first for word in re.split("[,;] ", words)}
    missing = {word for word in asked if word not in text.lower()}
    assert len(asked) > 25 and not missing, missing
