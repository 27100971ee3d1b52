"""Digests of content: equal content, equal digest, wherever it stands."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from llamafarm.api import Example

DIGEST_BYTES = 16

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def row_digest(fields: Mapping[str, Any]) -> bytes:
    """16 bytes over the row's canonical JSON: sorted keys, no spaces."""
    return _digest(fields)


def example_digest(example: Example) -> bytes:
    """16 bytes over what a model sees of an example, whatever form the row had and whatever else stood in it."""
    turns = [[message.role, message.content, message.train] for message in example.messages]
    return _digest([turns, example.text])


def data_digest(parts: Mapping[str, Iterable[bytes]]) -> str:
    """Hex digest over the digests of the examples of each part, in order."""
    total = blake2b(digest_size=DIGEST_BYTES)
    for name, digests in parts.items():
        total.update(name.encode() + b"\0")
        for digest in digests:
            total.update(digest)
    return total.hexdigest()


def _digest(value: Any) -> bytes:
    return blake2b(_CANONICAL.encode(value).encode(), digest_size=DIGEST_BYTES).digest()
