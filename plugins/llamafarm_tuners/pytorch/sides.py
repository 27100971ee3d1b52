"""Both sides of the data as tokens, with a record of what became of each row. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamafarm.api import Example, FineTunerConfig, PreparedData, RunContext
from llamafarm.data.cache import cache_file, read, write
from llamafarm.data.explicit import explicit_mask
from llamafarm.data.ledger import check_losses, losses_by_source, row_ledger, said_of_losses
from llamafarm.data.stored import TokenRows
from llamafarm.data.tokens import Tokenized, tokenize


@dataclass(frozen=True, slots=True)
class Sides:
    """What is learned, and what is held out."""

    train: Tokenized
    eval: Tokenized


def tokenized_sides(
    config: FineTunerConfig, data: PreparedData, tokenizer: Any, run: RunContext, first_token: int | None = None
) -> Sides:
    """Tokenize both sides, and say and record what became of each row.

    Args:
        config: How rows are read.
        data: Both sides.
        tokenizer: The base model's.
        run: Is told.
        first_token: What the methods want every row to begin with.

    Raises:
        DataError: If too much of what is to be learned does not fit.
    """
    if first_token is not None:
        kinds = ("bos_token", "eos_token", "pad_token")
        names = [kind for kind in kinds if getattr(tokenizer, f"{kind}_id") == first_token]
        text = f"{first_token} {tokenizer.convert_ids_to_tokens(first_token)!r}"
        run.emit("notice", message=f"every row begins with token {text} ({' and '.join(names) or 'no special token'})")
    train = _tokenized(config, data.train, tokenizer, "training", run, first_token)
    held_out = _tokenized(config, data.eval, tokenizer, "held-out", run, first_token)
    rows = row_ledger(data.counts, train.counts, held_out.counts)
    sides = {"train": train, "eval": held_out}
    losses = losses_by_source(train, data.train)
    for sentence in said_of_losses(losses, config.dataset.over_long):
        run.emit("notice", message=sentence)
    run.emit(
        "ledger",
        rows=rows,
        tokens={name: dict(side.counts) for name, side in sides.items()},
        mask_audit={name: side.audit for name, side in sides.items() if side.audit},
        token_loss={"over_long": config.dataset.over_long, "train": losses},
    )
    check_losses(train, data.train, config.dataset.max_token_loss)
    return Sides(train, held_out)


def _tokenized(
    config: FineTunerConfig,
    examples: Sequence[Example],
    tokenizer: Any,
    what: str,
    run: RunContext,
    first_token: int | None,
) -> Tokenized:
    if not examples:
        return Tokenized(TokenRows(), {})
    options: dict[str, Any] = {
        "stage": config.training.stage,
        "max_seq_length": config.training.max_seq_length,
        "train_on_inputs": config.dataset.train_on_inputs,
        "over_long": config.dataset.over_long,
        "first_token": first_token,
        "split_special_tokens": config.dataset.split_special_tokens,
    }
    explicit, audited = explicit_mask(config.dataset, tokenizer), config.dataset.mask_audit
    key = options | {"explicit": explicit and [explicit.prefix, explicit.suffix], "audit": audited.model_dump()}
    cached = cache_file(examples, tokenizer, key) if config.dataset.cache else None
    known = read(cached) if cached else None
    tokenized = known or tokenize(examples, tokenizer, **options, mask_audit=audited, explicit=explicit)
    if cached and not known:
        write(cached, tokenized)
    listed = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in tokenized.counts.items())
    audit = f"; {tokenized.audit}" if tokenized.audit else ""
    run.emit("notice", message=f"{what} rows{', from the cache' if known else ''}: {listed}{audit}")
    return tokenized
