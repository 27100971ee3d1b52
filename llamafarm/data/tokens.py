"""From examples to token ids with labels: what `fit` feeds the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

from llamafarm.api import Example, MaskAuditConfig
from llamafarm.data.audit import Auditor
from llamafarm.data.encode import Encoded, Encoder
from llamafarm.data.explicit import ExplicitMask
from llamafarm.data.fit import IGNORED, TokenizedRow, pieces, truncate, whole
from llamafarm.data.problems import ProblemLog
from llamafarm.data.render import renderer
from llamafarm.data.spans import Rendered
from llamafarm.data.stored import TokenRows
from llamafarm.data.strict import Fault
from llamafarm.errors import DataError, ModelError

__all__ = ["IGNORED", "Fitted", "Tokenized", "TokenizedRow", "audit", "tokenize"]

OverLong = Literal["truncate", "drop", "split", "error"]
"""What becomes of rows above the longest length."""

_BATCH = 1000
_RAISE = "raise training.max_seq_length, or choose dataset.over_long: truncate, drop or split"


@dataclass(frozen=True, slots=True)
class Loss:
    """What an example lost to the length.

    Attributes:
        trained_tokens: Tokens that would have been learned.
        ends: Answers whose last token is not learned.
        open_end: Whether the beginning of such an answer is learned nevertheless.
    """

    trained_tokens: int
    ends: int
    open_end: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of one example.

    Attributes:
        example: The example.
        encoded: All its tokens, and the positions that an answer takes.
        row: All its tokens to the last learned one, labelled.
        rows: What is left of it to learn within the longest allowed length; none if nothing is.
        unended: An answer is begun and has lost its end.
    """

    example: Example
    encoded: Encoded
    row: TokenizedRow
    rows: Sequence[TokenizedRow] = ()
    unended: bool = False


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Rows ready for batches.

    Attributes:
        rows: In the order of the examples.
        counts: `examples`, of them `learned_from`, `first_token_added` (it was not there) and
            `with_special_tokens_as_text`, `rows`, `tokens`, `trained_tokens`, `longest`; and what a too small length
            cost: `truncated`, `cut_into_pieces`, `dropped_without_answer`, `dropped_too_long` (examples), `tokens_cut`,
            `trained_tokens_cut`, `end_tokens_cut`, and `answers_without_end`: begun, so that they would be learned
            as answers that go on.
        losses: Examples that lost something to learn: index → trained tokens and answers' ends.
        audit: The result of the mask audit in one sentence; empty if there was none.
    """

    rows: TokenRows
    counts: Mapping[str, int]
    losses: Mapping[int, Loss] = field(default_factory=dict)
    audit: str = ""


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    stage: str,
    max_seq_length: int,
    train_on_inputs: bool,
    over_long: OverLong = "truncate",
    mask_audit: MaskAuditConfig | None = None,
    explicit: ExplicitMask | None = None,
    first_token: int | None = None,
    split_special_tokens: bool = True,
    watch: Callable[[Fitted], None] | None = None,
) -> Tokenized:
    """Tokenize examples and label what is learned: answers with their end token, or all of a raw text.

    Args:
        examples: What to tokenize.
        tokenizer: A Hugging Face tokenizer; its chat template is used when it has one.
        stage: `sft`, or `pt`: every token is learned, prompts too.
        max_seq_length: The most tokens of a row. Raw text is cut into pieces; conversations lose the beginning of
            their prompt, unless `over_long` says otherwise.
        train_on_inputs: Learn prompts too.
        over_long: What becomes of longer rows: `truncate` as said above, `drop` them, `split` conversations into
            pieces too, or raise an `error`.
        mask_audit: What to refuse; None looks at nothing.
        explicit: Learn what these ids enclose, instead of what the template says.
        first_token: What every row begins with; it is put there where it is not, and never learned.
        split_special_tokens: Special tokens that stand in a row are text: they never get the ids that templates use.
        watch: Is shown each example.

    Raises:
        DataError: If no row is left to learn from, rows are preferences, or (`error`) rows are too long; each
            is named.
        ModelError: If the tokenizer has no end-of-text token, its chat template cannot be used, or the two refuse some
            conversations; each is named.
    """
    _require_trainable(examples, stage)
    everything = train_on_inputs or stage == "pt"
    counts: Counter[str] = Counter(examples=len(examples))
    rows = TokenRows()
    losses: dict[int, Loss] = {}
    too_long = ProblemLog()
    encoder = Encoder(tokenizer, first_token)
    auditor = Auditor(tokenizer, mask_audit) if mask_audit and mask_audit.enabled else None
    shown = partial(_show, auditor=auditor, watch=watch, everything=everything)
    render = renderer(tokenizer, spans=explicit is None, split_special_tokens=split_special_tokens)
    length = _Length(max_seq_length, over_long, everything=everything, whole=stage == "pt", first_token=first_token)
    for index, rendered, encoded in _encode(examples, render, encoder):
        example = examples[index]
        counts["first_token_added"] += encoded.added
        counts["with_special_tokens_as_text"] += bool(rendered.literal)
        if explicit and example.messages:
            encoded.learned = explicit.learned(example, encoded.ids)
        if not encoded.learned:
            counts["dropped_without_answer"] += 1
            shown(Fitted(example, encoded, TokenizedRow(encoded.ids, [IGNORED] * len(encoded.ids))))
            continue
        row = whole(encoded, everything=everything)
        try:
            fit = length.fit(row, encoded, raw=rendered.raw, begin=encoder.begins(encoded.ids))
        except Fault as fault:
            too_long.add(fault.at(str(rendered.ref)))
            continue
        counts.update(fit.counts)
        if fit.loss:
            losses[index] = fit.loss
        teaching = list(_countable(fit.rows, counts))
        shown(Fitted(example, encoded, row, teaching, bool(fit.loss and fit.loss.open_end)))
        counts["dropped_without_answer"] += bool(fit.rows) and not teaching
        for piece in teaching:
            piece.example = index
            rows.append(piece)
    too_long.check()
    if not rows:
        message = f"none of {len(examples)} examples keeps an answer within {max_seq_length} tokens"
        raise DataError.of("LF-DATA-023", message, hint="raise training.max_seq_length")
    if auditor:
        auditor.check(len(examples), counts["dropped_without_answer"])
    counts.update(
        rows=len(rows),
        learned_from=len(set(rows.examples)),
        longest=max(rows.lengths),
        trained_tokens_cut=sum(loss.trained_tokens for loss in losses.values()),
        end_tokens_cut=sum(loss.ends for loss in losses.values()),
        answers_without_end=sum(loss.open_end for loss in losses.values()),
    )
    kept_losses = {index: loss for index, loss in losses.items() if loss.trained_tokens or loss.ends}
    return Tokenized(rows, {name: count for name, count in counts.items() if count}, kept_losses, _said(auditor))


def _show(fitted: Fitted, *, auditor: Auditor | None, watch: Callable[[Fitted], None] | None, everything: bool) -> None:
    if auditor:
        audit(fitted, auditor, everything=everything)
    if watch:
        watch(fitted)


def audit(fitted: Fitted, auditor: Auditor, *, everything: bool) -> None:
    """Show an example to the auditor; where every token is learned only its being there counts."""
    if not fitted.rows:
        auditor.without_label(fitted.example)
    if fitted.encoded.learned and fitted.example.messages and not everything:
        skip = int(fitted.encoded.added)  # no part of what the template writes
        auditor.look(fitted.example, fitted.encoded.ids[skip:], fitted.row.labels[skip:])


def _said(auditor: Auditor | None) -> str:
    return auditor.summary() if auditor and auditor.found.rows else ""


@dataclass(frozen=True, slots=True)
class _Fit:
    """The rows that a row becomes, what it loses, and what is to be counted."""

    rows: Sequence[TokenizedRow]
    loss: Loss | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Length:
    """The longest length, and what becomes of longer rows."""

    limit: int
    over_long: OverLong
    everything: bool
    whole: bool
    first_token: int | None

    def fit(self, row: TokenizedRow, encoded: Encoded, *, raw: bool, begin: int) -> _Fit:
        """Make a row fit.

        Raises:
            Fault: If longer rows are errors.
        """
        size = len(row.input_ids)
        if size <= self.limit:
            return _Fit([row])
        if self.over_long == "error":
            message = f"{size:,} tokens, and training.max_seq_length is {self.limit:,}"
            raise Fault("LF-DATA-081", message, hint=_RAISE)
        if self.over_long == "drop":
            loss = Loss(_trained(row), len(encoded.learned))
            return _Fit((), loss, {"dropped_too_long": 1, "tokens_cut": size})
        if self.over_long == "split" or raw or self.whole:
            return _Fit(list(pieces(row, self.limit, self.first_token)), None, {"cut_into_pieces": 1})
        answer = encoded.learned[-1][0]
        kept, loss = _cut(row, encoded, self.limit, begin=begin, answer=answer, everything=self.everything)
        return _Fit([kept], loss, {"truncated": 1, "tokens_cut": size - len(kept.input_ids)})


def _cut(
    row: TokenizedRow, encoded: Encoded, limit: int, *, begin: int, answer: int, everything: bool
) -> tuple[TokenizedRow, Loss]:
    """The truncated row, and what it lost."""
    places = TokenizedRow(list(range(len(row.input_ids))), row.labels)
    kept, cut = truncate(places, limit, begin=begin, answer=answer, everything=everything)
    ends = {end - 1 for _, end in encoded.learned}
    left = sum(label != IGNORED and place in ends for place, label in zip(kept.input_ids, kept.labels, strict=True))
    short = TokenizedRow([row.input_ids[place] for place in kept.input_ids], kept.labels)
    return short, Loss(_trained(row) - _trained(short), len(ends) - left, cut)


def _require_trainable(examples: Sequence[Example], stage: str) -> None:
    judged = [example for example in examples if example.chosen]
    if judged:
        message = f"{len(judged)} of {len(examples)} rows are preferences, which stage {stage} cannot learn from"
        hint = "give rows with one answer each, such as 'prompt' and 'completion'"
        raise DataError.of("LF-DATA-051", message, where=str(judged[0].ref), hint=hint)


def _encode(
    examples: Iterable[Example], render: Callable[[Example], Rendered], encoder: Encoder
) -> Iterator[tuple[int, Rendered, Encoded]]:
    """Render and encode in batches; what is wrong with any example is raised at the end, all together."""
    log, remaining = ProblemLog(), iter(enumerate(examples))
    while batch := list(islice(remaining, _BATCH)):
        rendered: list[tuple[int, Rendered]] = []
        for index, example in batch:
            try:
                rendered.append((index, render(example)))
            except Fault as fault:
                log.add(fault.at(str(example.ref)))
        for (index, text), encoded in zip(rendered, encoder.encode([text for _, text in rendered]), strict=True):
            if isinstance(encoded, Fault):
                log.add(encoded.at(str(text.ref)))
            else:
                yield index, text, encoded
    log.check(ModelError)


def _countable(rows: Iterable[TokenizedRow], counts: Counter[str]) -> Iterator[TokenizedRow]:
    """The rows that teach something; the first position of a row is never predicted."""
    for row in rows:
        trained = _trained(row)
        if trained > (row.labels[0] != IGNORED):
            counts.update(tokens=len(row.input_ids), trained_tokens=trained)
            yield row


def _trained(row: TokenizedRow) -> int:
    return len(row.labels) - row.labels.count(IGNORED)
