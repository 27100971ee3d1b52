"""Examples and tokenized rows by their number, in memory that does not grow with them.

Up to a limit they stand in memory, packed; beyond it in a file without a name, which ends with the process.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Final, TypeVar, overload
from weakref import finalize

import orjson

from llamafarm.api import Example, Message, RowRef
from llamafarm.data.fit import IGNORED, TokenizedRow

IN_MEMORY: Final = 32 * 2**20
"""Bytes of records that stay in memory."""

Item = TypeVar("Item")


class Records:
    """Bytes by number, written once, one after the other.

    Args:
        limit: How many bytes stay in memory.
    """

    def __init__(self, limit: int = IN_MEMORY) -> None:
        self._limit = limit
        self._ends = array("Q", [0])
        self._tail, self._written = bytearray(), 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, record: bytes) -> None:
        """Add one."""
        self._tail += record
        self._ends.append(self._ends[-1] + len(record))
        if len(self._tail) > self._limit:
            self._move()

    def size(self, index: int) -> int:
        """Bytes of one."""
        return self._ends[index + 1] - self._ends[index]

    def __getitem__(self, index: int) -> bytes:
        start, end = self._ends[index], self._ends[index + 1]
        if start >= self._written or self._file is None:
            return bytes(self._tail[start - self._written : end - self._written])
        return os.pread(self._file.fileno(), end - start, start)

    def _move(self) -> None:
        """Move what is in memory to the file; a disk that refuses is no reason to fail."""
        try:
            if self._file is None:
                self._file = _nameless()
                finalize(self, self._file.close)
            whole = os.pwrite(self._file.fileno(), self._tail, self._written) == len(self._tail)
        except OSError:
            whole = False
        if not whole:  # a disk that is nearly full takes a part
            self._limit = sys.maxsize
            return
        self._written += len(self._tail)
        self._tail = bytearray()


def _nameless() -> IO[bytes]:
    """A file that nobody else sees, beside the cache: a system's own temporary folder is often in memory itself."""
    from llamafarm.data.cache import cache_folder

    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=cache_folder())
    return tempfile.TemporaryFile()


class Stored(Sequence[Item]):
    """Items that are read by their number when they are asked for; equal to any sequence of equal items."""

    def __init__(self, get: Callable[[int], Item], numbers: Sequence[int]) -> None:
        self._get, self._numbers = get, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int, /) -> Item: ...
    @overload
    def __getitem__(self, index: slice, /) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice, /) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._get(number) for number in self._numbers[index]]
        return self._get(self._numbers[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._get, self._numbers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list


class Examples(Stored[Example]):
    """Examples that are appended, or some of them in another order (`chosen`)."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._records = Records()
        self._apart: dict[int, Example] = {}
        super().__init__(self._read, range(0))
        for example in examples:
            self.append(example)

    def append(self, example: Example) -> None:
        """Add one."""
        packed = _packed(example)
        if packed is None:
            self._apart[len(self._records)] = example
        self._records.append(packed or b"")
        self._numbers = range(len(self._records))

    def chosen(self, numbers: Iterable[int]) -> Sequence[Example]:
        """Those with these numbers."""
        return Stored(self._read, array("Q", numbers))

    def _read(self, number: int) -> Example:
        return self._apart[number] if number in self._apart else _unpacked(self._records[number])


def _packed(example: Example) -> bytes | None:
    """An example as bytes, for this process alone; None if something in it is of no plain kind."""
    rest = [example.text, example.prompt, example.difficulty, example.task, example.label]
    turns = [[_turn(turn) for turn in part] for part in (example.messages, example.chosen, example.rejected)]
    parts = [example.ref.file, example.ref.line, rest, turns, list(example.tools)]
    if not _is_plain(parts):
        return None
    try:
        return orjson.dumps(parts)
    except TypeError:  # an integer beyond 64 bits, half a surrogate pair, too deep a nesting
        return None


def _turn(turn: Message) -> list[Any]:
    return [turn.role, turn.content, turn.train, list(turn.tool_calls), turn.name, turn.tool_call_id]


def _unpacked(packed: bytes) -> Example:
    file, line, rest, turns, tools = orjson.loads(packed)
    messages, chosen, rejected = (tuple(_message(*turn) for turn in part) for part in turns)
    text, prompt, difficulty, task, label = rest
    return Example(
        RowRef(sys.intern(file), line), messages, text, prompt, difficulty, tuple(tools), task, chosen, rejected, label
    )


def _message(
    role: Any, content: str, train: bool | None, calls: list[Mapping[str, Any]], name: str | None, call: str | None
) -> Message:
    return Message(role, content, train, tuple(calls), name, call)


_SINGLE = frozenset({str, int, bool, type(None)})


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is: texts, finite numbers, lists, dictionaries; no kinds derived from them."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if kind is float:
        return math.isfinite(value)
    return kind in _SINGLE or (kind is list and all(map(_is_plain, value)))


class TokenRows(Stored[TokenizedRow]):
    """Tokenized rows that are appended: five bytes a token.

    Attributes:
        lengths: Tokens of each.
        examples: The example that each was made of.
    """

    def __init__(self, rows: Iterable[TokenizedRow] = ()) -> None:
        self._records = Records()
        self.lengths, self.examples = array("I"), array("Q")
        super().__init__(self._read, range(0))
        for row in rows:
            self.append(row)

    def append(self, row: TokenizedRow) -> None:
        """Add one; a label is its token or says that it is not learned."""
        self.append_packed(array("i", row.input_ids).tobytes(), bytes(map(IGNORED.__ne__, row.labels)), row.example)

    def append_packed(self, ids: bytes, learned: bytes, example: int) -> None:
        """Add one as `packed` gives it."""
        self._records.append(ids + learned)
        self.lengths.append(len(learned))
        self.examples.append(example)
        self._numbers = range(len(self.lengths))

    def packed(self, number: int) -> tuple[bytes, bytes]:
        """A row's ids, four bytes each, and a byte for each token: whether it is learned."""
        record, ids = self._records[number], 4 * self.lengths[number]
        return record[:ids], record[ids:]

    def _read(self, number: int) -> TokenizedRow:
        packed, learned = self.packed(number)
        ids = array("i", packed).tolist()
        labels = [token if on else IGNORED for token, on in zip(ids, learned, strict=True)]
        return TokenizedRow(ids, labels, self.examples[number])


def lengths_of(rows: Sequence[Any]) -> Sequence[int]:
    """Tokens of each row or pack, without reading those that know."""
    known: Sequence[int] | None = getattr(rows, "lengths", None)
    return known if known is not None else [len(row.input_ids) for row in rows]


def in_order(rows: Sequence[Item], numbers: Sequence[int]) -> Sequence[Item]:
    """Those with these numbers, without reading them."""
    return Stored(lambda number: rows[number], numbers)


def joined(first: Sequence[Item], second: Sequence[Item]) -> Sequence[Item]:
    """One after the other, without reading either."""
    border = len(first)
    return Stored(
        lambda number: first[number] if number < border else second[number - border], range(border + len(second))
    )
