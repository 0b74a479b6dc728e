"""Grids of experiments: what is done stays done, and tables say what was measured."""

import json

import pytest

from rlhf_edu.experiments import fresh, run_grid


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
