from __future__ import annotations

import json

import pytest

ARGUMENTS = ("capture", "--model-id", "builtin:tiny", "--seq-len", "16", "--stats-only")


def test_the_documented_spelling(cli, tmp_path):
    ended = cli(*ARGUMENTS, "--output-dir", "base", "--plot")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("16 tokens, the first is 0 '<|begin_of_text|>'\nattention to the first token:\n")
    assert (tmp_path / "base" / "attention_sink.png").is_file()
    again = cli(*ARGUMENTS, "--output-dir", "base")
    assert again.code == 2
    assert "LF-USAGE-005" in again.err
    compared = cli(*ARGUMENTS, "--output-dir", "other", "--compare", "base", "--plot", "--json")
    assert compared.code == 0, compared.err
    summary = json.loads(compared.out)
    base = json.loads((tmp_path / "base" / "capture_summary.json").read_text())
    assert summary["attention_sink_mass"] == base["attention_sink_mass"]
    assert summary["label"] == "builtin:tiny"
    assert cli(*ARGUMENTS, "--output-dir", "base", "--overwrite", "--text", "Turn on the light").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "id_"),
    [
        (("--output-dir", "a", "--text-file", "none.txt"), 3, "LF-DATA-222"),
        (("--output-dir", "a", "--compare", "none"), 3, "LF-DATA-223"),
        (("--output-dir", "a", "--seq-len", "9999999"), 3, "LF-DATA-220"),
        (("--output-dir", "a", "--text", "x", "--text-file", "y"), 2, "LF-USAGE-004"),
        ((), 2, "LF-USAGE-006"),
        (("--output-dir", "full"), 2, "LF-USAGE-005"),
        (("--output-dir", "full/file"), 7, "LF-DISK-001"),
    ],
)
def test_what_is_refused(cli, tmp_path, arguments, code, id_):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    ended = cli(*ARGUMENTS, *arguments)
    assert id_ in ended.err
    assert ended.code == code
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_captures_of_other_rows_are_not_compared(cli):
    assert cli(*ARGUMENTS, "--output-dir", "base").code == 0
    ended = cli(*ARGUMENTS, "--data-seed", "7", "--output-dir", "other", "--compare", "base")
    assert ended.code == 3
    assert "LF-DATA-224" in ended.err
