"""The benchmark: our side's workers, how measurements become a table, and what TRL needs."""

import functools
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_edu import __main__, dpo, ppo
from rlhf_edu.bench import gpu, growth, job, machine, ours, plan, race, real, speed, trl, worker
from rlhf_edu.bench.job import Job
from rlhf_edu.bench.ours import matrix_flops
from rlhf_edu.bench.plan import Plan
from rlhf_edu.experiments.shipped import Shipped

TINY = Job("ours", "sft", size="smallest", warmup=1, steps=2, batch=2, epochs=1, tokens=4)


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = functools.partial(machine.machine_rates, seconds=0.0)
    monkeypatch.setattr(worker, "machine_rates", rates)
    monkeypatch.setitem(job.SIZES, "smallest", (16, 1, 2))


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_worker_of_our_side(stage: str) -> None:
    found = worker.run(replace(TINY, stage=stage))
    for key in ("seconds", "cpu_seconds", "per_second", "tokens_per_second", "flops"):
        assert found[key] > 0, key
    units = found["per_second"] * found["seconds"]
    assert units == pytest.approx(found["per_cpu_second"] * found["cpu_seconds"])
    tokens = found["tokens_per_second"] * found["seconds"]
    if stage == "ppo":
        assert units == pytest.approx(2) and 2 <= tokens <= 8
        assert set(found["phases"]) == {"rollout", "evaluation", "optimisation", "rest"}
    elif stage == "sft":
        assert units == pytest.approx(tokens)
    else:
        assert units >= 2  # two rankings, each with a comparison or more
    assert ("reference" in found["phases"]) == (stage == "dpo")
    if found["phases"]:
        assert sum(found["phases"].values()) == pytest.approx(1)
    assert found["memory_mb"] >= 0 and found["threads"] == 1


def test_two_answers_make_one_comparison() -> None:
    found = worker.run(replace(TINY, stage="reward", answers=2))
    assert found["per_second"] * found["seconds"] == pytest.approx(2)


def test_same_weights_every_time() -> None:
    first, second = job.make_policy(TINY), job.make_policy(TINY)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    config = first.config
    assert config.activation_function == "gelu_pytorch_tanh"
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0


def test_products_of_a_forward_pass() -> None:
    model = job.make_policy(TINY)
    blocks, head = 12 * 16 * 16, 16 * model.config.vocab_size
    assert matrix_flops(model, 10, 3) == 2 * (10 * blocks + 3 * head)


def test_parts_of_parts_count_once() -> None:
    clock = machine.Clock(replace(TINY, steps=1))
    with clock.part("outer"):  # still warming up
        time.sleep(0.001)
    clock.mark()
    with clock.part("outer"):
        with clock.part("inner"):
            time.sleep(0.02)
        time.sleep(0.01)
    clock.mark()
    with clock.part("outer"):  # all steps are over
        time.sleep(0.02)
    assert clock.phases["inner"] >= 0.02 and clock.phases["outer"] >= 0.01
    wall = clock.marks[1][0] - clock.marks[0][0]
    assert sum(clock.phases.values()) <= wall


def test_phases_follow_each_other_and_the_reference_belongs_to_all_steps() -> None:
    clock = machine.Clock(replace(TINY, steps=1))
    clock.phase("reference")
    time.sleep(0.02)
    clock.phase("training")
    for _ in range(2):  # one to warm up, one that is timed
        time.sleep(0.01)
        clock.note(1, 1)
        clock.mark()
    time.sleep(0.2)  # after the last step
    clock.phase(None)
    assert clock.before[0] >= 0.02 and 0.01 <= clock.phases["training"] < 0.2
    found = clock.result()
    assert found["seconds"] == pytest.approx(clock.phases["training"] + clock.before[0] / 2)
    assert sum(found["phases"].values()) == pytest.approx(1)
    assert found["phases"]["rest"] == pytest.approx(0, abs=0.01)


def test_answers_are_counted_up_to_their_end() -> None:
    answers = torch.tensor([[5, 2, 2, 7], [2, 5, 5, 5], [5, 5, 5, 5]])
    assert trl.answer_tokens(answers, eos=2) == 2 + 1 + 4


