"""What the installed torch was built for, read from its files: importing it takes a second."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """An installed torch.

    Attributes:
        version: Its version.
        cuda: The CUDA version that it was built for; empty for none.
        cudnn: The version of the cuDNN package installed with it; empty when there is none to see.
    """

    version: str
    cuda: str
    cudnn: str


def torch_build() -> TorchBuild | None:
    """Look at the installed torch; `None` when there is none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    values = _assignments(Path(spec.origin).with_name("version.py"))
    cuda = values.get("cuda") or ""
    return TorchBuild(values.get("__version__") or "", cuda, _cudnn(cuda))


def _assignments(path: Path) -> dict[str, str | None]:
    """The names that a module sets to plain text or None."""
    values: dict[str, str | None] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str | None):
            values[target.id] = value.value
    return values


def _cudnn(cuda: str) -> str:
    try:
        return version(f"nvidia-cudnn-cu{cuda.split('.', maxsplit=1)[0]}") if cuda else ""
    except PackageNotFoundError:
        return ""
