from __future__ import annotations

import json


def test_the_schema_knows_what_is_installed(cli):
    ended = cli("schema")
    assert (ended.code, ended.err) == (0, "")
    text = json.dumps(json.loads(ended.out))
    for name in ("lora", "pytorch", "hash", "learning_rate"):
        assert f'"{name}"' in text


def test_it_goes_to_a_file_that_is_not_replaced(cli, tmp_path):
    assert cli("schema", "--output", "s.json").out == "s.json\n"
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(cli("schema").out)
    assert cli("schema", "-o", "s.json").code == 2
    assert cli("schema", "-o", "s.json", "--overwrite").code == 0
