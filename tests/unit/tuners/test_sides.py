"""Both sides as tokens: what a second run on the same data does not do again."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafarm.api import BaseModelConfig, Example, Message, PreparedData, RowRef
from llamafarm.data.cache import cache_folder, read
from llamafarm.data.encode import Encoder
from llamafarm.models._load import load_tokenizer
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.sides import tokenized_sides


def example(number: int) -> Example:
    messages = (Message("user", f"Close door {number}."), Message("assistant", "Door closed."))
    return Example(RowRef("rows.jsonl", number), messages)


DATA = PreparedData(
    [example(number) for number in range(6)],
    [example(number) for number in range(6, 8)],
    {"read": 8, "trained": 6, "held_out": 2, "copies": 0},
    "",
)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))


@pytest.fixture
def tokenizer(tiny_model_dir):
    return load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))


def start(tokenizer, tmp_path, **dataset):
    run = RecordingRun(tmp_path)
    sides = tokenized_sides(PytorchConfig(dataset=dataset), DATA, tokenizer, run)
    return (
        sides,
        [event.fields for event in run.events if event.type == "ledger"],
        [event.fields["message"] for event in run.events if event.type == "notice"],
    )


def test_a_second_start_does_no_tokenization(tokenizer, tmp_path, monkeypatch):
    first = start(tokenizer, tmp_path)
    assert [notice.split(":")[0] for notice in first[2]] == ["training rows", "held-out rows"]

    def never(*_):
        raise AssertionError("tokenized again")

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", never)
        again = start(tokenizer, tmp_path)
        with pytest.raises(AssertionError, match="tokenized again"):
            start(tokenizer, tmp_path, train_on_inputs=True)
        with pytest.raises(AssertionError, match="tokenized again"):
            start(tokenizer, tmp_path, cache=False)
    assert all("; mask audit: " in notice for notice in first[2] + again[2])
    assert [notice.split(":")[0] for notice in again[2]] == [
        "training rows, from the cache",
        "held-out rows, from the cache",
    ]
    assert again[:2] == first[:2]
    (ledger,) = first[1]
    assert list(ledger["mask_audit"]) == ["train", "eval"]
    assert "every answer is trained with its end" in ledger["mask_audit"]["train"]


def test_a_damaged_file_is_written_again(tokenizer, tmp_path):
    first = start(tokenizer, tmp_path)
    files = sorted(cache_folder().iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-3])
    assert [read(path) is None for path in files] == [True, False]
    second = start(tokenizer, tmp_path)
    assert second[:2] == first[:2]
    assert sum("from the cache" in notice for notice in second[2]) == 1
    assert [read(path) is None for path in files] == [False, False]


def test_without_the_cache_nothing_is_written(tokenizer, tmp_path):
    start(tokenizer, tmp_path, cache=False)
    assert not (tmp_path / "home").exists()


def test_the_ledger_counts_both_sides(tokenizer, tmp_path):
    ((sides,), ledger) = (start(tokenizer, tmp_path)[:1], start(tokenizer, tmp_path)[1])
    assert ledger[0]["rows"] == {"read": 8, "trained": 6, "held_out": 2, "copies": 0}
    assert ledger[0]["tokens"]["train"] == sides.train.counts


def test_rows_with_another_first_token_are_not_those_of_the_cache(tokenizer, tmp_path):
    plain = start(tokenizer, tmp_path)[0]
    run = RecordingRun(tmp_path)
    sides = tokenized_sides(PytorchConfig(), DATA, tokenizer, run, first_token=7)
    assert [row.input_ids for row in sides.train.rows] == [[7, *row.input_ids] for row in plain.train.rows]
    said = [event.fields["message"] for event in run.events if event.type == "notice"]
    assert said[0].startswith("every row begins with token 7 ")
    assert "from the cache" not in said[1]
    assert "first token added 6" in said[1]
