"""`backends list`, `setup`, `check` and `remove`: programs that fine-tuners run in environments of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import show_table
from llamafarm.errors import ExitCode

Name = Annotated[str, typer.Argument(metavar="NAME", help="The backend, e.g. llamafactory.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List backends, and whether they are set up; nothing is run."""
    from llamafarm.api.backend import installed
    from llamafarm.core.backends import backends
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    found = [(backend, installed(backend)) for _, backend in sorted(backends(load_registry()).items())]
    if as_json:
        session.result_json([_described(backend, state) for backend, state in found])
        return
    rows = [
        [
            backend.name,
            (state.version or "set up") if state else "not set up",
            str(state.python) if state else f"llamafarm backends setup {backend.name}",
        ]
        for backend, state in found
    ]
    show_table(session, ["BACKEND", "VERSION", "WHERE"], rows)


def setup(
    context: typer.Context,
    name: Name,
    python: Annotated[
        Path | None, typer.Option("--python", help="Use the environment of this interpreter, as it is.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Set up again what is set up.")] = False,
) -> None:
    """Install a backend into an environment that LlamaFarm owns, or take one that is there."""
    from llamafarm.api.backend import installed
    from llamafarm.core.backends import require_backend, set_up
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    backend = require_backend(load_registry(), name)
    state = installed(backend)
    if state is not None and not overwrite:
        where = f"{backend.name} is set up already ({state.python})"
        session.notice(f"{where}; --overwrite does it again")
        return
    found = set_up(backend, python, session.say)
    session.result(f"{backend.name} {found.version} is ready: {found.python}")


def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The backend.")] = "llamafactory",
    parity: Annotated[
        bool, typer.Option("--parity", help="Also compare it with our own engine: token ids, masks, losses.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a backend's own check; with --parity, train a tiny model with both engines and compare."""
    from llamafarm.core.backends import check as check_backend
    from llamafarm.core.backends import compare, require_backend
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    registry = load_registry()
    backend = require_backend(registry, name)
    state = check_backend(backend)
    compared = compare(backend, state, registry) if parity else []
    if as_json:
        rows = [
            {"subject": one.subject, "ours": one.ours, "theirs": one.theirs, "same": one.same, "note": one.note}
            for one in compared
        ]
        session.result_json({**_described(backend, state), "parity": rows})
    else:
        _show(session, backend, state, compared)
    if not all(one.same for one in compared):
        raise typer.Exit(ExitCode.QUALITY)


def remove(context: typer.Context, name: Name) -> None:
    """Delete the environment that LlamaFarm made for a backend; one that you named stays."""
    from llamafarm.core.backends import remove as remove_backend
    from llamafarm.core.backends import require_backend
    from llamafarm.core.registry import load_registry

    removed = remove_backend(require_backend(load_registry(), name))
    session_of(context).result(f"{name} is removed" if removed else f"{name} was not set up")


def _described(backend: Any, state: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": backend.name, "summary": backend.summary, "installed": state is not None}
    if state is not None:
        found |= {"python": str(state.python), "owned": state.owned, "versions": dict(state.versions)}
    return found


def _show(session: Session, backend: Any, state: Any, compared: list[Any]) -> None:
    versions = ", ".join(f"{package} {number}" for package, number in state.versions.items())
    session.result(f"{backend.name} works: {versions}")
    if compared:
        rows = [[one.subject, one.ours, one.theirs, "yes" if one.same else "NO", one.note] for one in compared]
        show_table(session, ["COMPARED", "OURS", "THEIRS", "SAME", "NOTE"], rows)
