"""What the papers found and what happened here: `python -m rlhf_edu findings [--write]`.

This is the one place where a verdict is spoken; `FINDINGS.md` holds the same words.
"""

import importlib
import json
from textwrap import wrap
from types import ModuleType
from typing import Any

from rlhf_edu import data_folder
from rlhf_edu.experiments import EXPERIMENTS
from rlhf_edu.experiments.claims import CLAIMS
from rlhf_edu.experiments.grid import Finding

HEAD = """# Forty-nine findings, and what became of them here

Written by `python -m rlhf_edu findings --write` from the tables in `data/results`; a test keeps
both in step. No criterion was loosened after its run. Intervals are 95 %, over seeds; where a
finding is exact, seeds are draws.
"""


def experiment(name: str) -> ModuleType:
    """The module of an experiment, or the one that a finding comes from.

    Raises:
        ValueError: there is neither.
    """
    for one in [name] if name in EXPERIMENTS else EXPERIMENTS:
        module = importlib.import_module(f"rlhf_edu.experiments.{one}")
        if one == name or any(finding.name == name for finding in module.FINDINGS):
            return module
    known = ", ".join(EXPERIMENTS)
    raise ValueError(f"there is no experiment {name}; choose {known}, or a finding such as F20")


def register() -> list[tuple[Finding, dict[str, str]]]:
    """Every finding, F1 to F49, with what there is to say of it, by what it is."""
    found = [(one, _shown(one)) for one in CLAIMS]
    for name in EXPERIMENTS:
        stored = _stored(name)
        found += [(one, _judged(one, name, stored)) for one in experiment(name).FINDINGS]
    return sorted(found, key=lambda pair: int(pair[0].name[1:]))


def look_up(name: str, width: int = 88) -> str:
    """What the register says of one finding, as chapters print it: `print(look_up("F24"))`.

    Raises:
        ValueError: there is no such finding.
    """
    for one in CLAIMS:
        if one.name == name:
            return _entry(one, _shown(one), width)
    module = experiment(name)
    one = next(finding for finding in module.FINDINGS if finding.name == name)
    home = module.__name__.rpartition(".")[2]
    return _entry(one, _judged(one, home, _stored(home)), width)


def _stored(name: str) -> dict[str, Any] | None:
    path = data_folder() / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _shown(finding: Finding) -> dict[str, str]:
    where = f"; chapter {finding.chapter} shows it once" if finding.chapter else ""
    return {"verdict": f"not measured over seeds yet{where}"}


def _judged(finding: Finding, name: str, stored: dict[str, Any] | None) -> dict[str, str]:
    if stored is None:
        return {"verdict": "not run", "command": f"python -m rlhf_edu experiment {name}"}
    planned, cells = stored["planned"], stored["cells"]
    missing = [key for key in planned if key not in cells]
    if missing:
        done = f"{len(planned) - len(missing)} of {len(planned)} runs are done; go on"
        return {"verdict": done, "command": stored["command"]}
    ours, verdict = finding.judge(cells)
    seeds = len({cell["seed"] for cell in cells.values() if "seed" in cell})
    worlds = sorted({cell.get("world", 0) for cell in cells.values()})
    minutes = sum(cell["minutes"] for cell in cells.values())
    many = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"
    runs = f"{many}, world {' '.join(map(str, worlds))}; {minutes:.0f} minutes for the table"
    return {"ours": ours, "verdict": verdict, "command": stored["command"], "runs": runs}


def findings() -> str:
    """The register as text."""
    return "\n\n".join(_entry(one, said) for one, said in register())


def _entry(finding: Finding, said: dict[str, str], width: int = 10_000) -> str:
    """One finding as text, in lines of at most so many characters."""
    indent = " " * 16
    body = [
        "\n".join(wrap(f"     {f'{key}:':<11}{text}", width, subsequent_indent=indent))
        for key, text in _lines(finding, said).items()
    ]
    return "\n".join([f"{finding.name:<5}{finding.claim}", *body])


def _lines(finding: Finding, said: dict[str, str]) -> dict[str, str]:
    """All there is to say of a finding, by what it is."""
    return {"paper": finding.paper, "criterion": finding.criterion, **said}


def findings_page() -> str:
    """The register in Markdown: what `FINDINGS.md` holds."""
    found = register()
    words = [said["verdict"].split(":")[0] for _, said in found]
    count = {word: words.count(word) for word in ("reproduced", "not reproduced", "inconclusive")}
    tally = ", ".join(f"{number} {word}" for word, number in count.items())
    parts = [HEAD, f"{len(found)} findings: {tally}, {len(found) - sum(count.values())} open.\n"]
    for one, said in found:
        lines = _lines(one, said)
        lines |= {"command": f"`{said['command']}`"} if "command" in said else {}
        body = "\n".join(f"- {name.capitalize()}: {text}" for name, text in lines.items())
        parts.append(f"## {one.name} · {one.claim}\n\n{body}\n")
    return "\n".join(parts)
