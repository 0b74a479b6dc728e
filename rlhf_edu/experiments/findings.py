"""What the papers found and what happened here: `python -m rlhf_edu findings`."""

import importlib
import json

from rlhf_edu import data_folder
from rlhf_edu.__main__ import EXPERIMENTS
from rlhf_edu.experiments.grid import Finding


def findings() -> str:
    """Every finding that an experiment can judge: claim, paper, ours, verdict, command."""
    folder, found = data_folder() / "results", []
    for name in EXPERIMENTS:
        path = folder / f"{name}.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        for finding in importlib.import_module(f"rlhf_edu.experiments.grid.{name}").FINDINGS:
            found.append((finding, _lines(finding, name, stored)))
    found.sort(key=lambda pair: int(pair[0].name[1:]))
    return "\n\n".join(lines for _, lines in found)


def _lines(finding: Finding, experiment: str, stored: dict | None) -> str:
    head = f"{finding.name:<5}{finding.claim}\n     paper:   {finding.paper}\n"
    if stored is None:
        return f"{head}     not run: python -m rlhf_edu experiment {experiment}"
    missing = [key for key in stored["planned"] if key not in stored["cells"]]
    if missing:
        done = f"{len(stored['planned']) - len(missing)} of {len(stored['planned'])} runs"
        return f"{head}     {done} are done; go on: {stored['command']}"
    ours, verdict = finding.judge(stored["cells"])
    return f"{head}     ours:    {ours}\n     verdict: {verdict}\n     {stored['command']}"
