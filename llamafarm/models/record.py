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

    The record also says how the base that they were trained on was quantized, or that it was in 16 bits; the files of
    each method are written.
    """
    methods = tuple(methods)
    applied = [
        {"type": method.name, "config": method.config.model_dump(mode="json", exclude={"type"})} for method in methods
    ]
    record = {"version": _VERSION, "methods": applied, **_quantization(model), **_base_dtype(model)}
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / METHODS_FILE).write_text(f"{text}\n", encoding="utf-8")
    for method in methods:
        for name, content in method.files(model).items():
            (folder / name).write_text(content, encoding="utf-8")


def _base_dtype(model: Any) -> dict[str, Any]:
    """The format of a frozen base of 16 bits; nothing for one in fp32, a quantized one, or one that is trained."""
    config = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None or not hasattr(model, "peft_config"):
        return {}
    frozen = {str(item.dtype) for item in model.parameters() if item.is_floating_point() and not item.requires_grad}
    short = sorted(name.removeprefix("torch.") for name in frozen if name in ("torch.bfloat16", "torch.float16"))
    return {"base_dtype": short[0]} if short else {}


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


def read_base_dtype(folder: Path) -> str | None:
    """The 16-bit format that the frozen base had while the adapter in `folder` was trained on it; None: it had none.

    Raises:
        ModelError: If the file is there but cannot be understood.
    """
    return _read(folder)[2]


def _quantization(model: Any) -> dict[str, Any]:
    """What bitsandbytes did to the base, in the names of `AdapterSpec.quantization`."""
    asked = getattr(getattr(model, "config", None), "quantization_config", None)
    if asked is None:
        return {}
    options = asked if isinstance(asked, dict) else asked.to_dict()
    return {"quantization": {name: options[name] for name in _QUANTIZATION if options.get(name)}}


def _read(folder: Path) -> tuple[tuple[MethodRecord, ...], Mapping[str, Any], str | None]:
    path = folder / METHODS_FILE
    if not path.is_file():
        return (), {}, None
    hint = "it says what was done to the model, which cannot be put back without it: take the file from the run"
    return read_side_file(path, _VERSION, _understood, problem="LF-MODEL-050", hint=hint)


def _understood(content: Mapping[str, Any]) -> tuple[tuple[MethodRecord, ...], Mapping[str, Any], str | None]:
    methods = tuple(MethodRecord(str(entry["type"]), dict(entry["config"])) for entry in content["methods"])
    base_dtype = content.get("base_dtype")
    if base_dtype not in (None, "bfloat16", "float16"):
        raise ValueError(f"base_dtype {base_dtype!r} is none")
    return methods, dict(content.get("quantization", {})), base_dtype
