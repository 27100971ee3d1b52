from __future__ import annotations

import json

import pytest

MINE = "# my own\nname: mine\ndescription: What is mine.\nfine_tuner: {type: pytorch}\n"


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "mine.yaml").write_text(MINE)
    (folder / "two.yaml").write_text("strategies: [{name: a, description: one}, {name: b}]\n")
    (folder / "broken.yaml").write_text("a: [1,\n")
    return folder


def test_list_names_what_can_be_trained(cli, project):
    ended = cli("strategies", "list")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["NAME", "DESCRIPTION", "FROM"]
    assert any(line.split() == ["mine", "What", "is", "mine.", "project"] for line in lines)
    assert any(line.startswith("two:a ") for line in lines)
    assert any(line.startswith("broken ") and "strategies/broken.yaml:2:1" in line for line in lines)
    assert any(line.startswith("demo3_training ") and line.endswith(" llamafarm") for line in lines)


def test_list_as_json(cli, project):
    found = {one["name"]: one for one in json.loads(cli("strategies", "--json").out)}
    assert found["mine"] == {
        "name": "mine",
        "description": "What is mine.",
        "from": "project",
        "path": "strategies/mine.yaml",
    }


def test_show_prints_the_file_as_it_is(cli, project):
    assert cli("strategies", "show", "mine").out == MINE
    assert cli("strategies", "show", "strategies/mine.yaml").out == MINE


def test_an_unknown_one_names_the_nearest(cli, project):
    ended = cli("strategies", "show", "demo3-trainin")
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean 'demo3_training'?" in ended.err


def test_copy_writes_the_same_file_and_refuses_to_replace_it(cli, project, tmp_path):
    ended = cli("strategies", "copy", "mine")
    assert (ended.code, ended.out) == (0, "mine.yaml\n")
    copied = tmp_path / "mine.yaml"
    assert copied.read_text() == MINE
    copied.write_text("edited")
    ended = cli("strategies", "copy", "strategies/mine.yaml")
    assert ended.code == 2
    assert "mine.yaml exists already; give another name, or --overwrite [LF-USAGE-005]" in ended.err
    assert copied.read_text() == "edited"
    assert cli("strategies", "copy", "strategies/mine.yaml", "--overwrite").code == 0
    assert copied.read_text() == MINE
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".mine")] == []


def test_copy_into_a_folder_or_under_a_name(cli, project, tmp_path):
    (tmp_path / "sub").mkdir()
    assert cli("strategies", "copy", "mine", "sub").out == "sub/mine.yaml\n"
    assert cli("strategies", "copy", "mine", "new/other.yaml").out == "new/other.yaml\n"
    assert (tmp_path / "new" / "other.yaml").read_text() == MINE


def test_a_place_that_cannot_be_written_is_exit_7(cli, project, tmp_path):
    (tmp_path / "file").write_text("")
    ended = cli("strategies", "copy", "mine", "file/x.yaml")
    assert ended.code == 7
    assert "LF-DISK-001" in ended.err
