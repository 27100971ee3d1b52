"""What is fuzzed: each target takes bytes and may raise nothing but our own errors."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors.torch import save_file

from llamafarm.errors import LlamaFarmError

FOLDER = Path(tempfile.mkdtemp(prefix="llamafarm-fuzz-"))


def strategy(data: bytes) -> None:
    """The loader of strategies."""
    from llamafarm.core.yaml_source import read_yaml

    read_yaml(_file("strategy.yaml", data))


def rows(data: bytes) -> None:
    """The reader of JSON lines and arrays."""
    _read("rows.jsonl", data)


def csv(data: bytes) -> None:
    """The reader of tables."""
    _read("rows.csv", data)


def gzip(data: bytes) -> None:
    """The reader of packed rows."""
    _read("rows.jsonl.gz", data)


def model_config(data: bytes) -> None:
    """What is checked of a model's folder."""
    from llamafarm.models.safety import check_folder

    for name in ("config.json", "tokenizer_config.json", "model.safetensors.index.json"):
        _file(f"model/{name}", data)
    check_folder(FOLDER / "model")


def adapter_config(data: bytes) -> None:
    """What is checked of an adapter's configuration."""
    from llamafarm.models.adapter_config import read_adapter_config

    _file("adapter/adapter_config.json", data)
    read_adapter_config(FOLDER / "adapter")


def template(data: bytes) -> None:
    """Chat templates as rows are rendered with, in their sandbox and under limits; they have less time here."""
    from llamafarm.api import Example, Message, RowRef
    from llamafarm.data import render
    from llamafarm.data.strict import Fault
    from llamafarm.models.templates import limited

    tokenizer = _tokenizer()
    tokenizer.chat_template = data.decode(errors="replace")
    turns = (Message("user", "hello"), Message("assistant", "hi"))
    example = Example(RowRef("rows.jsonl", 1), turns)
    with patch.object(render, "limited", partial(limited, 0.2)), suppress(Fault):  # readers tell its row
        render.renderer(tokenizer)(example)


def manifest(data: bytes) -> None:
    """Records of runs."""
    from llamafarm.core.record import manifest_of, settings_of
    from llamafarm.models.record import read_methods

    for name in ("llamafarm/manifest.json", "llamafarm/config.json", "llamafarm_methods.json"):
        _file(f"run/{name}", data)
    manifest_of(FOLDER / "run")
    settings_of(FOLDER / "run")
    read_methods(FOLDER / "run")


def checkpoint(data: bytes) -> None:
    """The manifest and the state of a checkpoint, and tensors."""
    from llamafarm.models.checkpoint import damage, read_manifest
    from llamafarm_tuners.pytorch._state import OWN_FILES, read_state

    for name in ("llamafarm_checkpoint.json", *OWN_FILES):
        _file(f"checkpoint-1/{name}", data)
    folder = FOLDER / "checkpoint-1"
    read_manifest(folder)
    damage(folder)
    try:
        read_state(folder)
    finally:
        for name in ("optimizer.safetensors", "training_state.safetensors"):
            save_file({}, folder / name)
        read_state(folder)


def plugin(data: bytes) -> None:
    """Metadata of installed distributions."""
    from llamafarm.core.distributions import announced

    _file("site/fuzzed-1.dist-info/METADATA", data)
    _file("site/fuzzed-1.dist-info/entry_points.txt", data if data[:1] == b"[" else b"[llamafarm]\na = b\n")
    before = list(sys.path)
    sys.path[:] = [str(FOLDER / "site")]
    try:
        announced()
    finally:
        sys.path[:] = before


FRONT_DOORS = (*(strategy, rows, csv, gzip, model_config, adapter_config, template, manifest, checkpoint, plugin),)
TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in FRONT_DOORS}

SEEDS: dict[str, list[bytes]] = {
    "strategy": [
        b"name: a\ncomponents: {fine_tuner: {type: pytorch, config: {output_dir: x}}}",
        b"a: &b [*b, ${X:-1}]",
    ],
    "rows": [b'{"instruction": "a", "output": "b"}\n', b'[{"text": "a"}, {"text": 1e9}]'],
    "csv": [b'a,b\n1,"2\n3"\n', b"a;b\n1;2\n"],
    "gzip": [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xabV*I\xad(Q\xb2RJT\xaa\x05\x00"],
    "model_config": [
        json.dumps({"model_type": "llama", "auto_map": {}, "weight_map": {"a": "m.safetensors"}}).encode()
    ],
    "adapter_config": [json.dumps({"peft_type": "LORA", "r": 8, "target_modules": ["q"], "rank_pattern": {}}).encode()],
    "template": [b"{% for m in messages %}{{ m['role'] ~ m.content | trim }}{% endfor %}"],
    "manifest": [json.dumps({"version": 1, "methods": [{"type": "lora", "config": {}}], "pid": 1}).encode()],
    "checkpoint": [
        json.dumps(
            {"version": 1, "step": 1, "position": {}, "identity": {}, "files": {"a": {"bytes": 1, "sha256": ""}}}
        ).encode(),
        json.dumps(
            {
                "step": 1,
                "weights": {"a": ["b", "c"]},
                "scheduler": {"$items": [[1, {"$float": "inf"}]]},
                "optimizer": {"$tuple": []},
                "scaler": None,
                "others": {},
                "random": [],
            }
        ).encode(),
        b"\x40\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(64) + b"\0\0\x80\x3f",
    ],
    "plugin": [
        b"Metadata-Version: 2.1\nName: a\nVersion: 1\nRequires-Dist: llamafarm>=0.1; python_version>'3'\n",
        b"[llamafarm]\na = b.c:d [e]\n",
    ],
}


def attempt(name: str, data: bytes) -> None:
    """Run a target; our own errors are what it may end with."""
    try:
        TARGETS[name](data)
    except LlamaFarmError:
        return


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    from llamafarm.models.locate import locate

    return AutoTokenizer.from_pretrained(str(locate("builtin:tiny").folder))


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _read(name: str, data: bytes) -> None:
    from llamafarm.data.problems import ProblemLog
    from llamafarm.data.sources import read

    log = ProblemLog()
    for _ in read(str(_file(name, data)), log, lambda _: None):
        pass
    log.check()
