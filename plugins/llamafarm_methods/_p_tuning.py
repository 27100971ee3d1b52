"""The network behind a learned prompt, beside what PEFT saves of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file

_FILE: Final = "prompt_encoder.safetensors"
_WITHIN: Final = "prompt_encoder.default."


def written(model: Any, folder: Path) -> None:
    """Save the network."""
    tensors = model.prompt_encoder["default"].state_dict()
    # by the names that they have in the model, so that a checkpoint's training state need not repeat them
    named = {f"{_WITHIN}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / _FILE, metadata={"format": "pt"})


def put_back(model: Any, folder: Path) -> None:
    """Load the network."""
    tensors = load_file(folder / _FILE)
    model.prompt_encoder["default"].load_state_dict(
        {name.removeprefix(_WITHIN): tensor for name, tensor in tensors.items()}
    )
