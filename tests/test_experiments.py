"""Grids of experiments: what is done stays done, and tables say what was measured."""

import json
from dataclasses import replace

import pytest
import tiny_models as tiny
import torch

from rlhf_edu import __main__, data_folder
from rlhf_edu.data import read_rankings
from rlhf_edu.experiments import (
    EXPERIMENTS,
    best_of_n,
    counted,
    exact,
    findings,
    fresh,
    grouping,
    rl,
)
from rlhf_edu.experiments.grid import above, by_seed, cell_name, each_seed, run_grid
from rlhf_edu.intervals import over_seeds


def test_a_grid_goes_on_where_it_was_interrupted(tmp_path):
    calls = []

    def measure(kind, setting, seed):
        calls.append(setting)
        if calls == [1, 2]:
            raise KeyboardInterrupt
        return {"gold": 10 * setting + seed}

    grid = by_seed({"a": (1, 2), "b": (3,)}, seeds=1)
    with pytest.raises(KeyboardInterrupt):
        run_grid("try", "command", measure, grid, tmp_path)
    assert list(json.loads((tmp_path / "try.json").read_text())["cells"]) == ["a 1 seed 0"]
    found = run_grid("try", "command", measure, grid, tmp_path)
    assert calls == [1, 2, 2, 3]
    assert [cell["gold"] for cell in found.values()] == [10, 20, 30]
    stored = json.loads((tmp_path / "try.json").read_text())
    assert stored["command"] == "command" and "torch" in stored["versions"]
    assert run_grid("try", "command", measure, grid, tmp_path) == found and len(calls) == 4


def test_a_cell_says_what_was_set_and_a_row_has_every_seed_of_it():
    grid = by_seed({"sft": (), "ppo": (0.0, 0.05)}, seeds=2)
    cells = {cell_name(**fields): fields for fields in grid}
    assert list(cells)[:3] == ["sft seed 0", "ppo 0.0 seed 0", "ppo 0.05 seed 0"]
    assert cell_name(seed=1, world=0) == "seed 1, world 0" and cell_name("shipped") == "shipped"
    assert [cell["seed"] for cell in each_seed(cells, "ppo", 0.05)] == [0, 1]
    assert each_seed(cells, "ppo 0.05") == each_seed(cells, "ppo", 0.05)
    assert len(each_seed(cells, "sft")) == 2 and each_seed(cells, "ppo") == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_stored_cells_are_called_what_their_fields_say(name):
    stored = json.loads((data_folder() / "results" / f"{name}.json").read_text(encoding="utf-8"))
    names = ("kind", "setting", "seed", "world")
    for key, cell in stored["cells"].items():
        assert cell_name(**{field: cell[field] for field in names if field in cell}) == key
    assert set(stored["cells"]) <= set(stored["planned"])  # the register says how many are missing


def test_table_of_fresh_runs():
    gold = dict(zip(fresh.STAGES, (-1.0, 1.5, 2.0, 2.5, 3.0, 2.9, 3.1), strict=True))
    web = dict.fromkeys(fresh.STAGES, 0.8) | {"ppo": 1.0, "ppo_ptx": 0.82}
    stages = {s: {"gold": gold[s], "web_loss": web[s], "win_rate": 0.6} for s in fresh.STAGES}
    rungs = {f"{a} - {b}": {"mean": gold[a] - gold[b], "low": 0, "high": 9} for a, b in fresh.RUNGS}
    words = fresh.table({"": {"seed": 1, "world": 0, "stages": stages, "rungs": rungs}})
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
    said = {finding.name: words for finding, words in findings.register()}
    assert said["F38"]["verdict"] == "reproduced" and said["F38"]["runs"].startswith("5 seeds")
    monkeypatch.setattr(findings, "data_folder", lambda: tmp_path)
    said = {finding.name: words for finding, words in findings.register()}
    assert said["F38"]["verdict"] == "not run"
    stored = {"cells": {"a": {}}, "planned": ["a", "b"], "command": "go on"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "exact.json").write_text(json.dumps(stored))
    assert "1 of 2 runs are done; go on" in findings.findings()


def test_the_register_holds_every_finding_once_and_its_page_is_up_to_date():
    names = [finding.name for finding, _ in findings.register()]
    assert names == [f"F{i}" for i in range(1, 50)]
    page = (data_folder().parent / "FINDINGS.md").read_text(encoding="utf-8")
    assert page == findings.findings_page(), "python -m rlhf_edu findings --write"


def test_what_can_be_counted_by_other_ways():
    random = torch.Generator().manual_seed(3)
    found = {kind: counted.RUNS[kind](random) for kind in ("agreement", "cycle", "best_of_n_law")}
    assert found["agreement"]["agreement"] == pytest.approx(0.726, abs=2e-3)
    assert found["cycle"]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert found["best_of_n_law"]["many, n 4: KL over the formula"] == pytest.approx(1, abs=1e-3)
    assert found["best_of_n_law"]["six, n 4: KL over the formula"] < 1
    found = counted.rubbish(random)
    assert found["forward likelihood"] > found["reverse likelihood"]
    assert found["forward valid"] < found["reverse valid"]
    assert counted.policy_gradient(random)["largest error, in standard errors"] < 5
    assert counted.dpo_gradient(random)["largest difference"] < 1e-12


