"""Thirty strings that try to leave, on every key that names a path: nothing is written outside the working folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafarm.core.load import load
from llamafarm.core.permissions import _paths, refusals
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.errors import LlamaFarmError

STRINGS = [
    "../x",
    "../../x",
    "../../../../../../../../etc/passwd",
    "a/../../x",
    "./../x",
    "..",
    ".",
    "/",
    "/etc/passwd",
    "/etc/cron.d/x",
    "/proc/self/environ",
    "/dev/null",
    "//etc/x",
    "~",
    "~/.ssh/authorized_keys",
    "~root/x",
    "../home/.ssh",
    "../home/.config/autostart",
    ".git/hooks",
    "C:\\Windows\\System32",
    "..\\..\\x",
    "\\\\server\\share",
    "x\0y",
    "x\n../y",
    "a" * 300,
    "b/" * 3000,
    "out./",
    "out ",
    "\u2215etc\u2215passwd",
    "..\uff0fx",
    "%2e%2e%2fx",
    "${HOME}/.ssh/x",
    "$(touch PWNED)",
    "; touch PWNED",
    "file:" + "///etc/passwd",
    "link/x",
]
KEYS = [
    ("output_dir",),
    ("base_model", "huggingface_id"),
    ("base_model", "cache_dir"),
    ("dataset", "path"),
    ("dataset", "eval_path"),
    ("dataset", "dataset_dir"),
    ("dataset", "sources", 0),
    ("export", "output_dir"),
    ("training", "hub_model_id"),
    ("name",),
]


def write(cage, key: tuple, text: str) -> None:
    config = {
        "base_model": {"huggingface_id": "builtin:tiny"},
        "dataset": {"path": "rows.jsonl"},
        "training": {"max_steps": 1, "save_strategy": "no"},
        "output_dir": "out",
    }
    strategy = {"name": "x", "components": {"fine_tuner": {"type": "pytorch", "config": config}}}
    if key[0] == "export":
        strategy["export"] = {"to": "adapter", "output_dir": text}
    elif key == ("name",):
        strategy["name"] = text
    elif "sources" in key:
        config["dataset"] = {"sources": [{"path": text}]}
    elif len(key) == 1:
        config[key[0]] = text
    else:
        config[key[0]] = config.get(key[0], {}) | {key[1]: text}
    cage.write("strategy.yaml", json.dumps(strategy))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ".".join(map(str, key)))
def test_no_string_leaves(cage, key: tuple) -> None:
    """Up to the point where training would begin; what stands there is tried for one string of each kind below."""
    cage.write("rows.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    (cage.work / "link").symlink_to(cage.home / ".ssh")
    registry, before = load_registry(), cage.outside()
    for text in STRINGS:
        write(cage, key, text)
        try:
            loaded = load(Request("strategy.yaml"), registry)
            plan = make_plan(loaded, registry).plan
        except LlamaFarmError as error:
            assert error.exit_code in (2, 3, 4, 7, 9, 10, 11), text  # noqa: PT017  # some strings are fine
            continue
        writes = [Path(loaded.tuner_config.output_dir), plan.output_dir]
        export, cache = loaded.strategy.export, loaded.tuner_config.base_model.cache_dir
        writes += [Path(place) for place in (export and export.output_dir, cache) if place]
        for place in writes:
            resolved = place.resolve()
            assert resolved.is_relative_to(cage.root), (text, resolved)
            assert not any(part.startswith(".") for part in resolved.relative_to(cage.root).parts), (text, resolved)
    assert cage.outside() == before
    assert not (cage.work / "PWNED").exists()


@pytest.mark.parametrize("text", ["../x", "a/../../home/.ssh/x", "link/x", "x\0y", "a" * 300])
def test_training_itself_stays_inside(cage, strategy, text: str) -> None:
    strategy({"output_dir": text})
    (cage.work / "link").symlink_to(cage.home / ".ssh")
    code = cage.run("train", "--strategy", "strategy.yaml")
    assert code == 10


def test_every_key_that_names_a_path_is_looked_at(cage) -> None:
    """A new field of a configuration whose name says that it is a path has to be in the table."""
    from llamafarm.api.config import BaseModelConfig, DatasetConfig, FineTunerConfig, TrainingConfig
    from llamafarm.core.schema import ExportConfig

    named = {
        name
        for config in (BaseModelConfig, DatasetConfig, FineTunerConfig, TrainingConfig, ExportConfig)
        for name in config.model_fields
        if name.endswith(("path", "dir", "file", "folder", "_id"))
    }
    assert named - {"hub_model_id", "overwrite_output_dir"} <= {
        "huggingface_id",
        "cache_dir",
        "path",
        "eval_path",
        "dataset_dir",
        "output_dir",
    }
    cage.write("rows.jsonl", '{"text": "one"}\n')
    write(cage, ("name",), "x")
    loaded = load(Request("strategy.yaml"), load_registry())
    assert {path[-1] for path, _ in _paths(loaded)} >= {"huggingface_id", "output_dir", "path"}
    assert list(refusals(loaded)) == []
