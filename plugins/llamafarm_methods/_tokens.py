"""Let an adapter learn the rows of tokens that are new to its base model, and these rows alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import peft
from torch import nn
from transformers import PreTrainedModel

from llamafarm.api import RunContext
from llamafarm.models.vocabulary import additions_of
from llamafarm_methods.targets import matching


def with_new_tokens(
    settings: peft.LoraConfig, model: PreTrainedModel, adapted: Collection[str], run: RunContext
) -> peft.LoraConfig:
    """The settings, such that the rows of new tokens are trained: by `trainable_token_indices`.

    A new row says nothing yet, so that it has to be learned whole; the others stay as they are, and the adapter stays
    small. Only an output head with a bias is trained whole (`modules_to_save`): PEFT would leave the bias out.

    Args:
        settings: Of the adapter; is changed.
        model: The base model, with rows for its new tokens.
        adapted: Paths of the layers that take an adapter.
        run: Told what is trained and why.
    """
    additions = additions_of(model)
    if additions is None or not additions.learned:
        return settings
    ids = sorted(additions.learned.values())
    rows = _asked(settings, model)
    whole: list[str] = []
    for path, module in _matrices(model):
        name = path.rpartition(".")[2]
        if any(matching(saved, [path]) for saved in settings.modules_to_save or ()):
            continue
        if path in adapted:
            run.emit("notice", message=f"{name}: its adapter learns the new tokens too, as far as its rank goes")
        elif getattr(module, "bias", None) is not None:
            whole.append(name)
        else:
            rows[name] = sorted({*rows.get(name, ()), *ids})
    settings.trainable_token_indices = rows or None
    if whole:
        settings.modules_to_save = [*(settings.modules_to_save or ()), *whole]
    tokens = ", ".join(f"{token} ({number})" for token, number in additions.learned.items())
    ways = [f"trainable_token_indices of {', '.join(rows)}"] * bool(rows)
    ways += [f"modules_to_save {', '.join(settings.modules_to_save or ())}"] * bool(settings.modules_to_save)
    if ways:
        run.emit(
            "notice",
            message=f"new tokens are learned with the adapter by {' and '.join(ways)}, because the base model knows "
            f"nothing of them: {tokens}",
        )
    return settings


def warn_of_new_tokens(model: PreTrainedModel, run: RunContext, option: str) -> None:
    """Say so where new tokens are not learned.

    Args:
        model: The base model, with what trains in it chosen.
        run: Told of it.
        option: The method's option that would let them be learned; empty if it has none.
    """
    additions = additions_of(model)
    if additions is None or not additions.learned:
        return
    idle = [path.rpartition(".")[2] for path, module in _matrices(model) if not _learns(module)]
    if idle:
        way = f"add {' and '.join(idle)} to {option}" if option else "take the method lora"
        run.emit("warning", message=f"the new tokens {', '.join(additions.learned)} are not learned; {way}")


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _asked(settings: peft.LoraConfig, model: PreTrainedModel) -> dict[str, list[int]]:
    """Rows that are trained anyway, by the name of their module; a plain list is one of the embedding."""
    given = settings.trainable_token_indices
    if isinstance(given, dict):
        return {name: list(ids) for name, ids in given.items()}
    path = next(path for path, module in model.named_modules() if module is model.get_input_embeddings())
    return {path.rpartition(".")[2]: list(given)} if given else {}


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold a row for each token: the embedding, and the output head unless they share one."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for path, module in model.named_modules():
        if module is embedding or (module is head and module.weight is not embedding.weight):
            yield path, module
