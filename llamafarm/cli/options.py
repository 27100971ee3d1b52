"""From parsed options back to what was typed: overrides of a strategy name the flag they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from llamafarm.cli.session import session_of
from llamafarm.errors import UsageError

if TYPE_CHECKING:
    from llamafarm.core.request import Flag

BaseModel: TypeAlias = Annotated[
    str | None,
    typer.Option("--model", "-m", "--base-model", help="Base model: folder, hub id, or builtin:NAME."),
]
Dataset: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--dataset",
        "-d",
        "--train-dataset",
        help="Rows to train on: a file (jsonl, json, csv, tsv, parquet, txt), a folder, a pattern, a hub id, or a name "
        "of dataset_info.json.",
    ),
]
Template: TypeAlias = Annotated[
    str | None, typer.Option("--template", help="Chat template by name, in place of the tokenizer's: phi, llama3, …")
]
PrefixIds: TypeAlias = Annotated[
    str | None,
    typer.Option("--prefix-ids", "--prefix_ids", help="Token ids before answers, from find-split."),
]
SuffixIds: TypeAlias = Annotated[
    str | None, typer.Option("--suffix-ids", "--suffix_ids", help="Token ids that end answers.")
]
TrustRemoteCode: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the base model run code of its own. Read that code first.")
]
Sets: TypeAlias = Annotated[list[str] | None, typer.Option("--set", help="Any setting: a.b=c; may be repeated.")]


def flags_from(context: typer.Context, paths: Mapping[str, str]) -> tuple[Flag, ...]:
    """Every option of `paths` that was given, as an override.

    Args:
        context: The command's, after parsing.
        paths: Parameter name → where its value belongs.

    Raises:
        UsageError: If two spellings of one option disagree.
    """
    from llamafarm.core.request import Flag

    argv = session_of(context).argv
    flags = []
    for param in context.command.params:
        value = context.params.get(param.name or "")
        if param.name in paths and value is not None and value is not False:
            given = typed(argv, param.opts)
            _refuse_contradiction(given)
            spelling, text = given[-1] if given else (param.opts[0], str(value))
            flags.append(Flag(paths[param.name], _plain(value, text), spelling))
    return tuple(flags)


def typed(argv: Sequence[str], spellings: Sequence[str]) -> list[tuple[str, str]]:
    """Each occurrence of an option in `argv`: the spelling and the value."""
    found = []
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in spellings:
            found.append((name, value if equals else "".join(argv[index + 1 : index + 2])))
        elif short := next((one for one in spellings if len(one) == 2 and word.startswith(one)), ""):
            found.append((short, word.removeprefix(short)))
    return found


def _refuse_contradiction(given: Sequence[tuple[str, str]]) -> None:
    """The last value of a repeated flag wins, as everywhere; two spellings that disagree are a mistake."""
    if len({name for name, _ in given}) > 1 and len({value for _, value in given}) > 1:
        spelt = " and ".join(f"{name} {value}" for name, value in given)
        raise UsageError.of("LF-USAGE-004", f"{spelt} are one option", hint="keep one")


def _plain(value: Any, text: str) -> Any:
    """A path as it was typed where that is nothing: as a path it would be the working folder."""
    if not hasattr(value, "__fspath__"):
        return value
    return str(value) if text else ""
