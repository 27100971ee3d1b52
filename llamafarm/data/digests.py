"""Digests of content: equal content, equal digest, wherever it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from llamafarm.api import Example, Message
from llamafarm.data.quick import DIGEST_BYTES, canonical, form_digest


def row_digest(fields: Mapping[str, Any]) -> bytes:
    """16 bytes over the row's canonical JSON: sorted keys, no spaces."""
    return form_digest(canonical(fields))


def example_digest(example: Example) -> bytes:
    """16 bytes over what a model sees of an example, whatever form the row had and whatever else stood in it."""
    parts: list[Any] = [_turns(example.messages), example.text]
    more = {
        "tools": example.tools,
        "task": example.task,
        "chosen": _turns(example.chosen),
        "rejected": _turns(example.rejected),
        "label": example.label,
    }
    return _digest([*parts, *([more] if any(value not in (None, (), []) for value in more.values()) else [])])


def _turns(messages: Iterable[Message]) -> list[Any]:
    return [
        [turn.role, turn.content, turn.train, *([turn.tool_calls] if turn.tool_calls else []), *_names(turn)]
        for turn in messages
    ]


def _names(turn: Message) -> list[Any]:
    return [turn.name, turn.tool_call_id] if turn.name or turn.tool_call_id else []


def data_digest(parts: Mapping[str, Iterable[bytes]]) -> str:
    """Hex digest over the digests of the examples of each part, in order."""
    total = blake2b(digest_size=DIGEST_BYTES)
    for name, digests in parts.items():
        total.update(name.encode() + b"\0")
        for digest in digests:
            total.update(digest)
    return total.hexdigest()


def _digest(value: Any) -> bytes:
    return blake2b(canonical(value), digest_size=DIGEST_BYTES).digest()
