"""Preferences as people have them: every format, what is left out and why, and what is refused."""

import gzip
import json
import re
from pathlib import Path

import pytest
import tiny_models as tiny

from rlhf_edu import data
from rlhf_edu.real import formats

TOK = tiny.tokenizer()
PREFERENCES = Path(__file__).resolve().parents[2] / "shared" / "data" / "pref"
with_real_rows = pytest.mark.skipif(not PREFERENCES.is_dir(), reason="the real rows are not here")

QUESTION, GOOD, BAD = "Is the cat old?", "Yes, it is.", "Go away."


def chat(*said: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def summaries(choice: int) -> dict:
    info = {"id": "t3_1", "subreddit": "cats", "title": "Old cat", "post": "My cat is old. " * 3}
    texts = [{"text": " " + GOOD, "policy": "sup1"}, {"text": BAD, "policy": "ref"}]
    return {"info": info, "summaries": texts, "choice": choice, "worker": "w1", "split": "train"}


ROWS = {
    "the course schema": data.to_json(tiny.rankings(1)[0]),
    "HH transcripts": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
    },
    "prompt/chosen/rejected": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "TL;DR comparisons": summaries(0),
    "chat lists": {
        "prompt": QUESTION,
        "chosen": chat(QUESTION, GOOD),
        "rejected": chat(QUESTION, BAD),
        "score_chosen": 8.0,
        "score_rejected": 2.5,
    },
    "ranked lists": {"prompt": QUESTION, "answers": [BAD, GOOD, "Perhaps."], "ranks": [3, 1, 2]},
    "PandaLM": {
        "instruction": QUESTION,
        "input": "",
        "response1": BAD,
        "response2": GOOD,
        "annotator1": 2,
        "annotator2": 2,
        "annotator3": 1,
    },
}


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, *rows) -> formats.Loaded:
    return formats.load_rankings(write(tmp_path / "rows.jsonl", *rows))


# --- every format --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_recognised(name: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, ROWS[name])
    assert loaded.format == name and loaded.rows == 1 and not loaded.dropped
    [ranking] = loaded.records
    if name == "the course schema":
        assert ranking == tiny.rankings(1)[0]
        return
    best, worst = (ranking.answers[ranking.ranks.index(f(ranking.ranks))] for f in (min, max))
    assert (best, worst) == (GOOD, BAD) and all(ranking.ended)
    if name == "TL;DR comparisons":
        assert ranking.prompt.text.startswith("SUBREDDIT: r/cats\n\nTITLE: Old cat\n\nPOST: My")
        assert ranking.prompt.text.endswith("My cat is old.\n\nTL;DR:")
    else:
        assert ranking.prompt.text == QUESTION
    assert data.to_ranking(data.to_json(ranking)) == ranking


@pytest.mark.parametrize("name", ROWS)
def test_every_format_gives_demonstrations_and_prompts(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[name], ROWS[name])
    loaded = formats.load_demonstrations(path)
    best = "Yes!" if name == "the course schema" else GOOD
    assert [d.answer for d in loaded.records] == [best, best]
    prompts = formats.load_prompts(path)
    assert prompts.records == [loaded.records[0].prompt.text]
    assert prompts.dropped == {"seen before": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": QUESTION, "completion": GOOD},
        {"prompt": chat(QUESTION), "completion": chat("", GOOD)[1:]},
        {"instruction": QUESTION, "input": "", "output": GOOD},
        {"messages": chat(QUESTION, GOOD)},
        data.to_json(data.Demonstration(data.Prompt("a", "", "", QUESTION), GOOD)),
    ],
)
def test_demonstrations(row: dict, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    [demonstration] = formats.load_demonstrations(path).records
    assert (demonstration.prompt.text, demonstration.answer) == (QUESTION, GOOD)
    assert formats.load_prompts(path).records == [QUESTION]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": QUESTION, "responses": [GOOD, BAD], "scores": [0.5, -3]},
        {"question": QUESTION, "candidates": [BAD, GOOD], "rank": [2, 1]},
        {
            "instruction": QUESTION,
            "completions": [
                {"response": BAD, "overall_score": 2},
                {"response": GOOD, "overall_score": 9},
            ],
        },
        {"prompt": chat(QUESTION), "chosen": chat("", GOOD)[1:], "rejected": chat("", BAD)[1:]},
    ],
)
def test_relatives_of_the_formats(row: dict, tmp_path: Path) -> None:
    [ranking] = load(tmp_path, row).records
    best = ranking.answers[ranking.ranks.index(1)]
    assert (ranking.prompt.text, best, max(ranking.ranks)) == (QUESTION, GOOD, 2)


def test_equal_scores_are_ties(tmp_path: Path) -> None:
    row = {"prompt": QUESTION, "answers": ["a", "b", "c", "d"], "scores": [1, 7, 1.0, 3]}
    assert load(tmp_path, row).records[0].ranks == (3, 1, 3, 2)


