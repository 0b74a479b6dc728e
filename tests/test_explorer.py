"""The what-if explorer: every slider at both ends, with stored runs made up here."""

import pytest

from rlhf_edu.course.explorer import METHODS, WhatIf
from rlhf_edu.experiments.grid import cell_name


def run(gold: float, curve: list | None = None) -> dict:
    row = {"gold": gold, "reward": 0.1, "kl": 1.0, "words": 11.0, "web_loss": 0.9}
    curve = curve or [{"step": s, "reward": s / 9, "kl": s / 5} for s in (0, 4, 8)]
    return row | {"curve": curve, "answers": {"Who? <b>": f"answer {gold} & more"}}


def long() -> dict:
    steps = [{"step": s, "gold": 2 - s / 40, "reward": s / 40, "kl": s / 8} for s in (0, 40, 80)]
    return run(0.0, []) | {"steps": steps}


def best(gold: float) -> dict:
    rows = [
        {"n": n, "proxy": n / 9, "gold": gold + n / 9, "kl_bound": 0.5, "words": 11.0,
         "hedging": 0.1} for n in (1, 8, 64)
    ]  # fmt: skip
    return {"curve": rows, "answers": {"Who?": {str(n): f"best of {n}" for n in (1, 8, 64)}}}


def cells(*found: tuple) -> dict:
    """Stored cells, each given as kind, setting, seed and result."""
    stored = {}
    for kind, setting, seed, result in found:
        fields = {"kind": kind, "setting": setting, "seed": seed}
        stored[cell_name(**fields)] = fields | result
    return stored


RUNS = cells(
    ("sft", None, 0, run(2.3)),
    *(("ppo", beta, seed, run(2.5 + beta + seed)) for beta in (0.05, 2.0) for seed in (0, 1)),
    *(("ptx", gamma, 0, run(2.2)) for gamma in (0.3, 1.0)),
    *(("dpo", beta, 0, run(2.9, [{"step": 0, "loss": 0.7}])) for beta in (0.1, 1.0)),
    ("long", None, 0, long()),
    ("ppo", 0.5, 0, run(9.0)),  # one setting lacks the second seed
)
BEST = {"shipped": {"kind": "shipped"} | best(2.0)} | cells(
    *(("labels", n, seed, best(n / 1000)) for n in (100, 3000) for seed in (0, 1)),
    ("small", 300, 0, best(1.0)),
    *(("taste", taste, 0, best(1.0)) for taste in ("none", "long")),
)


@pytest.mark.parametrize("method", METHODS)
def test_every_slider_at_both_ends(method: str) -> None:
    box = WhatIf(RUNS, BEST)
    box.method.value = method
    for control in (box.setting, box.seed, box.n):
        for value in (control.options[0], control.options[-1]):
            control.value = value
            assert box.words() in repr(box) and "gold" in box.words()
            assert box._repr_mimebundle_()["text/plain"] == box.words()
            assert "<img alt=" in box.page.value and "nan" not in box.words()


def test_settings_are_in_order_and_the_nearest_run_answers() -> None:
    box = WhatIf(RUNS, BEST)
    assert box.setting.options == (0.05, 0.5, 2.0)
    box.setting.value, box.seed.value = 0.5, 1  # not stored: the other seed stands in
    assert box.nearest == (0.5, 0) and "gold 9.00" in box.words()
    assert "answer 9.0 &amp; more" in box.page.value and "Who? &lt;b&gt;" in box.page.value


def test_best_of_n_shows_the_answer_for_n() -> None:
    box = WhatIf(RUNS, BEST)
    box.method.value = "best of n, by labelled prompts"
    assert box.setting.options == (100, 3000) and box.n.layout.visibility == "visible"
    box.setting.value, box.n.value = 3000, 64
    assert "best of 64" in box.page.value and "gold 10.11" in box.words()


def test_the_long_run_has_answers_at_its_end_only() -> None:
    box = WhatIf(RUNS, BEST)
    box.method.value = "PPO without a price, step by step"
    box.setting.value = 40
    assert "<table>" not in box.page.value and "gold 1.00" in box.words()
    box.setting.value = 80
    assert "<table>" in box.page.value


def test_without_runs_it_says_how_to_make_them() -> None:
    with pytest.raises(ValueError, match="experiment rl"):
        WhatIf({}, {})
    assert list(WhatIf(RUNS, {}).cells) == [m for m in METHODS if not m.startswith("best")][:4]
