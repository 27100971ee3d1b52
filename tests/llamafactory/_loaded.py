"""Run by LLaMA-Factory's interpreter: loads the model that arguments describe, and tells what each weight became."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Write name → [dtype, whether it is trained] of each parameter."""
    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    hparams, model = import_module("llamafactory.hparams"), import_module("llamafactory.model")
    model_args, _, _, finetuning_args, _ = hparams.get_train_args(arguments)
    tokenizer = model.load_tokenizer(model_args)["tokenizer"]
    loaded = model.load_model(tokenizer, model_args, finetuning_args, is_trainable=True)
    found = {name: [str(one.dtype), one.requires_grad] for name, one in loaded.named_parameters()}
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


main()
