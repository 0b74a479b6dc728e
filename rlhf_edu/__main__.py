"""The command line of the course; `python -m rlhf_edu COMMAND --help` says more of each command."""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_edu.experiments import EXPERIMENTS

CHAT_STAGES = ("base", "sft", "ppo", "ppo_ptx", "dpo")  # of chat
DEVICES = ("auto", "cpu", "cuda")

TRAINERS = {
    "sft": "Fine-tune a model on demonstrations.",
    "reward": "Train a reward model on rankings.",
    "ppo": "Train a policy against a reward model; with --ptx-data, PPO-ptx.",
    "dpo": "Train a policy on rankings.",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rlhf_edu", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str, more: str, device: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text} {more}")
        if device:
            where = "Where to compute (default: cpu)."
            added.add_argument("--device", choices=DEVICES, default="cpu", help=where)
        return added

    ladder = command("ladder", "Train every stage and print the table.", "It takes minutes.")
    ladder.add_argument("--seed", type=int, default=0, help="Of training (default: 0).")
    more = "Of another world, which is pretrained on from scratch (default: 0)."
    ladder.add_argument("--world-seed", type=int, default=0, help=more)
    ladder.add_argument("--from-scratch", action="store_true", help="Pretrain the base model too.")
    ladder.add_argument("--json", type=Path, metavar="FILE", help="Write the table there as well.")
    build = command("build", "Rebuild everything in data/ from nothing.", "It takes hours.")
    build.add_argument("--only", choices=["bases", "stages"], help="Rebuild this part alone.")
    chat = command("chat", "Ask the shipped models.", "Answers come side by side, in seconds.")
    more = f"One stage ({', '.join(CHAT_STAGES)}); without it, all of them."
    chat.add_argument("--stage", metavar="STAGE", help=more)
    more = "One question; without it, type them one by one."
    chat.add_argument("--prompt", metavar="TEXT", help=more)
    chat.add_argument("--greedy", action="store_true", help="The likeliest answer, not a sample.")
    more = "It takes minutes for each seed."
    experiment = command("experiment", "Repeat a finding over several seeds.", more)
    names = f"One of {', '.join(EXPERIMENTS)}; or a finding such as F20."
    experiment.add_argument("name", metavar="NAME", help=names)
    experiment.add_argument("--seeds", type=int, default=5, help="How many (default: 5).")
    for name, text in TRAINERS.items():
        commands.add_parser(name, help=text, add_help=False)
    more = "It takes minutes."
    _bench_options(command("bench", "Measure speed and memory, alone or beside TRL's.", more))
    _gpu_options(
        command("gpu-check", "Measure and test all that needs a GPU.", "In eight minutes.", False)
    )
    more = "It reads stored results, in seconds."
    text = "Print what the papers found, and what happened here."
    register = command("findings", text, more, device=False)
    register.add_argument("--write", action="store_true", help="Write FINDINGS.md instead.")
    text, more = "Show which exercises are solved in my/.", "It takes a minute at most."
    command("progress", text, more, device=False)
    text, more = "Judge the exercises of a class's notebooks.", "It takes seconds a notebook."
    marks = command("grade", text, more, device=False)
    marks.add_argument("folder", type=Path, metavar="FOLDER", help="Notebooks, in any order.")
    text = "Run the notebooks, or derive editions of them."
    books = command("notebooks", text, "It takes minutes.", device=False)
    what = ["execute", "copies", "handouts", "slides", "site", "colab", "badges"]
    books.add_argument("what", choices=what, help="What to do.")
    books.add_argument("names", nargs="*", help="Which, such as 05; without any, all of them.")
    more = "For colab and badges: on GitHub (default: that of Git's remote `origin`)."
    books.add_argument("--repository", metavar="OWNER/NAME", help=more)
    return parser


def _bench_options(bench: argparse.ArgumentParser) -> None:
    add = bench.add_argument
    add("--against", choices=["trl"], help="Measure TRL in turns with us.")
    add("--trl-python", type=Path, metavar="PATH", help="A Python that has TRL.")
    add("--trl-ppo-python", type=Path, metavar="PATH", help="A Python with trl==1.12.0.")
    stages = ["sft", "reward", "dpo", "ppo", "rloo", "grpo"]
    stages += ["race", "growth", "real", "launches"]
    add("--stage", choices=stages, help="What to measure; without it, all trainers.")
    sizes = ["2M", "4M", "8M", "17M", "87M", "309M", "135M", "0.5B"]
    add("--size", choices=sizes, help="Of the model; the last two with LoRA, as on a GPU.")
    add("--loss", default="dpo", metavar="NAME", help="Of the stage dpo (default: dpo).")
    add("--bf16", action="store_true", help="Multiply in bfloat16, on both sides.")
    add("--answers", type=int, default=0, metavar="K", help="Of each ranking; 0: the stage's own.")
    add("--steps", type=int, default=6, help="Timed steps of a run (default: 6).")
    add("--warmup", type=int, default=2, help="Steps before them (default: 2).")
    add("--repeats", type=int, default=3, help="Runs of each side (default: 3).")
    add("--threads", type=int, default=1, help="Of either side (default: 1).")
    more = "At a time, with a model of real size."
    add("--micro-batch", type=int, metavar="ROWS", help=more)
    more = "After which a process is given up (default: 90 on a GPU, none on a CPU)."
    add("--limit", type=float, default=0, metavar="SECONDS", help=more)