def test_an_input_follows_its_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "der Kater", "output": "the cat"}
    [found] = formats.load_demonstrations(write(tmp_path / "a.jsonl", row)).records
    assert found.prompt.text == "Translate.\n\nder Kater"


# --- conversations -------------------------------------------------------------------------------


def test_transcripts_and_messages_are_one_thing(tmp_path: Path) -> None:
    said = "Is the cat old?", "Yes.", "And the hen?"
    text = "\n\nHuman: Is the cat old?\n\nAssistant: Yes.\n\nHuman: And the hen?\n\nAssistant:"
    transcripts = {"chosen": f"{text} No.", "rejected": f"{text} Go away."}
    chats = {"chosen": chat(*said, "No."), "rejected": chat(*said, "Go away.")}
    for row in (transcripts, chats):
        [ranking] = load(tmp_path, row).records
        assert ranking.prompt.text == text and ranking.answers == ("No.", "Go away.")
    assert data.to_messages(text) == chat(*said)
    assert data.to_text(chat(*said)) == text


def test_messages_and_texts_are_inverse() -> None:
    system = [{"role": "system", "content": "Be kind.\nAlways."}]
    for messages in (chat("a"), chat("a", "b", "c"), system + chat("a"), chat("a\n\nb", " b", "c")):
        stripped = [m | {"content": m["content"].strip()} for m in messages]
        assert data.to_messages(data.to_text(messages)) == stripped
    assert data.to_messages("Human: hello") == chat("Human: hello")
    twice = data.to_messages("\n\nHuman: a\n\nHuman: b\n\nAssistant:")
    assert twice == chat("a\n\nb")
    with pytest.raises(ValueError, match="separates turns"):
        data.to_text(chat("a\n\nAssistant: I am you"))
    with pytest.raises(ValueError, match="must be system, user, assistant, not 'tool'"):
        data.to_text([{"role": "tool", "content": "a"}])


# --- what is left out ----------------------------------------------------------------------------


def pair(**changes) -> dict:
    return ROWS["prompt/chosen/rejected"] | changes


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(rejected=GOOD), "identical answers"),
        (pair(rejected=f" {GOOD}\n"), "identical answers"),
        (pair(chosen="  "), "empty answer"),
        (pair(prompt=""), "empty prompt"),
        (pair(rejected=None), "answer is no text"),
        (pair(chosen=True), "answer is no text"),
        (pair(prompt=3.5), "prompt is no text"),
    ],
)
def test_what_teaches_nothing_is_counted(row: dict, reason: str, tmp_path: Path) -> None:
    loaded = load(tmp_path, pair(), row, row, pair(chosen="Aye."))
    assert loaded.dropped == {reason: 2} and len(loaded.records) == 2 and loaded.rows == 4
    assert str(loaded).endswith(f"4 rows of prompt/chosen/rejected, 2 used; left out: 2 {reason}")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("HH transcripts", {"rejected": "\n\nHuman: Eh?\n\nAssistant: No."}, "prompts differ"),
        ("chat lists", {"rejected": chat("Eh?", BAD)}, "prompts differ"),
        ("chat lists", {"score_rejected": 8.0}, "tied"),
        ("chat lists", {"chosen": chat(QUESTION)}, "chosen has no answer"),
        ("chat lists", {"chosen": []}, "chosen has no answer"),
        ("PandaLM", {"annotator1": 0, "annotator3": 0, "annotator2": 0}, "tied"),
        ("PandaLM", {"response2": False}, "answer is no text"),
        ("ranked lists", {"ranks": [1, 1, 1]}, "tied"),
        ("ranked lists", {"answers": ["a", "a", "a"]}, "identical answers"),
    ],
)
def test_each_format_names_what_it_leaves_out(name, changes, reason, tmp_path: Path) -> None:
    loaded = load(tmp_path, ROWS[name], ROWS[name] | changes)
    assert loaded.dropped == {reason: 1} and len(loaded.records) == 1


