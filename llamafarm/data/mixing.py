"""Mixes several sources of rows, by weights and in an order that a seed decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from random import Random

from llamafarm.api import DatasetConfig, Example, Row, SourceConfig
from llamafarm.data.filters import Filters
from llamafarm.data.load import Loaded, load, open_rows
from llamafarm.data.problems import ProblemLog
from llamafarm.data.sources import Notice
from llamafarm.errors import DataError


class Mixed:
    """The rows of all sources, mixed; they are held in memory.

    Attributes:
        left_out: Rows that weights, samples or `max_samples` leave out.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        log: ProblemLog,
        notice: Notice,
        difficulty: str | None = None,
        filters: Filters | None = None,
    ) -> None:
        self._filters = filters
        self._dataset, self._log, self._notice = dataset, log, notice
        self._difficulty, self.left_out = difficulty, 0

    def load(self, into: Loaded) -> Iterator[Row]:
        """Append each chosen row to `into` as an example, and yield it as a splitter sees it.

        Raises:
            DataError: For every row that cannot be used; or if a source has none for its weight, or not all have one.
        """
        sources, seed = self._dataset.sources or (), self._dataset.sample_seed
        weights = [source.weight for source in sources]
        if None in weights and any(weight is not None for weight in weights):
            hint = "give each source a weight, or none of them"
            raise DataError.of("LF-DATA-050", "some of dataset.sources have a weight, others none", hint=hint)
        parts = [self._part(number, source) for number, source in enumerate(sources)]
        self._log.check()
        chosen: list[tuple[Example, bytes, Row]] = []
        for number, (name, part) in enumerate(parts):
            count = _shares([len(rows) for _, rows in parts], weights)[number]
            if not count and weights[number] is not None:
                raise DataError.of("LF-DATA-050", "its weight leaves it no row", where=name, hint="raise its weight")
            if sources[number].weight is not None:
                self._notice(f"{name}: {count} of {len(part)} rows (weight {sources[number].weight:g})")
            self.left_out += len(part) - count
            places = sorted(Random(f"{seed} {number}").sample(range(len(part)), count))  # noqa: S311  # no secret
            chosen += [part[place] for place in places]
        Random(seed).shuffle(chosen)  # noqa: S311  # no secret
        kept = chosen[: self._dataset.max_samples]
        self.left_out += len(chosen) - len(kept)
        for example, content, row in kept:
            into.examples.append(example)
            into.contents.append(content)
            yield Row(len(into.examples) - 1, row.digest, row.fields)

    def _part(self, number: int, source: SourceConfig) -> tuple[str, list[tuple[Example, bytes, Row]]]:
        part, rows = Loaded(), deque[Row]()
        if source.dataset_dir is None:
            source = source.model_copy(update={"dataset_dir": self._dataset.dataset_dir})
        opened = open_rows(source, self._log, self._notice, seed=self._dataset.sample_seed + number)
        self.left_out += opened.left_out
        rows.extend(
            load(
                opened.name,
                opened.rows,
                source,
                part,
                log=self._log,
                notice=self._notice,
                task=source.task,
                difficulty=self._difficulty,
                filters=self._filters,
            )
        )
        return opened.name, list(zip(part.examples, part.contents, rows, strict=True))


def _shares(counts: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """As many rows of each as there are in the proportion of the weights: all of one source, at most all of others."""
    exact = [None if weight is None else Fraction(weight) for weight in weights]
    scale = min(
        (count / weight for count, weight in zip(counts, exact, strict=True) if weight is not None), default=Fraction(0)
    )
    return [
        count if weight is None else min(count, round(scale * weight))
        for count, weight in zip(counts, exact, strict=True)
    ]
