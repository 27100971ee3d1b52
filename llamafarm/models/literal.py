"""Special tokens that stand in rows are text: `<|im_end|>` in a question ends no turn.

What a chat template writes and what a row holds end up in one text, where a tokenizer cannot tell them apart. So before
a row is rendered, the first character of each special token in it is replaced by one of a private-use plane, one per
token: nothing matches it, its length stays, and after rendering it says which places are a row's. Where a row has such
places, the tokenizer's twin encodes the text: the same one, but its special tokens begin with a private character too,
and so do those that the template wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

_ROWS, _TEMPLATES = 0x100000, 0xF0000
_PLANE = 0xFFFD


class Literals:
    """Tells the special tokens of rows from those of templates, for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder.values()
        self._tokens = [str(token) for token in added if token.special and str(token).strip()][:_PLANE]
        self._tokenizer = tokenizer
        by_length = sorted(self._tokens, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")
        self._first = frozenset(token[0] for token in self._tokens)
        self._number = {token: number for number, token in enumerate(self._tokens)}
        self._back = {_ROWS + number: token[0] for number, token in enumerate(self._tokens)}
        self._private = re.compile(f"[{chr(_ROWS)}-{chr(_ROWS + _PLANE)}{chr(_TEMPLATES)}-{chr(_TEMPLATES + _PLANE)}]")

    def stand_in(self, text: str) -> bool:
        """Whether a text holds a special token."""
        return any(first in text for first in self._first) and self._any.search(text) is not None

    def hidden(self, value: Any) -> Any:
        """A value with every special token in its texts and keys hidden; the same object if there is none.

        Raises:
            ValueError: If it also holds one of the private-use characters that this needs.
        """
        if isinstance(value, str):
            return self._hide(value) if self.stand_in(value) else value
        if isinstance(value, Mapping):
            return {self.hidden(key): self.hidden(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hidden(item) for item in value]
        return value

    def _hide(self, text: str) -> str:
        if self._private.search(text):
            raise ValueError("it holds special tokens beside private-use characters")
        found = self._any.search(text)
        while found:  # one may stand inside another, so the search goes on behind its first character
            text = f"{text[: found.start()]}{chr(_ROWS + self._number[found[0]])}{text[found.start() + 1 :]}"
            found = self._any.search(text, found.start() + 1)
        return text

    def shown(self, text: str) -> tuple[str, tuple[int, ...]]:
        """The text as it is meant, and where special tokens of the row begin in it."""
        places = tuple(match.start() for match in self._private.finditer(text)) if not text.isascii() else ()
        places = tuple(place for place in places if ord(text[place]) in self._back)
        return (text.translate(self._back), places) if places else (text, ())

    def between(self, text: str, allowed: frozenset[int]) -> tuple[int, ...]:
        """Where special tokens begin in a text, but for the allowed places."""
        found, places = self._any.search(text), []
        while found:
            if found.start() not in allowed:
                places.append(found.start())
            end = found.end() if found.start() in allowed else found.start() + 1
            found = self._any.search(text, end)
        return tuple(places)

    def encode(self, text: str, literal: tuple[int, ...]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and their characters; special tokens that begin at the places of `literal` are plain text.

        Raises:
            ValueError: If the tokenizer is one in Python, which cannot be told apart.
        """
        if not self._tokenizer.is_fast:
            raise ValueError("its tokenizer cannot encode special tokens as text")
        parts, copied, kept = [], 0, frozenset(literal)
        found = self._any.search(text)
        while found:
            if found.start() in kept:
                found = self._any.search(text, found.start() + 1)
                continue
            parts += [text[copied : found.start()], chr(_TEMPLATES + self._number[found[0]])]
            copied = found.start() + 1
            found = self._any.search(text, found.end())
        encoding = self._twin.encode("".join([*parts, text[copied:]]), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @cached_property
    def _twin(self) -> Any:
        """The tokenizer, with every special token's first character replaced."""
        from tokenizers import Tokenizer

        described = json.loads(self._tokenizer.backend_tokenizer.to_str())
        renamed = {token: chr(_TEMPLATES + number) + token[1:] for token, number in self._number.items()}
        for token in described["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = described["model"]
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            model["vocab"] = {renamed.get(token, token): number for token, number in vocabulary.items()}
        elif isinstance(vocabulary, list):
            model["vocab"] = [[renamed.get(token, token), score] for token, score in vocabulary]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        described["post_processor"] = described["truncation"] = described["padding"] = None
        return Tokenizer.from_str(json.dumps(described))


_KNOWN: WeakKeyDictionary[Any, tuple[tuple[str, ...], Literals]] = WeakKeyDictionary()


def literals_of(tokenizer: Any) -> Literals:
    """The same object for the same tokenizer, as long as it gets no new tokens."""
    tokens = tuple(map(str, tokenizer.added_tokens_decoder.values()))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != tokens:
        known = (tokens, Literals(tokenizer))
        _KNOWN[tokenizer] = known
    return known[1]