def test_rates_of_the_machine() -> None:
    found = machine.machine_rates(TINY)
    assert found["gflops"] > 0 and found["gbytes"] > 0


# --- from measurements to the table --------------------------------------------------------------


def a_run(side: str, seconds: float, memory: float = 100.0) -> dict:
    return {
        "seconds": seconds,
        "cpu_seconds": seconds / 2,
        "per_second": 60 / seconds,
        "per_cpu_second": 120 / seconds,
        "tokens_per_second": 600 / seconds,
        "flops": 5e9,
        "gflops": 50.0,
        "gbytes": 8.0,
        "phases": {"rollout": 0.25, "rest": 0.75},
        "memory_mb": memory,
        "parameters": 2_000_000,
        "weights": 1234.5,
        "versions": {side: "1.0"},
        "threads": 1,
        "gpu": None,
    }


def answering(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Let `run_worker` answer: TRL takes 3 s a step, we take 1, 2 and 1.5 s. Returns calls."""
    calls = []

    def run_worker(plan: Plan, python: str, module: str, job: Job) -> dict:
        calls.append((job.side, job.seed))
        ours = (1.0, 2.0, 1.5)[job.seed]
        return a_run("trl", 3.0, 200.0) if job.side == "trl" else a_run("rlhf_edu", ours)

    monkeypatch.setattr(speed, "run_worker", run_worker)
    return calls


def test_sides_take_turns_and_the_file_says_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = answering(monkeypatch)
    wanted = Plan(against="trl", stage="ppo", trl_ppo_python=Path("/somewhere/python"))
    text = speed.bench(wanted, tmp_path)
    assert calls == [(side, seed) for seed in range(3) for side in ("ours", "trl")]
    part = json.loads((tmp_path / "bench_cpu.json").read_text())["stages"]["ppo"]
    assert part["ours"]["seconds"] == [1.5, 1.0, 2.0]
    assert part["ratio"]["per_second"] == [2.0, 1.5, 3.0]
    assert part["ratio"]["memory_mb"] == [0.5, 0.5, 0.5]
    assert part["versions"] == {"ours": {"rlhf_edu": "1.0"}, "trl": {"trl": "1.0"}}
    assert part["machine"]["threads"] == 1 and part["machine"]["cpu"]
    assert part["floor"]["products"] == pytest.approx(0.1)  # 5 GFLOP at 50 GFLOP/s
    assert part["floor"]["reading"] == pytest.approx(0.032)  # 32 times 8 MB at 8 GB/s
    assert part["command"].endswith("--stage ppo --trl-ppo-python .trl-ppo/bin/python")
    row = text.splitlines()[2].split()
    assert row[:4] == ["ppo", "episodes", "40", "20"]
    assert row[-5:] == ["0.75", "1.5", "0.1", "100", "200"]
    assert "2.00 [1.50, 3.00]" in text and "ppo, TRL: rollout 25%, rest 75%" in text


def test_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = answering(monkeypatch)
    text = speed.bench(Plan(stage="sft", repeats=1), tmp_path)
    assert calls == [("ours", 0)]
    assert text.splitlines()[2].split()[:5] == ["sft", "tokens", "60", "–", "–"]
    speed.bench(Plan(stage="dpo", repeats=1, answers=2), tmp_path)
    stored = json.loads((tmp_path / "bench_cpu.json").read_text())
    assert list(stored["stages"]) == ["sft", "dpo, 2 answers"]


def test_fewer_answers_more_rankings() -> None:
    assert [Plan(answers=k).job("ours", "dpo").batch for k in (0, 2, 4, 9)] == [4, 40, 6, 4]
    assert Plan(answers=2).job("ours", "ppo").answers == 0
    for settings in ({"size": "4M"}, {"bf16": True}, {"answers": 4}, {"against": "trl"}):
        for stage in ("growth", "real"):
            with pytest.raises(ValueError, match=f"--stage {stage} .* sizes of its own"):
                Plan(stage=stage, **settings)
    with pytest.raises(ValueError, match="two answers"):
        Plan(answers=1)


def test_other_weights_are_no_comparison() -> None:
    runs = {"ours": [a_run("rlhf_edu", 1.0)], "trl": [a_run("trl", 1.0) | {"weights": 1300.0}]}
    with pytest.raises(RuntimeError, match="same weights"):
        speed.stage_report(Plan(), "sft", runs)


def test_how_to_get_trl() -> None:
    assert plan.how_to_get_trl(Plan()) == ""
    text = plan.how_to_get_trl(Plan(against="trl"))
    assert "sft, reward, dpo, rloo" in text and '"trl==1.16.0"' in text
    assert '"trl==1.12.0"' in text and "--trl-ppo-python .trl-ppo/bin/python" in text
    there = Plan(against="trl", trl_python=Path("p"), trl_ppo_python=Path("q"))
    assert plan.how_to_get_trl(there) == ""
    assert there.python("trl", "ppo") == "q" and there.python("trl", "rloo") == "p"


def test_same_threads_and_no_gpu_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = plan.environment(Plan(threads=2))
    assert found["OMP_NUM_THREADS"] == "2" and found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    root = Path(plan.__file__).parent.parent.parent
    assert found["PYTHONPATH"].startswith(str(root))


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["bench", "--repeats", "0"]) == 2
    assert "repeats" in capsys.readouterr().err


def test_what_a_worker_says_last_is_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = a_python(tmp_path / "python", """echo "a log line"; echo '{"seconds": 2}'""")
    assert plan.run_worker(Plan(), python, plan.WORKER, TINY) == {"seconds": 2}
    a_python(tmp_path / "python", "echo 'No module named trl' >&2; exit 1")
    with pytest.raises(RuntimeError, match="ours sft with .*: No module named trl"):
        plan.run_worker(Plan(), python, plan.WORKER, TINY)


def a_python(path: Path, says: str) -> str:
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return str(path)


def test_a_process_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    slow = a_python(tmp_path / "python", "exec sleep 60")
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="ours sft with .* took more than 0.2 s"):
        plan.run_worker(Plan(limit=0.2), slow, plan.WORKER, TINY)
    assert time.perf_counter() - start < 30
    assert Plan().seconds is None


def test_for_a_gpu_the_next_process_starts_while_this_one_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: dict = {}
    monkeypatch.setattr(plan, "_WAITING", waiting)
    python = a_python(tmp_path / "python", 'read job; echo "{\\"pid\\": $$}"')
    gpu = Plan()
    gpu.device = "cuda"
    first = plan.run_worker(gpu, python, plan.WORKER, TINY)["pid"]
    (ready,) = waiting.values()
    assert plan.run_worker(gpu, python, plan.WORKER, TINY)["pid"] == ready.pid != first
    plan.end_waiting()
    assert [process.wait(10) for process in waiting.values()] == [-9]


def test_a_side_that_fails_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_worker(plan: Plan, python: str, module: str, job: Job) -> dict:
        if (job.side, job.stage) in (("trl", "sft"), ("ours", "dpo")):
            raise RuntimeError(f"bench: {job.side} {job.stage} took more than 90 s")
        return a_run(job.side, 2.0)

    monkeypatch.setattr(speed, "run_worker", run_worker)
    there = {"trl_python": Path("p"), "trl_ppo_python": Path("q")}
    lines = speed.bench(Plan(against="trl", **there), tmp_path).splitlines()
    rows = {line.split()[0]: line.split()[2:] for line in lines[2:8]}
    assert rows["sft"][:3] == ["30", "–", "–"] and rows["dpo"][:3] == ["–", "30", "–"]
    assert rows["grpo"][:2] == ["30", "30"]
    assert "sft: bench: trl sft took more than 90 s" in lines
    assert "dpo: bench: ours dpo took more than 90 s" in lines
    stored = json.loads((tmp_path / "bench_cpu.json").read_text())
    assert list(stored["stages"]) == list(plan.STAGES)


def test_dpo_with_another_loss_is_another_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answering(monkeypatch)
    text = speed.bench(Plan(stage="dpo", loss="simpo", repeats=1), tmp_path)
    assert text.splitlines()[2].startswith("dpo, simpo")
    assert worker.run(replace(TINY, stage="dpo", loss="orpo"))["per_second"] > 0
    for settings in ({"loss": "mine"}, {"loss": "ipo", "against": "trl"}):
        with pytest.raises(ValueError, match="--loss"):
            Plan(**settings)


def test_what_a_user_of_a_gpu_has() -> None:
    gpu = Plan()
    gpu.device = "cuda"
    jobs = {stage: gpu.job("ours", stage) for stage in plan.STAGES}
    assert {(one.size, one.way, one.dtype) for one in jobs.values()} == {
        ("0.5B", "LoRA", torch.bfloat16)
    }
    assert jobs["sft"].prompt + jobs["sft"].tokens == 1024
    assert (jobs["dpo"].batch, jobs["dpo"].answers) == (64, 4)
    assert (jobs["ppo"].batch, jobs["ppo"].prompt, jobs["ppo"].tokens) == (64, 256, 128)
    whole = gpu.real_job("ours", "ppo", "four networks")
    assert whole.dtype == torch.float32 and whole.bf16 and jobs["ppo"].bf16


# --- all that a GPU can tell ---------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers that answer at once, but for SFT's; returns the stages that were asked for."""
    asked: list[str] = []

    def run_worker(made: Plan, python: str, module: str, job: Job, **variables: str) -> dict:
        asked.append(job.stage)
        if job.stage == "sft":
            raise RuntimeError("bench: ours sft took more than 90 s")
        if job.stage == "ladder":
            return {"base": -1.0, "sft": 2.0}
        return a_run("rlhf_edu", 2.0) | {"weights_mb": 990.0, "ledger_mb": 10_000.0}

    for module in (plan, speed, gpu):
        monkeypatch.setattr(module, "run_worker", run_worker)
    monkeypatch.setattr(gpu, "_said", lambda plan, *module: ["FAILED a - why", "= 1 failed ="])
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    return asked


def kept(folder: Path) -> dict:
    return json.loads((folder / "gpu_cpu.json").read_text())


def test_gpu_check_does_all_of_it(pretended_gpu: list[str], tmp_path: Path, capsys) -> None:
    gpu.gpu_check("cpu", folder=tmp_path)
    cells, text = kept(tmp_path)["cells"], capsys.readouterr().out
    assert len(cells) == 1 + len(gpu.PARTS) and cells["card"]["versions"]["peft"]
    assert [name for name, cell in cells.items() if "failed" in cell] == ["trainer sft"]
    assert cells["tests"]["lines"] == ["1 failed", "a - why"]
    assert text == gpu.table(kept(tmp_path)) + "\n"
    assert "sft: bench: ours sft took more than 90 s" in text.splitlines()
    for words in ("sampling, static", "base -1.0, sft 2.0", "a GPU: 1 failed\na - why"):
        assert words in text
    asked = len(pretended_gpu)
    gpu.gpu_check("cpu", folder=tmp_path)  # goes on: what failed is tried again
    assert pretended_gpu[asked:] == ["sft"]
    gpu.gpu_check("cpu", folder=tmp_path, only=["dpo"], again=True)
    assert list(kept(tmp_path)["cells"]) == ["card", "trainer dpo"]


def test_gpu_check_stops_in_time(pretended_gpu: list[str], tmp_path: Path, capsys) -> None:
    gpu.gpu_check("cpu", minutes=0, folder=tmp_path, only=["ladder", "reward"])
    assert pretended_gpu == []
    said = capsys.readouterr().out.splitlines()
    assert "reward: no time was left" in said
    assert "The ladder in miniature, gold: no time was left" in said


def test_gpu_check_that_is_cut_off_shows_what_it_has(
    pretended_gpu: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    def cut_off(plan: Plan, kind: str, setting: str) -> dict:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        return {}

    monkeypatch.setattr(real, "measure", cut_off)
    with pytest.raises(SystemExit) as end:
        gpu.gpu_check("cpu", folder=tmp_path, only=["ppo", "growing", "dpo"])
    assert end.value.code == 143 and "episodes" in capsys.readouterr().out
    assert list(kept(tmp_path)["cells"]) == ["card", "trainer ppo"]


def test_gpu_check_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["gpu-check"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no such device" in said
    assert __main__.main(["gpu-check", "--device", "cpu", "--only", "dancing"]) == 2
    assert "--only knows tests, sampling" in capsys.readouterr().err


# --- the race ------------------------------------------------------------------------------------


def a_race(gold: list[float], kl: float, each: float) -> dict:
    looks = enumerate(gold, 1)
    return {"looks": [{"seconds": each * i, "seen": 8 * i, "gold": g, "kl": kl} for i, g in looks]}


def test_the_race_ends_where_trl_ends_at_no_more_kl() -> None:
    cells = {}
    for seed in range(2):
        cells[f"trl seed {seed}"] = {"kind": "trl"} | a_race([1.0, 2.0, 2.0, 2.0], 0.5, 10.0)
        cells[f"ppo seed {seed}"] = {"kind": "ppo"} | a_race([1.5, 2.1, 3.0], 0.5, 5.0 + seed)
        cells[f"dpo seed {seed}"] = {"kind": "dpo"} | a_race([2.5, 2.5], 0.4 + seed, 1.0)
    assert race.goal_of(cells["trl seed 0"]["looks"]) == (2.0, 0.5)
    lines = race.report(cells).splitlines()
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["0", "TRL", "ends", "40.0"],
        ["0", "TRL", "is", "there"],
        ["0", "ppo", "10.0", "16"],
        ["0", "dpo", "1.0", "8"],
    ]
    assert "20.0" in lines[2]
    assert "not there" in lines[8]  # the second DPO is further from the SFT model than TRL
    assert "ppo against TRL's end: there in 2 of 2 seeds, 3.65" in lines[9]  # of 40 s in 10, 12
    assert "ppo against TRL's first time there: there in 2 of 2 seeds, 1.83" in lines[10]
    assert lines[11] == "dpo against TRL's end: there in 1 of 2 seeds"


def test_the_race_wants_trl(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["bench", "--stage", "race"]) == 2
    assert "--trl-ppo-python" in capsys.readouterr().err


def test_a_racer_is_examined_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "EXAM", 8)
    monkeypatch.setattr(race, "EVERY", 1)
    first, second = race.run(Job("ours", "ppo", steps=2))["looks"]
    assert 0 < first["seconds"] < second["seconds"] and second["seen"] == 2 * first["seen"]
    assert {"seconds", "seen", "gold", "kl"} == set(second)


def test_trl_scores_with_our_reward_model() -> None:
    shipped = Shipped()
    classifier, ours = race._scorer(shipped), shipped.load("reward-model")
    ids = shipped.tokenizer("Name three animals.\nThe fox.", return_tensors="pt").input_ids
    hidden = classifier.base_model(ids).last_hidden_state
    assert torch.allclose(classifier.score(hidden), ours(input_ids=ids).logits, atol=1e-5)


# --- growth --------------------------------------------------------------------------------------


def test_growth_is_measured_drawn_and_compared_with_a_straight_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_worker(plan: Plan, python: str, module: str, job: Job) -> dict:
        asked.append((job.stage, job.batch, job.tokens, job.answers, job.size))
        cost = job.batch * job.tokens**2 / 1000
        return {"cpu_seconds": cost, "seconds": 99.0, "memory_mb": 100.0}

    monkeypatch.setattr(plan, "run_worker", run_worker)
    lines = growth.growth(Plan(stage="growth", repeats=2), tmp_path).splitlines()
    assert len(asked) == 2 * 16 and len(set(asked)) == 15  # the first place of two axes is one
    assert [line.split() for line in lines if "×" in line] == [
        ["×", "8", "×", "8", "×", "1"],
        ["×", "8", "×", "64", "×", "1"],
        ["×", "4.5", "×", "1", "×", "1"],
        ["×", "8.5", "×", "1", "×", "1"],
    ]
    assert (tmp_path / "growth_cpu.png").stat().st_size > 10_000
    growth.growth(Plan(stage="growth", repeats=2), tmp_path)
    assert len(asked) == 32  # it was all there


# --- one real model ------------------------------------------------------------------------------


MADE = {"size": "tiny", "batch": 4, "answers": 2, "epochs": 1, "prompt": 6, "tokens": 4}
SMALL = {**MADE, "micro_batch": 2, "warmup": 1, "steps": 2}
WAYS = [(stage, way) for stage in real.WAYS for way in real.WAYS[stage]]
WAYS += [(stage, "LoRA") for stage in plan.STAGES if stage != "ppo"]


@pytest.mark.parametrize("stage, way", WAYS)
def test_a_worker_with_a_shape_of_real_models(stage: str, way: str) -> None:
    found = worker.run(Job("ours", stage, way, **SMALL))
    units = found["per_second"] * found["seconds"]
    tokens = found["tokens_per_second"] * found["seconds"]
    assert units == pytest.approx(4 * (6 + 4) if stage == "sft" else 4)  # K = 2: a pair a ranking
    if stage in ("sft", "reward", "dpo"):
        assert tokens == pytest.approx(4 * (6 + (1 if stage == "sft" else 2) * 4))
    else:
        assert 4 <= tokens <= 16
    assert ("ledger_mb" in found) == (stage == "ppo")
    if stage in ("ppo", "rloo", "grpo"):
        assert {"rollout", "evaluation", "optimisation"} < set(found["phases"])
    if stage == "sampling":
        assert found["weights_mb"] == pytest.approx(4 * (1536 * 16 + 2 * 2368 + 16) / 1e6, rel=0.1)


def test_made_texts_have_as_many_tokens_as_they_shall() -> None:
    made = Job("ours", "dpo", **MADE)
    words, (rankings, epochs) = job.tokenizer(made), job.load_rankings(made)
    groups = dpo.make_groups(words, rankings)
    assert len(groups) == made.batch * made.total and epochs == 1
    for group in groups:
        assert len(group.prompt) == 6 and [len(answer) for answer in group.answers] == [4, 4]
        assert words.decode(group.answers[0]).split()[-1] == words.eos_token
    assert len({tuple(group.prompt) for group in groups}) == len(groups)
    assert len(words) == job.SHAPES["tiny"][-1]


def test_the_peak_is_not_that_of_making_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def note(name: str, module) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **o: done.append(name) or function(*a, **o))

    note("make_policy", ours)
    note("forget_peak", machine)
    note("generate", ours)
    note("generate", ppo)
    for stage, way in (("sampling", "static"), ("ppo", "four networks"), ("ppo", "LoRA")):
        done.clear()
        worker.run(Job("ours", stage, way, **SMALL))
        assert list(dict.fromkeys(done)) == ["make_policy", "forget_peak", "generate"]
        assert "make_policy" not in done[done.index("forget_peak") :]


