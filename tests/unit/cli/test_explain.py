from __future__ import annotations

import json

import pytest

TEXT = """\
name: mine
fine_tuner:
  type: pytorch
  config:
    base_model: {huggingface_id: "builtin:tiny", token: "${HF_TOKEN}"}
    method: {type: lora, r: 8}
    training: {learning_rate: 1e-4}
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.yaml").write_text(TEXT)
    return "mine.yaml"


def rows(ended):
    return {line.split()[0]: line.split(maxsplit=2)[1:] for line in ended.out.splitlines()[1:]}


def test_each_value_has_its_origin(cli, mine):
    ended = cli("explain", mine, "--set", "training.seed=7")
    assert ended.code == 0
    found = rows(ended)
    assert found["training.learning_rate"] == ["0.0001", "mine.yaml:7:31"]
    assert found["method.0.r"] == ["8", "mine.yaml:6:29"]
    assert found["training.seed"] == ["7", "--set training.seed"]
    assert found["training.adam_beta1"] == ["0.9", "default"]
    assert found["components.fine_tuner.type"] == ["pytorch", "mine.yaml:3:9"]


def test_one_block_or_one_setting(cli, mine):
    assert set(rows(cli("explain", mine, "method"))) >= {"method.0.type", "method.0.r", "method.0.alpha"}
    assert all(key.startswith("method.") for key in rows(cli("explain", mine, "method")))
    assert list(rows(cli("explain", mine, "training.seed"))) == ["training.seed"]


def test_an_unknown_setting_names_the_nearest(cli, mine):
    ended = cli("explain", mine, "training.learning_rat")
    assert ended.code == 2
    assert "did you mean 'training.learning_rate'? [LF-USAGE-007]" in ended.err


def test_secrets_are_not_shown(cli, mine, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    for ended in (cli("explain", mine), cli("explain", mine, "--json")):
        assert "canary" not in ended.out + ended.err
        assert "${HF_TOKEN}" in ended.out


def test_a_secret_written_in_the_file_is_shown_nowhere(cli, tmp_path):
    text = TEXT.replace("${HF_TOKEN}", "plain-canary") + "description: made with plain-canary\n"
    (tmp_path / "mine.yaml").write_text(text)
    ended = cli("explain", "mine.yaml")
    assert ended.code == 0
    assert "canary" not in ended.out + ended.err
    assert "made with " in ended.out


def test_json_names_the_kind_of_each_origin(cli, mine):
    found = {row["key"]: row for row in json.loads(cli("explain", mine, "--json").out)}
    assert found["training.learning_rate"] == {
        "key": "training.learning_rate",
        "value": 0.0001,
        "kind": "strategy",
        "from": "mine.yaml:7:31",
    }
    assert found["training.adam_beta1"]["kind"] == "default"


def test_an_invalid_strategy_is_not_explained(cli, tmp_path):
    (tmp_path / "bad.yaml").write_text(TEXT.replace("learning_rate", "lerning_rate"))
    ended = cli("explain", "bad.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean 'learning_rate'?" in ended.err
