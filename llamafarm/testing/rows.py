"""Rows for tests: small, all different, always the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamafarm.api import Row
from llamafarm.data.digests import row_digest


def make_fields(count: int) -> list[dict[str, Any]]:
    """`count` different rows in the alpaca form; a model can learn their rule, and no two prompts are alike."""
    things = ("lamp", "fan", "door", "radio", "blind")
    verbs = ("open", "close", "check", "start")
    rows = []
    for index in range(count):
        thing, verb = things[index % len(things)], verbs[index // len(things) % len(verbs)]
        rows.append({"instruction": f"{verb} the {thing} number {index}", "output": f"{thing} {index}: {verb}"})
    return rows


def make_rows(count: int) -> Sequence[Row]:
    """The rows of `make_fields` as the host hands them to a splitter."""
    return [Row(index, row_digest(fields), fields) for index, fields in enumerate(make_fields(count))]
