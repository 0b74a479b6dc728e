"""Records survive a round trip; bad files are named with their line."""

import json
from pathlib import Path

import pytest

from rlhf_edu import data
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
    "change", [{"ranks": (0, 1)}, {"ranks": (1,)}, {"ended": (True,)}, {"sources": ("sft",)}]
)
def test_rankings_check_themselves(change) -> None:
    lists = {"answers": ("a", "b"), "ended": (True, True), "ranks": (1, 2), "sources": ()}
    with pytest.raises(ValueError, match="p1"):
        Ranking(PROMPT, **lists | change)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    data.write_jsonl(path, [PROMPT])

    def broken():
        yield PROMPT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.write_jsonl(path, broken())
    assert data.read_prompts(path) == [PROMPT]
