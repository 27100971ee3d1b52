from __future__ import annotations

import json

import pytest


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
