"""Preferences as people have them: every format, what is left out and why, and what is refused."""

import gzip
import json
import re
import time
from pathlib import Path

import pytest
import tiny_models as tiny

from rlhf_edu import data, files, models, reward, tokens
from rlhf_edu.engine import groups
from rlhf_edu.real import formats, rows

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


def pair(**changes) -> dict:
    return ROWS["prompt/chosen/rejected"] | changes


def write(path: Path, *rows) -> Path:
    path.parent.mkdir(exist_ok=True)
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


# --- what a row says beside its answers ----------------------------------------------------------


def asked(tmp_path: Path, row: dict) -> str:
    """The prompt of a row, which is the same for every command."""
    path = write(tmp_path / "row.jsonl", row)
    [prompt] = formats.load_prompts(path).records
    assert [d.prompt.text for d in formats.load_demonstrations(path).records] == [prompt]
    if "rejected" in row:
        assert [r.prompt.text for r in formats.load_rankings(path).records] == [prompt]
    return prompt


DIALOGUE = "\n\nHuman: Who?\n\nAssistant: I.\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    "prompt",
    [
        DIALOGUE,
        DIALOGUE.strip(),  # people strip what parts the turns
        f"{DIALOGUE} ",
        DIALOGUE.replace("\n", "\r\n"),
        chat("Who?", "I.", "Why?"),
        [{"from": f, "value": v} for f, v in [("human", "Who?"), ("gpt", "I."), ("human", "Why?")]],
    ],
)
def test_a_conversation_as_prompt_keeps_its_turns(prompt, tmp_path: Path) -> None:
    assert asked(tmp_path, pair(prompt=prompt, chosen=" So.")) == DIALOGUE
    assert data.to_messages(DIALOGUE) == chat("Who?", "I.", "Why?")
    whole = pair(prompt=prompt, chosen=f"{DIALOGUE} So.", rejected=f"{DIALOGUE} Eh.")
    other = pair(prompt="Who?", chosen=f"{DIALOGUE} So.", rejected=f"{DIALOGUE} Eh.")
    loaded = load(tmp_path, whole, other)
    assert loaded.records[0].answers == ("So.", "Eh.")
    assert loaded.dropped == {"prompt and chosen do not meet": 1}


def test_a_text_that_only_looks_like_a_transcript_is_a_text(tmp_path: Path) -> None:
    for prompt in ("Human: hello", "Humans\n\nHumans: a list", "Assistant: who?"):
        assert asked(tmp_path, pair(prompt=prompt)) == prompt


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": chat("Who?", "I."),
            "chosen": chat("Why?", "So."),
            "rejected": chat("Why?", "Eh"),
        },
        {"prompt": "Who?", "chosen": chat("Who?", "I.", "Why?", "So."), "extra": 1},
        {"prompt": "Why?", "chosen": chat("Who?", "I.", "Why?", "So.")},
        {"prompt": chat("Who?", "I.", "Why?"), "completion": chat("", "So.")[1:]},
        {"prompt": chat("Who?"), "completion": chat("", "I.", "Why?", "So.")[1:]},
        {"instruction": "Why?", "history": [["Who?", "I."]], "output": "So."},
        {"messages": chat("Who?", "I.", "Why?", "So.")},
        {"messages": chat("Who?", "I.", "Why?"), "chosen": {"role": "assistant", "content": "So."}},
        {"conversations": chat("Who?", "I.", "Why?", "So.")},
    ],
)
def test_turns_of_a_prompt_in_several_places_meet(row: dict, tmp_path: Path) -> None:
    if "chosen" in row:
        row = row | {"rejected": json.loads(json.dumps(row["chosen"]).replace("So.", "Eh."))}
    assert asked(tmp_path, row) == DIALOGUE


