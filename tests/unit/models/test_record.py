from __future__ import annotations

import json

import pytest

from llamafarm.errors import ModelError
from llamafarm.models.record import METHODS_FILE, MethodRecord, read_methods, write_methods
from llamafarm_methods.lora import Lora


def test_what_is_written_is_read_back(tmp_path):
    methods = [Lora(Lora.Config(r=4)), Lora(Lora.Config(r=8))]
    write_methods(tmp_path, methods, None)
    assert [(record.type, record.config["r"]) for record in read_methods(tmp_path)] == [("lora", 4), ("lora", 8)]
    assert Lora.Config(**read_methods(tmp_path)[0].config) == methods[0].config


def test_files_of_a_method_stand_beside_the_weights(tmp_path):
    class Marked(Lora):
        name = "marked"

        def files(self, model):
            return {"mark.json": model}

    write_methods(tmp_path, [Marked(Lora.Config())], "content")
    assert (tmp_path / "mark.json").read_text() == "content"


def test_a_model_of_others_has_no_methods(tmp_path):
    assert read_methods(tmp_path) == ()


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2, "methods": []}', '{"version": 1, "methods": [{}]}'])
def test_a_record_that_cannot_be_understood_is_refused(tmp_path, content):
    (tmp_path / METHODS_FILE).write_text(content)
    with pytest.raises(ModelError, match=r"llamafarm_methods\.json cannot be understood") as caught:
        read_methods(tmp_path)
    assert caught.value.problems[0].id == "LF-MODEL-050"
    assert str(tmp_path) in caught.value.problems[0].where


def test_the_configuration_is_plain_json(tmp_path):
    write_methods(tmp_path, [Lora(Lora.Config(target_modules=["a", "b"]))], None)
    record = read_methods(tmp_path)[0]
    assert record == MethodRecord("lora", json.loads(json.dumps(dict(record.config))))
