"""The command line: `python -m rlhf_edu ladder | chat | experiment | sft | reward | ppo | …`."""

import argparse
import json
import os
import sys
from pathlib import Path

from rlhf_edu.experiments import EXPERIMENTS

TRAINERS = {
    "sft": "fine-tune a model on demonstrations",
    "reward": "train a reward model on rankings",
    "ppo": "train a policy against a reward model; with --ptx-data, PPO-ptx",
    "dpo": "train a policy on rankings",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rlhf_edu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ladder = commands.add_parser("ladder", help="train every stage and print the table")
    ladder.add_argument("--seed", type=int, default=0, help="of training (default 0)")
    ladder.add_argument("--world-seed", type=int, default=0, help="another world; from scratch")
    ladder.add_argument("--from-scratch", action="store_true", help="pretrain the base model too")
    ladder.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    build = commands.add_parser("build", help="rebuild everything in data/ from nothing")
    build.add_argument("--only", choices=["bases", "stages"], help="only this part")
    chat = commands.add_parser("chat", help="ask the shipped models, answers side by side")
    chat.add_argument("--stage", help="one stage, such as sft; default: all of them")
    chat.add_argument("--prompt", metavar="TEXT", help="one question; default: ask for more")
    chat.add_argument("--greedy", action="store_true", help="the likeliest answer, not a sample")
    experiment = commands.add_parser("experiment", help="a finding over several seeds")
    names = f"{', '.join(EXPERIMENTS)}; or a finding such as F20"
    experiment.add_argument("name", metavar="NAME", help=names)
    experiment.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    for name, text in TRAINERS.items():
        commands.add_parser(name, help=f"{text}; {name} --help", add_help=False)
    _bench_parser(commands.add_parser("bench", help="speed and memory, alone or beside TRL's"))
    commands.add_parser("findings", help="what the papers found, and what happened here")
    books = commands.add_parser("notebooks", help="run the notebooks, or derive editions of them")
    books.add_argument("what", choices=["execute", "handouts", "slides"])
    books.add_argument("names", nargs="*", help="such as 05; default: all of them")
    books.add_argument("--reveal-prefix", metavar="URL", help="slides: where reveal.js is")
    return parser


def _bench_parser(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--against", choices=["trl"], help="measure TRL in turns with us")
    bench.add_argument("--trl-python", type=Path, metavar="PATH", help="Python that has TRL")
    bench.add_argument(
        "--trl-ppo-python", type=Path, metavar="PATH", help="Python with trl==1.12.0"
    )
    bench.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    stages = ["sft", "reward", "dpo", "ppo", "rloo", "race", "growth", "real"]
    bench.add_argument("--stage", choices=stages)
    bench.add_argument(
        "--size", choices=["2M", "4M", "8M", "17M", "87M", "309M"], help="of the model"
    )
    bench.add_argument("--bf16", action="store_true", help="multiply in bfloat16, on both sides")
    bench.add_argument("--answers", type=int, default=0, metavar="K", help="of each ranking")
    bench.add_argument("--steps", type=int, default=6, help="timed steps of a run (default 6)")
    bench.add_argument("--warmup", type=int, default=2, help="steps before them (default 2)")
    bench.add_argument("--repeats", type=int, default=3, help="runs of each side (default 3)")
    bench.add_argument("--threads", type=int, default=1, help="of either side (default 1)")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; an error of the user's is one line, code 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in TRAINERS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command in TRAINERS:
            return _train(options.command, rest)
        if options.command == "ladder":
            _ladder(options)
        elif options.command == "build":
            from rlhf_edu.experiments.build import build

            build(options.only)
        elif options.command == "experiment":
            from rlhf_edu.experiments.findings import experiment

            print(experiment(options.name).run(options.seeds))
        elif options.command == "bench":
            print(_bench(options))
        elif options.command == "findings":
            from rlhf_edu.experiments.findings import findings

            print(findings())
        elif options.command == "notebooks":
            _notebooks(options)
        else:
            from rlhf_edu.course.chat import chat

            chat(options.stage, options.prompt, options.greedy)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(f"rlhf_edu: {error}", file=sys.stderr)
        return 2
    return 0


def _bench(options: argparse.Namespace) -> str:
    from rlhf_edu.bench.plan import Plan
    from rlhf_edu.bench.speed import bench

    plan = Plan(**{k: v for k, v in vars(options).items() if k != "command"})
    if plan.stage == "race":
        from rlhf_edu.bench.race import race

        return race(plan)
    if plan.stage == "growth":
        from rlhf_edu.bench.growth import growth

        return growth(plan)
    if plan.stage == "real":
        from rlhf_edu.bench.real import real

        return real(plan)
    return bench(plan)


def _ladder(options: argparse.Namespace) -> None:
    from rlhf_edu.experiments.ladder import Ladder
    from rlhf_edu.experiments.report import side_by_side, table
    from rlhf_edu.files import write_text

    ladder = Ladder(options.seed, options.world_seed, options.from_scratch)
    report = ladder.run()
    print(table(report))
    print(side_by_side(ladder.answers))
    if options.json:
        write_text(options.json, json.dumps(report, indent=1) + "\n")


def _train(command: str, rest: list[str]) -> int:
    if "--hub" in rest:  # before the libraries are loaded, which look only once
        os.environ.update(HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0")
    from rlhf_edu.real import run

    return run.main(command, rest)


def _notebooks(options: argparse.Namespace) -> None:
    from rlhf_edu.course import editions as notebook_tools

    if options.what == "slides":
        notebook_tools.slides(options.names, options.reveal_prefix)
    else:
        getattr(notebook_tools, options.what)(options.names)


if __name__ == "__main__":
    sys.exit(main())