@pytest.mark.parametrize(
    "row",
    [
        pair(system="Be kind."),
        {"system": "Be kind.", "messages": chat(QUESTION, GOOD)},
        {
            "system": "",
            "messages": [{"role": "system", "content": "Be kind."}, *chat(QUESTION, GOOD)],
        },
        {"system": "Be kind.", "input": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"system_prompt": "Be kind.", "question": QUESTION, "response": GOOD},
    ],
)
def test_a_system_prompt_is_the_first_turn(row: dict, tmp_path: Path) -> None:
    text = asked(tmp_path, row)
    assert text == f"\n\nSystem: Be kind.\n\nHuman: {QUESTION}\n\nAssistant:"


def test_an_empty_system_prompt_is_none(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": ""}, *chat(QUESTION, GOOD)]
    assert asked(tmp_path, {"messages": messages}) == QUESTION
    assert asked(tmp_path, pair(system=None)) == QUESTION


@pytest.mark.parametrize(
    "row",
    [
        {  # ShareGPT
            "conversations": [{"from": "human", "value": QUESTION}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
        {  # typed parts
            "prompt": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": BAD}]}],
        },
    ],
)
def test_other_spellings_of_messages(row: dict, tmp_path: Path) -> None:
    assert asked(tmp_path, row) == QUESTION
    [ranking] = load(tmp_path, row).records
    assert ranking.answers == (GOOD, BAD)


def test_indentation_is_kept(tmp_path: Path) -> None:
    code = "    return x\n\n    # end"
    row = pair(prompt="def f(x):\n", chosen=f"\n{code}  \n", rejected="\treturn y")
    [ranking] = load(tmp_path, row).records
    assert ranking.prompt.text == "def f(x):" and ranking.answers == (code, "\treturn y")
    for messages in (chat(code, "a", "\tb"), chat("a", code, "c")):
        assert data.to_messages(data.to_text(messages)) == messages
    row = {
        "chosen": f"\n\nHuman: f?\n\nAssistant: {code}",
        "rejected": "\n\nHuman: f?\n\nAssistant: 1",
    }
    assert load(tmp_path, row).records[0].answers == (code, "1")


def test_an_article_is_a_prompt_of_tldr(tmp_path: Path) -> None:
    row = summaries(1) | {"info": {"id": "1", "article": "Cats sleep.\n", "post": None}}
    assert load(tmp_path, row).records[0].prompt.text == "Cats sleep.\n\nTL;DR:"


def test_answers_that_are_labelled_false_teach_nobody(tmp_path: Path) -> None:
    for row in ({"prompt": QUESTION, "completion": GOOD}, {"messages": chat(QUESTION, GOOD)}):
        rows = [row | {"label": label} for label in (True, False, "False", "true")]
        loaded = formats.load_demonstrations(write(tmp_path / "kto.jsonl", *rows))
        assert len(loaded.records) == 2 and loaded.dropped == {"labelled false": 2}


def test_columns_that_nobody_reads_are_named(tmp_path: Path) -> None:
    row = pair(margin=2, empty="", none=None, source="web", system="Be kind.")
    loaded = load(tmp_path, pair(), row)
    assert loaded.unused == ["margin", "source"]
    assert str(loaded).endswith("2 used; columns not used: margin, source")
    path = write(tmp_path / "row.jsonl", row)
    assert formats.load_prompts(path).unused == ["margin", "source"]
    assert not load(tmp_path, ROWS["the course schema"]).unused
    path = write(tmp_path / "row.jsonl", ROWS["the course schema"])
    assert not formats.load_demonstrations(path).unused and not formats.load_prompts(path).unused


def test_ready_made_templates_are_said(tmp_path: Path) -> None:
    ready = f"<|im_start|>user\n{QUESTION}<|im_end|>\n"
    loaded = load(tmp_path, pair(prompt=ready), pair(chosen="Yes</s>"), pair(chosen="a < b |> c"))
    assert loaded.control == {"<|im_start|>": 1, "<|im_end|>": 1, "</s>": 1}
    assert "look: control tokens, read as letters: 1 <|im_" in str(loaded)


# --- ranks and scores ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({"ranks": [1.2, 1.8, 1.5]}, (1, 3, 2)),
        ({"ranks": ["1", "10", "2"]}, (1, 3, 2)),
        ({"ranks": [0, 2, 2]}, (1, 2, 2)),
        ({"ranks": [1, 10**30, 10**400]}, (1, 2, 3)),
        ({"scores": "[1, 2.5, -3]"}, (2, 1, 3)),
        ({"scores": ["7.5", " 8 ", "-inf"]}, (2, 1, 3)),
        ({"ranks": None, "scores": [1, 2, 3]}, (3, 2, 1)),
    ],
)
def test_any_numbers_become_dense_ranks(given: dict, ranks: tuple, tmp_path: Path) -> None:
    row = {"prompt": QUESTION, "answers": ["a", "b", "c"]} | given
    [ranking] = load(tmp_path, row).records
    assert ranking.ranks == ranks and all(type(rank) is int for rank in ranking.ranks)
    assert reward_ranks(ranking) == list(ranks)


def reward_ranks(ranking: data.Ranking) -> list[int]:
    """The ranks as the reward model gets them."""
    group = groups.make_group(TOK, ranking)
    model = models.scalar_model_from(tiny.llama())
    return reward._score_groups(model, TOK, [group])[1][0].tolist()


@pytest.mark.parametrize("missing", [None, float("nan"), "nan", ""])
@pytest.mark.parametrize("column", ["ranks", "scores"])
def test_a_missing_number_is_not_the_worst(column: str, missing, tmp_path: Path) -> None:
    row = {"prompt": QUESTION, "answers": ["a", "b", "c"], column: [missing, 2, 1]}
    loaded = load(tmp_path, row, ROWS["ranked lists"])
    assert loaded.dropped == {"without ranks or scores": 1} and len(loaded.records) == 1
    own = [{"text": "a", "score": 2}, {"text": "b", "score": missing}]
    loaded = load(tmp_path, {"prompt": QUESTION, "answers": own}, ROWS["ranked lists"])
    assert loaded.dropped == {"without ranks or scores": 1}


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
    for messages in (
        chat("a"),
        chat("a", "b", "c"),
        system + chat("a"),
        chat("a\n\nb", "  b", "c"),
    ):
        assert data.to_messages(data.to_text(messages)) == messages
    assert data.to_messages("Human: hello") == chat("Human: hello")
    twice = data.to_messages("\n\nHuman: a\n\nHuman: b\n\nAssistant:")
    assert twice == chat("a\n\nb")
    with pytest.raises(ValueError, match="separates turns"):
        data.to_text(chat("a\n\nAssistant: I am you"))
    with pytest.raises(ValueError, match="must be system, user, assistant, not 'tool'"):
        data.to_text([{"role": "tool", "content": "a"}])


# --- what is left out ----------------------------------------------------------------------------


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
        (pair(prompt="p\ud800"), "prompt with half a surrogate pair"),
        (pair(rejected="\udfff"), "answer with half a surrogate pair"),
        (pair(images=["a.png"]), "with an image, sound or video"),
        (pair(score_chosen=5, score_rejected=5.0), "tied"),
        (pair(score_chosen="2", score_rejected=9), "chosen with the lower score"),
        (pair(prompt=chat("a", "b")), "prompt does not end with a turn of the user"),
        (pair(prompt=[]), "empty prompt"),
        (
            pair(system="a", prompt=[{"role": "system", "content": "b"}, *chat("c")]),
            "with a system message in the middle",
        ),
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
        ("chat lists", {"rejected": chat("Eh?", BAD)}, "prompt and rejected do not meet"),
        ("chat lists", {"score_rejected": 8.0}, "tied"),
        ("chat lists", {"chosen": chat(QUESTION)}, "chosen has no answer"),
        ("chat lists", {"chosen": []}, "chosen has no answer"),
        ("chat lists", {"score_rejected": 9}, "chosen with the lower score"),
        ("chat lists", {"prompt": "Eh?"}, "prompt and chosen do not meet"),
        (
            "HH transcripts",
            {"chosen": f"\n\nHuman: a{data.CUE} b\n\nHuman: c"},
            "transcript has no answer at its end",
        ),
        ("ranked lists", {"answers": ["a"], "ranks": [1]}, "fewer than two answers"),
        ("PandaLM", {"annotator1": 0, "annotator3": 0, "annotator2": 0}, "tied"),
        ("PandaLM", {"response2": False}, "answer is no text"),
        ("ranked lists", {"ranks": [1, 1, 1]}, "tied"),
        ("ranked lists", {"answers": ["a", "a", "a"]}, "identical answers"),
    ],
)
def test_each_format_names_what_it_leaves_out(name, changes, reason, tmp_path: Path) -> None:
    loaded = load(tmp_path, ROWS[name], ROWS[name] | changes)
    assert loaded.dropped == {reason: 1} and len(loaded.records) == 1


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([*chat("a"), {"role": "tool", "content": "12"}, *chat("", "b")[1:]], "a turn of 'tool'"),
        (
            [
                *chat("a"),
                {"role": "assistant", "content": "", "tool_calls": [{}]},
                *chat("", "b")[1:],
            ],
            "with the call of a tool",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}, *chat("", "b")[1:]], "not text alone"),
        (chat("", "b")[1:], "empty prompt"),
        (chat("a", " "), "empty message"),
    ],
)
def test_chats_that_cannot_be_read_are_counted(messages, reason: str, tmp_path: Path) -> None:
    rows = {"messages": chat(QUESTION, GOOD)}, {"messages": messages}
    loaded = formats.load_demonstrations(write(tmp_path / "rows.jsonl", *rows))
    [(found, count)] = loaded.dropped.items()
    assert reason in found and count == 1
    rows = {"prompt": QUESTION, "completion": GOOD}, {"prompt": "p", "completion": messages[1:]}
    if "tool" in reason:
        loaded = formats.load_demonstrations(write(tmp_path / "rows.jsonl", *rows))
        assert reason in str(loaded)


