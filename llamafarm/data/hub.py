"""Reads datasets of the hub through the `datasets` library, which keeps them on disk once they were fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamafarm.api import RowRef
from llamafarm.data.extra import require
from llamafarm.data.tables import without_nulls
from llamafarm.errors import DataError, LlamaFarmError, NetworkError

_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>[\w.\[\]:%+-]+))?")
_FILE = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|text|parquet)(\.gz|\.zst)?$", re.IGNORECASE)


def is_hub_id(name: str) -> bool:
    """Whether a name that is nothing on this disk is a dataset of the hub: `OWNER/NAME`, or `OWNER/NAME:SPLIT`."""
    match = _ID.fullmatch(name)
    return match is not None and not Path(name).parent.is_dir() and not _FILE.search(match["id"])


def hub_rows(name: str, subset: str | None) -> Iterator[tuple[RowRef, dict[str, Any]]]:
    """The rows of one split, `train` unless the name tells another.

    Raises:
        DataError: If there is no such dataset, subset or split, or it cannot be read.
        NetworkError: If it was never fetched and the hub cannot be reached.
        PluginError: If `datasets` is not installed.
    """
    datasets = require("datasets", name)
    match = _ID.fullmatch(name)
    assert match
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(match["id"], subset, split=match["split"] or "train")
    except Exception as error:  # the library raises whatever its parts do
        raise _explained(name, error) from error
    yield from numbered(name, table)


def numbered(name: str, table: Any) -> Iterator[tuple[RowRef, dict[str, Any]]]:
    """The rows of a loaded table, with their numbers; a value that is null is absent."""
    for number, row in enumerate(table, 1):
        yield RowRef(name, number), without_nulls(row)


def _explained(name: str, error: Exception) -> LlamaFarmError:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if any(isinstance(item, GatedRepoError) for item in chain):
        return NetworkError.of("LF-NET-004", "the dataset is gated", where=name, hint="accept its terms; set HF_TOKEN")
    if any(isinstance(item, RepositoryNotFoundError) for item in chain):
        hint = "a file's name ends in .jsonl, .json, .csv, .parquet or .txt; check the id, or HF_TOKEN if it is private"
        return DataError.of("LF-DATA-044", "no such file, and no such dataset on the hub", where=name, hint=hint)
    unreachable = (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, TimeoutError)
    if any(isinstance(item, unreachable) for item in chain):
        hint = "go online, or give a file; what was fetched before is used offline"
        return NetworkError.of("LF-NET-004", f"the dataset cannot be fetched: {reason}", where=name, hint=hint)
    return DataError.of("LF-DATA-044", f"the hub's dataset cannot be read: {reason}", where=name)
