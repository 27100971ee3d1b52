"""Accounts: where every row went, and what of it is not learned because rows have a longest length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamafarm.api import Example
from llamafarm.data.tokens import Loss, Tokenized
from llamafarm.errors import DataError, Problem

_WORST = 5
_HINT = "raise training.max_seq_length, choose another dataset.over_long, or raise dataset.max_token_loss"


def row_ledger(prepared: Mapping[str, int], train: Mapping[str, int], held_out: Mapping[str, int]) -> dict[str, int]:
    """Put together what became of each row that was read.

    Args:
        prepared: Counts of `prepare`.
        train: Counts of `tokenize` for the rows to train on; empty if there are none.
        held_out: The same for those held out.

    Returns:
        `read` = `trained` + `held_out` + every `dropped_…`; and `copies`, which are among these.
    """
    ledger = dict(prepared)
    for side, counts in (("trained", train), ("held_out", held_out)):
        assert counts.get("examples", 0) == prepared[side], f"row ledger: {side} {prepared[side]}, tokenized {counts}"
        ledger[side] = counts.get("learned_from", 0)
        for name, count in counts.items():
            if name.startswith("dropped_"):
                ledger[name] = ledger.get(name, 0) + count
    found = sum(count for name, count in ledger.items() if name not in ("read", "copies"))
    assert found == ledger["read"], f"row ledger: {ledger['read']} rows were read, {found} are accounted for: {ledger}"
    return ledger


def check_losses(tokenized: Tokenized, examples: Sequence[Example], allowed: float) -> None:
    """Refuse to train when rows lose too much of what they teach.

    Args:
        tokenized: Rows that fit.
        examples: What they were made of.
        allowed: Largest share of the trained tokens that may be lost; below 1, no answer may lose its end either.

    Raises:
        DataError: If it is more; the rows that lose most are named.
    """
    counts = tokenized.counts
    lost, open_ends = counts.get("trained_tokens_cut", 0), counts.get("answers_without_end", 0)
    total = counts["trained_tokens"] + lost
    if lost <= allowed * total and (not open_ends or allowed == 1):
        return
    message = (
        f"{lost:,} of {total:,} trained tokens ({lost / total:.1%}) and the end of {open_ends:,} answers do not fit; "
        f"dataset.max_token_loss allows {allowed:.1%}, and no answer without its end"
    )
    worst = sorted(tokenized.losses.items(), key=lambda item: (-item[1].open_end, -item[1].trained_tokens))
    named = [_named(examples[index], loss) for index, loss in worst[:_WORST]]
    raise DataError([Problem("LF-DATA-082", message, hint=_HINT), *named])


def losses_by_source(tokenized: Tokenized, examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """What does not fit, of each file: its rows that lose something, their trained tokens, and ends of answers."""
    found: dict[str, dict[str, int]] = {}
    for index, loss in tokenized.losses.items():
        lost = found.setdefault(examples[index].ref.file, {"rows": 0, "trained_tokens": 0, "end_tokens": 0})
        lost["rows"] += 1
        lost["trained_tokens"] += loss.trained_tokens
        lost["end_tokens"] += loss.ends
    return found


def said_of_losses(losses: Mapping[str, Mapping[str, int]], policy: str) -> list[str]:
    """The same in words, a sentence for each of the files that lose most.

    Args:
        losses: What `losses_by_source` found.
        policy: `dataset.over_long`.
    """
    worst = sorted(losses.items(), key=lambda item: -item[1]["trained_tokens"])
    sentences = [
        f"{source}: over_long: {policy} costs {lost['trained_tokens']:,} trained tokens and {lost['end_tokens']:,} end "
        f"tokens of {lost['rows']:,} rows"
        for source, lost in worst[:_WORST]
    ]
    return [*sentences, f"and {len(worst) - _WORST:,} more files lose some"] if len(worst) > _WORST else sentences


def _named(example: Example, loss: Loss) -> Problem:
    end = ", and its answer loses its end" if loss.open_end else ""
    return Problem("LF-DATA-082", f"loses {loss.trained_tokens:,} trained tokens{end}", str(example.ref))
