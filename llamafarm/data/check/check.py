"""Checks files row by row and yields what a cleaned copy would hold."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamafarm.api import Example, RowRef
from llamafarm.data.check import texts, turns
from llamafarm.data.check.copies import NearCopies, folded, words
from llamafarm.data.check.findings import Findings
from llamafarm.data.check.lengths import FEW, HEAVY_SHARE, Measure, characters, heavy_share
from llamafarm.data.digests import example_digest
from llamafarm.data.formats import detect_format, to_example
from llamafarm.data.inputs import raw_rows
from llamafarm.data.problems import ProblemLog
from llamafarm.data.rows import RawRow
from llamafarm.data.strict import Fault
from llamafarm.errors import DataError, Problem

_EMPTY = "LF-DATA-013"


@dataclass(frozen=True, slots=True)
class Options:
    """What is looked for.

    Attributes:
        max_length: Rows that are longer are found.
        measure: The length of a row.
        unit: What that counts, for messages.
        near_rows: Near duplicates are looked for among so many first rows; each costs some 2 kB of memory.
    """

    max_length: int | None = None
    measure: Measure = characters
    unit: str = "characters"
    near_rows: int = 100_000


@dataclass(slots=True)
class Totals:
    """What was read: `rows` rows, and the lengths of those that can be used."""

    rows: int = 0
    kept: int = 0
    changed: int = 0
    lengths: array[int] = field(default_factory=lambda: array("Q"))


class _Unreadable(ProblemLog):
    """Turns what the reader finds into findings; a cleaned copy does not mend them: whoever wrote them must look."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def add(self, problem: Problem) -> None:
        super().add(problem)
        self._findings.add("unreadable", problem.where, _sentence(problem))


