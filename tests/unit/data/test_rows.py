"""Files of rows: what is read is what stands there, and what is wrong is said with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.data.rows import read_raw, read_rows
from llamafarm.errors import DataError, DiskError

GOOD = b'{"prompt":"a","completion":"b"}\n'
ROW = {"prompt": "a", "completion": "b"}
BOM = b"\xef\xbb\xbf"

READ = {
    "as it should be": (GOOD * 2, [1, 2]),
    "byte order mark": (BOM + GOOD * 2, [1, 2]),
    "crlf": (GOOD.replace(b"\n", b"\r\n") * 2, [1, 2]),
    "cr": (GOOD.replace(b"\n", b"\r") * 2, [1, 2]),
    "blank lines": (b"\n" + GOOD + b"\n  \t\n" + GOOD, [2, 5]),
    "no final newline": (GOOD + GOOD.strip(), [1, 2]),
    "blanks around": (b"  " + GOOD.strip() + b" \t\n" + GOOD, [1, 2]),
    "array": (b'[{"prompt":"a","completion":"b"},\n\n {"prompt":"a",\n"completion":"b"}]\n', [1, 3]),
    "array with byte order mark": (BOM + b"\n[" + GOOD.strip() + b"\n,\n" + GOOD.strip() + b"]", [2, 4]),
}


@pytest.mark.parametrize("name", READ)
def test_every_way_to_write_rows_is_read(name: str, write: Any) -> None:
    content, lines = READ[name]
    path = write(content)
    found = list(read_rows(path))
    assert [ref.line for ref, _ in found] == lines
    assert [row for _, row in found] == [ROW, ROW]
    assert {ref.file for ref, _ in found} == {path}


# name → (content, [(line:column or line, id, part of the message)])
BAD: dict[str, tuple[bytes, list[tuple[str, str, str]]]] = {
    "cut off": (GOOD + b'{"prompt": "x", "compl\n' + GOOD, [("2:17", "LF-DATA-004", "Unterminated string")]),
    "no json": (b"not json\n" + GOOD, [("1:1", "LF-DATA-004", "invalid JSON: Expecting value")]),
    "trailing comma": (b'{"prompt":"a",}\n', [("1:15", "LF-DATA-004", "double quotes")]),
    "single quotes": (b"{'prompt':'a'}\n", [("1:2", "LF-DATA-004", "double quotes")]),
    "two objects": (GOOD.strip() + GOOD, [("1:32", "LF-DATA-004", "after the object")]),
    "truncated tail": (GOOD + b'{"prompt":"a"', [("2:14", "LF-DATA-004", "delimiter")]),
    "number": (GOOD + b"42\n" + GOOD, [("2", "LF-DATA-006", "found a number")]),
    "text": (b'"a"\n', [("1", "LF-DATA-006", "found a string")]),
    "true": (b"true\n", [("1", "LF-DATA-006", "found a boolean")]),
    "null": (b"null\n", [("1", "LF-DATA-006", "found null")]),
    "list after rows": (GOOD + b'["a","b"]\n', [("2", "LF-DATA-006", "found an array")]),
    "list of text": (b'["a",\n"b"]', [("1", "LF-DATA-006", "a string"), ("2", "LF-DATA-006", "a string")]),
    "lists in lines": (b'["a"]\n["b"]\n', [("1", "LF-DATA-006", "a string"), ("2:1", "LF-DATA-004", "after its end")]),
    "rows after an array": (b"[" + GOOD.strip() + b"]\n" + GOOD, [("2:1", "LF-DATA-004", "goes on after its end")]),
    "array without end": (b"[" + GOOD, [("2:1", "LF-DATA-004", "expected ',' or ']'")]),
    "array with trailing comma": (b"[" + GOOD.strip() + b",]", [("1:34", "LF-DATA-004", "Expecting value")]),
    "bad json in an array": (b'[{"a":1},\n {"a":}]', [("2:7", "LF-DATA-004", "Expecting value")]),
    "duplicate key": (b'{"a":1,"b":2,"a":3}\n', [("1", "LF-DATA-007", "key 'a' stands twice")]),
    "duplicate key inside": (b'{"m":[{"a":1,"a":1}]}\n', [("1", "LF-DATA-007", "key 'a' stands twice")]),
    "nan": (b'{"a":NaN}\n', [("1", "LF-DATA-008", "NaN is not JSON")]),
    "infinity": (b'{"a":[-Infinity]}\n', [("1", "LF-DATA-008", "-Infinity is not JSON")]),
    "lone surrogate": (b'{"prompt":"\\ud800"}\n', [("1", "LF-DATA-009", "half of a surrogate pair")]),
    "lone surrogate in capitals": (b'{"prompt":"\\uDC00x"}\n', [("1", "LF-DATA-009", "half of a surrogate pair")]),
    "lone surrogate in a key": (b'{"\\ud800":1}\n', [("1", "LF-DATA-009", "half of a surrogate pair")]),
    "latin-1": (b'{"prompt":"caf\xe9"}\n' + GOOD, [("1:15", "LF-DATA-005", "byte 0xe9")]),
    "latin-1 in an array": (b'[\n{"prompt":"caf\xe9"}]', [("2", "LF-DATA-005", "byte 0xe9")]),
    "utf-16": (GOOD.decode().encode("utf-16"), [("1", "LF-DATA-005", "UTF-16")]),
    "control character": (b'{"prompt":"a\tb"}\n', [("1:13", "LF-DATA-004", "Invalid control character")]),
    "nul": (b'{"prompt":"a\x00b"}\n', [("1:13", "LF-DATA-004", "Invalid control character")]),
    "deep": (b'{"m":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", [("1", "LF-DATA-004", "nested too deeply")]),
    "endless number": (b'{"n":' + b"1" * 5000 + b"}\n", [("1", "LF-DATA-004", "4300")]),
    "object over lines": (
        b'{\n  "prompt": "a"\n}\n' * 3,
        [("1", "LF-DATA-004", "several lines")],
    ),
    "several": (b"x\n" + GOOD + b"[]\n", [("1:1", "LF-DATA-004", "value"), ("3", "LF-DATA-006", "found an array")]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_its_line(name: str, write: Any) -> None:
    content, expected = BAD[name]
    path = write(content)
    with pytest.raises(DataError) as error:
        list(read_rows(path))
    problems = error.value.problems
    assert [(problem.where.removeprefix(f"{path}:"), problem.id) for problem in problems] == [
        (place, id_) for place, id_, _ in expected
    ]
    for problem, (_, _, part) in zip(problems, expected, strict=True):
        assert part in problem.message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  ", BOM, b"[]", b" [\n]\n"])
def test_no_rows_is_said(content: bytes, write: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl: no rows; write one JSON object a line \[LF-DATA-003\]"):
        list(read_rows(write(content)))


def test_good_rows_come_before_the_error(write: Any) -> None:
    found = read_rows(write(GOOD + b"x\n" + GOOD))
    assert next(found)[0].line == 1
    assert next(found)[0].line == 3
    with pytest.raises(DataError, match=r"rows\.jsonl:2:1"):
        next(found)


def test_twenty_problems_are_shown_and_the_others_counted(write: Any) -> None:
    with pytest.raises(DataError) as error:
        list(read_rows(write(b"x\n" * 25)))
    assert len(error.value.problems) == 21
    assert error.value.problems[-1].message == "and 5 more problems not shown"


def test_a_missing_file_names_the_nearest(tmp_path: Path, write: Any) -> None:
    write(GOOD, "train.jsonl")
    with pytest.raises(DataError, match=r"trian.jsonl: no such file; did you mean 'train.jsonl'\? \[LF-DATA-001\]"):
        list(read_rows(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match=r"no such file; there is no folder '.*nowhere' either"):
        list(read_rows(tmp_path / "nowhere" / "train.jsonl"))


def test_a_relative_path_is_told_where_it_was_looked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"it is looked for in the working folder, " + str(tmp_path)):
        list(read_rows(Path("train.jsonl")))


def test_a_folder_is_no_file(tmp_path: Path, write: Any) -> None:
    write(GOOD, "b.jsonl")
    with pytest.raises(DataError, match=r"a folder, where a file .* such as 'b.jsonl' \[LF-DATA-002\]"):
        list(read_rows(tmp_path))


def test_an_unreadable_file_is_a_matter_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DiskError, match=r"cannot be read: Permission denied \[LF-DISK-002\]"):
        list(read_rows(tmp_path / "rows.jsonl"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_rows = st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=6)


@given(rows=json_rows, ascii_only=st.booleans(), newline=st.sampled_from(["\n", "\r\n", "\r"]), final=st.booleans())
def test_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], ascii_only: bool, newline: str, final: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes((newline.join(lines) + newline * final).encode())
    assert [row for _, row in read_rows(path)] == rows
    path.write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=1))
    assert [row for _, row in read_rows(path)] == rows


faults = st.sampled_from([b"x", b"{", b"[]", b'{"a":NaN}', b'{"a":1,"a":1}', b"\xff", b'{"a":"\\ud800"}'])


@given(lines=st.lists(st.one_of(st.just(GOOD.strip()), faults), min_size=1, max_size=20))
def test_every_fault_is_found_where_it_is(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    if lines[0] == b"[]" or b"{" in lines:
        return  # an array, and an object over several lines, are read otherwise
    from llamafarm.data.problems import ProblemLog

    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    log = ProblemLog()
    good = [row.line for row in read_raw(path, log)] if any(lines) else []
    bad = {number for number, line in enumerate(lines, 1) if line != GOOD.strip()}
    assert good == [number for number in range(1, len(lines) + 1) if number not in bad]
    assert len(log) == len(bad)
