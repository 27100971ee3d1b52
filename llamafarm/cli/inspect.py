"""`inspect`: rows as the model will see them, what is trained of them, and the totals of the whole set."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.figures import share
from llamafarm.cli.hush import hushed
from llamafarm.cli.options import BaseModel, Dataset, PrefixIds, Sets, SuffixIds, Template, TrustRemoteCode, flags_from
from llamafarm.cli.session import Session, session_of
from llamafarm.errors import DataError, UsageError

if TYPE_CHECKING:
    from llamafarm.api import BaseModelConfig, Example, FineTunerConfig, PreparedData
    from llamafarm.core.load import Loaded
    from llamafarm.core.registry import Registry
    from llamafarm.data.look import SeenRow, Totals

_FLAGS = {
    "model": "base_model.huggingface_id",
    "dataset": "dataset.path",
    "template": "template",
    "prefix_ids": "dataset.prefix_ids",
    "suffix_ids": "dataset.suffix_ids",
    "trust_remote_code": "base_model.trust_remote_code",
}


def inspect(
    context: typer.Context,
    strategy: Annotated[
        str | None, typer.Argument(metavar="[STRATEGY]", help="Name, FILE, or FILE:NAME.", show_default=False)
    ] = None,
    model: BaseModel = None,
    dataset: Dataset = None,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Rows to show.")] = 3,
    row: Annotated[int | None, typer.Option("--row", min=1, help="Show this row of the training set alone.")] = None,
    template: Template = None,
    prefix_ids: PrefixIds = None,
    suffix_ids: SuffixIds = None,
    sets: Sets = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model will really see: decoded tokens, the trained ones marked; then totals of the training set.

    Needs a tokenizer only. Ends with exit code 3 if training would refuse the labels.
    """
    from llamafarm.core.load import load
    from llamafarm.core.plan import methods_of
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request
    from llamafarm.data.look import look
    from llamafarm.models.first_token import asked_first_token

    session = session_of(context)
    if strategy is None and not (model and dataset):
        hint = "give a strategy, or --model and --dataset"
        raise UsageError.of("LF-USAGE-006", "nothing to inspect is named", where=context.command_path, hint=hint)
    registry = load_registry()
    loaded = load(Request(strategy, flags_from(context, _FLAGS), tuple(sets or ())), registry)
    with hushed():
        data = _data(session, loaded, registry)
        tokenizer = _tokenizer(loaded, data.train)
        wanted = [row] if row else range(1, min(count, len(data.train)) + 1)
        if row and row > len(data.train):
            raise UsageError.of("LF-USAGE-003", f"--row {row}: the training set has {len(data.train)} rows")
        first = asked_first_token(methods_of(loaded.tuner_config, registry), tokenizer)
        seen, totals = look(data.train, tokenizer, loaded.tuner_config, wanted, first)
    source = template_source(tokenizer, loaded.tuner_config.base_model)
    if as_json:
        session.result_json({"template": source, "rows": [_plain(one) for one in seen], "totals": _plain(totals)})
    else:
        _show(session, seen, totals, source, loaded.tuner_config)
    if totals.problems:
        if as_json:
            raise typer.Exit(DataError.exit_code)
        raise DataError(totals.problems)


def template_source(tokenizer: Any, base: BaseModelConfig) -> str:
    """Where the text of a conversation comes from, and what tells answers from the rest."""
    from llamafarm.models.templates import has_marks
    from llamafarm.models.trl_templates import training_template

    if tokenizer.chat_template is None:
        return "none: plain text with headings"
    text = tokenizer.get_chat_template()
    marks = "with generation marks" if has_marks(text) else "without generation marks"
    if not has_marks(text) and training_template(text):
        marks = "with the generation marks of TRL"
    if base.template_name:
        return f"{base.template_name} ({marks})"
    return f"chat template of {base.huggingface_id or 'the tokenizer of from_scratch'} ({marks})"


