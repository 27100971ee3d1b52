"""Make room in a model for new tokens: larger embeddings, whose new rows are the mean of the old ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llamafarm.errors import ModelError
from llamafarm.models.special import Vocabulary
from llamafarm.models.vocabulary import Additions, remember_additions

_CHUNK = 8192


def fit_vocabulary(model: PreTrainedModel, vocabulary: Vocabulary, multiple: int = 1) -> tuple[str, ...]:
    """Give the model a row for each token, and its configuration the ids of BOS, EOS and PAD.

    Returns:
        What was done, one sentence each; nothing where the model already suits the tokenizer.

    Raises:
        ModelError: If the tokenizer is larger than the embedding although nothing was added to it.
    """
    tokenizer = vocabulary.tokenizer
    name_special_tokens(model, tokenizer)
    if not vocabulary.new:
        require_room(model, tokenizer)
        return ()
    before = rows_of(model)
    needed = max(len(tokenizer), before)
    rows = before if needed == before else -(-needed // multiple) * multiple
    additions = Additions(rows, vocabulary.new, tokenizer.pad_token_id)
    add_rows(model, additions)
    if rows == before:
        return (f"the embedding keeps its {rows} rows: there is room for {len(vocabulary.new)} new tokens",)
    return (f"the embedding grows from {before} to {rows} rows for {len(vocabulary.new)} new tokens",)


def add_rows(model: PreTrainedModel, additions: Additions) -> None:
    """Grow the embeddings, input and output, and set new rows to the mean of the base model's: the same every time.

    The output of the mean row is the mean of all logits, so that a new token is never the likeliest one untrained.
    """
    before = rows_of(model)
    weights = list(_weights(model))
    means = [_mean(weight[:before]) for weight in weights]
    if additions.rows > before:
        with torch.random.fork_rng():  # what transformers fills in first is drawn by chance, and replaced
            model.resize_token_embeddings(additions.rows, mean_resizing=False)
    places = sorted({*range(before, additions.rows), *additions.new.values()})
    with torch.no_grad():
        for weight, mean in zip(_weights(model), means, strict=True):
            weight[places] = mean.to(weight)
    remember_additions(model, additions)


def require_room(model: PreTrainedModel, tokenizer: Any) -> None:
    """Check that every token of the tokenizer has a row in the model's embedding.

    Raises:
        ModelError: If the tokenizer is larger.
    """
    rows = rows_of(model)
    if len(tokenizer) > rows:
        raise ModelError.of(
            "LF-MODEL-010",
            f"the tokenizer has {len(tokenizer)} tokens, but the model's embedding only {rows} rows",
            hint="give the base model whose tokenizer this is",
        )


def rows_of(model: PreTrainedModel) -> int:
    """Rows of the input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def learn_every_token(model: PreTrainedModel) -> None:
    """Let the row of the PAD token learn as any other: it may be the end-of-text token too.

    transformers builds embeddings that ignore the gradient of one id. Padding has none anyway, by its place.
    """
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None


def _weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """The embedding, and what the output head has besides: its own weight if it is not tied, and a bias."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = [embedding.weight]
    if head is not None and head.weight is not embedding.weight:
        found.append(head.weight)
    if getattr(head, "bias", None) is not None:
        found.append(head.bias)
    return found


def _mean(weight: torch.Tensor) -> torch.Tensor:
    """Mean over the rows, in double precision and little memory."""
    total = torch.zeros(weight.shape[1:], dtype=torch.float64)
    for start in range(0, len(weight), _CHUNK):
        total += weight[start : start + _CHUNK].detach().cpu().double().sum(dim=0)
    return total / len(weight)


def name_special_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    """The tokenizer's BOS, EOS and PAD in the model's configuration; its end tokens stay end tokens."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        number = getattr(tokenizer, name)
        if number is None:
            continue
        known = getattr(model.config, name, None)
        ends = known if isinstance(known, list) else []
        if number not in ends:
            setattr(model.config, name, number)
    generation = model.generation_config
    if generation is None:
        return
    before = generation.eos_token_id
    ends = before if isinstance(before, list) else [before]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends = [tokenizer.eos_token_id, *(end for end in ends if end is not None)]
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(generation, name, getattr(tokenizer, name))
