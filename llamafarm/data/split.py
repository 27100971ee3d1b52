"""Splits a file of rows into two: one to train on, one to hold out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from llamafarm.api import DataSplitter, Row
from llamafarm.data.assign import assign
from llamafarm.data.digests import DIGEST_BYTES, row_digest
from llamafarm.data.problems import ProblemLog
from llamafarm.data.rows import read_raw, reread
from llamafarm.data.siblings import split_names
from llamafarm.errors import DataError, DiskError, Problem, UsageError

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a split did.

    Attributes:
        rows: Rows of the input; the sum of the next two.
        train: Rows to train on.
        eval: Rows held out.
        duplicates: Rows whose content stands before them; each is on the side of its first.
        train_path: Where the rows to train on are.
        eval_path: Where the held-out rows are.
        digest: Hex digest of the rows in order: the identity of what was split.
    """

    rows: int
    train: int
    eval: int
    duplicates: int
    train_path: Path
    eval_path: Path
    digest: str


def split_file(
    path: Path,
    splitter: DataSplitter[Any],
    *,
    train_path: Path | None = None,
    eval_path: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> SplitReport:
    """Split a file; every row is checked before anything is written.

    Rows keep their bytes and their order; each ends with a line feed. The file is read twice and never held in memory
    (a JSON array is), and both outputs appear when they are complete.

    Args:
        path: JSON lines, or a JSON array.
        splitter: Decides which rows are held out.
        train_path: Where rows to train on go; `NAME_train.jsonl` beside the input by default.
        eval_path: Where held-out rows go; `NAME_eval.jsonl` by default.
        overwrite: Replace outputs that are there.
        progress: Called with the bytes handled since the last call; all together about twice the file.

    Raises:
        DataError: If a row is not a JSON object (all of them are named), or there are too few.
        UsageError: If an output is there already, or is the input.
        DiskError: If a file cannot be read or written.
        PluginError: If the splitter breaks its contract.
    """
    names = split_names(path.with_suffix(".jsonl"))
    outputs = (train_path or names[0], eval_path or names[1])
    _check_outputs(path, outputs, overwrite=overwrite)
    log, total, count = ProblemLog(), blake2b(digest_size=DIGEST_BYTES), 0

    def rows() -> Iterator[Row]:
        nonlocal count
        for raw in read_raw(path, log):
            digest = row_digest(raw.fields)
            total.update(digest)
            yield Row(count, digest, raw.fields)
            count += 1
            progress(len(raw.raw) + 1)
        log.check()

    before = _state(path)
    sides = assign(rows(), splitter)
    with _replacing(outputs) as files:
        for raw, held_out in zip(reread(path), sides.held_out, strict=True):
            files[held_out].write(raw + b"\n")
            progress(len(raw) + 1)
        if _state(path) != before:
            raise DataError.of("LF-DATA-026", "the file changed while it was split", where=str(path), hint="try again")
    held = sum(sides.held_out)
    return SplitReport(count, count - held, held, sides.copies, *outputs, total.hexdigest())


def _state(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0, 0  # reading it says what is wrong
    return state.st_ino, state.st_size, state.st_mtime_ns


def _check_outputs(path: Path, outputs: tuple[Path, Path], *, overwrite: bool) -> None:
    train, held_out = outputs
    problems = []
    if train.resolve() == held_out.resolve():
        problems.append(Problem("LF-SPLIT-001", "both outputs are the same file", str(train), "name two files"))
    for output in outputs:
        if output.resolve() == path.resolve():
            problems.append(Problem("LF-SPLIT-001", "an output is the input", str(output), "name another file"))
        elif output.is_dir():
            problems.append(Problem("LF-SPLIT-001", "an output is a folder", str(output), "name a file in it"))
        elif output.exists() and not overwrite:
            problems.append(Problem("LF-SPLIT-002", "the output is there already", str(output), "give --overwrite"))
    if problems:
        raise UsageError(problems)


@contextmanager
def _replacing(outputs: tuple[Path, Path]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open both outputs under other names; they get their own when all went well, else they vanish."""
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in outputs]
    try:
        with ExitStack() as stack:
            for part in parts:
                part.parent.mkdir(parents=True, exist_ok=True)
            first, second = (stack.enter_context(part.open("wb")) for part in parts)
            yield first, second
            for file in (first, second):
                file.flush()
                os.fsync(file.fileno())
        for part, output in zip(parts, outputs, strict=True):
            part.replace(output)
    except OSError as error:
        where = str(error.filename or outputs[0].parent)
        raise DiskError.of("LF-DISK-001", f"cannot be written: {error.strerror}", where=where) from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
