"""What is to be exported, and how."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamafarm.models.serving import Target

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """One export.

    Attributes:
        model: A folder of a run, a checkpoint or a model.
        to: The target.
        output: The folder to write; it is there whole or not at all.
        dtype: Precision of the weights; `auto`: the base's.
        max_shard_size: Largest file of weights, as `5GB`.
        gguf_type: How GGUF stores the weights.
        llama_cpp: A checkout of llama.cpp, whose converter writes what is not written here.
        keep_adapter: For `vllm`: the adapter beside its base instead of a merged model.
        device: Where the model is loaded, torch's device type.
        system: For `ollama`: the system message of the Modelfile.
        num_ctx: For `ollama`: the context length; the model's own if None.
        temperature: For `ollama`: the temperature of the Modelfile; none is written if None.
        name: What the server calls the model; the model folder's name if empty.
        overwrite: Replace an earlier export in `output`.
    """

    model: str
    to: Target
    output: Path
    dtype: Dtype = "auto"
    max_shard_size: str = "5GB"
    gguf_type: GgufType = "f16"
    llama_cpp: Path | None = None
    keep_adapter: bool = False
    device: str = "cpu"
    system: str | None = None
    num_ctx: int | None = None
    temperature: float | None = None
    name: str = ""
    overwrite: bool = False

    @property
    def served_name(self) -> str:
        """What the server calls the model: letters, digits, dots, `-` and `_`, as it also names files."""
        name = self.name or Path(os.path.realpath(Path(self.model.removeprefix("builtin:")).expanduser())).name
        return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"
