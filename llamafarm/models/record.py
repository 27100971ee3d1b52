"""Which methods made a saved model: a small file beside the weights, read back whenever the model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.api import Method
from llamafarm.models.side_file import read_side_file

METHODS_FILE = "llamafarm_methods.json"
_VERSION = 1
_QUANTIZATION = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
)


@dataclass(frozen=True, slots=True)
class MethodRecord:
    """A method that was applied, as it is written down.

    Attributes:
        type: Its name in the registry.
        config: Its whole configuration.
    """

    type: str
    config: Mapping[str, Any]


def write_methods(folder: Path, methods: Iterable[Method[Any]], model: Any) -> None:
    """Write down the methods, in the order they were applied, and what they leave beside the weights.

    The record also says how the base that they were trained on was quantized; the files of each method are written.
    """
    methods = tuple(methods)
    applied = [
        {"type": method.name, "config": method.config.model_dump(mode="json", exclude={"type"})} for method in methods
    ]
    record = {"version": _VERSION, "methods": applied, **_quantization(model)}
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / METHODS_FILE).write_text(f"{text}\n", encoding="utf-8")
    for method in methods:
        for name, content in method.files(model).items():
            (folder / name).write_text(content, encoding="utf-8")


def read_methods(folder: Path) -> tuple[MethodRecord, ...]:
    """The methods that were applied to the model in `folder`; none if it was not made by us.

    Raises:
        ModelError: If the file is there but cannot be understood.
    """
    return _read(folder)[0]


def read_quantization(folder: Path) -> Mapping[str, Any]:
    """How the base was quantized while the model in `folder` was trained on it; empty if it was not.

    Raises:
        ModelError: If the file is there but cannot be understood.
    """
    return _read(folder)[1]


def _quantization(model: Any) -> dict[str, Any]:
    """What bitsandbytes did to the base, in the names of `AdapterSpec.quantization`."""
    asked = getattr(getattr(model, "config", None), "quantization_config", None)
    if asked is None:
        return {}
    options = asked if isinstance(asked, dict) else asked.to_dict()
    return {"quantization": {name: options[name] for name in _QUANTIZATION if options.get(name)}}


def _read(folder: Path) -> tuple[tuple[MethodRecord, ...], Mapping[str, Any]]:
    path = folder / METHODS_FILE
    if not path.is_file():
        return (), {}
    hint = "it says what was done to the model, which cannot be put back without it: take the file from the run"
    return read_side_file(path, _VERSION, _understood, problem="LF-MODEL-050", hint=hint)


def _understood(content: Mapping[str, Any]) -> tuple[tuple[MethodRecord, ...], Mapping[str, Any]]:
    methods = tuple(MethodRecord(str(entry["type"]), dict(entry["config"])) for entry in content["methods"])
    return methods, dict(content.get("quantization", {}))