SPOILT = {  # what no run should have measured
    "rubbish": {"forward valid": 1.0, "forward likelihood": -999.0},
    "agreement": {"perfect model": 0.9},
    "cycle": {"loss": 0.62},
    "policy_gradient": {"largest error, in standard errors": 9.0},
    "clipping": {"clip inf, epochs 10": 2.0},
    "kl_estimators": {"k3 1 spread": 2.0},
    "best_of_n_law": {"six, n 4: KL over the formula": 1.1},
    "dpo_gradient": {"largest difference": 0.1},
    "ipo": {"IPO 1": 0.9},
}


def test_verdicts_on_what_is_counted_can_be_no():
    table = json.loads((data_folder() / "results" / "counted.json").read_text(encoding="utf-8"))
    cells = table["cells"]
    spoilt = {
        key: cell | {"found": cell["found"] | SPOILT[cell["kind"]]} for key, cell in cells.items()
    }
    for finding in counted.FINDINGS:
        assert finding.judge(cells)[1] != "not reproduced"
        assert finding.judge(spoilt)[1] == "not reproduced", finding.name


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


def test_weights_of_best_of_n_by_listing_all_ways():
    scores = torch.tensor([0.5, 2.0, 0.5, -1.0])
    assert best_of_n.best_of_n_weights(scores, 1).tolist() == [0.25] * 4
    # Of the six pairs three have the 2.0, and three are won by one of the two equal ones.
    expected = torch.tensor([1.5, 3.0, 1.5, 0.0]).double() / 6
    assert torch.allclose(best_of_n.best_of_n_weights(scores, 2), expected)
    assert best_of_n.best_of_n_weights(scores, 4).tolist() == [0, 1, 0, 0]
    with pytest.raises(ValueError, match="from 1 to 4"):
        best_of_n.best_of_n_weights(scores, 5)


def test_tastes_change_what_labelers_prefer():
    rankings = best_of_n.few(60, 0)
    assert best_of_n.few(60, 0) == rankings != best_of_n.few(60, 1)

    def gap(taste: str, part: str) -> float:
        """How much more of something the better ones of pairs have."""
        people = best_of_n.population(taste)
        pairs = grouping.split(best_of_n.rank_again(people, rankings))
        found = [
            [
                getattr(people.judge(p.prompt, a, e), part)
                for a, e in zip(p.answers, p.ended, strict=True)
            ]
            for p in pairs
        ]
        return sum(better - worse for better, worse in found) / len(found)

    assert gap("long", "words") > gap("none", "words")
    assert gap("humble", "hedging") > gap("none", "hedging")
    assert all(person.length == best_of_n.LONG for person in best_of_n.population("long").labelers)
    assert all(person.confidence == 0 for person in best_of_n.population("humble").labelers)


def put(cells: dict, kind: str, setting, seed: int, result: dict) -> None:
    """Store a cell as a grid does."""
    fields = {"kind": kind, "setting": setting, "seed": seed}
    cells[cell_name(**fields)] = fields | result


def test_best_of_n_is_judged_over_seeds():
    def curve(gold: float, words: float, hedging: float) -> dict:
        return {"curve": [{"gold": gold, "words": words, "hedging": hedging}]}

    cells = {}
    for seed in (0, 1):
        for kind, labels, gold in (
            ("labels", 3000, 3.0),
            ("labels", 100, 2.0),
            ("small", 3000, 2.5),
        ):
            put(cells, kind, labels, seed, curve(gold + seed, 0, 0))
        for taste, words, hedging in (("none", 9, 0.1), ("long", 12, 0.1), ("humble", 9, 0.3)):
            found = curve(0, words, hedging)
            put(cells, "taste", taste, seed, found)
            put(cells, "ppo", taste, seed, found["curve"][0])
    judged = {f.name: f.judge(cells) for f in best_of_n.FINDINGS}
    assert {verdict for _, verdict in judged.values()} == {"reproduced"}
    assert "1.00 [1.00, 1.00] more with 3000" in judged["F22"][0]


# --- the price of KL ---------------------------------------------------------------------------


