"""From examples to token ids with labels: what `fit` feeds the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llamafarm.api import Example
from llamafarm.data.encode import Encoded, Encoder
from llamafarm.data.fit import IGNORED, TokenizedRow, pieces, truncate, whole
from llamafarm.data.problems import ProblemLog
from llamafarm.data.render import renderer
from llamafarm.data.spans import Rendered
from llamafarm.data.strict import Fault
from llamafarm.errors import DataError, ModelError

__all__ = ["IGNORED", "Tokenized", "TokenizedRow", "tokenize"]

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Rows ready for batches.

    Attributes:
        rows: In the order of the examples.
        counts: `examples`, `rows`, `tokens`, `trained_tokens`, `longest`; and what a too small length cost:
            `truncated`, `cut_into_pieces`, `dropped_without_answer` (examples), `tokens_cut`, `trained_tokens_cut`,
            `answers_without_end`.
    """

    rows: list[TokenizedRow]
    counts: Mapping[str, int]


def tokenize(
    examples: Sequence[Example], tokenizer: Any, *, stage: str, max_seq_length: int, train_on_inputs: bool
) -> Tokenized:
    """Tokenize examples and label what is learned: answers with their end token, or all of a raw text.

    Args:
        examples: What to tokenize.
        tokenizer: A Hugging Face tokenizer; its chat template is used when it has one.
        stage: `sft`, or `pt`: every token is learned, prompts too.
        max_seq_length: The most tokens of a row. Raw text is cut into pieces; conversations lose the beginning of
            their prompt.
        train_on_inputs: Learn prompts too.

    Raises:
        DataError: If no row is left to learn from.
        ModelError: If the tokenizer has no end-of-text token, its chat template cannot be used, or the two refuse some
            conversations; each is named.
    """
    everything = train_on_inputs or stage == "pt"
    counts: Counter[str] = Counter(examples=len(examples))
    rows: list[TokenizedRow] = []
    encoder = Encoder(tokenizer)
    for rendered, encoded in _encode(examples, renderer(tokenizer), encoder):
        if not encoded.learned:
            counts["dropped_without_answer"] += 1
            continue
        row = whole(encoded, everything=everything)
        if len(row.input_ids) <= max_seq_length:
            fitted = [row]
        elif rendered.raw or stage == "pt":
            fitted = list(pieces(row, max_seq_length))
            counts["cut_into_pieces"] += 1
        else:
            begin, answer = encoder.begins(encoded.ids), encoded.learned[-1][0]
            kept, cut = truncate(row, max_seq_length, begin=begin, answer=answer, everything=everything)
            fitted = [kept]
            counts.update(
                truncated=1,
                tokens_cut=len(row.input_ids) - len(kept.input_ids),
                trained_tokens_cut=_trained(row) - _trained(kept),
                answers_without_end=cut,
            )
        rows += _countable(fitted, counts)
    if not rows:
        message = f"none of {len(examples)} examples keeps an answer within {max_seq_length} tokens"
        raise DataError.of("LF-DATA-023", message, hint="raise training.max_seq_length")
    counts.update(rows=len(rows), longest=max(len(row.input_ids) for row in rows))
    return Tokenized(rows, dict(counts))


def _encode(
    examples: Iterable[Example], render: Callable[[Example], Rendered], encoder: Encoder
) -> Iterator[tuple[Rendered, Encoded]]:
    """Render and encode in batches; what is wrong with any example is raised at the end, all together."""
    log, remaining = ProblemLog(), iter(examples)
    while batch := list(islice(remaining, _BATCH)):
        rendered: list[Rendered] = []
        for example in batch:
            try:
                rendered.append(render(example))
            except Fault as fault:
                log.add(fault.at(str(example.ref)))
        for text, encoded in zip(rendered, encoder.encode(rendered), strict=True):
            if isinstance(encoded, Fault):
                log.add(encoded.at(str(text.ref)))
            else:
                yield text, encoded
    log.check(ModelError)


def _countable(rows: Iterable[TokenizedRow], counts: Counter[str]) -> Iterator[TokenizedRow]:
    """The rows that teach something; the first position of a row is never predicted."""
    for row in rows:
        trained = _trained(row)
        if trained == (row.labels[0] != IGNORED):
            counts["dropped_without_answer"] += 1
            continue
        counts.update(tokens=len(row.input_ids), trained_tokens=trained)
        yield row


def _trained(row: TokenizedRow) -> int:
    return len(row.labels) - row.labels.count(IGNORED)
