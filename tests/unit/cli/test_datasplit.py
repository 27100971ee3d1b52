from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llamafarm.api import DataSplitter, NoConfig
from llamafarm.cli.datasplit import _extra as third_file
from llamafarm.errors import UsageError


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"instruction": "say {number}", "output": "{number}"}}\n' for number in range(100)))
    return path


def lines(path):
    return path.read_text().splitlines()


def test_both_files_appear_beside_the_input(cli, data, tmp_path):
    ended = cli("datasplit", "data.jsonl")
    assert (ended.code, ended.err) == (0, "")
    train, held_out = lines(tmp_path / "data_train.jsonl"), lines(tmp_path / "data_eval.jsonl")
    assert sorted(train + held_out) == sorted(lines(data))
    first, *rest = ended.out.splitlines()
    assert first == "Split created successfully!"
    assert rest[0].split() == ["train", str(len(train)), "rows", "data_train.jsonl"]
    assert rest[1].split()[:2] == ["eval", str(len(held_out))]
    assert rest[2].split()[:2] == ["splitter", "hash"]


def test_the_documented_spelling_and_the_other_are_one(cli, data, tmp_path):
    documented = ["--input", "data.jsonl", "--train-output", "train.jsonl", "--eval-output", "eval.jsonl"]
    assert cli("datasplit", *documented, "--eval-percentage", "10", "--seed", "42").code == 0
    ended = cli("datasplit", "data.jsonl", "-e", "10", "-s", "42", "-o", "out")
    assert ended.code == 0
    assert (tmp_path / "train.jsonl").read_bytes() == (tmp_path / "out" / "data_train.jsonl").read_bytes()
    assert len(lines(tmp_path / "eval.jsonl")) == 10
    assert "Random seed: 42" in ended.out


def test_a_seed_asks_for_the_seeded_splitter_and_another_seed_splits_otherwise(cli, data, tmp_path):
    def held_out(*argv):
        assert cli("datasplit", "data.jsonl", "--overwrite", *argv).code == 0
        return lines(tmp_path / "data_eval.jsonl")

    assert held_out("--seed", "1") == held_out("--splitter", "random", "--seed", "1")
    assert held_out("--seed", "1") != held_out("--seed", "2")
    assert held_out() == held_out("--splitter", "hash")
    assert len(held_out("--splitter", "random", "--set", "eval_rows=7")) == 7


