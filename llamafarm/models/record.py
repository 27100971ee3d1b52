"""Which methods made a saved model: a small file beside the weights, read back whenever the model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.api import Method
from llamafarm.errors import ModelError

METHODS_FILE = "llamafarm_methods.json"
_VERSION = 1


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
    """Write down the methods, in the order they were applied, and the files that each of them adds."""
    methods = tuple(methods)
    applied = [
        {"type": method.name, "config": method.config.model_dump(mode="json", exclude={"type"})} for method in methods
    ]
    text = json.dumps({"version": _VERSION, "methods": applied}, indent=2, ensure_ascii=False)
    (folder / METHODS_FILE).write_text(f"{text}\n", encoding="utf-8")
    for method in methods:
        for name, content in method.files(model).items():
            (folder / name).write_text(content, encoding="utf-8")


def read_methods(folder: Path) -> tuple[MethodRecord, ...]:
    """The methods that were applied to the model in `folder`; none if it was not made by us.

    Raises:
        ModelError: If the file is there but cannot be understood.
    """
    path = folder / METHODS_FILE
    if not path.is_file():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']} is not {_VERSION}")  # noqa: TRY301  # one way to say it
        return tuple(MethodRecord(str(entry["type"]), dict(entry["config"])) for entry in content["methods"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError.of(
            "LF-MODEL-050",
            f"{METHODS_FILE} cannot be understood: {error}",
            where=str(path),
            hint="it says what was done to the model, which cannot be put back without it: take the file from the run",
        ) from None