def rl_cells(gold_at, seeds: int = 3) -> dict:
    """Cells of `experiment rl` in which gold at a price, pressed, is `gold_at[beta]`."""
    cells = {}
    for s in range(seeds):
        noise = 0.01 * s
        path = {0: 2.0, 30: 2.5, rl.PRESSED: gold_at[0.0], rl.LONG: 0.5}
        rows = [
            {"step": step, "gold": gold + noise, "reward": step / 50 + noise, "kl": 0.1 * step}
            for step, gold in path.items()
        ]
        put(cells, "sft", None, s, {"gold": 2.0, "base_web_loss": 0.8, "web_loss": 0.9})
        put(cells, "long", None, s, {"steps": rows})
        for beta in rl.BETAS:
            run = {"gold": 2.2, "reward": 0.5 - beta / 5 - noise, "kl": 1.0, "web_loss": 1.0}
            put(cells, "ppo", beta, s, run)
        for beta in rl.PRICES[1:]:
            put(cells, "pressed", beta, s, {"gold": gold_at[beta] + noise})
        for gamma in rl.GAMMAS:
            put(cells, "ptx", gamma, s, {"web_loss": 0.82 + 0.1 * noise, "reward": 0.4})
        for beta in rl.DPO_BETAS:
            put(cells, "dpo", beta, s, {"gold": 2.5, "kl": 0.5})
    return cells


def verdict(name: str, cells: dict) -> str:
    return next(finding for finding in rl.FINDINGS if finding.name == name).judge(cells)[1]


def test_the_best_price_must_beat_both_ends() -> None:
    inside = dict(zip(rl.PRICES, (1.0, 2.0, 3.0, 2.5, 2.2, 2.0), strict=True))
    assert verdict("F19", rl_cells(inside)) == "reproduced"
    assert verdict("F19", rl_cells(inside | {0.0: 3.5})) == "not reproduced"
    noisy = rl_cells(inside)
    noisy["pressed 8.0 seed 0"]["gold"] = 4.0
    assert verdict("F19", noisy) == "inconclusive"


def test_over_optimisation_rises_and_then_falls_below_its_start() -> None:
    flat = dict.fromkeys(rl.PRICES, 1.0)
    assert verdict("F20", rl_cells(flat)) == "reproduced"
    rising = rl_cells(flat | {0.0: 2.6})
    for cell in (rising[f"long seed {s}"] for s in range(3)):
        cell["steps"] = cell["steps"][:3]
    assert verdict("F20", rising) == "not reproduced"


def test_tax_and_frontier_are_judged_by_seed() -> None:
    cells = rl_cells(dict.fromkeys(rl.PRICES, 1.0))
    for s in range(3):  # a high price leaves half of the tax
        high = {"web_loss": 0.9 + s / 100, "reward": 0.1, "gold": 2.1, "kl": 0.6}
        put(cells, "ppo", rl.BETAS[-1], s, high)
    assert verdict("F29", cells) == "reproduced" and verdict("F40", cells) == "reproduced"
    for s in range(3):
        for beta in rl.DPO_BETAS:
            put(cells, "dpo", beta, s, {"gold": 1.0, "kl": 2.0})
        for gamma in rl.GAMMAS:
            put(cells, "ptx", gamma, s, {"web_loss": 0.95 + s / 100})
    assert verdict("F29", cells) == "not reproduced" and verdict("F40", cells) == "not reproduced"


def test_a_run_of_each_kind_in_miniature(monkeypatch) -> None:
    class Small(rl.FromSFT):
        def __init__(self, seed: int, device: str) -> None:
            super().__init__(seed, device)
            self.test, self.blocks, self.rankings = self.test[:8], self.blocks[:4], rankings
            self.config = replace(self.config, steps=2, batch_size=8, max_new_tokens=12)
            self.pressed = replace(self.pressed, batch_size=8, max_new_tokens=12)

    rankings = read_rankings(data_folder() / "rankings.jsonl")[:8]
    monkeypatch.setattr(rl, "FromSFT", Small)
    for name, value in (("LONG", 2), ("EVERY", 1), ("PRESSED", 1)):
        monkeypatch.setattr(rl, name, value)
    found = [rl.measure(kind, 0.1, 0) for kind in ("ppo", "pressed", "ptx", "dpo")]
    for cell in [rl.measure("sft", None, 0), *found]:
        assert {"gold", "reward", "kl", "web_loss", "words"} <= cell.keys()
        assert len(cell["answers"]) == rl.SHOWN
    assert all(cell["curve"][0]["step"] == 0 for cell in found)
    steps = rl.measure("long", None, 0)["steps"]
    assert [row["step"] for row in steps] == [0, 1, 2] and steps[0]["kl"] == pytest.approx(0)


def test_an_experiment_goes_by_its_name_or_by_a_finding(monkeypatch, capsys) -> None:
    monkeypatch.setattr(rl, "run", lambda seeds, device: f"ran with {seeds}")
    for name in ("rl", "F20", "F40"):
        assert __main__.main(["experiment", name, "--seeds", "3"]) == 0
        assert capsys.readouterr().out == "ran with 3\n"
    assert __main__.main(["experiment", "F999"]) == 2
    assert "no experiment F999; choose best_of_n, counted, exact" in capsys.readouterr().err
