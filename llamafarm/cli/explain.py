"""`explain`: every setting of a strategy as it will be used, and where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from llamafarm.cli.options import Sets
from llamafarm.cli.redact import redact as redact_forms
from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import show_table
from llamafarm.errors import UsageError, nearest

if TYPE_CHECKING:
    from llamafarm.core.load import Loaded

_TUNER: Final = "components.fine_tuner.config."


def explain(
    context: typer.Context,
    strategy: Annotated[str, typer.Argument(help="Name, FILE, or FILE:NAME.", show_default=False)],
    key: Annotated[str | None, typer.Argument(help="Only this setting or block, e.g. training.")] = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show each setting with its value and its origin: a line of a file, a profile and its reason, or the default."""
    from llamafarm.core.load import load
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request

    session = session_of(context)
    loaded = load(Request(strategy, sets=tuple(sets or ())), load_registry())
    rows = _settings(loaded, session)
    if key is not None:
        rows = _below(rows, key)
    if as_json:
        session.result_json(rows)
        return
    show_table(session, ["SETTING", "VALUE", "FROM"], [[row["key"], _shown(row["value"]), row["from"]] for row in rows])
    for notice in loaded.notices:
        session.notice(notice)


def _settings(loaded: Loaded, session: Session) -> list[dict[str, Any]]:
    """Every leaf of the validated strategy: key, value, kind of origin, and the origin in words."""
    from llamafarm.core.explain import explain, redact, secrets

    hidden = secrets(loaded)

    def public(value: Any) -> Any:
        return redact_forms(redact(value, hidden), session.environment) if isinstance(value, str) else value

    return [
        {
            "key": resolved.key.removeprefix(_TUNER),
            "value": public(resolved.value),
            "kind": resolved.origin.kind,
            "from": public(str(resolved.origin)),
        }
        for resolved in explain(loaded)
    ]


def _below(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    key = key.removeprefix(_TUNER).rstrip(".")
    chosen = [row for row in rows if row["key"] == key or row["key"].startswith(f"{key}.")]
    if not chosen:
        known = {row["key"] for row in rows} | {row["key"].rpartition(".")[0] for row in rows}
        hint = nearest(key, known) or "see the whole list without it"
        raise UsageError.of("LF-USAGE-007", f"there is no setting {key!r}", hint=hint)
    return chosen


def _shown(value: Any) -> str:
    if isinstance(value, bool | None):
        return "null" if value is None else str(value).lower()
    return str(value)
