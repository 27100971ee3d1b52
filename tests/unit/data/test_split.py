"""Splitting a file: rows keep their bytes, and the outputs appear whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llamafarm.files as writer
from llamafarm.data.seen import Seen
from llamafarm.data.siblings import split_names
from llamafarm.data.split import SplitReport, split_files
from llamafarm.errors import DataError, DiskError, UsageError
from llamafarm_splitters.hash import Hash, HashConfig
from llamafarm_splitters.random import Random, RandomConfig


def tenth() -> Random:
    return Random(RandomConfig())


def split_file(path: Path, splitter: Any, *outputs: Path, **options: Any) -> SplitReport:
    return split_files([path], splitter, outputs or split_names(path), **options)


def lines(path: Path) -> list[bytes]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return content.splitlines()


def rows(number: int) -> list[dict[str, Any]]:
    return [{"text": f"row {index}"} for index in range(number)]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_a_file_is_split_beside_itself(write: Any, tmp_path: Path) -> None:
    path = Path(write(rows(50), "data.jsonl"))
    report = split_file(path, tenth())
    assert (report.rows, report.counts, report.duplicates) == (50, (45, 5), 0)
    assert report.paths[0] == tmp_path / "data_train.jsonl"
    assert report.paths[1] == tmp_path / "data_eval.jsonl"
    train, held_out = lines(report.paths[0]), lines(report.paths[1])
    assert (len(train), len(held_out)) == (45, 5)
    assert sorted(train + held_out) == sorted(lines(path))
    assert files(tmp_path) == {"data.jsonl", "data_train.jsonl", "data_eval.jsonl"}


def test_rows_keep_their_bytes_and_their_order(write: Any) -> None:
    odd = [
        b'{"b": 1,   "a": [ ]}',
        b'{"text":"\\u00e9\\/"}',
        '{"text":"é\u2028"}'.encode(),
        b'{"n":1.50}',
        b'{"n":1E5}',
    ]
    path = Path(write(b"\xef\xbb\xbf" + b"\r\n".join(odd) + b"\r\n\n  " + b'{"last":0}'))
    report = split_file(path, Random(RandomConfig(eval_rows=2)))
    train, held_out = lines(report.paths[0]), lines(report.paths[1])
    odd.append(b'{"last":0}')
    assert sorted(train + held_out) == sorted(odd)
    assert [odd.index(row) for row in train] == sorted(odd.index(row) for row in train)


def test_copies_stand_on_one_side(write: Any) -> None:
    path = Path(write(b"".join(b'{"a":%d,"b":2}\n{"b": 2, "a": %d}\n' % (n, n) for n in range(20))))
    report = split_file(path, tenth())
    assert (report.rows, report.duplicates, report.counts[1]) == (40, 20, 4)
    train, held_out = ({json.loads(row)["a"] for row in lines(path)} for path in (report.paths[0], report.paths[1]))
    assert not train & held_out


def test_an_array_becomes_lines(write: Any) -> None:
    path = Path(write(json.dumps(rows(20), indent=2), "data.json"))
    report = split_file(path, tenth())
    assert report.paths[0].name == "data_train.jsonl"
    found = [json.loads(row) for row in lines(report.paths[0]) + lines(report.paths[1])]
    assert sorted(map(str, found)) == sorted(map(str, rows(20)))


def test_outputs_can_be_named(write: Any, tmp_path: Path) -> None:
    train, held_out = tmp_path / "new" / "t.jsonl", tmp_path / "e.jsonl"
    report = split_file(Path(write(rows(20))), tenth(), train, held_out)
    assert report.paths == (train, held_out)
    assert (len(lines(train)), len(lines(held_out))) == (18, 2)


def test_the_same_file_gives_the_same_split(write: Any) -> None:
    path = Path(write(rows(100)))
    first = split_file(path, tenth())
    before = first.paths[1].read_bytes()
    assert split_file(path, tenth(), overwrite=True) == first
    assert first.paths[1].read_bytes() == before


def test_outputs_are_not_overwritten_unless_told(write: Any) -> None:
    path = Path(write(rows(20), "data.jsonl"))
    write(b"precious", "data_eval.jsonl")
    with pytest.raises(
        UsageError, match=r"data_eval.jsonl: the output is there already; give --overwrite \[LF-SPLIT-002\]"
    ):
        split_file(path, tenth())
    assert (path.parent / "data_eval.jsonl").read_bytes() == b"precious"
    assert not (path.parent / "data_train.jsonl").exists()
    assert split_file(path, tenth(), overwrite=True).counts[1] == 2


@pytest.mark.parametrize(
    ("train", "held_out", "reason"),
    [
        ("data.jsonl", "e.jsonl", "an output is the input"),
        ("t.jsonl", "../{folder}/data.jsonl", "an output is the input"),
        ("t.jsonl", "t.jsonl", "two outputs are the same file"),
        ("t.jsonl", ".", "an output is a folder"),
    ],
)
def test_outputs_that_cannot_be_are_refused(train: str, held_out: str, reason: str, write: Any, tmp_path: Path) -> None:
    path = Path(write(rows(20), "data.jsonl"))
    names = [tmp_path / name.format(folder=tmp_path.name) for name in (train, held_out)]
    with pytest.raises(UsageError, match=rf"{reason}.*\[LF-SPLIT-001\]"):
        split_file(path, tenth(), *names, overwrite=True)
    assert files(tmp_path) == {"data.jsonl"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a":1}\nx\n{"a":2}\n{"a":\n', r"rows.jsonl:2:1: invalid JSON.*\n.*rows.jsonl:4:6: invalid JSON"),
        (b'{"a":1}\n', "1 rows, 1 of them distinct"),
        (b'{"a":1}\n{"a": 1}\n', "2 rows, 1 of them distinct"),
        (b"\n", "no rows"),
    ],
)
def test_bad_input_leaves_nothing_behind(content: bytes, reason: str, write: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        split_file(Path(write(content)), tenth())
    assert files(tmp_path) == {"rows.jsonl"}


def test_a_missing_input_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        split_file(tmp_path / "rows.jsonl", tenth())


def test_a_failure_while_writing_leaves_nothing_behind(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", full)
    with pytest.raises(DiskError, match=r"cannot be written: No space left on device \[LF-DISK-001\]"):
        split_file(Path(write(rows(20))), tenth())
    assert files(tmp_path) == {"rows.jsonl"}


def test_a_file_that_changes_meanwhile_is_refused(write: Any, tmp_path: Path) -> None:
    path = Path(write(rows(20)))
    handled: list[int] = []

    def change(count: int) -> None:
        handled.append(count)
        if len(handled) == 1:
            path.write_bytes(path.read_bytes().replace(b"row 7", b"row 8"))

    with pytest.raises(DataError, match=r"the file changed while it was split; try again \[LF-DATA-026\]"):
        split_file(path, tenth(), progress=change)
    assert files(tmp_path) == {"rows.jsonl"}


def test_progress_is_told_in_bytes(write: Any) -> None:
    path = Path(write(rows(20)))
    handled: list[int] = []
    split_file(path, tenth(), progress=handled.append)
    assert sum(handled) == 2 * path.stat().st_size


@given(numbers=st.lists(st.integers(0, 40), min_size=2, max_size=80).filter(lambda found: len(set(found)) > 1))
def test_any_split_is_disjoint_exhaustive_and_exact(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    path = tmp_path_factory.mktemp("split") / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"n": number}) for number in numbers))
    for splitter in (Random(RandomConfig(eval_percentage=25)), Hash(HashConfig(eval_percentage=25))):
        report = split_file(path, splitter, overwrite=True)
        train, held_out = lines(report.paths[0]), lines(report.paths[1])
        assert Counter(train) + Counter(held_out) == Counter(path.read_bytes().splitlines())
        assert not set(train) & set(held_out)
        assert (*report.counts, report.rows) == (len(train), len(held_out), len(numbers))
        distinct = len(set(numbers))
        assert report.duplicates == len(numbers) - distinct
        if isinstance(splitter, Random):
            assert len(set(held_out)) == min(max((distinct + 2) // 4, 1), distinct - 1)


@given(keys=st.lists(st.integers(1, 2**64 - 1) | st.integers(1, 5)))
def test_seen_is_a_set(keys: list[int]) -> None:
    seen, truth = Seen(), set[int]()
    for key in keys:
        assert seen.add(key) == (key not in truth)
        truth.add(key)


def test_seen_grows() -> None:
    seen = Seen()
    keys = [key * 0x9E3779B97F4A7C15 % 2**64 for key in range(1, 5000)]
    assert all(seen.add(key) for key in keys)
    assert not any(seen.add(key) for key in keys)
