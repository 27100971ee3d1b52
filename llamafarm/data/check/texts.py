"""Damage inside of texts: control characters, and UTF-8 that was once read as something else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
"""Control characters but for tab and line ends, byte order marks inside of text, and what is no character at all."""

LOST = "\ufffd"
"""What a decoder writes for bytes that it could not read: the text is lost."""

# What the second byte of a two-byte character becomes when it is read as Windows-1252 or Latin-1.
_SECOND = "".join(bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0xC0))
_SECOND += "".join(map(chr, range(0x80, 0xA0)))
_MISREAD = re.compile(
    f"(?<![A-ZÀ-ÖØ-Þ])[ÂÃ][{re.escape(_SECOND)}]"  # é as Ã©; not at the end of a word in capitals, before a quote
    f"|(?<=[a-z])[ÄÅ][{re.escape(_SECOND)}](?=[a-z])"  # ą as Ä…, inside of a word
    "|â€[^\\s\\w]|â\x80[\x80-\xbf]"  # quotation marks and dashes
    "|ð[Ÿ\x9f]"  # emoji
    f"|(?:[À-ß][{re.escape(_SECOND)}]|[à-ï][{re.escape(_SECOND)}]{{2}}){{3}}"  # three of any script in a row
)


def misread(text: str) -> re.Match[str] | None:
    """The first place where UTF-8 was read as Windows-1252 or Latin-1."""
    return None if text.isascii() else _MISREAD.search(text)


def repaired(text: str) -> str:
    """The text with such damage undone, if all of it is of this kind beyond doubt; else as it is.

    Beyond doubt means: written as Windows-1252 (or Latin-1 where that has no such character) it is valid UTF-8 from
    beginning to end. Texts that mix damaged and sound letters are left to a person.
    """
    if not misread(text):
        return text
    try:
        return b"".join(map(_byte, text)).decode()
    except ValueError:
        return text


def _byte(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a JSON value, each with its path: `messages.2.content`."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield from texts(item, f"{path}.{number}" if path else str(number))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from texts(item, f"{path}.{name}" if path else name)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same JSON value with `change` applied to each text."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_texts(item, change) for item in value]
    if isinstance(value, Mapping):
        return {name: with_texts(item, change) for name, item in value.items()}
    return value


def clean(text: str) -> str:
    """The text repaired where that is beyond doubt, and without control characters."""
    return CONTROL.sub("", repaired(text))
