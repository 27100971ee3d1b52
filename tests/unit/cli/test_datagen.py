from __future__ import annotations

import json

import pytest


def lines(ended):
    assert (ended.code, ended.err) == (0, "")
    return [json.loads(line) for line in ended.out.splitlines()]


def test_rows_go_to_stdout(cli):
    found = lines(cli("datagen", "smart-home", "--size", "5", "--seed", "1"))
    assert len(found) == 5
    assert [message["role"] for message in found[0]["messages"]] == ["system", "user", "assistant"]
    assert lines(cli("datagen", "smart-home", "-n", "5", "--seed", "1")) == found
    assert lines(cli("datagen", "smart-home", "-n", "5", "--seed", "2")) != found
    assert len(lines(cli("datagen", "smart-home", "--no-system-role", "-n", "1"))[0]["messages"]) == 2


@pytest.mark.parametrize(
    ("option", "columns"),
    [
        (["--sharegpt"], {"conversations"}),
        (["--format", "sharegpt"], {"conversations"}),
        (["--raw_corpus"], {"text"}),
        (["--raw-corpus"], {"text"}),
    ],
)
def test_forms_have_short_spellings(cli, option, columns):
    assert columns <= set(lines(cli("datagen", "smart-home", "-n", "1", *option))[0])


def test_several_languages_may_follow_one_flag(cli):
    spelt = ["--language", "english", "german", "french", "spanish"]
    found = cli("datagen", "smart-home", "-n", "8", *spelt).out
    repeated = cli("datagen", "smart-home", "-n", "8", *[w for name in spelt[1:] for w in ("-l", name)]).out
    assert found == repeated == cli("datagen", "smart-home", "-n", "8", "-l", ",".join(spelt[1:])).out
    assert len(found.splitlines()) == 8


def test_a_file_is_written_whole_and_not_replaced(cli, tmp_path):
    ended = cli("datagen", "smart-home", "--small", "--output", "data/home.jsonl")
    assert (ended.code, ended.out) == (0, "data/home.jsonl\n")
    assert ended.err == "1,000 rows: english; messages; seed 0\n"
    path = tmp_path / "data" / "home.jsonl"
    assert len(path.read_text().splitlines()) == 1000
    before = path.read_bytes()
    ended = cli("datagen", "smart-home", "-n", "1", "--output", "data/home.jsonl")
    assert ended.code == 2
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["home.jsonl"]
    assert cli("datagen", "smart-home", "-n", "1", "--output", "data/home.jsonl", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "larg"], "did you mean 'large'?"),
        (["--language", "germn"], "did you mean 'german'?"),
        (["--format", "sharegtp"], "did you mean 'sharegpt'?"),
        (["--small", "--large"], "--size is given several times: small, large; keep one [LF-USAGE-004]"),
        (["--size", "5", "--large"], "--size is given several times"),
        (["--sharegpt", "--dpo"], "--format is given several times"),
        (["-n", "0"], "LF-DATAGEN-003"),
    ],
)
def test_bad_options_are_exit_2_and_write_nothing(cli, tmp_path, argv, message):
    ended = cli("datagen", "smart-home", *argv, "--output", "x.jsonl")
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert not (tmp_path / "x.jsonl").exists()
