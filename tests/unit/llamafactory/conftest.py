from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import DeviceSpec, RunPlan
from llamafarm.api.backend import MARKER, backend_folder
from llamafarm_methods.hooks import llamafarm_methods
from llamafarm_tuners.llamafactory.tuner import LlamaFactoryTuner

METHODS = {method.name: method for method in llamafarm_methods()}
CPU = DeviceSpec("cpu", "a CPU")


@pytest.fixture
def make():
    """Build a tuner and a plan; every path of `options` counts as written down."""

    def build(
        options: Mapping[str, Any], method: Mapping[str, Any] | None = None, device: DeviceSpec = CPU
    ) -> tuple[LlamaFactoryTuner, RunPlan]:
        config = LlamaFactoryTuner.Config.model_validate({"base_model": {"huggingface_id": "builtin:tiny"}, **options})
        chosen = METHODS[method["type"]] if method else None
        rest = {key: value for key, value in (method or {}).items() if key != "type"}
        methods = (chosen(chosen.Config.model_validate(rest)),) if chosen else ()
        given = {path: f"s.yaml:{path}" for path in _paths(options)}
        return LlamaFactoryTuner(config), RunPlan("test", methods, device, Path("out"), (), given)

    return build


def _paths(options: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in options.items():
        found.append(f"{before}{key}")
        if isinstance(value, Mapping):
            found.extend(_paths(value, f"{before}{key}."))
    return found


@pytest.fixture
def marked(monkeypatch, tmp_path):
    """A backend that is set up, as its marker tells: enough for all that is checked before it is run."""
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    python = tmp_path / "python"
    python.touch()
    arguments = {"FinetuningArguments": ["lora_rank", "neftune_noise_alpha", "galore_rank", "ref_model"]}
    facts = {"arguments": arguments, "templates": ["llama2", "llama3", "phi"]}
    marker = {"python": str(python), "owned": True, "versions": {"llamafactory": "0.9.5"}, "facts": facts}
    folder = backend_folder("llamafactory")
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps(marker))
    return folder