def test_too_long_rows_are_counted(tmp_path: Path) -> None:
    loaded = load(tmp_path, pair(), pair(prompt="old " * 99), pair(rejected="wet " * 99))
    formats.leave_out_long(loaded, TOK, 30, 30)
    assert loaded.dropped == {"prompt too long": 1, "answer too long": 1}
    assert len(loaded.records) == 1
    with pytest.raises(ValueError, match=r"raise --max-prompt-tokens \(3\) or --max-answer-tokens"):
        formats.leave_out_long(loaded, TOK, 3, 30)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1, "b": 2}], "line 1: columns 'a, b' are none that can be read here; rename them"),
        (["hello"], "line 1: a row must be a JSON object, not 'hello'"),
        ([pair(), {"prompt": "x"}], "line 2: columns 'prompt' do not fit prompt/chosen/rejected"),
        ([pair(), ROWS["HH transcripts"]], "line 2: .* put rows of different kinds into files"),
        ([{"chosen": "a", "rejected": "b"}], "line 1: a transcript must have a turn that begins"),
        ([summaries(0), summaries(5)], "line 2: choice must be the number of a summary, not 5"),
        (
            [ROWS["ranked lists"] | {"ranks": [1, 2]}],
            "line 1: there are 3 answers, but 2 ranks or scores",
        ),
        ([ROWS["PandaLM"] | {"annotator1": 7}], "line 1: votes must be 0, 1 or 2"),
        ([{"messages": [{"text": "hello"}]}], "line 1: columns 'messages' are none"),
        (
            [ROWS["chat lists"] | {"chosen": [{"text": "hello"}]}],
            "line 1: the key 'role' is missing",
        ),
        ([pair(rejected=GOOD)], r"nothing is left to learn from \(1 identical answers\)"),
        ([], r"nothing is left to learn from \(it has no rows\)"),
    ],
)
def test_bad_rows_are_named_with_their_line(rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, *rows)
    assert re.search(message, str(error.value)), str(error.value)
    assert "rows.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"\n', encoding="utf-8")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"a": 1}' * 99)[:-9])
    strange = tmp_path / "rows.doc"
    strange.write_bytes(b"x")
    for path, message in [
        (bad, "bad.jsonl, line 1: no JSON .*give one JSON object on a line"),
        (cut, "cut.jsonl.gz cannot be read .*is it a whole file"),
        (strange, "rows.doc is of an unknown kind; give .json"),
    ]:
        with pytest.raises(ValueError, match=message):
            formats.load_rankings(path)


def test_the_hub_is_a_choice(monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="no file or data set some/data .*--hub, or HF_HUB"):
        formats.load_rankings("some/data")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [pair()]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(formats.load_rankings("some/data:test").records) == 1
    assert len(formats.load_rankings("some/data").records) == 1
    assert asked == [("some/data", "test"), ("some/data", "train")]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("401 Client Error. Access to x is restricted\nlog in", "gated: accept its terms"),
        ("DatasetNotFoundError: 404", "no such id on the hub, or it is private"),
        ("the moon is full", "check the name, the files and"),
    ],
)
def test_what_the_hub_says_becomes_one_line(said: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as error, formats.one_line_errors("some/data"):
        raise OSError(said)
    assert "\n" not in str(error.value) and str(error.value).startswith("some/data cannot be")


# --- kinds of files ------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import datasets

    rows = [pair(), pair(chosen="Aye.")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv")
    table.save_to_disk(tmp_path / "a")
    expected = None
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet", "a.csv", "a"):
        found = formats.load_rankings(tmp_path / name).records
        found = [(r.prompt.text, r.answers, r.ranks) for r in found]
        expected = expected or found
        assert found == expected and len(found) == 2, name
    assert len(formats.load_rankings(tmp_path / "a.json", limit=1).records) == 1


def test_pages_and_prompts_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One page\nof two lines.\n\n \nAnother.\n", encoding="utf-8")
    assert formats.load_pages(path) == ["One page\nof two lines.", "Another."]
    assert formats.load_prompts(path).records == ["One page", "of two lines.", "Another."]
    rows = write(tmp_path / "pages.jsonl", {"text": "One."}, {"text": "Two."})
    assert formats.load_pages(rows) == ["One.", "Two."]


# --- real rows -----------------------------------------------------------------------------------


@with_real_rows
@pytest.mark.parametrize(
    ("name", "form", "rows", "used", "dropped"),
    [
        (
            "hh_harmless_test.jsonl.gz",
            "HH transcripts",
            2312,
            2303,
            {"prompts differ": 5, "empty answer": 4},
        ),
        (
            "pandalm_testset-v1.json",
            "PandaLM",
            999,
            854,
            {"tied": 84, "empty answer": 54, "answer is no text": 6, "empty prompt": 1},
        ),
        (
            "rasbt_politeness_1100.json",
            "prompt/chosen/rejected",
            1100,
            1094,
            {"identical answers": 6},
        ),
    ],
)
def test_every_real_row_is_used_or_named(name, form, rows, used, dropped) -> None:
    loaded = formats.load_rankings(PREFERENCES / name)
    assert (loaded.format, loaded.rows, len(loaded.records)) == (form, rows, used)
    assert loaded.dropped == dropped and used + sum(dropped.values()) == rows
    for ranking in loaded.records:
        assert ranking.prompt.text.strip() and all(ranking.answers)
        assert len(set(ranking.answers)) == 2 and set(ranking.ranks) == {1, 2}
        messages = data.to_messages(ranking.prompt.text)
        assert messages[-1]["role"] == "user" or form != "PandaLM"
    assert len({ranking.prompt.prompt_id for ranking in loaded.records}) == used
