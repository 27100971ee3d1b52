"""What the tests of methods do with a model: load, apply, train a little, save, load again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from llamafarm.api import BaseModelConfig, Method, TrainingConfig
from llamafarm.core.registry import load_registry
from llamafarm.core.trained import load_trained
from llamafarm.data.tokens import TokenizedRow
from llamafarm.models._load import load_for_generation, load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._checkpoints import restore_weights
from llamafarm_tuners.pytorch._methods import Methods
from llamafarm_tuners.pytorch._store import Trained, write_model

ROWS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 21, 31, 41, 51, 61]])

STEPS = 20
SEEN = [
    TokenizedRow([1, *ids], [-100, *ids])
    for ids in torch.randint(3, 250, (16, 11), generator=torch.Generator().manual_seed(0)).tolist()
]
"""Rows that a method may look at before the first step."""


def load(folder: Path, quantization: dict[str, Any] | None = None) -> Any:
    return load_model(BaseModelConfig(huggingface_id=str(folder)), dtype=torch.float32, quantization=quantization)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(ROWS).logits


def apply(method: Method[Any], model: Any, folder: Path, run: RecordingRun | None = None) -> Any:
    """As a run begins: with the method applied, and after it has seen the rows."""
    torch.manual_seed(0)
    run = run or RecordingRun(folder)
    adapted = method.apply(model, run)
    Methods(adapted, [method], run).begin(SEEN, 0, TrainingConfig(), STEPS)
    return adapted


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train(model: Any, steps: int = 4, rate: float = 1e-2) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ROWS, labels=ROWS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def put_back(model: Any, method: Method[Any], folder: Path) -> None:
    """As a run does with its best checkpoint."""
    restore_weights(Trained(model, None, "", "", methods=(method,)), folder)


def digest(parameters: Any) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for parameter in parameters:
        hashed.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def saved_and_loaded(model: Any, method: Method[Any], base: Path, folder: Path) -> Any:
    """As a run saves it and every command loads it, with other random numbers than it was made with."""
    folder.mkdir()
    _, tokenizer = load_for_generation(str(base))
    write_model(Trained(model, tokenizer, str(base), "base", methods=(method,)), folder)
    torch.manual_seed(12345)
    return load_trained(str(folder), load_registry(), device="cpu", dtype=torch.float32).model