def test_the_limits_of_length_are_exact(tmp_path: Path) -> None:
    row = pair(prompt="old cat", chosen="Yes. Yes.", rejected="No.")
    prompt = len(tokens.encode_prompt(TOK, row["prompt"]))
    answer = len(tokens.encode_answer(TOK, row["chosen"]))
    formats.leave_out_long(load(tmp_path, row), TOK, prompt, answer)
    for limits in ((prompt - 1, answer), (prompt, answer - 1)):
        with pytest.raises(ValueError, match="1 (prompt|answer) too long"):
            formats.leave_out_long(load(tmp_path, row), TOK, *limits)


def test_a_prompt_of_millions_of_letters_is_not_tokenised(tmp_path: Path) -> None:
    loaded = load(tmp_path, pair(), pair(prompt="a" * 2_000_000), pair(chosen="b" * 2_000_000))
    start = time.perf_counter()
    formats.leave_out_long(loaded, TOK, 30, 30)
    assert loaded.dropped == {"prompt too long": 1, "answer too long": 1}
    assert time.perf_counter() - start < 1


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
            [ROWS["ranked lists"] | {"answers": "ab"}],
            "line 1: the answers must be a list, not 'ab'",
        ),
        ([ROWS["ranked lists"] | {"ranks": [1, "x", 2]}], "line 1: .* must be a number, not 'x'"),
        ([ROWS["ranked lists"] | {"ranks": [1, True, 2]}], "line 1: .* be a number, not True"),
        ([ROWS["ranked lists"] | {"scores": 3, "ranks": None}], "scores must be a list, not 3"),
        ([pair(score_chosen="high")], "line 1: a rank or score must be a number, not 'high'"),
        ([pair(history=[["a"]])], "line 1: a turn in history must be question and answer"),
        ([pair(prompt=["What?"])], "line 1: a message of prompt must be an object, not 'What"),
        ([{"chosen": {"text": "a"}, "rejected": "b"}], "line 1: chosen must be a text"),
        ([summaries(0) | {"info": "post"}], "line 1: info must be an object, not 'post'"),
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
    noise = bytearray(gzip.compress(json.dumps([pair()] * 99).encode()))
    noise[40] ^= 0xFF  # zlib.error, which is no OSError
    flipped = tmp_path / "flipped.jsonl.gz"
    flipped.write_bytes(noise)
    table, western = tmp_path / "bad.parquet", tmp_path / "western.csv"
    table.write_bytes(b"PAR1 and so on")
    western.write_bytes("prompt,chosen,rejected\na,b,c\ncafé,b,c\n".encode("cp1252"))
    (tmp_path / "none").mkdir()
    strange = tmp_path / "rows.doc"
    strange.write_bytes(b"x")
    for path, message in [
        (bad, "bad.jsonl, line 1: no JSON .*give one JSON object on a line"),
        (cut, "cut.jsonl.gz cannot be read .*is it a whole file"),
        (flipped, "flipped.jsonl.gz cannot be read .*is it a whole file"),
        (table, "bad.parquet cannot be read; is it a whole file"),
        (western, "western.csv, line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (strange, "rows.doc is of an unknown kind; give .json"),
        (tmp_path / "none", "none holds no data; give a file, or a folder of"),
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
    with pytest.raises(ValueError, match=advice) as error, files.one_line_errors("some/data"):
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


def found(path: Path | str) -> list[tuple]:
    """Prompt and answers of the rankings in a file."""
    return [(r.prompt.text, *r.answers) for r in formats.load_rankings(path).records]


TWO = [pair(prompt="Who?"), pair(prompt="Why?", chosen="So.")]
READ = [("Who?", GOOD, BAD), ("Why?", "So.", BAD)]


@pytest.mark.parametrize(
    "content",
    [
        {"version": 1, "data": TWO},
        {key: [row[key] for row in TWO] for key in TWO[0]},
        {key: {str(i): row[key] for i, row in enumerate(TWO)} for key in TWO[0]},  # pandas
    ],
)
def test_rows_inside_one_json_value(content: dict, tmp_path: Path) -> None:
    for indent in (None, 1):
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
        assert found(path) == READ


def test_a_chat_on_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", chat("Who?", "I."), chat("Why?", "So."))
    answers = [d.answer for d in formats.load_demonstrations(path).records]
    assert answers == ["I.", "So."] and formats.load_prompts(path).records == ["Who?", "Why?"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json.gz"])
def test_encodings_with_a_mark_are_read(name: str, encoding: str, tmp_path: Path) -> None:
    row = pair(prompt="Où?\u2028Là?")
    text = json.dumps(row, ensure_ascii=False)
    if name.endswith(".csv"):
        text = "prompt,chosen,rejected\r\n" + ",".join(f'"{row[k]}"' for k in row)
    content = (text + "\r\n").encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert found(tmp_path / name) == [("Où?\u2028Là?", GOOD, BAD)]


def test_every_cell_of_a_csv_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lists = [json.dumps(chat(QUESTION, answer)).replace('"', '""') for answer in (GOOD, BAD)]
    for cells, read in [
        ("2+2?,4,5", [("2+2?", "4", "5")]),
        ("Code?,NA,None", [("Code?", "NA", "None")]),
        (f'{QUESTION},"{lists[0]}","{lists[1]}"', [(QUESTION, GOOD, BAD)]),
        ('"a\nb",true,"[1, 2]"', [("a\nb", "true", "[1, 2]")]),
    ]:
        path.write_text(f"prompt,chosen,rejected\n{cells}\n", encoding="utf-8")
        assert found(path) == read
    for cells, message in [
        ("\"a\nb\",c,d\ne,\"[{'role': 'user'}]\",f", "line 4: chosen holds a list written as text"),
        ("a,b", "line 2: 2 cells for 3 columns"),
        ('a,b,"c', "line 2: no CSV"),
    ]:
        path.write_text(f"prompt,chosen,rejected\n{cells}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"rows.csv, {message}"):
            formats.load_rankings(path)


def test_folders_of_files(tmp_path: Path) -> None:
    import datasets

    for i, row in enumerate(reversed(TWO)):  # the later one is written first
        write(tmp_path / "parts" / f"part-{1 - i}.jsonl", row)
    (tmp_path / "parts" / "dataset_infos.json").write_text("{}", encoding="utf-8")
    assert found(tmp_path / "parts") == READ
    shards = tmp_path / "shards" / "data"
    shards.mkdir(parents=True)
    for i, row in enumerate(TWO):
        datasets.Dataset.from_list([row]).to_parquet(shards / f"train-0000{i}-of-00002.parquet")
    datasets.Dataset.from_list(TWO[:1]).to_parquet(shards / "test-00000-of-00001.parquet")
    assert found(shards.parent) == READ and found(f"{shards.parent}:test") == READ[:1]
    splits = {"train": datasets.Dataset.from_list(TWO), "old": datasets.Dataset.from_list(TWO[:1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert found(tmp_path / "saved") == READ and found(f"{tmp_path / 'saved'}:old") == READ[:1]
    with pytest.raises(ValueError, match="saved has the splits old, train; name one, as in .*:old"):
        formats.load_rankings(f"{tmp_path / 'saved'}:new")
    write(tmp_path / "parts" / "rows.csv", "a")
    with pytest.raises(ValueError, match="parts holds files of several kinds, .csv, .jsonl"):
        formats.load_rankings(tmp_path / "parts")


def test_a_huge_file_costs_what_its_limit_says(tmp_path: Path, monkeypatch) -> None:
    many = tmp_path / "many.jsonl.gz"
    line = json.dumps(pair()).encode() + b"\n"
    many.write_bytes(gzip.compress(line * 200_000, 1)[:-20])  # it even ends too soon
    start = time.perf_counter()
    assert len(formats.load_rankings(many, limit=3).records) == 3
    assert time.perf_counter() - start < 1
    monkeypatch.setattr(rows, "LONGEST", 10_000)
    for name, content in [
        ("bomb.jsonl.gz", gzip.compress(b" " * 1_000_000 + line)),
        ("page.json", b"[\n" + line.replace(b"\n", b",\n") * 999),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*10,000 letters; give one row on a line"):
            formats.load_rankings(tmp_path / name, limit=1)


def test_the_limit_is_a_number_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *TWO, *TWO)
    assert formats.load_rankings(path, limit=3).rows == 3
    with pytest.raises(ValueError, match="--limit must be 1 or more, not 0"):
        formats.load_rankings(path, limit=0)


def test_pages_and_prompts_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One page\nof two lines.\n\n \nAnother.\n", encoding="utf-8")
    assert formats.load_pages(path) == ["One page\nof two lines.", "Another."]
    assert formats.load_prompts(path).records == ["One page", "of two lines.", "Another."]
    path.write_bytes("\ufeffWho\u2028is it?\r\nWhy?".encode())
    assert formats.load_prompts(path).records == ["Who\u2028is it?", "Why?"]
    path.write_bytes(b"Who?\n\xe9?")
    for read in (formats.load_prompts, formats.load_pages):
        with pytest.raises(ValueError, match="text.txt, line 2: byte 0xe9 is not UTF-8"):
            read(path)
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
            {"prompt does not end with a turn of the user": 5, "empty answer": 4},
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
