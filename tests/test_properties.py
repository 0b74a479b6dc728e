"""What is demanded of the world, judged on reports made by hand."""

from rlhf_edu.experiments.properties import properties


def row(stage: str, gold: float, greedy: float, **more: object) -> dict:
    """A stage of a report whose intervals are 0.2 wide."""
    numbers = {"gold": gold, "gold_greedy": greedy}
    found = {f"{key}{end}": value + by for key, value in numbers.items()
             for end, by in (("", 0), ("_low", -0.1), ("_high", 0.1))}  # fmt: skip
    found |= {"flawless_greedy": 0.1, "win_rate": 0.7, "win_rate_greedy": 0.7, "ties": 0.1}
    found |= {"helpful": 0.5, "truthful": 0.9, "invents": 0.1, "attempted": 0.95}
    return found | {"stage": stage, "skills": {"quiz": 0.9, "table": 0.8}} | more


def report(**changed: dict) -> dict:
    """A ladder in which everything is as it should be, but for what is changed."""
    rows = {
        "base": row("base", -2, -1, attempted=0.4),
        "prompted": row("prompted", 0, 0.5),
        "sft": row("sft", 1, 1.5),
        "ppo": row("ppo", 2, 2.5, helpful=0.7, truthful=0.8, invents=0.3,
                   skills={"quiz": 0.6, "table": 0.6}),
        "ppo_ptx": row("ppo_ptx", 2, 2.5),
        "dpo": row("dpo", 2, 2.5),
        "sft_colder": row("sft_colder", 1.3, 1.3),
    }  # fmt: skip
    for stage, more in changed.items():
        rows[stage] |= more
    reward_model = {"label_accuracy": 0.74, "gold_accuracy": 0.81, "agreement": 0.73}
    return {"stages": [*rows.values()], "beside": [], "reward_model": reward_model, "seed": 0,
            "world_seed": 0}  # fmt: skip


def failing(text: str) -> list[str]:
    return [line for line in text.split("\n")[1:] if line.startswith("-")]


def test_a_ladder_that_has_them_all() -> None:
    text = properties(report())
    assert not failing(text), text
    assert "30%" in text  # of PPO's gain is sharpening


def test_what_fails_is_said() -> None:
    cold = properties(report(sft_colder={"gold": 1.9, "gold_low": 1.8, "gold_high": 2.0}))
    assert any("sft_colder < ppo" in line for line in failing(cold))
    assert any("sharpening" in line for line in failing(cold))
    full = properties(report(ppo={"flawless_greedy": 0.9, "ties": 0.5}))
    assert sum("2." in line for line in failing(full)) == 2
    kept = properties(report(ppo={"skills": {"quiz": 0.9, "table": 0.6}}))
    assert any("two skills" in line for line in failing(kept))
