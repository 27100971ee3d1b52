"""Of what the compiled kernels are made; the build runs this file by itself."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(sources: Path) -> str:
    """Of all that is compiled: a library says what it was made from, so that none is used with other sources."""
    found = hashlib.sha256()
    for name in sorted([*sources.glob("*.c"), *sources.glob("*.h")]):
        found.update(name.name.encode() + b"\0" + name.read_bytes())
    return found.hexdigest()