def test_json_holds_the_figures(cli, data):
    found = json.loads(cli("datasplit", "data.jsonl", "--json", "--seed", "3", "--eval-percent", "20").out)
    assert (found["rows"], found["train"], found["eval"], found["duplicates"]) == (100, 80, 20, 0)
    assert found["splitter"]["type"] == "random"
    assert found["splitter"]["seed"] == 3
    assert found["eval_path"] == "data_eval.jsonl"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "no input is given"),
        (["a.jsonl", "--input", "b.jsonl"], 2, "two inputs are given: a.jsonl and b.jsonl"),
        (["dat.jsonl"], 3, "did you mean 'data.jsonl'?"),
        (["data.jsonl", "-e", "60"], 2, "eval_percentage: Input should be less than or equal to 50, got 60.0"),
        (["data.jsonl", "-e", "0"], 2, "eval_percentage"),
        (["data.jsonl", "--splitter", "hsh"], 2, "did you mean 'hash'?"),
        (["data.jsonl", "--splitter", "hash", "--seed", "1"], 2, "the splitter 'hash' has no option 'seed'"),
        (["data.jsonl", "--set", "eval_rows"], 2, "has no '='"),
        (["data.jsonl", "--train-output", "data.jsonl"], 2, "an output is the input"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(cli, data, tmp_path, argv, code, message):
    ended = cli("datasplit", *argv)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["data.jsonl"]


def test_what_exists_is_not_replaced_unless_told(cli, data, tmp_path):
    (tmp_path / "data_eval.jsonl").write_text("mine")
    ended = cli("datasplit", "data.jsonl")
    assert ended.code == 2
    assert "data_eval.jsonl" in ended.err
    assert (tmp_path / "data_eval.jsonl").read_text() == "mine"
    assert cli("datasplit", "data.jsonl", "--overwrite").code == 0


def test_every_bad_row_is_named(cli, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n[1]\n')
    ended = cli("datasplit", "bad.jsonl")
    assert ended.code == 3
    assert "bad.jsonl:2" in ended.err
    assert "bad.jsonl:3" in ended.err
    assert ended.err.endswith("2 errors\n")


def test_a_row_too_few_is_an_error(cli, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    assert cli("datasplit", "one.jsonl").code == 3


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    rows = [
        {"text": f"row {number}", "task": "abc"[number % 3], "meta": {"user": number // 10}} for number in range(90)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_column_can_be_stratified(cli, tasks, tmp_path):
    assert cli("datasplit", "tasks.jsonl", "--stratify-by", "task", "--seed", "7").code == 0
    held_out = lines(tmp_path / "tasks_eval.jsonl")
    assert sorted(json.loads(line)["task"] for line in held_out) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    long = ("--splitter", "stratified", "--by", "task", "--seed", "7", "-o", "long")
    assert cli("datasplit", "tasks.jsonl", *long).code == 0
    assert lines(tmp_path / "long" / "tasks_eval.jsonl") == held_out


def test_groups_stay_whole_and_the_share_reached_is_said(cli, tasks, tmp_path):
    ended = cli("datasplit", "tasks.jsonl", "--group-by", "meta.user", "-e", "20")
    assert ended.code == 0
    held_out = [json.loads(line)["meta"]["user"] for line in lines(tmp_path / "tasks_eval.jsonl")]
    trained = [json.loads(line)["meta"]["user"] for line in lines(tmp_path / "tasks_train.jsonl")]
    assert len(held_out) == 20
    assert not set(held_out) & set(trained)
    assert "20 rows (22.2 %, asked for 20 %)" in " ".join(ended.out.split())


def test_the_end_can_be_held_out(cli, tasks, tmp_path):
    ended = cli("datasplit", "tasks.jsonl", "--splitter", "sequential")
    assert lines(tmp_path / "tasks_eval.jsonl") == lines(tasks)[81:]
    assert "9 rows (10.0 %)" in ended.out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--splitter", "stratified"], 2, "by: Field required"),
        (["--by", "task"], 2, "the splitter 'hash' has no option 'by'"),
        (
            ["--splitter", "group", "--stratify-by", "task"],
            2,
            "--splitter group and --stratify-by say different things",
        ),
        (["--group-by", "task", "--stratify-by", "task"], 2, "--stratify-by and --group-by say different things"),
        (["--stratify-by", "task", "--by", "meta"], 2, "--by meta and --stratify-by say different things"),
        (["--group-by", "tsk"], 3, "row 1 has no 'tsk' to split by; did you mean 'task'?"),
        (["--group-by", "task", "--set", "eval_rows=90"], 3, "eval_rows is 90"),
    ],
)
def test_a_column_that_cannot_be_used_is_said(cli, tasks, tmp_path, argv, code, message):
    ended = cli("datasplit", "tasks.jsonl", *argv)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["tasks.jsonl"]


ROWS = [
    {"id": f"{10**29 + number}", "when": f"2024-01-{number % 28 + 1:02}", "text": f"Zeile {number}: “ä”"}
    for number in range(40)
]


def _csv(path, delimiter):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)


def _folder(path):
    path.mkdir()
    (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:15]))
    _csv(path / "b.csv", ";")
    text = (path / "b.csv").read_text().splitlines(keepends=True)
    (path / "b.csv").write_text("".join([text[0], *text[16:]]))


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
KINDS = {
    "rows.jsonl": lambda path: path.write_bytes(JSONL),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(JSONL)),
    "rows.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(JSONL)),
    "rows.ndjson": lambda path: path.write_bytes(JSONL.replace(b"\n", b"\r\n").rstrip()),
    "rows.csv": lambda path: _csv(path, ","),
    "rows.tsv": lambda path: _csv(path, "\t"),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "rows": _folder,
}


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_every_kind_become_the_same_lines(cli, tmp_path, name):
    KINDS[name](tmp_path / name)
    ended = cli("datasplit", name, "--json", "--seed", "1")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["train_path"], found["eval_path"]) == ("rows_train.jsonl", "rows_eval.jsonl")
    assert found["digest"] == "4ed3ebdda40f101734820bbd9edebd2c"
    train, held_out = (
        [json.loads(line) for line in lines(tmp_path / f"rows_{side}.jsonl")] for side in ("train", "eval")
    )
    assert (len(train), len(held_out)) == (36, 4)
    assert sorted(map(str, train + held_out)) == sorted(map(str, ROWS))


