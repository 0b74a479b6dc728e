"""What the papers found and what happened here: `python -m rlhf_edu findings`."""

import importlib
import json
from types import ModuleType

from rlhf_edu import data_folder
from rlhf_edu.experiments import EXPERIMENTS
from rlhf_edu.experiments.grid import Finding


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


def findings() -> str:
    """Every finding that an experiment can judge: claim, paper, ours, verdict, command."""
    found = []
    for name in EXPERIMENTS:
        path = data_folder() / "results" / f"{name}.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        for finding in experiment(name).FINDINGS:
            found.append((finding, _lines(finding, name, stored)))
    found.sort(key=lambda pair: int(pair[0].name[1:]))
    return "\n\n".join(lines for _, lines in found)


def _lines(finding: Finding, name: str, stored: dict | None) -> str:
    head = f"{finding.name:<5}{finding.claim}\n     paper:   {finding.paper}\n"
    if stored is None:
        return f"{head}     not run: python -m rlhf_edu experiment {name}"
    missing = [key for key in stored["planned"] if key not in stored["cells"]]
    if missing:
        done = f"{len(stored['planned']) - len(missing)} of {len(stored['planned'])} runs"
        return f"{head}     {done} are done; go on: {stored['command']}"
    ours, verdict = finding.judge(stored["cells"])
    return f"{head}     ours:    {ours}\n     verdict: {verdict}\n     {stored['command']}"
