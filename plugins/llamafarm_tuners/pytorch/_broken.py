"""The step that broke: where its first value went wrong, and a record from which it can be taken again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llamafarm.data.packing import Pack
from llamafarm.data.tokens import TokenizedRow
from llamafarm_tuners.pytorch._batches import TokenRow
from llamafarm_tuners.pytorch._state import trained_weights
from llamafarm_tuners.pytorch._store import replaced_folder
from llamafarm_tuners.pytorch._tree import pack, unpack
from llamafarm_tuners.pytorch.journal import write_json

RECORD: Final = "step.json"
ROWS: Final = "rows.safetensors"
WEIGHTS: Final = "weights.safetensors"
KEPT: Final = "methods.safetensors"
_MARK: Final = "not_finite."
_ODD: Final = (float("nan"), float("inf"), float("-inf"))


@dataclass(frozen=True, slots=True)
class FirstBad:
    """The first value that is not finite.

    Attributes:
        place: A module or a parameter, by its name in the model.
        kind: `weight`, `output`, `gradient` or `loss`.
    """

    place: str
    kind: str

    def __str__(self) -> str:
        return {
            "weight": f"the weight {self.place}",
            "output": f"the output of {self.place}",
            "gradient": f"the gradient at {self.place}",
            "loss": "the loss",
        }[self.kind]


def first_bad(model: nn.Module, compute: Callable[[], float]) -> FirstBad | None:
    """Find the first value that is not finite: among the weights, then forward, then backward.

    Args:
        model: Not wrapped; its gradients are cleared.
        compute: Forward and backward pass of a step; the sum of its loss.
    """
    for name, tensor in trained_weights(model):
        if not _finite(tensor):
            return FirstBad(name, "weight")
    found: list[FirstBad] = []
    model.zero_grad(set_to_none=True)
    with _watched(model, found):
        loss = compute()
    if not found:
        bad = (name for name, parameter in model.named_parameters() if not _finite(parameter.grad))
        found += [FirstBad(name, "gradient") for name in bad]
    model.zero_grad(set_to_none=True)
    if found:
        return found[0]
    return None if loss == loss and abs(loss) != float("inf") else FirstBad("loss", "loss")  # noqa: PLR0124  # NaN


@contextmanager
def _watched(model: nn.Module, found: list[FirstBad]) -> Iterator[None]:
    """While it lasts, note each module whose output, or the gradient that reaches it, is not finite."""

    def backward(name: str, gradient: torch.Tensor) -> None:
        if not _finite(gradient):
            found.append(FirstBad(name, "gradient"))

    def forward(name: str, module: nn.Module, given: Any, output: Any) -> None:
        del module, given
        for tensor in _tensors(output):
            if not _finite(tensor):
                found.append(FirstBad(name, "output"))
            elif tensor.requires_grad:
                tensor.register_hook(partial(backward, name))

    named = ((name or type(model).__name__, module) for name, module in model.named_modules())
    handles = [module.register_forward_hook(partial(forward, name)) for name, module in named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def write_broken(
    folder: Path,
    model: nn.Module,
    parts: Sequence[Sequence[TokenRow]],
    generators: str,
    facts: Mapping[str, Any],
    kept: Mapping[str, Any],
) -> None:
    """Write what `read_broken` needs to take the step again.

    Token ids and labels, no text. A weight that is not finite is written as a finite one with a table of its odd
    values, so that no file holds a tensor that is not finite.

    Args:
        folder: The record.
        model: As it was before the step.
        parts: The rows that went through the model at a time, in order.
        generators: The state of this process' generators before the step.
        facts: Anything else, as plain JSON.
        kept: What the methods kept.

    Raises:
        DiskError: If it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder) as temporary:
        save_file(dict(_written_rows(parts)), temporary / ROWS)
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in trained_weights(model):
            weights |= _written(name, tensor.detach().cpu())
        save_file(weights, temporary / WEIGHTS)
        tensors: dict[str, torch.Tensor] = {}
        methods = pack(kept, tensors, "state")
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, temporary / KEPT)
        lengths = [len(part) for part in parts]
        write_json(
            temporary / RECORD, {**facts, "parts": lengths, "methods": methods, "random": json.loads(generators)}
        )


def read_broken(folder: Path) -> tuple[dict[str, Any], list[list[TokenRow]], dict[str, torch.Tensor]]:
    """Read a record: its facts, the rows of each part, and the weights."""
    facts: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    rows = load_file(folder / ROWS)
    parts = [[_row(rows, f"{part}.{row}") for row in range(length)] for part, length in enumerate(facts["parts"])]
    raw = load_file(folder / WEIGHTS)
    weights = {}
    for name, tensor in raw.items():
        if not name.startswith(_MARK):
            for code, value in enumerate(_ODD, 1):
                if (marks := raw.get(f"{_MARK}{name}")) is not None:
                    tensor[marks == code] = value
            weights[name] = tensor
    return facts, parts, weights


def read_kept(folder: Path) -> Mapping[str, Any]:
    """Read what the methods kept."""
    methods = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("methods", {})
    kept: Mapping[str, Any] = unpack(methods, load_file(folder / KEPT)) if methods else {}
    return kept


def put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Give a model the weights of a record; the names that only one side has."""
    present = dict(trained_weights(model))
    with torch.no_grad():
        for name in present.keys() & weights.keys():
            present[name].copy_(weights[name])
    return sorted(present.keys() ^ weights.keys())


def _written_rows(parts: Sequence[Sequence[TokenRow]]) -> Iterator[tuple[str, torch.Tensor]]:
    for part, rows in enumerate(parts):
        for index, row in enumerate(rows):
            for name in ("input_ids", "labels", *(("positions",) if isinstance(row, Pack) else ())):
                yield f"{part}.{index}.{name}", torch.tensor(list(getattr(row, name)), dtype=torch.long)


def _row(tensors: Mapping[str, torch.Tensor], name: str) -> TokenRow:
    ids, labels = (tensors[f"{name}.{field}"].tolist() for field in ("input_ids", "labels"))
    positions = tensors.get(f"{name}.positions")
    return TokenizedRow(ids, labels) if positions is None else Pack(ids, labels, positions.tolist())


def _written(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if _finite(tensor):
        return {name: tensor.contiguous().clone()}
    marks = torch.zeros(tensor.shape, dtype=torch.uint8)
    for code, odd in enumerate((tensor.isnan(), tensor == _ODD[1], tensor == _ODD[2]), 1):
        marks[odd] = code
    return {name: torch.where(tensor.isfinite(), tensor, 0).contiguous(), f"{_MARK}{name}": marks}


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))


def _finite(tensor: torch.Tensor | None) -> bool:
    return tensor is None or not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
