"""A hundred ways in which data is malformed: each is one clear error with file and line, exit code 3, no traceback."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.api import DatasetConfig
from llamafarm.data.prepare import prepare
from llamafarm.errors import DataError
from llamafarm_splitters.hash import Hash, HashConfig

STRATEGY = "fine_tuner: {type: pytorch, config: {base_model: 'builtin:tiny', dataset: data.jsonl}}\n"
GOOD = [f'{{"instruction": "open door {number}", "output": "door {number} é"}}'.encode() for number in range(6)]
LINES = b"\n".join(GOOD) + b"\n"
CHATS = [
    f'{{"messages": [{{"role": "user", "content": "{n}?"}}, {{"role": "assistant", "content": "{n}!"}}]}}'.encode()
    for n in range(6)
]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.jsonl", LINES)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    return file.getvalue()


def parquet(columns: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


TABLE = parquet({"instruction": ["a", "b"], "output": ["c", "d"]})
ARRAY = b"[" + b",\n".join(GOOD) + b"]"

# what it is → (file, content or None, place, id)
FILES: dict[str, tuple[str, bytes | None, str, str]] = {
    "missing": ("dta.jsonl", None, "dta.jsonl", "LF-DATA-001"),
    "pattern without match": ("part-*.jsonl", None, "part-*.jsonl", "LF-DATA-001"),
    "folder without rows": ("rows", None, "rows", "LF-DATA-002"),
    "empty": ("x.jsonl", b"", "x.jsonl", "LF-DATA-003"),
    "line ends only": ("x.jsonl", b"\n\n\r\n", "x.jsonl", "LF-DATA-003"),
    "spaces only": ("x.jsonl", b"  \t \n", "x.jsonl", "LF-DATA-003"),
    "byte order mark only": ("x.jsonl", b"\xef\xbb\xbf", "x.jsonl", "LF-DATA-003"),
    "empty array": ("x.json", b"[]", "x.json", "LF-DATA-003"),
    "empty text": ("x.txt", b"\n \n", "x.txt", "LF-DATA-003"),
    "header only": ("x.csv", b"instruction,output\n", "x.csv", "LF-DATA-003"),
    "empty parquet": ("x.parquet", parquet({"instruction": [], "output": []}), "x.parquet", "LF-DATA-003"),
    "UTF-16": ("x.jsonl", LINES.decode().encode("utf-16"), "x.jsonl:1", "LF-DATA-005"),
    "UTF-16, big end first": ("x.jsonl", b"\xfe\xff" + LINES.decode().encode("utf-16-be"), "x.jsonl:1", "LF-DATA-005"),
    "UTF-16 csv": ("x.csv", "instruction,output\na,b\n".encode("utf-16"), "x.csv:1", "LF-DATA-005"),
    "Latin-1": ("x.jsonl", LINES.decode().encode("latin-1"), "x.jsonl:1:", "LF-DATA-005"),
    "Latin-1 csv": ("x.csv", "instruction,output\na,b\nc,é\n".encode("latin-1"), "x.csv:3", "LF-DATA-005"),
    "Latin-1 text": ("x.txt", "a\né\n".encode("latin-1"), "x.txt:2", "LF-DATA-005"),
    "Latin-1 array": ("x.json", ARRAY.decode().encode("latin-1"), "x.json:1", "LF-DATA-005"),
    "gzip cut off": ("x.jsonl.gz", gzip.compress(LINES * 50)[:-12], "x.jsonl.gz", "LF-DATA-040"),
    "gzip damaged": ("x.jsonl.gz", gzip.compress(LINES)[:20] + b"\0" * 40, "x.jsonl.gz", "LF-DATA-040"),
    "no gzip": ("x.jsonl.gz", LINES, "x.jsonl.gz", "LF-DATA-040"),
    "zstandard cut off": ("x.jsonl.zst", zstandard.compress(LINES)[:-5], "x.jsonl.zst", "LF-DATA-040"),
    "no zstandard": ("x.jsonl.zst", LINES, "x.jsonl.zst", "LF-DATA-040"),
    "packed, without saying so": ("x.jsonl", gzip.compress(LINES), "x.jsonl:1", "LF-DATA-005"),
    "zip": ("x.zip", zipped(), "x.zip", "LF-DATA-046"),
    "tar": ("x.tar.gz", tarred(), "x.tar.gz", "LF-DATA-046"),
    "spreadsheet": ("x.xlsx", zipped(), "x.xlsx", "LF-DATA-046"),
    "pickle": ("x.pkl", b"\x80\x04]\x94.", "x.pkl", "LF-DATA-046"),
    "no parquet": ("x.parquet", LINES, "x.parquet", "LF-DATA-043"),
    "parquet cut off": ("x.parquet", TABLE[:-20], "x.parquet", "LF-DATA-043"),
    "csv with an open quote": ("x.csv", b'instruction,output\na,b\n"c,d\n', "x.csv:3", "LF-DATA-041"),
    "csv with a cell too many": ("x.csv", b"instruction,output\na,b\nc,d,e\n", "x.csv:3", "LF-DATA-041"),
    "csv with a cell too few": ("x.csv", b"instruction,output\na\n", "x.csv:2", "LF-DATA-041"),
    "tsv with a cell too many": ("x.tsv", b"instruction\toutput\na\tb\tc\n", "x.tsv:2", "LF-DATA-041"),
    "csv with two columns of one name": ("x.csv", b"output,output\na,b\n", "x.csv:1", "LF-DATA-042"),
    "array without end": ("x.json", ARRAY[:-1], "x.json:6", "LF-DATA-004"),
    "array with a comma at the end": ("x.json", ARRAY[:-1] + b",]", "x.json:6:", "LF-DATA-004"),
    "array that goes on": ("x.json", ARRAY + b"\n" + GOOD[0], "x.json:7:1", "LF-DATA-004"),
    "array of texts": ("x.json", b'["a",\n"b"]', "x.json:2", "LF-DATA-006"),
    "array in each line": ("x.jsonl", b'["a"]\n["b"]\n', "x.jsonl:2:1", "LF-DATA-004"),
    "object around the rows": ("x.json", b'{"data": ' + ARRAY.replace(b"\n", b"") + b"}", "x.json:1", "LF-DATA-018"),
    "object over lines": ("x.json", b'{\n "instruction": "a",\n "output": "b"\n}\n', "x.json:1", "LF-DATA-004"),
    "last row cut off": ("x.jsonl", LINES[:-6], "x.jsonl:6:", "LF-DATA-0"),
    "web page": ("x.jsonl", b"<!doctype html>\n<title>Log in</title>\n", "x.jsonl:1:1", "LF-DATA-004"),
    "csv by the name of JSON": ("x.jsonl", b"instruction,output\na,b\n", "x.jsonl:1:1", "LF-DATA-004"),
    "bytes of a picture": ("x.jsonl", b"\x89PNG\r\n\x1a\n\0\0", "x.jsonl:1:1", "LF-DATA-005"),
    "columns of no known form": ("x.jsonl", b'{"frage": "a", "antwort": "b"}\n' * 3, "x.jsonl:1", "LF-DATA-010"),
    "sample of nothing": ("data.jsonl#0", None, "data.jsonl#0", "LF-DATA-045"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_file_is_refused_with_its_place(case: str, refuse: Callable[..., Any]) -> None:
    name, content, place, id_ = FILES[case]
    given = {"s.yaml": STRATEGY, "data.jsonl": LINES, "rows/readme.md": b"# none"}
    refusal = refuse("train", "-s", "s.yaml", "-d", name, given=given | ({} if content is None else {name: content}))
    assert f"{place}" in refusal.shown, refusal.shown
    assert id_ in refusal.shown, refusal.shown
    assert refusal.code == 3
    assert refusal.after == refusal.before


DEEP = b'{"instruction": ' + b"[" * 3000 + b"]" * 3000 + b', "output": "b"}'


def alpaca(output: str, **more: Any) -> bytes:
    columns = "".join(f", {json.dumps(name)}: {value}" for name, value in more.items())
    return f'{{"instruction": "a", "output": {output}{columns}}}'.encode()


def chat(*turns: str) -> bytes:
    return f'{{"messages": [{", ".join(turns)}]}}'.encode()


USER, ANSWER = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'

# what it is → (the row, its id); it stands among good rows of its form
ROWS: dict[str, tuple[bytes, str]] = {
    "cut off": (b'{"instruction": "a", "outp', "LF-DATA-004"),
    "no JSON": (b"hello", "LF-DATA-004"),
    "comma at the end": (b'{"instruction": "a", "output": "b",}', "LF-DATA-004"),
    "single quotes": (b"{'instruction': 'a', 'output': 'b'}", "LF-DATA-004"),
    "two objects": (GOOD[0] + GOOD[1], "LF-DATA-004"),
    "something after the object": (GOOD[0] + b",", "LF-DATA-004"),
    "name without quotes": (b'{instruction: "a", "output": "b"}', "LF-DATA-004"),
    "name without a colon": (b'{"instruction" "a", "output": "b"}', "LF-DATA-004"),
    "comment": (GOOD[0] + b" // one", "LF-DATA-004"),
    "None": (alpaca("None"), "LF-DATA-004"),
    "True": (alpaca('"b"', input="True"), "LF-DATA-004"),
    "leading zero": (alpaca('"b"', id="01"), "LF-DATA-004"),
    "plus": (alpaca('"b"', id="+1"), "LF-DATA-004"),
    "point without digits": (alpaca('"b"', id="1."), "LF-DATA-004"),
    "hexadecimal": (alpaca('"b"', id="0x1f"), "LF-DATA-004"),
    "unknown escape": (alpaca(r'"\x41"'), "LF-DATA-004"),
    "escape cut short": (alpaca(r'"\u12"'), "LF-DATA-004"),
    "NUL": (alpaca('"a\0b"'), "LF-DATA-004"),
    "tab inside a text": (alpaca('"a\tb"'), "LF-DATA-004"),
    "nested too deeply": (DEEP, "LF-DATA-004"),
    "5000 digits": (alpaca('"b"', id="9" * 5000), "LF-DATA-004"),
    "byte of Latin-1": (alpaca('"é"').decode().encode("latin-1"), "LF-DATA-005"),
    "overlong UTF-8": (b'{"instruction": "a", "output": "\xc0\xaf"}', "LF-DATA-005"),
    "surrogate in UTF-8": (b'{"instruction": "a", "output": "\xed\xa0\x80"}', "LF-DATA-005"),
    "number": (b"42", "LF-DATA-006"),
    "text": (b'"a"', "LF-DATA-006"),
    "true": (b"true", "LF-DATA-006"),
    "null": (b"null", "LF-DATA-006"),
    "name twice": (b'{"instruction": "a", "output": "b", "output": "c"}', "LF-DATA-007"),
    "name twice, once by escapes": (rb'{"instruction": "a", "output": "b", "o\u0075tput": "c"}', "LF-DATA-007"),
    "name twice inside": (alpaca('"b"', meta='{"a": 1, "a": 2}'), "LF-DATA-007"),
    "NaN": (alpaca('"b"', score="NaN"), "LF-DATA-008"),
    "Infinity": (alpaca('"b"', score="-Infinity"), "LF-DATA-008"),
    "number that becomes infinite": (alpaca('"b"', score="1e999"), "LF-DATA-100"),
    "first half of a character": (alpaca(r'"\ud83d"'), "LF-DATA-009"),
    "second half of a character": (alpaca(r'"\ude00"'), "LF-DATA-009"),
    "halves in the wrong order": (alpaca(r'"\ude00\ud83d"'), "LF-DATA-009"),
    "answer missing": (b'{"instruction": "a"}', "LF-DATA-012"),
    "prompt missing": (b'{"output": "a"}', "LF-DATA-012"),
    "nothing at all": (b"{}", "LF-DATA-012"),
    "answer null": (alpaca("null"), "LF-DATA-014"),
    "answer a number": (alpaca("7"), "LF-DATA-014"),
    "answer a list": (alpaca('["b"]'), "LF-DATA-014"),
    "answer empty": (alpaca('""'), "LF-DATA-013"),
    "answer blank": (alpaca(r'" \n\u00a0"'), "LF-DATA-013"),
    "input a number": (alpaca('"b"', input="7"), "LF-DATA-014"),
    "history that is no list": (alpaca('"b"', history='"x"'), "LF-DATA-014"),
    "history without pairs": (alpaca('"b"', history='["x"]'), "LF-DATA-014"),
    "unknown role": (chat(USER, '{"role": "robot", "content": "b"}'), "LF-DATA-015"),
    "message without a role": (chat(USER, '{"content": "b"}'), "LF-DATA-012"),
    "message without content": (chat(USER, '{"role": "assistant"}'), "LF-DATA-012"),
    "content a number": (chat(USER, '{"role": "assistant", "content": 7}'), "LF-DATA-014"),
    "content empty": (chat(USER, '{"role": "assistant", "content": ""}'), "LF-DATA-013"),
    "message a text": (chat('"a"', ANSWER), "LF-DATA-014"),
    "no messages": (chat(), "LF-DATA-013"),
    "messages an object": (f'{{"messages": {USER}}}'.encode(), "LF-DATA-014"),
    "messages null": (b'{"messages": null}', "LF-DATA-014"),
    "nobody answers": (chat(USER), "LF-DATA-016"),
}


def verdict(folder: Any, rows: list[bytes]) -> list[tuple[str, str, str]]:
    """What is said of each row: line, id, message."""
    path = folder / "x.jsonl"
    path.write_bytes(b"\n".join(rows))
    try:
        prepare(DatasetConfig(path=str(path)), None, notice=lambda _: None)
    except DataError as error:
        return [
            (item.where.removeprefix(f"{path}:").partition(":")[0], item.id, item.message) for item in error.problems
        ]
    return []


@pytest.mark.parametrize("case", ROWS)
def test_a_malformed_row_is_refused_with_its_line_wherever_it_stands(case: str, tmp_path: Any) -> None:
    row, id_ = ROWS[case]
    good = CHATS if b'"messages"' in row else GOOD
    found = [verdict(tmp_path, [*good[:place], row, *good[place:]]) for place in (0, 3, 6)]
    assert [[(line, id_) for line, id_, _ in problems] for problems in found] == [[(line, id_)] for line in "147"]
    assert len({message for problems in found for _, _, message in problems}) == 1


@pytest.mark.parametrize("case", ["no JSON", "name twice", "answer a number", "number that becomes infinite"])
@pytest.mark.parametrize("command", ["train -s s.yaml -d x.jsonl", "datasplit x.jsonl", "inspect s.yaml -d x.jsonl"])
def test_every_command_says_so(case: str, command: str, refuse: Callable[..., Any]) -> None:
    row, id_ = ROWS[case]
    if command.startswith("datasplit") and case == "answer a number":
        return  # it splits rows of any form: what they mean is not its matter
    refusal = refuse(*command.split(), given={"s.yaml": STRATEGY, "x.jsonl": b"\n".join([*GOOD, row, *GOOD])})
    assert "x.jsonl:7" in refusal.shown
    assert id_ in refusal.shown
    assert refusal.code == 3
    assert refusal.after == refusal.before


def test_a_row_of_another_form_is_refused_and_the_first_row_tells_the_form(tmp_path: Any) -> None:
    assert [found[:2] for found in verdict(tmp_path, [*GOOD, CHATS[0]])] == [("7", "LF-DATA-011")]
    assert {found[1] for found in verdict(tmp_path, [CHATS[0], *GOOD])} == {"LF-DATA-011"}


# what looks odd and is right: (how the good rows are written)
ACCEPTED: dict[str, bytes] = {
    "byte order mark": b"\xef\xbb\xbf" + LINES,
    "CRLF": LINES.replace(b"\n", b"\r\n"),
    "CR": LINES.replace(b"\n", b"\r"),
    "blank lines": LINES.replace(b"\n", b"\n\n \n"),
    "no line end at the end": LINES.rstrip(),
    "space around rows": LINES.replace(b"\n", b" \t\n  "),
    "escapes": b"\n".join(json.dumps(json.loads(row)).encode() for row in GOOD),
    "other order of columns": b"\n".join(json.dumps(json.loads(row), sort_keys=True).encode() for row in GOOD),
    "array": ARRAY,
    "null and empty columns besides": LINES.replace(b"}", b', "input": null, "system": ""}'),
    "integers of any length besides": LINES.replace(b"}", b', "id": 123456789012345678901234567890}'),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_only_written_otherwise_is_read_as_the_same(case: str, tmp_path: Any) -> None:
    path = tmp_path / "x.jsonl"
    read = []
    for content in (LINES, ACCEPTED[case]):
        path.write_bytes(content)
        data = prepare(DatasetConfig(path=str(path)), None, notice=lambda _: None)
        read.append([(example.messages, example.prompt) for example in data.train])
        digest = data.digest
    assert read[0] == read[1]
    assert digest


bad = st.sampled_from([row for row, _ in ROWS.values() if b'"messages"' not in row])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.one_of(st.sampled_from(GOOD), bad), min_size=1, max_size=15), order=st.randoms())
def test_the_verdict_on_a_row_depends_on_the_row_alone(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], order: Any
) -> None:
    folder = tmp_path_factory.mktemp("order")
    rows = [GOOD[0], *rows]
    shuffled = [(number, row) for number, row in enumerate(rows, 1)]
    order.shuffle(shuffled)
    before = {(line, id_, message) for line, id_, message in verdict(folder, rows)}
    after = {
        (str(shuffled[int(line) - 1][0]), id_, message)
        for line, id_, message in verdict(folder, [row for _, row in shuffled])
    }
    assert before == after
    assert {line for line, _, _ in before} == {str(n) for n, row in enumerate(rows, 1) if row not in GOOD}


@settings(max_examples=40, deadline=None)
@given(numbers=st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda found: len(set(found)) > 1))
def test_every_row_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "x.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q {n}", "completion": f"a {n}"}) + "\n" for n in numbers))
    data = prepare(DatasetConfig(path=str(path)), Hash(HashConfig(eval_percentage=25)), notice=lambda _: None)
    counts = dict(data.counts)
    assert counts["read"] == len(numbers) == len(data.train) + len(data.eval)
    assert (counts["trained"], counts["held_out"]) == (len(data.train), len(data.eval))
    assert counts["copies"] == len(numbers) - len(set(numbers))
    assert not {example.messages for example in data.train} & {example.messages for example in data.eval}
