"""Keep secrets out of everything that is printed or written for others to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llamafarm.core.environment import SECRET_NAME, secret_values

REDACTED: Final = "[redacted]"

_FORMS: Final = re.compile(
    r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{12,}"
    r"|(?<=Bearer )\S+|(?<=://)[^/\s@]+:[^/\s@]+(?=@)"
)
_PAIR: Final = re.compile(rf"(?i)({SECRET_NAME}[\"']?(?:\s*:\s+(?=\S)|=))((?<==)\S+|.+)")


def redact(text: str, environment: Mapping[str, str]) -> str:
    """`text` without secrets.

    Three nets: values of environment variables that are named as secrets, well-known forms (hub tokens, API keys,
    passwords in addresses), and what follows `token:` or `password=`.
    """
    for value in secret_values(environment):
        text = text.replace(value, REDACTED)
    text = _FORMS.sub(REDACTED, text)
    return _PAIR.sub(rf"\1{REDACTED}", text)
