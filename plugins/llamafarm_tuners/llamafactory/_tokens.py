"""Run by the interpreter of LLaMA-Factory's environment: writes what it makes of rows, as token ids and labels.

Usage: python _tokens.py ARGUMENTS.json ROWS.json
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Tokenize the training rows of a file of arguments."""
    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    hparams, data, model = (import_module(f"llamafactory.{name}") for name in ("hparams", "data", "model"))
    model_args, data_args, training_args, *_ = hparams.get_train_args(arguments)
    loaded = model.load_tokenizer(model_args)
    template = data.get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    found = data.get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in found["train_dataset"]]
    Path(sys.argv[2]).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
