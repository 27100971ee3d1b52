"""Every family of templates and every form and kind of file: the same ids and labels, written down."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llamafarm.api import BaseModelConfig, DatasetConfig, MaskAuditConfig, RowRef
from llamafarm.data.audit import Auditor
from llamafarm.data.formats import to_example
from llamafarm.data.prepare import prepare
from llamafarm.data.tokens import IGNORED, tokenize
from llamafarm.models.special import extended
from llamafarm.models.trl_templates import shipped

GOLDEN = json.loads(Path(__file__).with_name("golden_templates.json").read_text(encoding="utf-8"))
TURNS = [("user", "hi"), ("assistant", "yes."), ("user", "sure?"), ("assistant", "as said")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": content} for role, content in TURNS]
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES},
    "sharegpt": {"conversations": SHAREGPT},
    "alpaca": {"instruction": "sure?", "output": "as said", "history": [["hi", "yes."]]},
    "prompt-completion": {"prompt": MESSAGES[:3], "completion": MESSAGES[3:]},
}


def lines(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def table(path: Path, row: dict[str, Any], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(row)
        writer.writerow([value if isinstance(value, str) else json.dumps(value) for value in row.values()])


WRITERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "jsonl": lambda path, row: path.write_bytes(lines(row)),
    "json": lambda path, row: path.write_text(json.dumps([row])),
    "jsonl.gz": lambda path, row: path.write_bytes(gzip.compress(lines(row))),
    "jsonl.zst": lambda path, row: path.write_bytes(zstandard.compress(lines(row))),
    "csv": lambda path, row: table(path, row, ","),
    "tsv": lambda path, row: table(path, row, "\t"),
    "parquet": lambda path, row: pq.write_table(pa.Table.from_pylist([row]), path),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """Form and kind of file → the one example in it."""
    folder = tmp_path_factory.mktemp("golden")
    found = {}
    for form, row in ROWS.items():
        for kind, write in WRITERS.items():
            if form == "prompt-completion" and kind in ("csv", "tsv"):
                continue  # a cell of these columns is text, whatever it looks like
            path = folder / f"{form}.{kind}"
            write(path, row)
            (found[form, kind],) = prepare(DatasetConfig(path=str(path)), None, notice=lambda _: None).train
    return found


def build(lab: Any, name: str) -> Any:
    tokenizer = lab.byte_level()
    tokenizer.add_tokens(["<|im_sep|>"])
    return extended(tokenizer, BaseModelConfig(huggingface_id="x", template=name)).tokenizer


@pytest.mark.parametrize("name", GOLDEN)
def test_every_form_and_kind_of_file_gives_the_golden_ids_and_labels(name: str, files: Any, lab: Any) -> None:
    tokenizer, golden = build(lab, name), GOLDEN[name]
    examples = list(files.values())
    rows = tokenize(examples, tokenizer, stage="sft", max_seq_length=4096, train_on_inputs=False).rows
    for (form, kind), row in zip(files, rows, strict=True):
        assert row.input_ids == golden["ids"], (form, kind)
        assert row.labels == golden["labels"], (form, kind)
    assert tokenizer.decode([label for label in golden["labels"] if label != IGNORED]).startswith(("yes.", " yes."))


TOOL = {
    "type": "function",
    "function": {"name": "light", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "light", "arguments": {"room": "kitchen"}}}
CALLING = [
    {"role": "user", "content": "on"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "lamp-7 ok", "name": "light"},
    {"role": "assistant", "content": "It is on."},
]
WITH_TOOLS = ("glm4moe", "gptoss", "lfm2_v2", "qwen2_5", "qwen3", "qwen3_5_think", "qwen3_8")


@pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL (llamafarm[data])")
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_calls_in_the_families_that_have_mark_up_for_them(name: str, lab: Any) -> None:
    """A call is learned with its end, tools and their answers are not, and every form gives the same ids."""
    source = shipped()[name].source
    tokenizer = lab.byte_level(source)
    tokenizer.add_tokens(sorted({*re.findall(r"<\S+?>", source)} - {"<s>"}))
    rows = {
        "messages": {"messages": CALLING, "tools": [TOOL]},
        "sharegpt": {"conversations": CALLING, "tools": json.dumps([TOOL])},
    }
    examples = [to_example(row, RowRef("rows.jsonl", 1), form) for form, row in rows.items()]
    tokenized = tokenize(examples, tokenizer, stage="sft", max_seq_length=9999, train_on_inputs=False).rows
    assert tokenized[0] == tokenized[1]
    row = tokenized[0]
    auditor = Auditor(tokenizer, MaskAuditConfig())
    auditor.look(examples[0], row.input_ids, row.labels)
    auditor.check(1, 0)
    learned = tokenizer.decode([label for label in row.labels if label != IGNORED])
    assert "kitchen" in learned
    assert "It is on." in learned
    assert "lamp-7" not in learned
    assert "lamp-7 ok" in tokenizer.decode(row.input_ids)