class Checker:
    """Checks files one after the other, as one set of rows.

    Args:
        findings: Takes what is found.
        options: What is looked for.
    """

    def __init__(self, findings: Findings, options: Options) -> None:
        self.totals = Totals()
        self._findings, self._options = findings, options
        self._first: dict[bytes, str] = {}
        self._held_out: dict[bytes, str] = {}
        self._folded: dict[bytes, str] = {}
        self._folded_held_out: dict[bytes, str] = {}
        self._near: NearCopies | None = None
        self._near_held_out: NearCopies | None = None
        if options.near_rows:
            try:
                self._near, self._near_held_out = NearCopies(), NearCopies()
            except ModuleNotFoundError:
                message = "near duplicates are not looked for: install the extra 'data' (pip install 'llamafarm[data]')"
                findings.add("not-checked", "", message)

    @property
    def unit(self) -> str:
        """What lengths count."""
        return self._options.unit

    def hold_out(self, path: str) -> None:
        """Remember the rows of an evaluation file, which no checked row may equal.

        Raises:
            DataError: If one of them cannot be used: a check against it would mean nothing.
        """
        form = ""
        log = ProblemLog()
        for number, raw in enumerate(raw_rows(Path(path), log)):
            ref, row = RowRef(path, raw.line), raw.fields
            form = form or detect_format(row)[0]
            example = to_example(row, ref, form)
            self._held_out.setdefault(example_digest(example)[:8], str(ref))
            self._folded_held_out.setdefault(folded(example)[:8], str(ref))
            if self._near_held_out and number < self._options.near_rows:
                self._near_held_out.add(words(example), str(ref))
        log.check()

    def lines(self, path: str) -> Iterator[str]:
        """Check a file, and yield each row that a cleaned copy keeps: its own bytes, unless something was mended.

        Raises:
            DataError: If there is no such file.
            DiskError: If it cannot be read.
        """
        form = ""
        log = _Unreadable(self._findings)
        for raw in raw_rows(Path(path), log):
            self.totals.rows += 1
            ref = RowRef(path, raw.line)
            line = self._mended(raw, str(ref))
            fields = raw.fields if line is None else json.loads(line)
            try:
                form = form or detect_format(fields)[0]
                example = to_example(fields, ref, form)
            except DataError as error:
                for problem in error.problems:
                    rule = "empty-field" if problem.id == _EMPTY else "unusable"
                    self._findings.add(rule, str(ref), _sentence(problem), fixed=True)
                continue
            if self._is_new(example):
                self._look_at(example)
                self.totals.kept += 1
                self.totals.changed += line is not None
                yield _as_line(raw) if line is None else line
        self.totals.rows += len(log)

    def finish(self, paths: Sequence[str]) -> None:
        """Look at all rows together."""
        name, count = ", ".join(paths), len(self.totals.lengths)
        if count < FEW:
            self._findings.add("too-few", name, f"{count} usable rows: fewer than {FEW} rarely teach a model anything")
        elif (share := heavy_share(self.totals.lengths)) > HEAVY_SHARE:
            message = f"the longest 1 % of the rows hold {100 * share:.0f} % of the {self._options.unit}"
            self._findings.add("balance", name, message)
        if self._near and self.totals.rows > self._options.near_rows:
            message = f"near duplicates were looked for among the first {self._options.near_rows:,} rows (--near-rows)"
            self._findings.add("not-checked", name, message)

    def _mended(self, raw: RawRow, where: str) -> str | None:
        """The row as JSON without what can be mended in its texts; None when nothing was."""
        changed = False
        for path, text in texts.texts(raw.fields):
            sound = texts.repaired(text)
            if texts.LOST in text:
                self._findings.add("encoding", where, f"{path!r} holds U+FFFD: characters were lost before")
            elif found := texts.misread(text):
                message = f"{path!r}: {found.group()!r} at character {found.start() + 1} is UTF-8 read as Latin-1"
                self._findings.add("encoding", where, message, fixed=sound != text)
            if found := texts.CONTROL.search(sound):
                message = f"{path!r} holds U+{ord(found.group()):04X} at character {found.start() + 1}"
                self._findings.add("control-character", where, message, fixed=True)
            changed = changed or texts.clean(text) != text
        return json.dumps(texts.with_texts(raw.fields, texts.clean), ensure_ascii=False) if changed else None

    def _is_new(self, example: Example) -> bool:
        """Whether nobody has said the same: neither a row before nor a held-out one."""
        digest, where = example_digest(example)[:8], str(example.ref)
        if held_out := self._held_out.get(digest):
            self._findings.add("overlap", where, f"also stands in {held_out}", fixed=True)
            return False
        first = self._first.setdefault(digest, where)
        if first != where:
            self._findings.add("duplicate", where, f"says the same as {first}", fixed=True)
            return False
        return True

    def _look_at(self, example: Example) -> None:
        where = str(example.ref)
        said = turns.conversations(example)
        for message in turns.breaks_off(said[0].messages):  # a worse answer may be one that breaks off
            self._findings.add("truncated", where, message)
        for message in dict.fromkeys(message for one in said for message in turns.out_of_order(one.messages)):
            self._findings.add("role-order", where, message)
        self._measure(example)
        self._compare(example, where)

    def _compare(self, example: Example, where: str) -> None:
        """Look for rows that say nearly the same."""
        key = folded(example)[:8]
        first, held_out = self._folded.setdefault(key, where), self._folded_held_out.get(key)
        near, near_held_out = self._nearest(example, where)
        if first != where or near:
            self._findings.add("near-duplicate", where, f"says nearly the same as {near if first == where else first}")
        if held_out or near_held_out:
            message = f"says nearly the same as the held-out row {held_out or near_held_out}"
            self._findings.add("near-overlap", where, message)

    def _nearest(self, example: Example, where: str) -> tuple[str | None, str | None]:
        """The row before and the held-out row that share most pieces with this one."""
        if self._near is None or self._near_held_out is None or self.totals.rows > self._options.near_rows:
            return None, None
        text = words(example)
        found = self._near.find(text), self._near_held_out.find(text)
        self._near.add(text, where)
        return found

    def _measure(self, example: Example) -> None:
        try:
            length = max(map(self._options.measure, turns.conversations(example)))
        except Fault as fault:
            self._findings.add("template", str(example.ref), fault.message)
            return
        self.totals.lengths.append(length)
        limit = self._options.max_length
        if limit is not None and length > limit:
            message = f"{length:,} {self._options.unit}, at most {limit:,} are asked for"
            self._findings.add("too-long", str(example.ref), message)


def _as_line(raw: RawRow) -> str:
    text = raw.raw.decode()
    return json.dumps(raw.fields, ensure_ascii=False) if "\n" in text else text


def _sentence(problem: Problem) -> str:
    hint = f"; {problem.hint}" if problem.hint else ""
    return f"{problem.message}{hint} [{problem.id}]"
