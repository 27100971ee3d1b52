"""How weights are written: as the hub has them, or as GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from llamafarm.export import _gguf, _merge
from llamafarm.export._compare import tokenizer_checks
from llamafarm.export.report import Check
from llamafarm.export.request import ExportRequest
from llamafarm.models.serving import GGUF_ARCHITECTURES


class Format(Protocol):
    """A way to write a model."""

    @property
    def name(self) -> str:
        """The precision."""
        ...

    @property
    def file(self) -> str | None:
        """The one file that holds everything; None for a folder of safetensors."""
        ...

    @property
    def readable(self) -> bool:
        """Whether transformers reads it back."""
        ...

    def write(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write it; the model's weights may be rounded by that."""
        ...

    def round_off(self, model: Any) -> None:
        """Give the model in memory the values that the files hold, in float32."""
        ...

    def tokenizer_checks(self, folder: Path, tokenizer: Any, examples: Sequence[Any]) -> list[Check]:
        """Whether the tokenizer of training was written."""
        ...


@dataclass(frozen=True, slots=True)
class Safetensors:
    """config.json, safetensors and the tokenizer."""

    name: str
    max_shard_size: str
    file: str | None = None
    readable: bool = True

    def write(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write in this precision. Parameters alone are cast: a rounded buffer of positions would be another model."""
        dtype = getattr(torch, self.name)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        _merge.write(model, tokenizer, folder, max_shard_size=self.max_shard_size)
        self.round_off(model)

    def round_off(self, model: Any) -> None:
        """Round to this precision and back."""
        dtype = getattr(torch, self.name)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).to(torch.float32)

    def tokenizer_checks(self, folder: Path, tokenizer: Any, examples: Sequence[Any]) -> list[Check]:
        """Encode the prompts by both."""
        return tokenizer_checks(folder, tokenizer, examples)


def format_for(request: ExportRequest, base_dtype: str, model_type: str) -> Format:
    """The way to write what is asked for.

    Raises:
        ModelError: If a library that it needs is missing.
    """
    importable = model_type not in GGUF_ARCHITECTURES and request.llama_cpp is None  # by Ollama itself
    if request.to == "gguf" or (request.to == "ollama" and not importable):
        return _gguf.planned(request, model_type)
    return Safetensors(base_dtype if request.dtype == "auto" else request.dtype, request.max_shard_size)


def format_of(folder: Path, dtype: str) -> Format:
    """The way a folder was written."""
    files = sorted(folder.glob("*.gguf"))
    return _gguf.written(files[0]) if files else Safetensors(dtype, "5GB")
