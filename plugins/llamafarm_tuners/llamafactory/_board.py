"""The curves of a run for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


def board(folder: Path) -> Any:
    """A writer into the run's `runs`."""
    return SummaryWriter(log_dir=str(folder / "runs"))
