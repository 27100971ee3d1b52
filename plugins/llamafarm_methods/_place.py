"""Where adapters go in a model: the option's names, made into layers that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llamafarm.errors import ModelError, nearest
from llamafarm_methods.config import TargetConfig
from llamafarm_methods.targets import in_layers, matching, named, resolve_targets


@dataclass(frozen=True, slots=True)
class Placement:
    """What an adapter is put on.

    Attributes:
        targets: Names for PEFT: leaf names where they are exact, else whole paths.
        excluded: Whole paths that PEFT shall leave out.
        saved: Names of the modules that are trained whole.
        paths: The layers that are adapted, sorted.
        transposed: Whether their weights are stored as (in, out), as GPT-2 does.
        tied: Whether a module that is trained whole shares its weight with another one.
    """

    targets: Sequence[str]
    excluded: Sequence[str]
    saved: Sequence[str]
    paths: Sequence[str]
    transposed: bool
    tied: bool


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its path: dense, transposed, or packed in 4 or 8 bits by whatever library."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or hasattr(module, "qweight")
    }


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every normalization: a module whose own weight is a vector."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim == 1
    }


def place(model: PreTrainedModel, config: TargetConfig, layers: Mapping[str, nn.Module] | None = None) -> Placement:
    """Say which layers are adapted.

    Args:
        model: Without adapters.
        config: What was asked for.
        layers: The layers to choose from; None: the linear ones.

    Raises:
        ModelError: If a name matches nothing, or nothing is left.
    """
    layers = linear_layers(model) if layers is None else layers
    head = next((path for path, module in layers.items() if module is model.get_output_embeddings()), None)
    targets = resolve_targets(config.target_modules, list(layers), head)
    excluded = named(config.exclude_modules, list(layers), "exclude_modules") if config.exclude_modules else set()
    saved = _modules_to_save(model, config.modules_to_save)
    chosen = {path for name in targets for path in matching(name, layers)}
    # what is trained whole takes no adapter
    chosen -= excluded.union(*(matching(name, layers) for name in saved))
    paths = _in_layers(chosen, config)
    return Placement(
        targets,
        sorted(excluded),
        saved,
        paths,
        isinstance(layers[paths[0]], Conv1D),
        bool(saved and getattr(model.config, "tie_word_embeddings", False)),
    )


def _in_layers(chosen: set[str], config: TargetConfig) -> list[str]:
    kept = chosen
    if config.layers_to_transform is not None:
        kept = {path for path in chosen if in_layers(path, config.layers_to_transform, config.layers_pattern)}
    if not chosen:
        raise ModelError.of(
            "LF-MODEL-072",
            "exclude_modules and modules_to_save leave no layer to adapt",
            hint="name more in target_modules, or exclude less",
        )
    if not kept:
        raise ModelError.of(
            "LF-MODEL-021",
            f"layers_to_transform {list(config.layers_to_transform or ())} leaves no layer to adapt",
            hint=f"the first of the layers is {min(chosen)}; numbers start at 0",
        )
    return sorted(kept)


def _modules_to_save(model: nn.Module, names: Sequence[str]) -> list[str]:
    paths = [path for path, _ in model.named_modules() if path]
    for name in names:
        if not matching(name, paths):
            leaves = {path.rpartition(".")[2] for path in paths}
            raise ModelError.of(
                "LF-MODEL-022",
                f"modules_to_save {name!r}: no module of this model has that name",
                hint=nearest(name, leaves),
            )
    return list(names)


def require_placed(adapted: Any, expected: Sequence[str]) -> None:
    """Check that PEFT adapted what was chosen, neither more nor less."""
    placed = sorted(adapted.base_model.targeted_module_names)
    assert placed == list(expected), f"PEFT adapted {placed}, expected {expected}"
