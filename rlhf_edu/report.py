"""The ladder in print: its table, and what every stage answered, side by side."""

from typing import Any

from rlhf_edu.evaluation import Answers


def table(report: dict[str, Any]) -> str:
    """The ladder as text, one stage a line."""
    head = (
        f"{'stage':<17}{'gold':>19}{'helpful':>8}{'truthful':>9}{'harmless':>9}{'words':>6}"
        f"{'win vs SFT':>19}{'KL':>6}{'web loss':>9}{'table':>6}{'story':>6}{'labels':>10}"
        f"{'parameters':>11}{'min':>6}"
    )
    lines = [head, "-" * len(head)]
    for r in report["stages"] + report["beside"]:
        gold = f"{r['gold']:.2f} [{r['gold_low']:.2f}, {r['gold_high']:.2f}]"
        wins = f"{r['win_rate']:.0%} [{r['win_rate_low']:.0%}, {r['win_rate_high']:.0%}]"
        kl = "–" if r["kl"] is None else f"{r['kl']:.1f}"
        lines.append(
            f"{r['stage']:<17}{gold:>19}{r['helpful']:>8.2f}{r['truthful']:>9.2f}"
            f"{r['harmless']:>9.2f}{r['words']:>6.1f}{wins:>19}{kl:>6}{r['web_loss']:>9.3f}"
            f"{r['skills']['table']:>6.2f}{r['skills']['story']:>6.2f}"
            f"{_budget(r['labels']):>10}{r['parameters']:>11,}{r['minutes']:>6.1f}"
        )
    found = report["reward_model"]
    lines += [
        "",
        "KL: to the SFT model, nats per answer. labels: demonstrations + rankings. "
        "min: of training, the reward model and its labels counted apart: "
        f"{report['minutes']['reward_model']:.1f}.",
        f"Reward model, on new answers: agrees with a labeler on {found['label_accuracy']:.1%} of "
        f"pairs, with gold on {found['gold_accuracy']:.1%}. Two labelers agree on "
        f"{found['agreement']:.1%} [{found['agreement_low']:.1%}, {found['agreement_high']:.1%}]: "
        f"a ceiling of {found['ceiling']:.1%}.",
    ]
    return "\n".join(lines)


def _budget(labels: dict[str, int]) -> str:
    return " + ".join(str(n) for n in labels.values() if n) or "0"


def side_by_side(answers: dict[str, Answers], prompts: int = 5) -> str:
    """A few prompts with every stage's answer."""
    lines = []
    for i in range(prompts):
        lines.append(f"\n{answers['base'].prompts[i].text}")
        for stage, found in answers.items():
            said = " / ".join(found.texts[i].split("\n"))
            lines.append(f"  {stage:<17}{found.gold[i]:>5.1f}  {said}")
    return "\n".join(lines)
