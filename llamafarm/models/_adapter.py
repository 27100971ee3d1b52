"""What loading an adapter has in common with making one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from llamafarm.errors import ModelError, SecurityError
from llamafarm.models.adapter_config import FILE, WEIGHTS, read_adapter_config
from llamafarm.models.templates import TooCostly, limited

_WRAPPING = re.compile(r"\.(default|modules_to_save|base_layer|original_module|weight)(?=\.|$)")
"""Parts of a tensor's name that differ between an adapter's file and the model it is loaded into."""


@contextmanager
def repeatable() -> Iterator[None]:
    """Draw the same random numbers each time, leaving the generators outside as they are.

    PEFT takes some bases apart by a randomized algorithm, both when the adapter is made and whenever it is loaded: with
    other numbers the rest that stays in the base would be another one than was trained.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@contextmanager
def without_idle_warnings() -> Iterator[None]:
    """Leave out what PEFT says of what it treats rightly all the same.

    Modules that it has no list of; layers from which AdaLoRA took every rank, whose matrices are empty; and the ranks
    that AdaLoRA left, which are named by matrix and not by layer.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"The following rank_pattern keys .*\.lora_E'", category=RuntimeWarning
        )
        warnings.filterwarnings("ignore", message=r"Adapter '\w+': \d+ LoRA tensor\(s\) have invalid shape")
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        yield


class _Blocks:
    """Puts blocks on the diagonal of a matrix and takes them off again, in the shapes that PEFT's kernel has them."""

    def forward(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        """(n, blocks, size, size) → (n, blocks · size, blocks · size), zeros elsewhere."""
        n, count, size, _ = blocks.shape
        matrix = blocks.new_zeros(n, count, size, count, size)
        torch.diagonal(matrix, dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
        return [matrix.view(n, count * size, count * size)]

    def backward(self, gradient: torch.Tensor, blocks: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of the matrix → that of the blocks."""
        n, count, size, _ = blocks.shape
        on_the_diagonal = torch.diagonal(gradient.reshape(n, count, size, count, size), dim1=1, dim2=3)
        return [on_the_diagonal.permute(0, 3, 1, 2).contiguous()]


def blocks_without_compiling() -> None:
    """Have PEFT's BOFT compute in torch: by itself it compiles code when a layer is made, for CUDA alone.

    Without that code it would take one rotation where the adapter has several, and load another model than was trained.
    """
    from peft.tuners.boft import layer

    layer._FBD_CUDA = layer._FBD_CUDA or _Blocks()  # noqa: SLF001  # where PEFT keeps the code that it compiled


class _Permutation:
    """A permutation that layers share, on the device and in the format in which it was last asked for."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def to(self, *wanted: Any) -> torch.Tensor:
        """As `torch.Tensor.to`."""
        self.matrix = self.matrix.to(*wanted)
        return self.matrix


def share_permutations(model: nn.Module) -> nn.Module:
    """Keep BOFT's permutations once: a square matrix for each layer, and layers with as many inputs have the same.

    They follow from the options, so that they are no part of a checkpoint either.
    """
    known: list[_Permutation] = []
    for module in model.modules():
        if isinstance(given := getattr(module, "boft_P", None), torch.Tensor):
            same = [one for one in known if one.matrix.shape == given.shape and torch.equal(one.matrix, given)]
            known += [] if same else [_Permutation(given)]
            del module.boft_P
            module.boft_P = same[0] if same else known[-1]
    return model


def adapter_config(folder: Path) -> Any:
    """PEFT's configuration of an adapter, made from the keys that were checked.

    Raises:
        ModelError: If PEFT has no such kind of adapter, or does not take the values.
        SecurityError: If it chooses code or other files.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    described = read_adapter_config(folder)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(described.get("peft_type")).upper())
    if kind is None:
        message = f"{FILE} has the peft_type {str(described.get('peft_type'))[:60]!r}, which this PEFT does not know"
        raise ModelError.of("LF-MODEL-174", message, where=str(folder / FILE))
    described.pop("runtime_config", None)
    try:
        return kind.from_peft_type(**kind.check_kwargs(**described))
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError.of("LF-MODEL-174", f"{FILE}: {reason}", where=str(folder / FILE)) from None


def check_patterns(model: nn.Module, config: Any, given: str) -> None:
    """Match an adapter's patterns against the names of all modules, as PEFT will, but not for ever.

    Raises:
        ModelError: If one is no pattern.
        SecurityError: If one does not come to an end.
    """
    told = [getattr(config, name, None) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    patterns = [pattern for pattern in told if isinstance(pattern, str)]
    for name in ("rank_pattern", "alpha_pattern"):
        patterns += [rf"(.*\.)?({key})$" for key in getattr(config, name, None) or {}]
    try:
        with limited():
            for pattern in patterns:
                compiled = re.compile(pattern)
                for name, _ in model.named_modules():
                    compiled.fullmatch(name)
    except TooCostly as error:
        message = f"the adapter in {given} has a pattern that {error}"
        raise SecurityError.of("LF-SECURITY-012", message, hint="list the names of its modules instead") from None
    except (re.error, RecursionError) as error:
        raise ModelError.of("LF-MODEL-174", f"{FILE} of {given} has no valid pattern: {error}") from None


def check_tensors(model: nn.Module, folder: Path) -> None:
    """Every tensor of a LoRA's file has its place in the model: PEFT leaves others out without a word.

    Raises:
        ModelError: If one has none.
    """
    configs = getattr(model, "peft_config", {})
    if any(str(getattr(config.peft_type, "value", config.peft_type)) != "LORA" for config in configs.values()):
        return
    places = {_WRAPPING.sub("", name) for name in model.state_dict()}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        lost = [name for name in file.keys() if _WRAPPING.sub("", name) not in places]  # noqa: SIM118  # no mapping
    if lost:
        message = f"{len(lost)} tensors of {WEIGHTS} have no place in the base, such as {lost[0][:100]}"
        hint = f"its base is another model, or {FILE} is not its own"
        raise ModelError.of("LF-MODEL-173", message, where=str(folder), hint=hint)
