"""Records survive a round trip; bad files are named with their line."""

import json
import math
from pathlib import Path

import pytest
import tiny_models as tiny
from hypothesis import given
from hypothesis import strategies as st

from rlhf_edu import data, tokens
from rlhf_edu.data import Demonstration, Prompt, Ranking, Task

TASK = Task("attribute", "Zoë", "colour", ("red", "rot"), 2, "a text", "one sentence")
PROMPT = Prompt("p1", "c7", "open_qa", "What colour is Zoë's hat?\nAnswer!", TASK)
RANKING = Ranking(PROMPT, ("red", "blue"), (True, False), (1, 2), "l3", ("sft", "base"))


@pytest.mark.parametrize(
    ("record", "read"),
    [
        (PROMPT, data.read_prompts),
        (Demonstration(PROMPT, "red", "l1"), data.read_demonstrations),
        (RANKING, data.read_rankings),
    ],
)
def test_round_trip(tmp_path: Path, record, read) -> None:
    path = tmp_path / "new" / "records.jsonl"
    data.write_jsonl(path, [record, record])
    assert read(path) == [record, record]
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]


def test_keys_are_flat_and_fixed() -> None:
    assert set(data.to_json(RANKING)) == {
        *("prompt_id", "customer", "use_case", "prompt", "task"),
        *("answers", "ended", "ranks", "labeler", "sources"),
    }
    assert data.to_json(Prompt("p", "c", "chat", "hi")).keys() == data.to_json(PROMPT).keys()


