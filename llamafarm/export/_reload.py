"""Load an exported folder as anybody else would: with transformers or peft alone."""

from __future__ import annotations

from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def reload_model(folder: Path, *, device: str, gguf: str | None = None) -> Any:
    """The model of a folder, or of a GGUF file in it, in float32 and evaluation mode."""
    options: dict[str, Any] = {
        "trust_remote_code": False,
        **({"gguf_file": gguf} if gguf else {"use_safetensors": True}),
    }
    with redirect_stderr(StringIO()) if gguf else nullcontext():  # its progress bar cannot be switched off
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **options)
    return model.to(device).eval()


def reload_adapter(folder: Path, base: Any) -> Any:
    """An adapter folder on a base that is loaded already, by peft alone."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()


def reload_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder."""
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
