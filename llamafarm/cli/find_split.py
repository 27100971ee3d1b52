"""`find-split`: the token ids around answers, verified, as flags to paste."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm.cli.hush import hushed
from llamafarm.cli.options import Template
from llamafarm.cli.session import Session, session_of
from llamafarm.errors import UsageError

if TYPE_CHECKING:
    from llamafarm.data.explicit import ExplicitMask
    from llamafarm.data.find_split import Split


def find_split(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder, hub id, or builtin:NAME.", show_default=False)
    ] = None,
    template: Template = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a chat template writes around answers, and find the token ids that mask everything else.

    Needed only where training cannot tell answers from the template itself. Needs a tokenizer only.
    """
    from llamafarm.api import BaseModelConfig
    from llamafarm.data import find_split as finder
    from llamafarm.models._tokenizer import load_tokenizer

    session = session_of(context)
    if model is None:
        hint = "usage: llamafarm find-split MODEL"
        raise UsageError.of("LF-USAGE-006", "no model is named", where=context.command_path, hint=hint)
    with hushed():
        tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=model, template=template))
        split, known = finder.find_split(tokenizer), finder.known_ids(model, len(tokenizer))
    if as_json:
        found = split.mask
        session.result_json({**dataclasses.asdict(split), "flags": flags(found) if found else None, "known": known})
    else:
        _show(session, split, known)
    split.require()


def flags(mask: ExplicitMask) -> str:
    """The mask as flags of `train`."""
    return f"--prefix-ids {','.join(map(str, mask.prefix))} --suffix-ids {','.join(map(str, mask.suffix))}"


def _show(session: Session, split: Split, known: tuple[str, ExplicitMask] | None) -> None:
    session.result(f"chat template:\n{split.template or '(none: plain text with headings)'}\n")
    session.result(f"template tokens: {' '.join(split.tokens)}")
    if not split.lone:
        reason = "the template refuses an answer without a question, or writes it otherwise than in a conversation"
        session.result(f"{reason}: a question with an answer was used")
    session.result(f"response prefix: {split.prefix!r}")
    session.result(f"response suffix: {split.suffix!r}  {list(split.suffix_ids)}\n")
    for variant in split.variants:
        session.result(f"{variant.name}: {list(variant.prefix)}")
    session.result()
    for variant in split.variants:
        verdict = "found the assistant response!" if variant.finds else "did not find the assistant response"
        session.result(f"'{variant.name}' {verdict}")
    if split.mask:
        session.result(f"\n{flags(split.mask)}")
    if known:
        session.result(f"known for {known[0]}: {flags(known[1])}")
