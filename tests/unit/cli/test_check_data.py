from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamafarm.testing.rows import make_fields


@pytest.fixture
def data(tmp_path):
    def write(*extra, name="data.jsonl"):
        lines = [json.dumps(row) for row in make_fields(60)] + list(extra)
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write()
    return write


BELL = '{"instruction": "ring \\u0007", "output": "ok"}'
EMPTY = '{"instruction": "ring", "output": ""}'


def test_good_data_gives_figures_and_no_complaint(cli, data):
    ended = cli("check-data", "data.jsonl")
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first == "60 rows: 0 errors, 0 warnings, 0 notes"
    assert second.split()[:3] == ["characters", "min", "32,"]


def test_findings_name_place_level_and_rule(cli, data):
    data(BELL, EMPTY, "{")
    ended = cli("check-data", "data.jsonl")
    assert ended.code == 3
    assert "data.jsonl:61: warning: 'instruction' holds U+0007 at character 6 [control-character]" in ended.out
    assert "data.jsonl:62: error: 'output' is empty [LF-DATA-013] [empty-field]" in ended.out
    assert "data.jsonl:63: error: " in ended.out
    assert "63 rows: 2 errors, 1 warning, 0 notes" in ended.out
    assert "\x07" not in ended.out


def test_warnings_fail_when_strict(cli, data):
    data(BELL)
    assert cli("check-data", "data.jsonl").code == 0
    assert cli("check-data", "data.jsonl", "--strict").code == 3
    assert cli("check-data", "data.jsonl", "--strict", "--fix", "clean.jsonl").code == 0


def test_a_cleaned_copy_is_written_and_said(cli, data, tmp_path):
    data(BELL, EMPTY, json.dumps(make_fields(1)[0]))
    ended = cli("check-data", "data.jsonl", "--fix", "clean.jsonl")
    assert ended.code == 0
    cleaned = (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()
    assert cleaned[:60] == (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    assert [json.loads(line) for line in cleaned[60:]] == [{"instruction": "ring ", "output": "ok"}]
    assert "clean.jsonl: 61 rows, 1 of them mended" in ended.out
    assert "duplicate          1 (1 were mended or left out)" in ended.out
    again = cli("check-data", "clean.jsonl", "--strict")
    assert (again.code, again.out.splitlines()[0]) == (0, "61 rows: 0 errors, 0 warnings, 0 notes")


def test_a_line_that_cannot_be_read_fails_even_when_cleaned(cli, data):
    data("{")
    ended = cli("check-data", "data.jsonl", "--fix", "clean.jsonl")
    assert ended.code == 3
    assert "60 rows, 0 of them mended; without 1 that cannot be read" in ended.out


def test_nothing_is_replaced_unless_told(cli, data, tmp_path):
    (tmp_path / "clean.jsonl").write_text("mine")
    assert cli("check-data", "data.jsonl", "--fix", "clean.jsonl").code == 2
    assert (tmp_path / "clean.jsonl").read_text() == "mine"
    assert cli("check-data", "data.jsonl", "--fix", "clean.jsonl", "--overwrite").code == 0
    assert len((tmp_path / "clean.jsonl").read_text().splitlines()) == 60


def test_a_copy_without_rows_is_not_written(cli, tmp_path):
    (tmp_path / "bad.jsonl").write_text(EMPTY)
    ended = cli("check-data", "bad.jsonl", "--fix", "clean.jsonl")
    assert (ended.code, ended.out) == (3, "")
    assert "LF-DATA-062" in ended.err
    assert not (tmp_path / "clean.jsonl").exists()


def test_rows_that_are_held_out_are_errors(cli, data):
    data(name="eval.jsonl")
    ended = cli("check-data", "data.jsonl", "--eval", "eval.jsonl")
    assert ended.code == 3
    assert "data.jsonl:1: error: also stands in eval.jsonl:1 [overlap]" in ended.out
    assert "and 40 more (--all shows them)" in ended.out
    assert cli("check-data", "data.jsonl", "--eval", "eval.jsonl", "--all").out.count("[overlap]") == 60


def test_lengths_can_be_limited_in_characters_and_in_tokens(cli, data):
    data('{"instruction": "say", "output": "' + "x " * 200 + '."}')
    ended = cli("check-data", "data.jsonl", "--max-length", "100")
    assert "data.jsonl:61: warning: 404 characters, at most 100 are asked for [too-long]" in ended.out
    ended = cli("check-data", "data.jsonl", "--max-length", "100", "--model", "builtin:tiny")
    assert (ended.code, ended.out.count("[too-long]")) == (0, 1)
    assert "tokens, at most 100 are asked for" in ended.out


def test_json_holds_it_all(cli, data):
    data(BELL, EMPTY)
    ended = cli("check-data", "data.jsonl", "--json", "--fix", "clean.jsonl")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert (found["rows"], found["usable"], found["unit"]) == (62, 61, "characters")
    assert (found["errors"], found["warnings"], found["notes"]) == (1, 1, 0)
    assert found["counts"] == found["mended"] == {"control-character": 1, "empty-field": 1}
    assert found["findings"][1]["where"] == "data.jsonl:62"
    assert found["cleaned"] == {"path": "clean.jsonl", "rows": 61, "changed": 1}
    assert found["lengths"]["max"] >= found["lengths"]["p50"] > 0


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["dat.jsonl"], 3, "did you mean 'data.jsonl'?"),
        (["data.jsonl", "--eval", "evl.jsonl"], 3, "no such file"),
        (["data.jsonl", "--model", "builtin:tinny"], 4, "tiny"),
        ([], 2, "FILE"),
    ],
)
def test_bad_input_is_said(cli, data, argv, code, message):
    ended = cli("check-data", *argv)
    assert ended.code == code
    assert message in ended.err


def test_every_rule_is_documented():
    import re
    from pathlib import Path

    from llamafarm.data.check.findings import RULES

    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \| (error|warning|note) \|", text, re.MULTILINE)
    assert dict(listed) == {rule: str(level) for rule, level in RULES.items()}


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl.gz", "part-*.jsonl", "rows"])
def test_rows_of_every_kind_are_checked(cli, tmp_path, name):
    rows = [{"instruction": f"say {n % 10}", "output": "" if n == 5 else f"Wort {n % 10}"} for n in range(12)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name == "rows.csv":
        (tmp_path / name).write_text("instruction,output\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    elif name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name == "rows":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(text)
    else:
        (tmp_path / name.replace("*", "a")).write_bytes(gzip.compress(text.encode()) if "gz" in name else text.encode())
    ended = cli("check-data", name, "--json", "--fix", "clean.jsonl")
    found = json.loads(ended.out)
    assert (found["rows"], found["counts"]["duplicate"], found["counts"]["empty-field"]) == (12, 2, 1)
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == [
        row for n, row in enumerate(rows[:10]) if n != 5
    ]
