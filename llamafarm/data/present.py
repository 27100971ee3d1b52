"""Whether the data that a configuration names is there, without reading a row of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamafarm.api import DatasetConfig, RowsConfig
from llamafarm.data.hub import is_hub_id
from llamafarm.data.prepare import beside
from llamafarm.data.registry import registered
from llamafarm.data.sources import files_of, parse, reader_of
from llamafarm.errors import LlamaFarmError


def missing(dataset: DatasetConfig) -> Iterator[LlamaFarmError]:
    """What is wrong with the names of files, folders, patterns and registered datasets.

    Datasets of the hub are not looked for, and files are not opened.
    """
    used = beside(dataset, lambda _: None)
    named: list[tuple[RowsConfig, str | None]] = [(source, source.path) for source in used.sources or ()]
    for config, path in [(used, used.path), *named, (used, used.eval_path)]:
        if path is not None:
            try:
                _look(config, path)
            except LlamaFarmError as error:
                yield error


def _look(config: RowsConfig, path: str) -> None:
    """Find the files.

    Raises:
        LlamaFarmError: What reading them would say first.
    """
    source = parse(path)
    if entry := registered(config, source.path):
        source = parse(entry.path)
    if Path(source.path).exists() or not is_hub_id(source.path):
        for file in files_of(source.path, lambda _: None):
            reader_of(file)
