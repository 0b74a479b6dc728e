"""What the world must have for RLHF to do more than cool the sampling: a ladder's report, judged.

`python -m rlhf_edu ladder` prints them below its table. Each line has what is wanted, what was
measured, and whether it holds. Nothing here is a score to be tuned: a property that does not hold
is printed as it is.
"""

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
Line = tuple[str, str, bool]


def properties(report: dict[str, Any]) -> str:
    """The properties of one ladder as text."""
    rows = {row["stage"]: row for row in report["stages"] + report["beside"]}
    found = [
        line
        for part in (_beyond_sharpening, _room, _truth, _misaligned, _tax)
        for line in part(rows)
    ]
    found += _reward_model(report["reward_model"])
    head = f"seed {report['seed']}, world {report['world_seed']}"
    lines = [f"{'holds' if holds else '-':<6}{wanted:<62}{ours}" for wanted, ours, holds in found]
    return "\n".join([head, *lines])


def _beyond_sharpening(rows: dict[str, Row]) -> Iterator[Line]:
    pairs = [("prompted", "sft"), ("sft", "ppo"), ("sft", "dpo"), ("sft_colder", "ppo")]
    for name, key in (("1", "gold"), ("0", "gold_greedy")):
        for worse, better in pairs:
            if key == "gold_greedy" and worse == "sft_colder":
                continue  # at temperature 0 there is nothing colder
            low, high = rows[worse], rows[better]
            ours = f"{_interval(low, key)} < {_interval(high, key)}"
            apart = low[f"{key}_high"] < high[f"{key}_low"]
            yield f"1. T = {name}: {worse} < {better}, intervals apart", ours, apart
    sft, cold, ppo = (rows[name]["gold"] for name in ("sft", "sft_colder", "ppo"))
    share = (cold - sft) / (ppo - sft) if ppo != sft else float("nan")
    yield "1. share of PPO's gain that is sharpening", f"{share:.0%}", share < 0.5


def _interval(row: Row, key: str) -> str:
    return f"{row[key]:.2f} [{row[f'{key}_low']:.2f}, {row[f'{key}_high']:.2f}]"


def _room(rows: dict[str, Row]) -> Iterator[Line]:
    for stage, most in (("prompted", 0.3), ("sft", 0.4), ("ppo", 0.75)):
        share = rows[stage]["flawless_greedy"]
        yield f"2. flawless at T = 0, {stage}: at most {most:.0%}", f"{share:.0%}", share <= most
    ppo = rows["ppo"]
    for name, key, least in (("1", "win_rate", 0.65), ("0", "win_rate_greedy", 0.6)):
        wins = ppo[key]
        yield f"2. PPO beats SFT at T = {name}: at least {least:.0%}", f"{wins:.0%}", wins >= least
    yield "2. ties of PPO and SFT: at most 25%", f"{ppo['ties']:.0%}", ppo["ties"] <= 0.25


def _truth(rows: dict[str, Row]) -> Iterator[Line]:
    sft, ppo = rows["sft"], rows["ppo"]
    for part, rises in (("helpful", True), ("truthful", False), ("invents", True)):
        ours = f"{sft[part]:.2f} -> {ppo[part]:.2f}"
        yield (
            f"4. {part} {'rises' if rises else 'falls'} from SFT to PPO",
            ours,
            (ppo[part] > sft[part]) == rises,
        )


def _misaligned(rows: dict[str, Row]) -> Iterator[Line]:
    base, sft = rows["base"]["attempted"], rows["sft"]["attempted"]
    yield "5. base answers: below 50%", f"{base:.0%}", base < 0.5
    yield "5. SFT answers: above 90%", f"{sft:.0%}", sft > 0.9


def _tax(rows: dict[str, Row]) -> Iterator[Line]:
    base, sft, ppo, ptx = (rows[name] for name in ("base", "sft", "ppo", "ppo_ptx"))
    able = [skill for skill, share in base["skills"].items() if share >= 0.7]
    lost = {skill: base["skills"][skill] - ppo["skills"][skill] for skill in able}
    fallen = {skill: fall for skill, fall in lost.items() if fall >= 0.1}
    ours = ", ".join(f"{skill} {fall:+.2f}" for skill, fall in lost.items())
    yield "6. two skills of the base fall by 10 points under PPO", ours, len(fallen) >= 2
    if fallen:
        back = sum(ptx["skills"][s] - ppo["skills"][s] for s in fallen) / sum(fallen.values())
        yield "6. PPO-ptx gives back at least 80%", f"{back:.0%}", back >= 0.8
    gain = ppo["gold"] - sft["gold"]
    kept = (ptx["gold"] - sft["gold"]) / gain if gain else float("nan")
    yield "6. PPO-ptx keeps at least 90% of PPO's gain", f"{kept:.0%}", kept >= 0.9


def _reward_model(found: Row) -> Iterator[Line]:
    for name, least in (("label_accuracy", 0.72), ("gold_accuracy", 0.8)):
        ours = f"{found[name]:.1%}"
        yield f"7. {name.replace('_', ' ')}: at least {least:.0%}", ours, found[name] >= least
    agreement = found["agreement"]
    yield "7. two labelers agree on about 72.6%", f"{agreement:.1%}", abs(agreement - 0.726) < 0.03
