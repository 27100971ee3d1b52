"""What the security boundary refuses, each with its id, by the function that refuses it.

The corpus (test_hostile.py) tries the same through the commands; here is the smallest input for each id.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from llamafarm.api import BaseModelConfig
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.data.compressed import opened
from llamafarm.errors import DataError, LlamaFarmError, ModelError, SecurityError
from llamafarm.models import templates
from llamafarm.models._adapter import adapter_config, check_patterns, check_tensors
from llamafarm.models.adapter_config import read_adapter_config, require_base_here, require_weights
from llamafarm.models.safety import check_folder, require_safetensors


def refused(kind: type[LlamaFarmError], id_: str, call: Callable[..., Any], *given: Any) -> None:
    with pytest.raises(kind) as caught:
        call(*given)
    assert type(caught.value) is kind
    assert caught.value.problems[0].id == id_


def write_json(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


# --- rows -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> None:
    with opened(path) as stream:
        while stream.read(1 << 20):
            pass


@pytest.mark.parametrize("target", ["/proc/self/environ", "/sys", "/dev/zero"])
def test_rows_of_the_system(tmp_path: Path, target: str) -> None:
    (tmp_path / "rows.jsonl").symlink_to(target)
    refused(DataError, "LF-DATA-240", read, Path(target))
    refused(DataError, "LF-DATA-240", read, tmp_path / "rows.jsonl")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a writable /dev/shm")
def test_an_ordinary_file_is_one_wherever_it_is() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm", suffix=".jsonl") as file:
        read(Path(file.name))


def test_rows_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    refused(DataError, "LF-DATA-240", read, tmp_path / "rows.jsonl")


def test_a_bomb(tmp_path: Path) -> None:
    bomb = tmp_path / "rows.jsonl.gz"
    member = gzip.compress(b" " * (1 << 20))
    bomb.write_bytes(member * 65)  # one MiB more than is always fine
    refused(DataError, "LF-DATA-241", read, bomb)
    bomb.write_bytes(member * 64)
    read(bomb)


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_that_is_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(ModelError, "LF-MODEL-170", require_safetensors, tmp_path, "model")
    (tmp_path / "model.safetensors").touch()
    require_safetensors(tmp_path, "model")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"model_type": "llama\nimport os"},
        {"architectures": ["../../evil"]},
        {"num_hidden_layers": 10**9},
        {"text_config": {"hidden_size": -5}},
    ],
    ids=["no object", "line feed", "path", "layers", "negative"],
)
def test_configurations_that_cannot_be_used(tmp_path: Path, content: Any) -> None:
    refused(ModelError, "LF-MODEL-172", check_folder, write_json(tmp_path, "config.json", content))


@pytest.mark.parametrize(
    "content",
    [
        {"_attn_implementation_internal": "evil/kernel"},
        {"text_config": {"trust_remote_code": True}},
        {"attn_implementation": "evil/kernel"},
        {"experts_implementation": "evil/kernel"},
    ],
    ids=lambda content: next(iter(content)),
)
def test_configurations_that_choose_code(tmp_path: Path, content: Any) -> None:
    refused(SecurityError, "LF-SECURITY-003", check_folder, write_json(tmp_path, "config.json", content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.json"]}),
        ("model.safetensors.index.json", {"weight_map": {"a": "../weights.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "model-00001.bin"}}),
    ],
    ids=["tokenizer", "shard outside", "shard that is a pickle"],
)
def test_names_of_files_elsewhere(tmp_path: Path, name: str, content: Any) -> None:
    refused(SecurityError, "LF-SECURITY-004", check_folder, write_json(tmp_path, name, content))


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").symlink_to(tmp_path / "secret")
    refused(SecurityError, "LF-SECURITY-004", check_folder, tmp_path / "model")


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.bin", "README.md"])
def test_an_adapter_without_safetensors(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(ModelError, "LF-MODEL-171", require_weights, tmp_path, "adapter")
    (tmp_path / "adapter_model.safetensors").touch()
    require_weights(tmp_path, "adapter")


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(r=1, target_modules=["0"]))
    file = tmp_path / "adapter_model.safetensors"
    save_file({"base_model.model.0.lora_A.weight": torch.zeros(1, 2)}, file)
    check_tensors(model, tmp_path)
    save_file({"base_model.model.7.lora_A.weight": torch.zeros(1, 2)}, file)
    refused(ModelError, "LF-MODEL-173", check_tensors, model, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"peft_type": "EVIL"},
        {"peft_type": "LORA", "r": 10**6},
        {"peft_type": "LORA", "lora_alpha": float("nan")},
        {"peft_type": "LORA", "target_modules": [{"a": 1}]},
        {"peft_type": "LORA", "base_model_name_or_path": "a\nb"},
    ],
    ids=["kind", "rank", "scale", "module", "base"],
)
def test_adapters_that_cannot_be_used(tmp_path: Path, content: Any) -> None:
    refused(ModelError, "LF-MODEL-174", adapter_config, write_json(tmp_path, "adapter_config.json", content))


def test_a_pattern_that_is_none() -> None:
    config = LoraConfig(target_modules="(((")
    refused(ModelError, "LF-MODEL-174", check_patterns, nn.Sequential(nn.Linear(2, 2)), config, "adapter")


@pytest.mark.parametrize(
    "content",
    [
        {"auto_mapping": {"parent_library": "evil"}},
        {"megatron_core": "evil"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"layer_replication": [[0, 2]]},
        {"corda_config": {"cache_file": "/etc/passwd"}},
        {"peft_type": "XLORA"},
    ],
    ids=lambda content: next(iter(content)),
)
def test_adapters_that_choose_code_or_files(tmp_path: Path, content: Any) -> None:
    refused(SecurityError, "LF-SECURITY-005", read_adapter_config, write_json(tmp_path, "adapter_config.json", content))


def test_a_base_that_was_never_fetched(tmp_path: Path) -> None:
    config = BaseModelConfig(huggingface_id="adapter", cache_dir=str(tmp_path))
    refused(SecurityError, "LF-SECURITY-006", require_base_here, "evil/model", config, "adapter")


def test_a_pattern_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates.limited.__wrapped__, "__defaults__", (0.2,))  # seconds; ten of them are too many here
    model = nn.ModuleDict({"a_module_with_a_name_that_is_rather_long": nn.Linear(2, 2)})
    config = LoraConfig(target_modules="(([a-z_]+)+)+!")
    refused(SecurityError, "LF-SECURITY-012", check_patterns, model, config, "adapter")


# --- strategies -----------------------------------------------------------------------------------------------------


def planned(folder: Path, *sets: str, **config: Any) -> None:
    good = {"base_model": {"huggingface_id": "builtin:tiny"}, "dataset": "rows.jsonl", "method": "lora"}
    (folder / "rows.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    tuner = {"type": "pytorch", "config": good | {"output_dir": "out"} | config}
    write_json(folder, "strategy.yaml", {"name": "x", "components": {"fine_tuner": tuner}})  # JSON is YAML
    registry = load_registry()
    make_plan(load(Request("strategy.yaml", sets=sets), registry), registry)


@pytest.mark.parametrize(
    ("id_", "config"),
    [
        ("LF-SECURITY-002", {"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": True}}),
        ("LF-SECURITY-007", {"output_dir": "../out"}),
        ("LF-SECURITY-007", {"output_dir": ".git/hooks"}),
        ("LF-SECURITY-007", {"base_model": {"huggingface_id": "builtin:tiny", "cache_dir": "/etc/x"}}),
        ("LF-SECURITY-008", {"output_dir": "a" * 300}),
        ("LF-SECURITY-008", {"dataset": "a\nb.jsonl"}),
        ("LF-SECURITY-010", {"training": {"push_to_hub": True, "hub_model_id": "a/b"}}),
    ],
    ids=["code", "up", "hidden", "system", "long", "line feed", "upload"],
)
def test_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id_: str, config: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    planned(tmp_path)
    refused(SecurityError, id_, lambda: planned(tmp_path, **config))


def test_what_no_set_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(SecurityError, "LF-SECURITY-002", planned, tmp_path, "base_model.trust_remote_code=true")
