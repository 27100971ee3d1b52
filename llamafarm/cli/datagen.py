"""`datagen smart-home`: instruction data about a smart home, made from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llamafarm.cli.files import refuse_existing, write_lines
from llamafarm.cli.session import session_of
from llamafarm.errors import UsageError


def smart_home(
    context: typer.Context,
    more_languages: Annotated[
        list[str] | None, typer.Argument(metavar="LANGUAGE", help="Languages, as with --language.", show_default=False)
    ] = None,
    size: Annotated[str, typer.Option("--size", "-n", help="small, medium, large, or a number of rows.")] = "small",
    small: Annotated[bool, typer.Option("--small", help="Same as --size small.")] = False,
    medium: Annotated[bool, typer.Option("--medium", help="Same as --size medium.")] = False,
    large: Annotated[bool, typer.Option("--large", help="Same as --size large.")] = False,
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language", "--languages", "-l", help="May be repeated, and several may follow; english if none."
        ),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", "-f", help="messages, sharegpt, alpaca, text or preference.")
    ] = "messages",
    sharegpt: Annotated[bool, typer.Option("--sharegpt", help="Same as --format sharegpt.")] = False,
    dpo: Annotated[bool, typer.Option("--dpo", help="Same as --format preference.")] = False,
    raw_corpus: Annotated[bool, typer.Option("--raw-corpus", "--raw_corpus", help="Same as --format text.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same rows.")] = 0,
    no_system_role: Annotated[bool, typer.Option("--no-system-role", help="Rows without a system message.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; stdout if none.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Write rows as JSON lines to a file or to stdout."""
    from llamafarm.datagen import generate

    session = session_of(context)
    sizes = {"small": small, "medium": medium, "large": large}
    chosen_size = _one("--size", context, size, [name for name, given in sizes.items() if given])
    formats = {"sharegpt": sharegpt, "preference": dpo, "text": raw_corpus}
    chosen_format = _one("--format", context, format_, [name for name, given in formats.items() if given])
    languages = [name for text in [*(language or []), *(more_languages or [])] for name in text.split(",")]
    if output:
        refuse_existing(output, overwrite=overwrite)
    rows = generate(
        size=int(chosen_size) if chosen_size.isdecimal() else chosen_size,  # type: ignore[arg-type]  # it says what is valid
        languages=languages or ["english"],
        format=chosen_format,  # type: ignore[arg-type]  # it says what is valid
        seed=seed,
        system=not no_system_role,
    )
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    if output is None:
        session.result_lines(lines)
        return
    count = write_lines(output, lines, overwrite=overwrite)
    session.result(str(output))
    session.say(f"{count:,} rows: {', '.join(languages or ['english'])}; {chosen_format}; seed {seed}")


def _one(option: str, context: typer.Context, value: str, short: list[str]) -> str:
    """The value of an option that has short spellings, given at most once."""
    name = "format_" if option == "--format" else "size"
    source = context.get_parameter_source(name)
    given = [*short, *([value] if source is not None and source.name == "COMMANDLINE" else [])]
    if len(set(given)) > 1:
        spelt = ", ".join(given)
        raise UsageError.of("LF-USAGE-004", f"{option} is given several times: {spelt}", hint="keep one")
    return given[0] if given else value
