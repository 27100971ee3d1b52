"""Every kind of source: equal content gives equal ids and labels, and what cannot be read is said with its place."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from llamafarm.api import DatasetConfig, PreparedData
from llamafarm.data.hub import _explained, is_hub_id, numbered
from llamafarm.data.prepare import prepare
from llamafarm.data.tokens import tokenize
from llamafarm.errors import DataError, PluginError
from llamafarm.testing.fresh import fresh

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f'Größe {number}?\n\n1,5;\t"2"'},
            {"role": "assistant", "content": f"2024-01-0{number}, 00{number}7"},
        ]
    }
    for number in range(1, 6)
]
PAIRS = [{"prompt": turns[0]["content"], "completion": turns[1]["content"]} for turns in (c["messages"] for c in CHATS)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], separator: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()})
    return out.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


FILES: dict[str, bytes] = {
    "rows.jsonl": lines(CHATS),
    "rows.json": json.dumps(CHATS, indent=1).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + lines(PAIRS),
    "rows.jsonl.gz": gzip.compress(lines(PAIRS)),
    "array.json.gz": gzip.compress(json.dumps(PAIRS).encode()),
    "rows.jsonl.zst": zstandard.compress(lines(PAIRS[:2])) + zstandard.compress(lines(PAIRS[2:])),
    "rows.csv": table(PAIRS),
    "chats.csv": table(CHATS),
    "bom.csv": b"\xef\xbb\xbf" + table(PAIRS),
    "semicolons.csv": table(PAIRS, ";"),
    "rows.tsv": table(PAIRS, "\t"),
    "rows.csv.gz": gzip.compress(table(PAIRS)),
    "rows.parquet": parquet(PAIRS),
    "chats.parquet": parquet(CHATS),
    "nulls.parquet": parquet([row | {"system": None, "tools": None} for row in PAIRS]),
}


@pytest.fixture(scope="module")
def chatml(chat_tokenizer: Any) -> Any:
    return chat_tokenizer(CHATML, "no-marks")


def prepared(notices: list[str] | None = None, **dataset: Any) -> PreparedData:
    said = [] if notices is None else notices
    return prepare(DatasetConfig(**dataset), None, notice=said.append)


def refused(**dataset: Any) -> str:
    with pytest.raises(DataError) as error:
        prepared(**dataset)
    return str(error.value)


def told(data: PreparedData, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    out = tokenize(data.train, tokenizer, stage="sft", max_seq_length=500, train_on_inputs=False)
    return [(row.input_ids, row.labels) for row in out.rows]


@pytest.mark.parametrize("name", FILES)
def test_equal_content_gives_equal_ids_and_labels(name: str, write: Any, chatml: Any) -> None:
    expected = told(prepared(path=write(CHATS, "expected.jsonl")), chatml)
    data = prepared(path=write(FILES[name], name))
    assert told(data, chatml) == expected
    assert data.counts == {"read": 5, "trained": 5, "held_out": 0, "copies": 0}
    assert data.digest == prepared(path=write(CHATS, "expected.jsonl")).digest


def test_a_row_of_a_table_knows_its_place(write: Any) -> None:
    places = [str(example.ref) for example in prepared(path=write(FILES["rows.csv"], "rows.csv")).train]
    assert [place.rpartition(":")[2] for place in places] == ["2", "5", "8", "11", "14"]  # a prompt spans three lines
    places = [str(example.ref) for example in prepared(path=write(FILES["rows.parquet"], "r.parquet")).train]
    assert [place.rpartition(":")[2] for place in places] == ["1", "2", "3", "4", "5"]


def test_text_is_one_row_a_line_of_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    notices: list[str] = []
    (tmp_path / "b.txt").write_text("\ufeff last \n")
    (tmp_path / "a.txt").write_text("  one\n\n\t\ntwo  \r\nthree")
    (tmp_path / "notes.md").write_text("no row")
    data = prepared(notices, path=str(tmp_path), text_field="body")
    assert [(example.text, str(example.ref)) for example in data.train] == [
        ("one", f"{tmp_path}/a.txt:1"),
        ("two", f"{tmp_path}/a.txt:4"),
        ("three", f"{tmp_path}/a.txt:5"),
        ("last", f"{tmp_path}/b.txt:1"),
    ]
    assert f"{tmp_path}: not read: notes.md" in notices


def test_a_pattern_names_files(write: Any, tmp_path: Path) -> None:
    for name, row in (("b.jsonl", PAIRS[1]), ("a.jsonl", PAIRS[0]), ("c.json", PAIRS[2])):
        write([row], name)
    data = prepared(path=f"{tmp_path}/*.jsonl")
    assert [example.messages[0].content for example in data.train] == [row["prompt"] for row in PAIRS[:2]]


def test_a_sample_is_seeded_said_and_in_the_ledger(write: Any) -> None:
    path = write([{"text": f"row {number}"} for number in range(100)])

    def texts(count: int, **more: Any) -> list[str | None]:
        data = prepared(notices, path=f"{path}#{count}", **more)
        assert data.counts["read"] == 100 == data.counts["trained"] + data.counts.get("dropped_not_sampled", 0)
        return [example.text for example in data.train]

    notices: list[str] = []
    ten = texts(10)
    assert len(ten) == 10
    assert ten == sorted(ten, key=lambda text: int(str(text).split()[1])) == texts(10)
    assert ten != texts(10, sample_seed=1)
    assert set(ten) < set(texts(30))
    assert len(texts(1000)) == 100
    assert f"{path}: 10 of 100 rows, by chance (dataset.sample_seed 42)" in notices
    assert "LF-DATA-045" in refused(path=f"{path}#0")


def test_a_file_may_have_the_name_of_a_sample(write: Any) -> None:
    assert len(prepared(path=write(PAIRS, "rows.jsonl#2")).train) == 5


@pytest.mark.parametrize(
    ("name", "content", "id_", "part"),
    [
        ("a.csv", b"prompt,completion\nx,y\nx\nx,y,z\n", "LF-DATA-041", "a.csv:3: 1 cells, where the header has 2"),
        ("a.csv", b"prompt,completion\nx,y\nx\nx,y,z\n", "LF-DATA-041", "a.csv:4: 3 cells"),
        ("a.csv", b'prompt,completion\nx,"y\n', "LF-DATA-041", "a.csv:2: not valid csv: unexpected end of data"),
        ("a.csv", b"prompt,prompt\nx,y\n", "LF-DATA-042", "two columns have the name 'prompt'"),
        ("a.csv", b"prompt,completion\nx,\xff\n", "LF-DATA-005", "a.csv:2: not UTF-8: byte 0xff"),
        ("a.csv", "prompt,completion\n".encode("utf-16"), "LF-DATA-005", "a.csv:1: UTF-16"),
        ("a.csv", b"prompt,completion\nx,  \n", "LF-DATA-013", "a.csv:2: 'completion' is empty"),
        ("a.csv", b"prompt,completion\n", "LF-DATA-003", "a.csv: no rows"),
        ("a.csv", b"", "LF-DATA-003", "a.csv: no rows"),
        ("a.txt", b"x\n\xff\n", "LF-DATA-005", "a.txt:2: not UTF-8"),
        ("a.txt", b"\n \n", "LF-DATA-003", "a.txt: no rows"),
        ("a.parquet", b"no table", "LF-DATA-043", "a.parquet: no parquet file"),
        ("a.jsonl.gz", b"not packed", "LF-DATA-040", "a.jsonl.gz: cannot be unpacked"),
        ("a.jsonl.gz", gzip.compress(lines(PAIRS) * 500)[:-20], "LF-DATA-040", "cannot be unpacked"),
        ("a.jsonl.zst", b"not packed", "LF-DATA-040", "a.jsonl.zst: cannot be unpacked"),
        ("a.jsonl.zst", zstandard.compress(lines(PAIRS) * 500)[:-20], "LF-DATA-040", "it is cut off"),
        ("a.jsonl.gz", gzip.compress(lines(PAIRS) + b"x\n"), "LF-DATA-004", "a.jsonl.gz:6:1: invalid JSON"),
        ("a.xlsx", b"PK", "LF-DATA-046", ".xlsx files cannot be read; save it as csv"),
        ("a.jsonl.xz", b"x", "LF-DATA-046", ".xz files cannot be read; unpack it"),
        ("a.jsonl", b'{"messages": "[{]"}\n', "LF-DATA-004", "a.jsonl:1: 'messages': invalid JSON"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, content: bytes, id_: str, part: str, write: Any) -> None:
    said = refused(path=write(content, name))
    assert id_ in said
    assert part in said


def test_parquet_columns_of_other_kinds_are_named(write: Any) -> None:
    rows = [{"text": dt.date(2024, 1, 2)}]
    assert "rows.parquet:1: 'text' is a value of the kind date, expected text" in refused(
        path=write(parquet(rows), "rows.parquet")
    )


def test_folders_and_patterns_without_rows_are_said(tmp_path: Path) -> None:
    assert "a folder without any file of rows; it is empty [LF-DATA-002]" in refused(path=str(tmp_path))
    assert "no file matches the pattern [LF-DATA-001]" in refused(path=f"{tmp_path}/*.jsonl")


def test_a_long_cell_is_read(write: Any) -> None:
    data = prepared(path=write(b"text\n" + b"x" * 1_000_000 + b"\n", "rows.csv"))
    assert [len(example.text or "") for example in data.train] == [1_000_000]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_columns_get_our_names(name: str, write: Any) -> None:
    theirs = [{"frage": row["prompt"], "antwort": row["completion"], "prompt": "other"} for row in PAIRS]
    content = {"rows.csv": table(theirs), "rows.jsonl": lines(theirs), "rows.parquet": parquet(theirs)}[name]
    data = prepared(path=write(content, name), columns={"prompt": "frage", "completion": "antwort"})
    assert data.digest == prepared(path=write(PAIRS, "expected.jsonl")).digest


def test_a_wrong_mapping_names_the_columns_that_exist(write: Any) -> None:
    path = write([{"frage": "q", "antwort": "a"}] * 30)
    said = refused(path=path, columns={"prompt": "fraqe", "completion": "antwort"})
    assert said == (
        f"{path}: dataset.columns.prompt: no row has a column 'fraqe'; there: 'frage', 'antwort'; "
        "did you mean 'frage'? [LF-DATA-049]"
    )


def test_a_mapped_column_may_come_late(write: Any) -> None:
    rows = [{"instruction": "q", "output": "a"}] * 40 + [{"instruction": "q", "output": "a", "ctx": "i"}]
    data = prepared(path=write(rows), columns={"input": "ctx"})
    assert data.train[-1].messages[0].content == "q\n\ni"


def test_any_column_can_be_the_text(write: Any) -> None:
    data = prepared(path=write(b"id,content\n1,hello\n", "rows.csv"), text_field="content")
    assert [example.text for example in data.train] == ["hello"]


def test_what_is_no_file_may_be_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("owner/name", "owner/name:validation", "owner/name.v2:train[:10%]"):
        assert is_hub_id(name)
    for name in ("name", "data/rows", "owner/rows.jsonl", "a/b/c", "owner/rows.csv.gz", "./owner/name", "/a/b"):
        assert not is_hub_id(name)


def test_rows_of_the_hub_are_those_of_a_file(write: Any) -> None:
    datasets = pytest.importorskip("datasets")
    found = list(numbered("owner/name", datasets.Dataset.from_list(CHATS)))
    assert [row for _, row in found] == CHATS
    assert [str(ref) for ref, _ in found[:2]] == ["owner/name:1", "owner/name:2"]


HUB = """
import os
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": arguments[0]}
from llamafarm.api import DatasetConfig
from llamafarm.data.prepare import prepare
from llamafarm.errors import LlamaFarmError
try:
    prepare(DatasetConfig(path="owner/name"), None, notice=print)
    answer = [0, ""]
except LlamaFarmError as error:
    answer = [int(error.exit_code), str(error)]
"""


def test_without_the_hub_the_network_is_named(tmp_path: Path) -> None:
    code, said = fresh(HUB, str(tmp_path))
    assert code == 11
    assert "LF-NET-004" in said
    assert "owner/name" in said


def test_a_split_that_is_not_there_is_the_datas_fault() -> None:
    error = _explained("owner/name:x", ValueError('Unknown split "x". Should be one of ["train"].'))
    assert str(error) == (
        'owner/name:x: the hub\'s dataset cannot be read: Unknown split "x". Should be one of ["train"]. [LF-DATA-044]'
    )


def test_a_library_that_is_missing_is_named(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(PluginError, match=r'needs pyarrow.*pip install "llamafarm\[data\]" \[LF-PLUGIN-040\]'):
        prepared(path=write(b"x", "rows.parquet"))
