"""Put adapters and methods into the weights, and write the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llamafarm.api import Method
from llamafarm.errors import ModelError
from llamafarm.models._turns import end_of_turn


def is_adapter(model: nn.Module) -> bool:
    """Whether it has adapters of PEFT."""
    return hasattr(model, "peft_config")


def without_adapter(model: Any) -> Any:
    """A context in which the adapters have no effect."""
    return model.disable_adapter() if is_adapter(model) else nullcontext()


def merge(model: Any, methods: Sequence[Method[Any]]) -> Any:
    """The model with everything that was trained in its own weights; changed in place.

    Raises:
        ModelError: If an adapter or a method cannot be written into weights.
    """
    for method in methods:
        if reason := method.adapter().unmergeable:
            message = f"{method.name} cannot be merged: {reason}"
            raise ModelError.of("LF-MODEL-117", message, hint="use --to adapter")
    if is_adapter(model):
        try:
            model = model.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
            kinds = ", ".join(sorted({str(config.peft_type.value) for config in model.peft_config.values()}))
            raise ModelError.of(
                "LF-MODEL-117",
                f"the {kinds} adapter cannot be merged: {' '.join(str(error).split())[:300]}",
                hint="use --to adapter",
            ) from error
    for method in methods:
        model = method.bake(model)
    _untie(model)
    return model.eval()


def write(model: Any, tokenizer: Any, folder: Path, *, max_shard_size: str) -> None:
    """Write the model as the hub has models, with its tokenizer; a server that knows only this stops after a turn."""
    ends = end_tokens(model, tokenizer)
    if model.generation_config is not None and ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens after which a server has to stop: the model's own, the tokenizer's, and what ends a turn."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in (*own, tokenizer.eos_token_id, end_of_turn(tokenizer)) if token is not None})


def _untie(model: Any) -> None:
    """Say in the configuration that the output head is a weight of its own, where training has made it one."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    one, other = head.weight, embedding.weight
    if one.data_ptr() != other.data_ptr() and not (one.shape == other.shape and torch.equal(one, other)):
        model.config.tie_word_embeddings = False
