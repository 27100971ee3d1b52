"""`${NAME}`, `${NAME:-default}` and `${oc.env:NAME,default}` inside strings. Nothing else is ever substituted."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamafarm.core.layers import Unset
from llamafarm.errors import Problem

_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?:oc\.env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?::-|,)(?P<default>[^}]*))?\}|\$\{(?P<other>[^}]*)\}?"
)


def expand(text: str, environ: Mapping[str, str], where: str) -> tuple[str | Unset, list[Problem]]:
    """Substitute environment variables in one string.

    Returns:
        The text, or `Unset` when a variable is neither set nor given a default; and problems with the notation.
        `$${` stands for a literal `${`.
    """
    problems: list[Problem] = []
    missing: list[str] = []

    def substitute(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if match["other"] is not None:
            problems.append(
                Problem(
                    "LF-STRATEGY-012",
                    f"{match[0]!r} is no environment variable",
                    where,
                    "write ${NAME} or ${NAME:-default}; nothing else is substituted, and $${ stands for a literal ${",
                )
            )
            return match[0]
        value = environ.get(match["name"])
        if value is not None and (value or match["default"] is None):
            return value
        if match["default"] is None:
            missing.append(match["name"])
            return ""
        return match["default"].strip() if match[0].startswith("${oc.env") else match["default"]

    expanded = _REFERENCE.sub(substitute, text)
    return (Unset(missing[0]) if missing else expanded), problems