def test_the_peak_can_be_forgotten() -> None:
    hoard = torch.ones(50_000_000)
    high = machine.resident()
    del hoard
    machine.forget_peak(TINY)
    assert machine.resident() < high - 150e6


def test_what_a_real_model_costs_is_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_worker(made: Plan, python: str, module: str, job: Job, **variables: str) -> dict:
        assert module == plan.WORKER and job.device == "cpu"
        memory = 123.0 if variables == real.EXACT else 999.0
        found = {"seconds": 2.0, "cpu_seconds": 2.0, "memory_mb": memory, "gbytes": 10.0}
        found |= {"tokens_per_second": 1000.0 + job.seed, "phases": {}, "gpu": None}
        if job.stage == "ppo":
            return found | {"ledger_mb": 120.0, "phases": {"rollout": 0.25}}
        return found | {"weights_mb": 500.0}

    monkeypatch.setattr(plan, "run_worker", run_worker)
    lines = real.real(Plan(stage="real", repeats=3), tmp_path).splitlines()
    assert lines[0].endswith(", threads: 1") and "135M" in lines[1] and len(lines) == 11
    assert max(map(len, lines)) <= 79  # a slide's width
    assert lines[3].split() == ["sampling,", "static", "1,001", "[1,000,", "1,002]", "160", "123"]
    assert lines[7].split()[-3:] == ["123", "120", "25%"]
    assert (tmp_path / "real_cpu.json").is_file()