def test_a_splitter_without_a_number_of_rows_gives_no_third_file():
    class Odd(DataSplitter[NoConfig]):
        name = "odd"

        def held_out(self, rows):
            return [bool(row.index % 2) for row in rows]

    with pytest.raises(UsageError, match=r"the splitter 'odd' has neither .*LF-SPLIT-005"):
        third_file(Odd(NoConfig()), {}, 10.0, None)


def test_lines_of_text_are_rows(cli, tmp_path):
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress("eins\n\nzwei\ndrei“".encode()))
    assert cli("datasplit", "notes.txt.gz").code == 0
    found = lines(tmp_path / "notes_train.jsonl") + lines(tmp_path / "notes_eval.jsonl")
    assert sorted(found) == ['{"text": "drei“"}', '{"text": "eins"}', '{"text": "zwei"}']


def test_dates_and_decimals_become_text(cli, tmp_path):
    day = dt.date(2024, 1, 2)
    rows = [
        {"day": day, "at": dt.datetime(2024, 1, 2, 3, 4, tzinfo=dt.UTC), "price": Decimal("1.50"), "n": n}
        for n in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "days.parquet")
    assert cli("datasplit", "days.parquet").code == 0
    (found,) = lines(tmp_path / "days_train.jsonl")
    assert found.startswith('{"day": "2024-01-02", "at": "2024-01-02T03:04:00+00:00", "price": "1.50", "n": ')


@pytest.mark.parametrize("value", [b"bytes", float("nan")])
def test_what_json_cannot_say_is_an_error(cli, tmp_path, value):
    pq.write_table(pa.Table.from_pylist([{"text": "a", "x": value}, {"text": "b", "x": value}]), tmp_path / "x.parquet")
    ended = cli("datasplit", "x.parquet")
    assert ended.code == 3
    assert "x.parquet:1: cannot be written as JSON" in ended.err
    assert "x.parquet:2: " in ended.err
    assert "LF-DATA-101" in ended.err
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_pattern_needs_names_for_the_outputs(cli, tmp_path):
    for part in "ab":
        (tmp_path / f"part-{part}.jsonl").write_text("".join(f'{{"text": "{part}{n}"}}\n' for n in range(10)))
    ended = cli("datasplit", "part-*.jsonl", "--train-output", "t.jsonl")
    assert ended.code == 2
    assert "give --eval-output [LF-SPLIT-003]" in ended.err
    named = ("--train-output", "t.jsonl", "--eval-output", "e.jsonl")
    assert cli("datasplit", "part-*.jsonl", "--seed", "1", *named).code == 0
    assert len(lines(tmp_path / "t.jsonl")) == 18
    assert len(lines(tmp_path / "e.jsonl")) == 2


@pytest.mark.parametrize("splitter", ["random", "stratified", "group", "sequential", "hash"])
def test_a_third_file_leaves_the_held_out_rows_as_they_are(cli, tasks, tmp_path, splitter):
    by = {"stratified": ("--by", "task"), "group": ("--by", "meta.user")}.get(splitter, ())
    assert cli("datasplit", "tasks.jsonl", "--splitter", splitter, *by).code == 0
    held_out = lines(tmp_path / "tasks_eval.jsonl")
    ended = cli(
        "datasplit", "tasks.jsonl", "--splitter", splitter, *by, "--extra-percentage", "20", "--json", "-o", "out"
    )
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    train, again, extra = (lines(tmp_path / "out" / f"tasks_{side}.jsonl") for side in ("train", "eval", "extra"))
    assert again == held_out
    assert sorted(train + again + extra) == sorted(lines(tmp_path / "tasks.jsonl"))
    assert (found["train"], found["eval"], found["extra"]) == (len(train), len(again), len(extra))
    assert extra
    if splitter != "hash":
        assert len(extra) == (20 if splitter == "group" else 18)
    if splitter == "sequential":
        assert extra == lines(tmp_path / "tasks.jsonl")[63:81]


@pytest.mark.parametrize(
    ("argv", "id_"),
    [
        (["--extra-output", "x.jsonl"], "LF-SPLIT-004"),
        (["--extra-percentage", "0"], "LF-SPLIT-004"),
        (["--extra-percentage", "46"], "LF-SPLIT-004"),
        (["--extra-percentage", "10", "--extra-output", "data_eval.jsonl"], "LF-SPLIT-001"),
    ],
)
def test_a_third_file_that_cannot_be_is_refused(cli, data, tmp_path, argv, id_):
    ended = cli("datasplit", "data.jsonl", *argv)
    assert ended.code == 2
    assert id_ in ended.err
    assert not list(tmp_path.glob("*_train.jsonl"))
