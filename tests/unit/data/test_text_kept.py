"""The text in a file is the text in the tokens, in whatever kind of file it stands: dates, long ids, all of Unicode."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamafarm.api import BaseModelConfig, DatasetConfig
from llamafarm.data.prepare import prepare
from llamafarm.data.tokens import tokenize
from llamafarm.models._tokenizer import load_tokenizer

Rows = list[dict[str, str]]
text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
odd = st.sampled_from(
    ["2024-01-01", "12:30", "007", "1e5", "9" * 30, "null", "true", "=1+1", '"', "a,b;c\td", "é\u2028x"]
)


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, Rows], object]] = {
    "x.jsonl": lambda path, rows: path.write_bytes("\n".join(map(json.dumps, rows)).encode()),
    "x.json": lambda path, rows: path.write_bytes(json.dumps(rows, ensure_ascii=False).encode()),
    "x.csv": write_csv,
    "x.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(BaseModelConfig(huggingface_id="builtin:tiny"))


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(text | odd, min_size=1, max_size=4))
@example(texts=["a\r\nb", "a\rb", "a\nb"])
@example(texts=["\ufeffa"])
@example(texts=["a\x00b"])
def test_text_is_kept(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("kept")
    rows = [{"prompt": f"{number}", "completion": content} for number, content in enumerate(texts)]
    for name, write in WRITERS.items():
        write(folder / name, rows)
        data = prepare(DatasetConfig(path=str(folder / name)), None, notice=lambda _: None)
        assert [item.messages[1].content for item in data.train] == texts, name
        ids = tokenize(data.train, tokenizer, stage="sft", max_seq_length=4096, train_on_inputs=False).rows
        learned = [tokenizer.decode([label for label in row.labels if label >= 0]) for row in ids]
        assert learned == [f"{content}<|im_end|>" for content in texts]