def test_datasets_opens_the_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "rankings.jsonl"
    data.write_jsonl(path, [RANKING])
    rows = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows[0]["answers"] == ["red", "blue"] and rows[0]["task"]["targets"] == ["red", "rot"]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    row = data.to_json(PROMPT)
    del row["customer"]
    path.write_text(json.dumps(data.to_json(PROMPT)) + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: add the missing key 'customer'"):
        data.read_prompts(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        data.read_prompts(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": (0, 1)}, "'p1': ranks start at 1"),
        ({"ranks": (1,)}, "'p1': .* equally long"),
        ({"ended": (True,)}, "'p1': .* equally long"),
        ({"sources": ("sft",)}, "'p1': give one source per answer"),
        ({"ranks": (1, 2**31)}, "'p1': ranks end at"),
        ({"ranks": (1.2, 1.8)}, r"ranks\[0\] must be a whole number, not 1.2"),
        ({"ranks": (True, 2)}, r"ranks\[0\] must be a whole number, not True"),
        ({"ended": (1, 1)}, r"ended\[0\] must be true or false, not 1"),
        ({"answers": "ab"}, "answers must be a list, not 'ab'"),
        ({"answers": ("a", "\ud800")}, r"answers\[1\] holds half a surrogate pair"),
        ({"labeler": 3}, "labeler must be a text, not 3"),
    ],
)
def test_rankings_check_themselves(change, message: str) -> None:
    lists = {"answers": ("a", "b"), "ended": (True, True), "ranks": (1, 2), "sources": ()}
    with pytest.raises(ValueError, match=message):
        Ranking(PROMPT, **lists | change)


def test_prompts_and_demonstrations_check_themselves() -> None:
    with pytest.raises(ValueError, match="prompt must be a text, not 7"):
        Prompt("p", "c", "chat", 7)
    for answer in (None, "\udfff"):
        with pytest.raises(ValueError, match="answer"):
            Demonstration(PROMPT, answer)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    data.write_jsonl(path, [PROMPT])

    def broken():
        yield PROMPT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.write_jsonl(path, broken())
    assert data.read_prompts(path) == [PROMPT]


# --- bad files -----------------------------------------------------------------------------------

READERS = {
    "prompts": (data.read_prompts, PROMPT),
    "demonstrations": (data.read_demonstrations, Demonstration(PROMPT, "red", "l1")),
    "rankings": (data.read_rankings, RANKING),
}
every_reader = pytest.mark.parametrize(("read", "record"), READERS.values(), ids=READERS)


ROW = data.to_json(RANKING)
KEYS = sorted(ROW) + sorted(ROW["task"])


def changed(key: str, value: object) -> bytes:
    """A good line in which the value of one key, of the record or of its task, is another."""
    task = ROW["task"] | ({key: value} if key in ROW["task"] else {})
    return json.dumps(ROW | {"task": task} | ({key: value} if key in ROW else {})).encode()


@every_reader
def test_missing_and_empty_files_are_named(tmp_path: Path, read, record) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file .*rlhf_edu build"):
            read(path)
    for content in ("", "\n \n"):
        (tmp_path / "empty.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="empty.jsonl is empty; give a file of records"):
            read(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (changed("prompt_id", 1), "prompt_id must be a text, not 1"),
        (changed("prompt_id", "\ud800"), "prompt_id holds half a surrogate pair"),
        (changed("ranks", [1, 10**30]), "ranks end at 2147483647; give the order alone"),
        (changed("ranks", [1, 1.5]), "ranks[1] must be a whole number, not 1.5"),
        (changed("ranks", [1, math.nan]), "ranks[1] must be a whole number, not nan"),
        (changed("answers", "ab"), "answers must be a list, not 'ab'"),
        (b'{"prompt_id": "p"}', "add the missing key 'customer'"),
        (b"[1, 2]", "a line must be a JSON object, not [1, 2]"),
        (b"\xff\xfe", "byte 0xff is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt_id": "p"', "Expecting ',' delimiter"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rankings.jsonl"
    path.write_bytes(json.dumps(data.to_json(RANKING)).encode() + b"\r\n\n" + line)
    with pytest.raises(ValueError) as error:
        data.read_rankings(path)
    assert f"{path}, line 3: " in str(error.value) and message in str(error.value)


def test_a_file_from_notepad_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    row = json.dumps(data.to_json(PROMPT), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n")
    assert data.read_prompts(path) == [PROMPT]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
LINES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(str.encode),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(changed, st.sampled_from(KEYS), JSON),
)


@every_reader
def test_any_line_is_read_or_refused_with_its_number(tmp_path: Path, read, record) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps(data.to_json(record)).encode()

    @given(LINES.filter(lambda line: b"\n" not in line))
    def check(line: bytes) -> None:
        path.write_bytes(good + b"\n" + line)
        try:
            records = read(path)
        except ValueError as error:
            assert f"{path}, line 2: " in str(error) and "\n" not in str(error)
        else:
            again = path.with_name("again.jsonl")
            data.write_jsonl(again, records)
            assert read(again) == records and records[0] == record

    check()


# --- any text through the tokenizer and through a file -------------------------------------------


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tiny.tokenizer()
    ids = tokens.encode_text(tokenizer, text)
    assert tokenizer.decode(ids) == text and not {0, 1, 2} & set(ids)
    answer = tokens.encode_answer(tokenizer, text)
    assert answer == [*ids, 2] and tokenizer.decode(answer, skip_special_tokens=True) == text


@given(st.text(), st.integers(3, 40))
def test_any_prompt_begins_ends_and_fits(text: str, limit: int) -> None:
    tokenizer = tiny.tokenizer()
    ids = tokens.encode_prompt(tokenizer, text, limit)
    cue = tokens.encode_text(tokenizer, text + "\n")[-1]
    assert ids[0] == 1 and ids[-1] == cue and len(ids) <= limit and 2 not in ids


def test_any_text_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "any.jsonl"

    @given(st.text(), st.text(), st.booleans())
    def check(prompt: str, answer: str, ended: bool) -> None:
        ranking = Ranking(Prompt("p", "c", "u", prompt), (answer,), (ended,), (1,))
        data.write_jsonl(path, [ranking])
        assert data.read_rankings(path) == [ranking]

    check()