def _gpu_options(check: argparse.ArgumentParser) -> None:
    add = check.add_argument
    add(
        "--device",
        choices=DEVICES,
        default="cuda",
        help="The GPU; cpu tries the command. (default: cuda)",
    )
    add("--minutes", type=float, default=8, help="After which no more is begun (default: 8).")
    add("--only", action="append", metavar="PART", help="This part alone; may come again.")
    add("--again", action="store_true", help="Forget the results that are there.")
    add("--folder", type=Path, help="Of gpu_CARD.json (default: data/results).")
    add("--trl-python", type=Path, metavar="PATH", help="A Python that has TRL.")
    add("--trl-ppo-python", type=Path, metavar="PATH", help="A Python with trl==1.12.0.")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; an error of the user's is one line, code 2."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # What a terminal cannot show must not end a command; notebooks have streams of their own.
        with contextlib.suppress(AttributeError, OSError):
            stream.reconfigure(errors="replace")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in TRAINERS:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with _quiet_stop():
            code = _run(options, rest, parser)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # as after `| head`: nobody reads any longer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        print(f"rlhf_edu: {error or 'out of memory'}", file=sys.stderr)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"rlhf_edu: {error}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _quiet_stop() -> Iterator[None]:
    """Take Ctrl-C as the end, without a traceback, also where a trainer would go on after it."""

    def stop(*_: Any) -> None:
        sys.exit(130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except SystemExit as end:
        if end.code == 130:
            print("\nrlhf_edu: stopped", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _run(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> int:
    if options.command is None:
        parser.print_help()
    elif options.command in TRAINERS:
        return _train(options.command, rest)
    elif options.command == "ladder":
        _ladder(options)
    elif options.command == "build":
        from rlhf_edu.experiments.build import build

        build(options.only, options.device)
    elif options.command == "experiment":
        from rlhf_edu.experiments.findings import experiment

        print(experiment(options.name).run(options.seeds, options.device))
    elif options.command == "bench":
        print(_bench(options))
    elif options.command == "gpu-check":
        from rlhf_edu.bench.gpu import gpu_check

        gpu_check(**{k: v for k, v in vars(options).items() if k != "command"})
    elif options.command == "findings":
        from rlhf_edu import data_folder
        from rlhf_edu.experiments.findings import findings, findings_page
        from rlhf_edu.files import write_text

        if options.write:
            write_text(data_folder().parent / "FINDINGS.md", findings_page())
        else:
            print(findings())
    elif options.command == "progress":
        from rlhf_edu.course.copies import my_folder
        from rlhf_edu.course.grading import progress

        print(progress(my_folder()))
    elif options.command == "grade":
        from rlhf_edu.course.grading import grade

        print(grade(options.folder))
    elif options.command == "notebooks":
        _notebooks(options)
    else:
        from rlhf_edu.course.chat import chat

        chat(options.stage, options.prompt, options.greedy, options.device)
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
    if plan.stage == "launches":
        from rlhf_edu.bench.launches import launches

        return launches(plan)
    return bench(plan)


def _ladder(options: argparse.Namespace) -> None:
    from rlhf_edu.experiments.ladder import Ladder
    from rlhf_edu.experiments.properties import properties
    from rlhf_edu.experiments.report import side_by_side, table
    from rlhf_edu.files import write_text

    ladder = Ladder(options.seed, options.world_seed, options.from_scratch, device=options.device)
    report = ladder.run()
    try:  # the file first: a terminal can fail too, and neither may lose what took minutes
        if options.json:
            write_text(options.json, json.dumps(report, indent=1) + "\n")
    finally:
        print(table(report), properties(report), sep="\n\n")
        print(side_by_side(ladder.answers))


def _train(command: str, rest: list[str]) -> int:
    if "--hub" in rest:  # before the libraries are loaded, which look only once
        os.environ.update(HF_HUB_OFFLINE="0", HF_DATASETS_OFFLINE="0")
    from rlhf_edu.real import run

    return run.main(command, rest)


def _notebooks(options: argparse.Namespace) -> None:
    from rlhf_edu.course import cloud, copies, editions, site, slides

    if options.what == "slides":
        slides.slides(options.names)
    elif options.what == "site":
        site.site()
    elif options.what == "execute":
        editions.execute(options.names)
    elif options.what == "handouts":
        copies.handouts(options.names)
    elif options.what == "colab":
        cloud.colab(options.names, cloud.repository(options.repository))
    elif options.what == "badges":
        print(cloud.put_badges(cloud.repository(options.repository)))
    else:
        copies.copies()


if __name__ == "__main__":
    sys.exit(main())
