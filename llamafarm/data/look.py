"""Looks at tokenized rows as the model will see them: decoded tokens, what is trained of them, and the totals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from llamafarm.api import Example, FineTunerConfig
from llamafarm.data.audit import Auditor
from llamafarm.data.explicit import explicit_mask
from llamafarm.data.fit import IGNORED, TokenizedRow
from llamafarm.data.ledger import check_losses, losses_by_source
from llamafarm.data.tokens import Fitted, audit, tokenize
from llamafarm.errors import DataError, LlamaFarmError, Problem


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens as text, all trained or none."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class SeenRow:
    """One row of the training set, as the model sees it.

    Attributes:
        number: Its position in the training set, from 1.
        where: `file:line`.
        pieces: Its decoded tokens.
        tokens: How many.
        trained: How many of them are trained.
        whole: How many tokens it had before it was cut to max_seq_length.
        parts: How many rows it is cut into; this is the first.
        stop: The stop token of the last answer.
        stopped: Whether it is trained; None where no answer is meant (raw text).
    """

    number: int
    where: str
    pieces: tuple[Piece, ...]
    tokens: int
    trained: int
    whole: int
    parts: int
    stop: str
    stopped: bool | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of the whole training set.

    Attributes:
        examples: How many there are.
        p50: Half of the examples have at most this many tokens, before cutting.
        p95: The same for 95 of 100.
        longest: The most tokens of an example, before cutting.
        tokens: Tokens that are left after cutting.
        trained: Those of them that are trained.
        truncated: Examples cut at max_seq_length.
        lost_tokens: Trained tokens that do not fit.
        losses: The same for each file that loses some: its rows, trained tokens and end tokens.
        lost_end: Answers that lose their end.
        unlabelled: Examples without a trained token: they are dropped.
        lost_answer: Those of them that had one before they were cut.
        audit: The result of the mask audit in one sentence.
        problems: What training would refuse.
    """

    examples: int
    p50: int
    p95: int
    longest: int
    tokens: int
    trained: int
    truncated: int
    lost_tokens: int
    losses: Mapping[str, Mapping[str, int]]
    lost_end: int
    unlabelled: int
    lost_answer: int
    audit: str
    problems: tuple[Problem, ...]


def look(
    examples: Sequence[Example],
    tokenizer: Any,
    config: FineTunerConfig,
    wanted: Iterable[int],
    first_token: int | None = None,
) -> tuple[list[SeenRow], Totals]:
    """Tokenize all examples as training would.

    Args:
        examples: The training set.
        tokenizer: The base model's.
        config: Stage, length and masks.
        wanted: Positions of the rows to show, from 1.
        first_token: What the methods want every row to begin with.

    Raises:
        ModelError: If the tokenizer or its chat template cannot be used for the examples.
    """
    everything = config.dataset.train_on_inputs or config.training.stage == "pt"
    auditor, chosen, seen = Auditor(tokenizer, config.dataset.mask_audit), frozenset(wanted), []
    sizes: list[int] = []
    tokens = learned = truncated = unended = unlabelled = lost = 0

    def watch(fitted: Fitted) -> None:
        nonlocal tokens, learned, truncated, unended, unlabelled, lost
        audit(fitted, auditor, everything=everything)
        sizes.append(len(fitted.row.input_ids))
        if len(sizes) in chosen:
            seen.append(_seen(len(sizes), fitted, tokenizer, auditor))
        cut = sizes[-1] > config.training.max_seq_length
        tokens += sum(len(row.input_ids) for row in fitted.rows)
        learned += sum(len(row.labels) - row.labels.count(IGNORED) for row in fitted.rows)
        truncated += cut
        unended += fitted.unended
        unlabelled += not fitted.rows
        lost += cut and not fitted.rows

    problems: tuple[Problem, ...] = ()
    lost_tokens, losses = 0, dict[str, dict[str, int]]()
    try:
        tokenized = tokenize(
            examples,
            tokenizer,
            stage=config.training.stage,
            max_seq_length=config.training.max_seq_length,
            train_on_inputs=config.dataset.train_on_inputs,
            over_long=config.dataset.over_long,
            explicit=explicit_mask(config.dataset, tokenizer),
            first_token=first_token,
            split_special_tokens=config.dataset.split_special_tokens,
            watch=watch,
        )
        lost_tokens = tokenized.counts.get("trained_tokens_cut", 0)
        losses = losses_by_source(tokenized, examples)
        check_losses(tokenized, examples, config.dataset.max_token_loss)
    except DataError as error:
        problems = error.problems
    sizes.sort()
    if config.dataset.mask_audit.enabled:
        problems += _problems(auditor, len(examples), unlabelled)
    totals = Totals(
        examples=len(examples),
        p50=_percentile(sizes, 50),
        p95=_percentile(sizes, 95),
        longest=sizes[-1] if sizes else 0,
        tokens=tokens,
        trained=learned,
        truncated=truncated,
        lost_tokens=lost_tokens,
        losses=losses,
        lost_end=unended,
        unlabelled=unlabelled,
        lost_answer=lost,
        audit=auditor.summary() if auditor.found.rows else "",
        problems=problems,
    )
    return seen, totals


def _seen(number: int, fitted: Fitted, tokenizer: Any, auditor: Auditor) -> SeenRow:
    row = fitted.rows[0] if fitted.rows else fitted.row
    labels = row.labels if fitted.rows else [IGNORED] * len(row.labels)
    ends = fitted.rows[-1].labels if fitted.rows else []
    last = next((token for token in reversed(ends) if token != IGNORED), IGNORED)
    return SeenRow(
        number=number,
        where=str(fitted.example.ref),
        pieces=tuple(_pieces(TokenizedRow(row.input_ids, labels), tokenizer)),
        tokens=len(row.input_ids),
        trained=len(labels) - labels.count(IGNORED),
        whole=len(fitted.row.input_ids),
        parts=len(fitted.rows),
        stop=auditor.name(last if last in auditor.stops else auditor.stop),
        stopped=last in auditor.stops if fitted.example.messages else None,
    )


def _pieces(row: TokenizedRow, tokenizer: Any) -> Iterator[Piece]:
    """Decoded stretches; what sentencepiece drops at the beginning of a text is put back by decoding from the start."""
    done, before = 0, ""
    for learned, labels in groupby(row.labels, key=lambda label: label != IGNORED):
        done += len(list(labels))
        text: str = tokenizer.decode(
            row.input_ids[:done], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        yield Piece(text[len(before) :], learned)
        before = text


def _problems(auditor: Auditor, examples: int, unlabelled: int) -> tuple[Problem, ...]:
    try:
        auditor.check(examples, unlabelled)
    except LlamaFarmError as error:
        return error.problems
    return ()


def _percentile(ordered: Sequence[int], percent: int) -> int:
    """The smallest value that `percent` of all do not exceed."""
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)] if ordered else 0
