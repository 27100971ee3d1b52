"""Splits rows: some to train on, some to hold out, and some for a third purpose if that is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llamafarm.api import DataSplitter, Row
from llamafarm.data.assign import assign, assign_digests, goes_by_digest
from llamafarm.data.blocks import Block
from llamafarm.data.inputs import opened_input
from llamafarm.data.problems import ProblemLog
from llamafarm.data.quick import DIGEST_BYTES, form_digest
from llamafarm.data.rows import no_rows
from llamafarm.errors import DataError, DiskError, Problem, UsageError
from llamafarm.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sides = NDArray[np.uint8]

Progress = Callable[[int], None]
TRAIN, EXTRA = 0, 2


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a split did.

    Attributes:
        rows: Rows of the input; the sum of the counts.
        counts: Rows of each output.
        duplicates: Rows whose content stands before them; each is on the side of its first.
        paths: Where the rows are: to train on, held out, extra.
        digest: Hex digest of the rows in order: the identity of what was split.
    """

    rows: int
    counts: tuple[int, ...]
    duplicates: int
    paths: tuple[Path, ...]
    digest: str


def split_files(
    inputs: Sequence[Path],
    splitter: DataSplitter[Any],
    outputs: Sequence[Path],
    *,
    extra: Callable[[int], DataSplitter[Any]] | None = None,
    overwrite: bool = False,
    text_field: str = "text",
    progress: Progress = lambda _: None,
) -> SplitReport:
    """Split the rows of files, taken as one set; every row is checked before anything is written.

    Rows of JSON keep their bytes, all keep their order, and each ends with a line feed. Files are read twice and never
    held in memory (a JSON array is), and all outputs appear when they are complete. A large file of JSON lines is read
    first by all cores, unless the splitter needs more of its rows than their digests.

    Args:
        inputs: Files of any kind that can be trained on.
        splitter: Decides which rows are held out.
        outputs: Where the rows go: to train on, held out, and a third file with `extra`.
        extra: Makes the splitter that takes the rows of the third file out of those to train on, from the number of
            all distinct rows. It sees other digests, that it may choose apart from the first.
        overwrite: Replace outputs that are there.
        text_field: The column that lines of plain text become.
        progress: Called with the bytes handled since the last call; all together about twice the unpacked files.

    Raises:
        DataError: If a row is no row (all of them are named), or there are too few.
        UsageError: If an output is there already, or is an input.
        DiskError: If a file cannot be read or written.
        PluginError: If a splitter breaks its contract.
    """
    import numpy as np

    check_outputs(inputs, outputs, overwrite=overwrite)
    before = [_state(path) for path in inputs]
    sides, copies, digest = _held_out(_blocks(inputs, text_field, progress, splitter), splitter)
    if extra is not None:
        second = extra(len(sides) - copies)
        chosen, _, _ = _held_out(_remaining(_blocks(inputs, text_field, progress, second), sides), second)
        sides[sides == TRAIN] = EXTRA * chosen
    with _written(outputs) as files:
        for side, rows in _dealt(inputs, text_field, sides):
            files[side].write(rows)
            progress(len(rows))
        for path, state in zip(inputs, before, strict=True):
            if _state(path) != state:
                message = "the file changed while it was split"
                raise DataError.of("LF-DATA-026", message, where=str(path), hint="try again")
    counts = tuple(np.bincount(sides, minlength=len(outputs)).tolist())
    return SplitReport(len(sides), counts, copies, tuple(outputs), digest)


def _blocks(
    inputs: Sequence[Path], text_field: str, progress: Progress, splitter: DataSplitter[Any]
) -> Iterator[Block]:
    """All rows, with what the splitter needs of them; what is wrong with any is raised after the last."""
    log = ProblemLog()
    for path in inputs:
        problems, found = len(log), False
        with opened_input(path, text_field) as source:
            for block in source.digests(log) if goes_by_digest(splitter) else source.blocks(log):
                found = found or bool(block.digests)
                progress(block.size)
                yield block
        if not found and len(log) == problems:
            raise no_rows(path)
    log.check()


def _held_out(blocks: Iterable[Block], splitter: DataSplitter[Any]) -> tuple[Sides, int, str]:
    """For each row 1 where it is held out, how many copies there are, and the digest of all rows."""
    import numpy as np

    total = blake2b(digest_size=DIGEST_BYTES)

    def counted() -> Iterator[Block]:
        for block in blocks:
            total.update(block.digests)
            yield block

    if goes_by_digest(splitter):
        parts = [np.frombuffer(block.digests, ">u8").reshape(-1, 2).astype(np.uint64) for block in counted()]
        sides, copies = assign_digests(np.concatenate(parts), splitter)
        return sides.astype(np.uint8), copies, total.hexdigest()
    answer = assign(_rows(counted()), splitter)
    return np.array(answer.held_out, np.uint8), answer.copies, total.hexdigest()


def _rows(blocks: Iterable[Block]) -> Iterator[Row]:
    index = 0
    for block in blocks:
        for place, fields in enumerate(block.fields):
            yield Row(index, block.digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)], fields)
            index += 1


def _remaining(blocks: Iterable[Block], sides: Sides) -> Iterator[Block]:
    """The rows to train on, under other digests: what was chosen before by digest says nothing about them."""
    done = 0
    for block in blocks:
        places = range(len(block.digests) // DIGEST_BYTES)
        kept = [
            place
            for place, side in zip(places, sides[done : done + len(places)].tolist(), strict=False)
            if side == TRAIN
        ]
        digests = (block.digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)] for place in kept)
        fields = [block.fields[place] for place in kept] if block.fields else ()
        yield Block(b"".join(map(form_digest, digests)), fields, block.size)
        done += len(places)


def _dealt(inputs: Sequence[Path], text_field: str, sides: Sides) -> Iterator[tuple[int, bytes]]:
    """Pieces of the outputs."""
    done = 0
    for path in inputs:
        with opened_input(path, text_field) as source:
            for side, rows, number in source.parts(sides[done:]):
                yield side, rows
                done += number


def _state(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0, 0  # reading it says what is wrong
    return state.st_ino, state.st_size, state.st_mtime_ns


def check_outputs(inputs: Sequence[Path], outputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse outputs that cannot be written, or must not.

    Raises:
        UsageError: With all that is wrong.
    """
    problems, real = [], [os.path.realpath(output) for output in outputs]
    for number, output in enumerate(outputs):
        if real[number] in real[:number]:
            problems.append(Problem("LF-SPLIT-001", "two outputs are the same file", str(output), "name another file"))
        elif real[number] in [os.path.realpath(path) for path in inputs]:
            problems.append(Problem("LF-SPLIT-001", "an output is the input", str(output), "name another file"))
        elif output.is_dir():
            problems.append(Problem("LF-SPLIT-001", "an output is a folder", str(output), "name a file in it"))
        elif output.exists() and not overwrite:
            problems.append(Problem("LF-SPLIT-002", "the output is there already", str(output), "give --overwrite"))
    if problems:
        raise UsageError(problems)


@contextmanager
def _written(outputs: Sequence[Path]) -> Iterator[Sequence[BinaryIO]]:
    try:
        with replacing(*outputs) as files:
            yield files
    except OSError as error:
        where = str(error.filename or outputs[0].parent)
        raise DiskError.of("LF-DISK-001", f"cannot be written: {error.strerror}", where=where) from None
