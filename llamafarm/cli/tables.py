"""Tables: aligned by rich on a terminal, plain columns elsewhere, never cut off."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llamafarm.cli.session import Session


def show_table(session: Session, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout."""
    if session.live(sys.stdout):
        _rich_table(session, header, rows)
        return
    for line in plain_table([header, *rows]):
        session.result(line)


def plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns, two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _rich_table(session: Session, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(no_color=not session.colour(sys.stdout), highlight=False).print(table)
