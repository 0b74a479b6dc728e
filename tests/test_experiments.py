"""Grids of experiments: what is done stays done, and tables say what was measured."""

import json

import pytest
import tiny_models as tiny

from rlhf_edu.experiments import above, exact, findings, fresh, grouping, over_seeds, run_grid


def test_a_grid_goes_on_where_it_was_interrupted(tmp_path):
    calls = []

    def cell(key):
        calls.append(key)
        if key == "b" and calls.count("b") == 1:
            raise KeyboardInterrupt
        return {"gold": len(key)}

    cells = {key: (lambda key=key: cell(key)) for key in "abc"}
    with pytest.raises(KeyboardInterrupt):
        run_grid("try", "command", cells, tmp_path)
    assert list(json.loads((tmp_path / "try.json").read_text())["cells"]) == ["a"]
    found = run_grid("try", "command", cells, tmp_path)
    assert calls == ["a", "b", "b", "c"]
    assert [found[key]["gold"] for key in "abc"] == [1, 1, 1]
    stored = json.loads((tmp_path / "try.json").read_text())
    assert stored["command"] == "command" and "torch" in stored["versions"]
    assert run_grid("try", "command", cells, tmp_path) == found and len(calls) == 4


def test_table_of_fresh_runs():
    gold = dict(zip(fresh.STAGES, (-1.0, 1.5, 2.0, 2.5, 3.0, 2.9, 3.1), strict=True))
    web = dict.fromkeys(fresh.STAGES, 0.8) | {"ppo": 1.0, "ppo_ptx": 0.82}
    stages = {s: {"gold": gold[s], "web_loss": web[s], "win_rate": 0.6} for s in fresh.STAGES}
    rungs = {f"{a} - {b}": {"mean": gold[a] - gold[b], "low": 0, "high": 9} for a, b in fresh.RUNGS}
    words = fresh.table({"seed 1, world 0": {"stages": stages, "rungs": rungs}})
    assert "1.00 [0.00, 9.00]" in words  # PPO over SFT
    assert "keeps 90% of PPO's gain and removes 90% of its tax" in words
    assert "60% on average" in words


def test_dpo_and_rl_end_at_the_closed_form():
    found = exact.measure(0)
    assert found["reference"] > 0.05  # there was a way to go
    assert found["dpo"] < 1e-6 and found["rl"] < 1e-6
    assert abs(found["sum_with_wrong_z"] - 1) > 0.1


def test_interval_over_seeds_by_hand():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high == pytest.approx(2 + 4.303 / 3**0.5)
    assert [above(found, limit) for limit in (-9, 2, 9)] == [
        "reproduced", "inconclusive", "not reproduced",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="2 to 11 seeds"):
        over_seeds([1.0])


def test_findings_are_judged_from_stored_tables_or_say_how_to_run(monkeypatch, tmp_path):
    words = findings.findings()
    assert "verdict: reproduced" in words.split("F38")[1].split("\n\n")[0]
    monkeypatch.setattr(findings, "data_folder", lambda: tmp_path)
    assert findings.findings().count("not run: python -m rlhf_edu experiment") >= 4
    stored = {"cells": {"a": {}}, "planned": ["a", "b"], "command": "go on"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "exact.json").write_text(json.dumps(stored))
    assert "1 of 2 runs are done; go on" in findings.findings()


def test_a_finding_can_fail():
    cell = {"dpo": 0.5, "rl": 0.0, "sum_with_wrong_z": 0.2}
    assert exact.FINDINGS[0].judge({"seed 0": cell, "seed 1": cell})[1] == "not reproduced"


def test_split_keeps_every_comparison_and_drops_ties():
    ranking = tiny.rankings(1, 3)[0]
    tied = type(ranking)(ranking.prompt, ("a", "b", "c"), (True, False, True), (2, 1, 2), "l")
    items = grouping.split([tied])
    assert [item.answers for item in items] == [("b", "a"), ("b", "c")]
    assert [item.ended for item in items] == [(False, True), (False, True)]
    assert all(item.ranks == (1, 2) and item.labeler == "l" for item in items)
