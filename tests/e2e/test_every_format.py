"""Real data through the whole path: one multilingual set in every format, thousands of rows, trained and answered."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamafarm.api import BaseModelConfig, DatasetConfig, PreparedData
from llamafarm.cli.guard import run
from llamafarm.data.prepare import prepare
from llamafarm.data.tokens import tokenize
from llamafarm.datagen import LANGUAGES, generate
from llamafarm.models._load import load_tokenizer
from llamafarm_splitters.random import Random, RandomConfig

pytestmark = pytest.mark.e2e
ROWS = 2000
SOME = 400  # equal examples are equal ids, which is worth a look at some of them
STRATEGY = """\
name: every
fine_tuner:
  type: pytorch
  config:
    base_model: builtin:tiny
    dataset: {path: rows.jsonl, sample_seed: 0}
    method: {type: lora, r: 4, target_modules: all}
    training: {max_steps: 4, batch_size: 4, max_seq_length: 256, save_strategy: no, seed: 1, learning_rate: 3e-3}
data_splitter: {type: sequential, config: {eval_rows: 100}}
"""


def exchanges(form: str) -> list[dict[str, Any]]:
    return list(generate(size=ROWS, languages=tuple(LANGUAGES), format=form, system=False, seed=3))  # type: ignore[arg-type]


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(path: Path, rows: Sequence[dict[str, Any]], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def pairs() -> list[dict[str, Any]]:
    return [{"prompt": row["instruction"], "completion": row["output"]} for row in exchanges("alpaca")]


def folder(path: Path) -> None:
    path.mkdir()
    rows = pairs()
    table(path / "1.csv", rows[:1000], ";")
    (path / "2.json").write_text(json.dumps(rows[1000:]), encoding="utf-8")


CHATS: dict[str, Callable[[Path], object]] = {
    "messages.jsonl": lambda path: path.write_text(lines(exchanges("messages")), encoding="utf-8"),
    "messages.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(exchanges("messages")).encode(), 1)),
    "messages.parquet": lambda path: pq.write_table(pa.Table.from_pylist(exchanges("messages")), path),
    "sharegpt.json": lambda path: path.write_text(json.dumps(exchanges("sharegpt"), indent=1), encoding="utf-8"),
    "sharegpt.csv": lambda path: table(
        path, [{"conversations": json.dumps(row["conversations"])} for row in exchanges("sharegpt")], ","
    ),
    "alpaca.jsonl": lambda path: path.write_text(lines(exchanges("alpaca")), encoding="utf-8"),
    "alpaca.tsv": lambda path: table(path, exchanges("alpaca"), "\t"),
    "pairs.jsonl": lambda path: path.write_text(lines(pairs()), encoding="utf-8"),
    "pairs.csv": lambda path: table(path, pairs(), ","),
    "pairs.parquet": lambda path: pq.write_table(pa.Table.from_pylist(pairs()), path),
    "pairs": folder,
}
TRAINED = ("messages.parquet", "sharegpt.json", "alpaca.jsonl", "pairs.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("formats")
    for name, write in CHATS.items():
        write(path / name)
    documents = [{"text": " ".join(row["text"].split())} for row in exchanges("text")]  # a line each
    (path / "documents.jsonl").write_text(lines(documents), encoding="utf-8")
    (path / "documents.txt").write_text("".join(f"{row['text']}\n" for row in documents), encoding="utf-8")
    (path / "s.yaml").write_text(STRATEGY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(BaseModelConfig(huggingface_id="builtin:tiny"))


def prepared(path: Path) -> PreparedData:
    data = prepare(DatasetConfig(path=str(path)), Random(RandomConfig(eval_rows=100)), notice=lambda _: None)
    assert data.counts["read"] == ROWS == data.counts["trained"] + data.counts["held_out"]
    return data


def ids(data: PreparedData, tokenizer: Any, stage: str = "sft", first: int = ROWS) -> list[tuple[list[int], list[int]]]:
    rows = data.train[:first]
    tokenized = tokenize(rows, tokenizer, stage=stage, max_seq_length=512, train_on_inputs=False)
    assert tokenized.counts["examples"] == tokenized.counts["learned_from"] == len(rows)
    return [(row.input_ids, row.labels) for row in tokenized.rows]


def everything(path: Path) -> DatasetConfig:
    return DatasetConfig(path=str(path))


def test_equal_content_gives_equal_ids_and_labels_in_every_format(data: Path, tokenizer: Any) -> None:
    whole, tokens = {}, []
    for name in CHATS:
        rows = prepare(everything(data / name), None, notice=lambda _: None)
        assert rows.counts["read"] == rows.counts["trained"] == ROWS
        whole[name] = (rows.digest, [(example.messages, example.tools) for example in rows.train])
        if name in TRAINED:
            tokens.append(ids(rows, tokenizer, first=SOME))
    assert all(found == whole["messages.jsonl"] for found in whole.values())
    assert all(found == tokens[0] for found in tokens)
    raw = [prepared(data / name) for name in ("documents.jsonl", "documents.txt")]
    assert raw[0].digest == raw[1].digest
    assert ids(raw[0], tokenizer, "pt", SOME) == ids(raw[1], tokenizer, "pt", SOME)


def test_what_is_in_the_file_is_in_the_tokens(data: Path, tokenizer: Any) -> None:
    rows = prepare(everything(data / "pairs.csv"), None, notice=lambda _: None)
    for example, (found, labels) in zip(rows.train, ids(rows, tokenizer), strict=True):
        prompt, answer = example.messages
        assert prompt.content in tokenizer.decode(found)
        learned = tokenizer.decode([label for label in labels if label >= 0], skip_special_tokens=True)
        assert learned == answer.content


@pytest.fixture
def here(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    (tmp_path / "s.yaml").write_text(STRATEGY, encoding="utf-8")
    return tmp_path


def test_every_format_trains_the_same_model_and_it_answers(
    data: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = set()
    for name in TRAINED:
        out = here / name.replace(".", "-")
        code = run(["train", "-s", "s.yaml", "-d", str(data / name), "-o", str(out)])
        assert code == 0, capsys.readouterr().err
        digests.add(hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest())
        rows = json.loads((out / "llamafarm/manifest.json").read_text())["rows"]
        assert (rows["read"], rows["trained"], rows["held_out"]) == (ROWS, ROWS - 100, 100)
    assert len(digests) == 1
    capsys.readouterr()
    assert (
        run(["generate", "--model", str(out), "--prompt", "Schalte das Licht in der Küche ein", "--max-tokens", "8"])
        == 0
    )
    assert capsys.readouterr().out.strip()


def test_raw_text_trains(data: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "-s", "s.yaml", "-d", str(data / "documents.txt"), "-o", "raw", "--set", "training.stage=pt"]
    assert run(arguments) == 0, capsys.readouterr().err
    assert (here / "raw/adapter_model.safetensors").is_file()
