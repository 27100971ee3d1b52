"""Strategies for LLaMA-Factory that try to reach past it, and what its process is given.

What is started is a spy in the place of its interpreter: it writes down what it was given, and ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api.backend import MARKER, backend_folder
from llamafarm_tuners.llamafactory.config import NATIVE
from llamafarm_tuners.llamafactory.translate import OURS

SPY = """#!/bin/sh
here=$(dirname "$0")
env > "$here/env"
pwd > "$here/folder"
for word in "$@"; do printf '%s\\0' "$word"; done > "$here/argv"
cp "$2" "$here/arguments"
cp -r . "$here/folder-of-the-run"
exit 3
"""
CANARIES = {
    "HF_TOKEN": "hf_CANARYCANARYCANARYCANARYCANARY00",
    "WANDB_API_KEY": "CANARY-wandb-0123456789",
    "AWS_SECRET_ACCESS_KEY": "CANARY-aws-0123456789",
    "MY_SECRET": "CANARY-mine-0123456789",
}


@pytest.fixture
def spy(cage, monkeypatch) -> Path:
    """The folder that the spy writes into."""
    folder = cage.root / "spy"
    folder.mkdir()
    (folder / "python").write_text(SPY)
    (folder / "python").chmod(0o755)
    place = backend_folder("llamafactory")
    place.mkdir(parents=True)
    facts: dict[str, Any] = {"arguments": {}, "templates": ["llama3"]}
    marker = {"python": str(folder / "python"), "owned": True, "versions": {"llamafactory": "0.9.5"}, "facts": facts}
    (place / MARKER).write_text(json.dumps(marker))
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def theirs(strategy):
    """Write a strategy for LLaMA-Factory."""

    def write(**config: Any) -> None:
        path = strategy({"training": {"max_steps": 1, "batch_size": 2}, **config})
        path.write_text(path.read_text().replace('"pytorch"', '"llamafactory"'))

    return write


INFO = {
    "leads out": {"file_name": "../../elsewhere/secret.txt"},
    "absolute": {"file_name": "/proc/self/environ"},
    "script": {"script_url": "evil.py"},
    "address": {"file_name": "https://example.com/rows.jsonl"},
    "cloud": {"cloud_file_name": "s3://bucket/rows.jsonl"},
    "columns that are code": {"file_name": "rows.jsonl", "columns": {"prompt": "__class__", "response": {"a": 1}}},
}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"arguments": {"ref_model": "/etc"}}, "SECURITY-020"),
    "a model by address": ({"arguments": {"reward_model": "https://example.com"}}, "SECURITY-020"),
    "rules that name classes": ({"arguments": {"kt_optimize_rule": "/tmp/evil.yaml"}}, "SECURITY-020"),
    "a token for others": ({"arguments": {"push_to_hub_token": "x"}}, "SECURITY-020"),
    "a file of settings": ({"arguments": {"fsdp_config": "/etc/passwd"}}, "SECURITY-020"),
    "a cache among keys": ({"arguments": {"cache_dir": "../home/.ssh"}}, "SECURITY-020"),
    "a cache among keys by its alias": ({"cache_dir": "../home/.ssh"}, "SECURITY-007"),
    "an output among keys": ({"output_dir": "../home/.ssh"}, "SECURITY-007"),
    "an output by its own name": ({"arguments": {"output_dir": "/etc"}}, "STRATEGY-086"),
    "trust": ({"base_model": {"huggingface_id": "builtin:tiny", "trust_remote_code": True}}, "SECURITY-002"),
    "trust by its alias": ({"trust_remote_code": True}, "SECURITY-002"),
    "trust as an argument": ({"arguments": {"trust_remote_code": True}}, "STRATEGY-086"),
    "deepspeed": ({"arguments": {"deepspeed": "evil.json"}}, "STRATEGY-086"),
    "media": ({"arguments": {"media_dir": "/"}}, "STRATEGY-086"),
    "an upload": ({"training": {"push_to_hub": True, "hub_model_id": "a/b"}}, "SECURITY-010"),
    "a template that is a path": ({"template": "../../elsewhere/secret"}, "STRATEGY-088"),
    "a template of lines": ({"template": "llama3\ntrust_remote_code: true"}, "STRATEGY-088"),
    "a key with a line feed": ({"arguments": {"lora_rank\ntrust_remote_code": 1}}, "LF-"),
    "a checkpoint elsewhere": ({"resume_from_checkpoint": "../../elsewhere"}, "LF-"),
    "a checkpoint with NUL": ({"resume_from_checkpoint": "a\0b"}, "LF-"),
    "rows of a device": ({"dataset": "/dev/zero"}, "DATA-240"),
    "rows up the tree": ({"dataset": "../elsewhere/rows.jsonl"}, "LF-DATA"),
    "a name with a line feed": ({"dataset": "rows\n/etc/passwd"}, "LF-"),
    **{f"dataset_info: {name}": ({"dataset": "evil", "dataset_dir": "."}, "LF-") for name in INFO},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_strategies_that_reach_past_it(cage, spy, theirs, name: str) -> None:
    config, shown = HOSTILE[name]
    theirs(**config)
    entry = INFO.get(name.partition(": ")[2], INFO["script"])
    cage.write("dataset_info.json", json.dumps({"evil": entry}))
    cage.write("evil.py", "import os\nopen(os.environ['PWNED'], 'w').close()\n")
    code = cage.run("train", "--strategy", "strategy.yaml")
    assert code in (2, 3, 4, 7, 9, 10), cage.shown
    assert shown in cage.shown
    assert "CANARY" not in cage.shown
    assert not (spy / "argv").exists(), "its process was started"


def test_what_is_typed_passes(cage, spy, theirs) -> None:
    theirs()
    assert cage.run("train", "-s", "strategy.yaml", "--set", "arguments.ref_model=x", "--dry-run") == 0, cage.shown


ODD = "a b; touch $PWNED #'\"&|"
WORDS = f"$(touch $PWNED) `touch $PWNED`\ntrust_remote_code: true\n{{{{ 7 }}}} {ODD}"


def test_what_its_process_is_given(cage, spy, theirs) -> None:
    """A list of arguments, an environment without secrets, and a file with keys of ours and values as they were."""
    secret = {"token": "hf_CANARYCANARYCANARYCANARYCANARY11"}
    theirs(base_model={"huggingface_id": "builtin:tiny", **secret}, arguments={"default_system": WORDS})
    assert cage.run("train", "--strategy", "strategy.yaml", "--output", ODD) == 5, cage.shown
    launch, arguments, events = (spy / "argv").read_text().split("\0")[:-1]
    own = cage.work / ODD / "llamafarm" / "llamafactory"
    assert (Path(arguments), Path(events)) == (own / "train.yaml", own / "events.jsonl")
    assert Path(launch).name == "_launch.py"
    assert (spy / "folder").read_text().rstrip("\n") == str(own)
    environment = (spy / "env").read_text()
    assert "CANARY" not in environment
    names = {line.partition("=")[0] for line in environment.splitlines()}
    assert not names & {*CANARIES, "PWNED", "PYTHONPATH"}
    given = json.loads((spy / "arguments").read_text())
    assert given["default_system"] == WORDS
    assert given["trust_remote_code"] is False
    assert given["output_dir"] == str(own / "output")
    assert not {"hf_hub_token", "hub_token", "token"} & given.keys()
    written = [path for path in (spy / "folder-of-the-run").rglob("*") if path.is_file()]
    assert {"train.yaml", "dataset_info.json"} <= {path.name for path in written}
    assert not [path for path in written if b"CANARY" in path.read_bytes()]


def test_the_arguments_of_strategies_are_known() -> None:
    """Whoever adds a name to the list reads this: it must neither read, write, fetch nor import anything."""
    assert not [
        name for name in NATIVE if name.endswith(("_dir", "_path", "_url", "_token", "_file", "_config", "_id"))
    ]
    assert not set(NATIVE) & set(OURS)
