"""`strategies list`, `show` and `copy`: what can be trained by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llamafarm.cli.files import write_lines
from llamafarm.cli.session import session_of
from llamafarm.cli.tables import show_table
from llamafarm.errors import DiskError, LlamaFarmError

Name = Annotated[str, typer.Argument(metavar="NAME", help="A strategy by name or path.", show_default=False)]


def list_(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List strategies of this project, yours, and those that ship with plugins and with LlamaFarm."""
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    found = describe(load_registry())
    if as_json:
        session.result_json(found)
        return
    rows = [[one["name"], one["description"], one["from"]] for one in found]
    show_table(session, ["NAME", "DESCRIPTION", "FROM"], rows)


def describe(registry: Any) -> list[dict[str, str]]:
    """Every strategy that has a name; files with several give one entry each."""
    from llamafarm.core.resources import list_strategies

    return [
        {"name": name, "description": text, "from": source.provider, "path": str(source.path)}
        for stem, source in list_strategies(registry).items()
        for name, text in _entries(stem, source.path)
    ]


def _entries(stem: str, path: Path) -> list[tuple[str, str]]:
    """Names and descriptions in a file; a file that cannot be read is listed with its error."""
    from llamafarm.core.yaml_source import read_yaml

    try:
        values = read_yaml(path).values
    except LlamaFarmError as error:
        return [(stem, f"cannot be read: {error.problems[0]}")]
    several = values.get("strategies")
    if isinstance(several, list):
        members = [one for one in several if isinstance(one, dict)]
        return [(f"{stem}:{one.get('name', '?')}", str(one.get("description", ""))) for one in members]
    return [(stem, " ".join(str(values.get("description", "")).split()))]


def show(context: typer.Context, name: Name) -> None:
    """Print a strategy's file as it is."""
    session_of(context).result(_text(name)[1], end="")


def copy(
    context: typer.Context,
    name: Name,
    target: Annotated[Path | None, typer.Argument(help="File or folder; the strategy's name here by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Copy a strategy's file, to make it yours; an existing file is left alone."""
    source, text = _text(name)
    path = Path(source.name) if target is None else target
    path = path / source.name if path.is_dir() else path
    write_lines(path, text.removesuffix("\n").split("\n"), overwrite=overwrite)
    session = session_of(context)
    session.result(str(path))
    session.say(f"copied from {source}; train it with: llamafarm train --strategy {path}")


def _text(name: str) -> tuple[Path, str]:
    from llamafarm.core.registry import load_registry
    from llamafarm.core.resources import find_strategy

    path = find_strategy(name, load_registry()).path
    try:
        return path, path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DiskError.of("LF-DISK-002", f"cannot read {path}: {error}") from None
