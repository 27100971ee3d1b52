"""Run by the interpreter of LLaMA-Factory's environment: writes what is installed there as JSON, or fails.

Usage: python _probe.py FILE
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "llamafactory",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "unsloth",
)
_ARGUMENTS = ("ModelArguments", "DataArguments", "TrainingArguments", "FinetuningArguments", "GeneratingArguments")


def main() -> None:
    """Write `versions` and `facts`: the names of all arguments, by the class that has them, and of all templates."""
    import_module("llamafactory.train.tuner")  # what training imports: fails here rather than in a run
    classes = import_module("llamafactory.hparams")
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    arguments = {
        name: sorted(field.name for field in fields(getattr(classes, name)) if field.init) for name in _ARGUMENTS
    }
    templates = sorted(import_module("llamafactory.data.template").TEMPLATES)
    answer = {"versions": found, "facts": {"arguments": arguments, "templates": templates}}
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