def _data(session: Session, loaded: Loaded, registry: Registry) -> PreparedData:
    from llamafarm.core.plan import splitter_of
    from llamafarm.data.prepare import prepare

    return prepare(loaded.tuner_config.dataset, splitter_of(loaded, registry), notice=session.notice)


def _tokenizer(loaded: Loaded, examples: tuple[Example, ...] | Any) -> Any:
    base = loaded.tuner_config.base_model
    if base.from_scratch is None:
        from llamafarm.models._tokenizer import load_tokenizer

        return load_tokenizer(base)
    from llamafarm.models._scratch import train_tokenizer
    from llamafarm.models.special import extended

    texts = [example.text for example in examples if example.text is not None]
    turns = [message.content for example in examples for message in example.messages]
    return extended(train_tokenizer([*texts, *turns], base.from_scratch), base).tokenizer


def _show(session: Session, seen: list[SeenRow], totals: Totals, template: str, config: FineTunerConfig) -> None:
    limit = config.training.max_seq_length
    signs = signs_for(sys.stdout.encoding or "utf-8")
    for one in seen:
        session.result(typer.style(f"row {one.number}  {one.where}  template: {template}", bold=True))
        session.result(marked(one, signs))
        session.result(_figures(one, limit))
        session.result()
    session.result(typer.style(f"all {totals.examples:,} rows to train on", bold=True))
    for line in _total_lines(totals, limit, config.dataset.over_long):
        session.result(line)


def signs_for(encoding: str) -> tuple[str, str, str]:
    """What stands before and after trained text, and at the end of a line."""
    try:
        "⟦⟧⏎".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return "[[", "]]", "\\n"
    return "⟦", "⟧", "⏎"


def marked(row: SeenRow, signs: tuple[str, str, str]) -> str:
    """The row's text; trained parts stand between signs, in colour where there is colour."""
    before, after, line_end = signs
    out = []
    for piece in row.pieces:
        text = piece.text.replace("\n", f"{line_end}\n")
        out.append(typer.style(f"{before}{text}{after}", fg="green") if piece.trained else text)
    return "".join(out)


def _figures(row: SeenRow, limit: int) -> str:
    parts = [f"{row.tokens:,} tokens", f"{row.trained:,} trained ({share(row.trained / row.tokens)})"]
    if row.parts > 1:
        parts.append(f"the first of {row.parts} rows, cut from {row.whole:,} tokens at max_seq_length {limit:,}")
    elif row.whole > row.tokens:
        parts.append(f"cut from {row.whole:,} at max_seq_length {limit:,}")
    if not row.trained:
        parts.append("nothing to learn: dropped")
    if row.stopped is not None:
        parts.append(f"stop token '{row.stop}' trained: {'yes' if row.stopped else 'NO'}")
    return " · ".join(parts)


def _total_lines(totals: Totals, limit: int, policy: str) -> list[str]:
    from llamafarm.data.ledger import said_of_losses

    trained = share(totals.trained / max(totals.tokens, 1))
    cut = share(totals.truncated / max(totals.examples, 1))
    lines = [f"tokens p50 {totals.p50:,}  p95 {totals.p95:,}  max {totals.longest:,}   trained {trained}"]
    lines += [f"truncated at max_seq_length {limit:,}: {totals.truncated:,} rows ({cut})"]
    if totals.truncated:
        lines[-1] += f", of which {totals.lost_end:,} lose the end of their answer and {totals.lost_answer:,} all of it"
        lost = share(totals.lost_tokens / max(totals.trained + totals.lost_tokens, 1))
        lines.append(f"trained tokens that do not fit: {totals.lost_tokens:,} ({lost})")
        lines += [f"  {sentence}" for sentence in said_of_losses(totals.losses, policy)]
    lines += [f"without a trained token: {totals.unlabelled:,} rows{' (dropped)' if totals.unlabelled else ''}"]
    before = " (before rows are cut)" if totals.audit and totals.truncated else ""
    return [*lines, f"{totals.audit}{before}"] if totals.audit else lines


def _plain(value: SeenRow | Totals) -> dict[str, Any]:
    return dataclasses.asdict(value)
