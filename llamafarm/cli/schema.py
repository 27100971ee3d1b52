"""`schema`: the JSON Schema of strategies, for completion and checks while typing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llamafarm.cli.files import write_lines
from llamafarm.cli.session import session_of


def schema(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; stdout if none.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Print the JSON Schema of a strategy file, with everything that is installed here.

    Editors use it after a first line such as: # yaml-language-server: $schema=strategy.schema.json
    """
    from llamafarm.core.json_schema import json_schema
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    text = json.dumps(json_schema(load_registry()), indent=2, ensure_ascii=False)
    if output is None:
        session.result(text)
        return
    write_lines(output, text.split("\n"), overwrite=overwrite)
    session.result(str(output))
