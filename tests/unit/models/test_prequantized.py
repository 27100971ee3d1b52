from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoConfig

from llamafarm.api import BaseModelConfig
from llamafarm.errors import PluginError
from llamafarm.models._load import load_model
from llamafarm.models.locate import locate
from llamafarm.models.prequantized import library_problem, stored_as

LACKING = pytest.importorskip("importlib.util").find_spec("gptqmodel") is None


@pytest.fixture
def stored(tiny_model_dir, tmp_path):
    def stored(method):
        folder = tmp_path / method
        shutil.copytree(tiny_model_dir("llama"), folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 64}
        path.write_text(json.dumps(config), encoding="utf-8")
        return folder

    return stored


def test_the_format_is_read_from_the_files(stored, tiny_model_dir, tmp_path):
    assert stored_as(locate(str(stored("gptq")))) == "gptq"
    assert stored_as(locate(str(tiny_model_dir("llama")))) == ""
    assert stored_as(locate("nobody/never-downloaded")) == ""
    assert AutoConfig.from_pretrained(stored("awq")).quantization_config["quant_method"] == "awq"


def test_a_damaged_file_is_left_to_whoever_loads_it(stored):
    folder = stored("gptq")
    for content in ("{", "[]", '{"quantization_config": 3}'):
        (folder / "config.json").write_text(content, encoding="utf-8")
        assert stored_as(locate(str(folder))) == ""


def test_a_format_without_a_library_of_its_own_has_no_problem(stored):
    assert library_problem(locate(str(stored("fp8")))) is None


@pytest.mark.skipif(not LACKING, reason="the library is there")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_without_its_library_the_error_says_what_to_install(method, stored):
    folder = stored(method)
    with pytest.raises(
        PluginError, match=rf"format {method}, which needs gptqmodel.*pip install gptqmodel.*LF-PLUGIN-050"
    ):
        load_model(BaseModelConfig(huggingface_id=str(folder)), dtype=None)
