"""From a dataset's configuration to examples: read, checked, split, and counted to the last row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.api import DatasetConfig, DataSplitter, Example, PreparedData, Row
from llamafarm.data.assign import assign
from llamafarm.data.digests import data_digest
from llamafarm.data.filters import Filters, require_rest
from llamafarm.data.load import Loaded, Opened, load, open_rows
from llamafarm.data.mixing import Mixed
from llamafarm.data.problems import ProblemLog
from llamafarm.data.siblings import find_split
from llamafarm.data.sources import Notice, parse
from llamafarm.errors import DataError


def prepare(
    dataset: DatasetConfig,
    splitter: DataSplitter[Any] | None,
    *,
    notice: Notice,
    difficulty: str | None = None,
) -> PreparedData:
    """Read the rows, check them all, and put each on one side.

    Held out are the rows of `eval_path`; else those of an earlier split's file beside the dataset (said through
    `notice`); else what the splitter chooses; without a splitter, none. Training keeps its copies of a row. A row to
    train on that is also held out by a file is dropped and counted.

    Args:
        dataset: Where the rows are and what they look like.
        splitter: Decides which rows are held out when no file says so.
        notice: Takes one sentence about anything decided here.
        difficulty: A column of numbers to keep with the rows to train on, for a curriculum.

    Returns:
        Both sides, and the ledger: `read` = `trained` + `held_out` + every `dropped_…`; `copies` counts rows whose
        content stands before them.

    Raises:
        DataError: For every row that cannot be used, at once; or if a side would be empty.
        DiskError: If a file cannot be read.
        PluginError: If the splitter breaks its contract.
    """
    dataset = beside(dataset, notice)
    log, whole, filters = ProblemLog(), Loaded(), Filters(dataset.filters)
    source: Mixed | Opened
    if dataset.sources:
        name, source = f"{len(dataset.sources)} sources", Mixed(dataset, log, notice, difficulty, filters)
        rows = source.load(whole)
    else:
        source = open_rows(dataset, log, notice, seed=dataset.sample_seed, limit=dataset.max_samples)
        name = source.name
        rows = load(name, source.rows, dataset, whole, log=log, notice=notice, difficulty=difficulty, filters=filters)
    if dataset.eval_path is not None:
        _exhaust(rows)
        held_out, file = Loaded(), dataset.model_copy(update={"path": dataset.eval_path, "generate": None})
        apart = open_rows(file, log, notice, seed=dataset.sample_seed)
        apart_filters = Filters(dataset.filters)
        _exhaust(load(apart.name, apart.rows, dataset, held_out, log=log, notice=notice, filters=apart_filters))
        log.check()
        require_rest(whole.examples, filters)
        filters.dropped += apart_filters.dropped
        left_out = _left_out(filters, notice, source, apart)
        return _by_file(whole, held_out, dataset.eval_path, notice, left_out)
    rows = _checked(rows, log, whole, filters)
    if splitter is None:
        _exhaust(rows)
        sides: Sequence[bool] = [False] * len(whole.examples)
    else:
        assigned = assign(rows, splitter, key=lambda row: whole.contents[row.index])
        sides = assigned.held_out
        if assigned.copies:
            notice(f"{name}: {assigned.copies} of {len(sides)} rows are copies: each is on the side of its first")
    return _result(
        _side(whole, sides, held_out=False), _side(whole, sides, held_out=True), _left_out(filters, notice, source)
    )


def beside(dataset: DatasetConfig, notice: Notice) -> DatasetConfig:
    """Use the two files of an earlier split, where there are any."""
    if dataset.path is None or dataset.eval_path is not None:
        return dataset
    source = parse(dataset.path)
    split = None if Path(source.path).is_dir() else find_split(Path(source.path))
    if split is None:
        return dataset
    train, held_out = map(str, split)
    train += dataset.path.removeprefix(source.path)
    notice(f"{dataset.path} was split before: training on {train}, holding out {held_out} (dataset.eval_path decides)")
    return dataset.model_copy(update={"path": train, "eval_path": held_out})


def _left_out(filters: Filters, notice: Notice, *sources: Mixed | Opened) -> dict[str, int]:
    if why := filters.summary():
        notice(f"left out by dataset.filters: {why}")
    counts = {"dropped_not_sampled": sum(source.left_out for source in sources), **filters.dropped}
    return {name: count for name, count in counts.items() if count}


def _by_file(whole: Loaded, held_out: Loaded, eval_path: str, notice: Notice, left_out: dict[str, int]) -> PreparedData:
    known = frozenset(held_out.contents)
    also_there = [content in known for content in whole.contents]
    train = _side(whole, also_there, held_out=False)
    dropped = sum(also_there)
    if dropped:
        notice(f"{dropped} of {len(also_there)} rows to train on also stand in {eval_path}: not trained on")
    if not train.examples:
        message = f"all {dropped} rows to train on also stand in {eval_path}"
        raise DataError.of("LF-DATA-021", message, hint="hold out other rows than those trained on")
    return _result(train, held_out, {"dropped_also_held_out": dropped, **left_out})


def _checked(rows: Iterable[Row], log: ProblemLog, whole: Loaded, filters: Filters) -> Iterator[Row]:
    yield from rows
    log.check()
    require_rest(whole.examples, filters)


def _exhaust(rows: Iterable[Row]) -> None:
    deque(rows, maxlen=0)


@dataclass(frozen=True, slots=True)
class _Side:
    """Examples of one side, and the digest of what each holds."""

    examples: Sequence[Example]
    contents: Sequence[bytes]


def _side(whole: Loaded, sides: Sequence[bool], *, held_out: bool) -> _Side:
    chosen = [index for index, side in enumerate(sides) if bool(side) is held_out]
    return _Side(whole.examples.chosen(chosen), [whole.contents[index] for index in chosen])


def _result(train: _Side, held_out: _Side | Loaded, dropped: dict[str, int]) -> PreparedData:
    trained, held = len(train.examples), len(held_out.examples)
    distinct = len(set(train.contents)) + len(set(held_out.contents))
    counts = {
        "read": trained + held + sum(dropped.values()),
        "trained": trained,
        "held_out": held,
        **dropped,
        "copies": trained + held - distinct,
    }
    digest = data_digest({"train": train.contents, "eval": held_out.contents})
    return PreparedData(train.examples, held_out.examples, counts, digest)
