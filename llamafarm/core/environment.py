"""`${NAME}`, `${NAME:-default}` and `${oc.env:NAME,default}` inside strings. Nothing else is ever substituted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from llamafarm.core.layers import Unset
from llamafarm.errors import Problem

SECRET_NAME: Final = r"(?:(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)token|secret|password|passwd|(?:api|access|private)_?key)"
"""What ends the name of a variable or key that holds a secret."""

_SECRET: Final = re.compile(rf"(?i){SECRET_NAME}$")
_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?:oc\.env:)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?::-|,)(?P<default>[^}]*))?\}|\$\{(?P<other>[^}]*)\}?"
)


def secret_values(environ: Mapping[str, str]) -> Iterator[str]:
    """Values of the variables that are named as secrets."""
    for name, value in environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            yield value


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
