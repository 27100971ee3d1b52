"""What holds for every data splitter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from llamafarm.api import DataSplitter, Row
from llamafarm.testing.contracts.component import ComponentContract
from llamafarm.testing.fresh import fresh
from llamafarm.testing.rows import make_rows

_SPLIT = """
import functools, importlib
from llamafarm.testing.rows import make_rows
module, qualified_name, config, count = arguments
component = functools.reduce(getattr, qualified_name.split("."), importlib.import_module(module))
answer = [bool(held) for held in component(component.Config.model_validate(config)).held_out(make_rows(count))]
"""


class SplitterContract(ComponentContract):
    """Inherit and set `component`; override `make_rows` if your splitter needs particular columns."""

    component: ClassVar[type[DataSplitter[Any]]]

    def make_rows(self, count: int) -> Sequence[Row]:
        """Different rows, as the host would hand them over."""
        return make_rows(count)

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 100, 1000])
    def test_answers_for_each_row_once(self, count: int) -> None:
        held_out = self.build().held_out(iter(self.make_rows(count)))
        assert len(held_out) == count
        assert all(isinstance(held, bool) for held in held_out)

    @pytest.mark.parametrize("count", [2, 3, 5, 10, 100, 1000])
    def test_leaves_no_side_empty(self, count: int) -> None:
        assert set(self.build().held_out(self.make_rows(count))) == {True, False}

    def test_answers_the_same_again(self) -> None:
        splitter = self.build()
        first = list(splitter.held_out(self.make_rows(100)))
        assert list(splitter.held_out(self.make_rows(100))) == first
        assert list(self.build().held_out(self.make_rows(100))) == first

    def test_answers_the_same_in_every_process(self) -> None:
        if type(self).make_rows is not SplitterContract.make_rows:
            pytest.skip("rows of the suite's own")
        arguments = (self.component.__module__, self.component.__qualname__, dict(self.config), 100)
        answers = [fresh(_SPLIT, *arguments, hash_seed=seed) for seed in (1, 2)]
        assert answers[0] == answers[1] == list(self.build().held_out(self.make_rows(100)))

    @pytest.mark.parametrize("count", [2, 3, 100])
    def test_answers_the_same_by_digest(self, count: int) -> None:
        if self.component.held_out_by_digest is DataSplitter.held_out_by_digest:
            pytest.skip("needs more than digests")
        import numpy as np

        rows = self.make_rows(count)
        joined = b"".join(row.digest for row in rows)
        digests = np.frombuffer(joined, ">u8").reshape(-1, 2).astype(np.uint64)
        assert self.build().held_out_by_digest(digests).tolist() == list(self.build().held_out(rows))

    def test_leaves_rows_alone(self) -> None:
        rows = self.make_rows(10)
        before = [dict(row.fields) for row in rows]
        self.build().held_out(rows)
        assert [dict(row.fields) for row in rows] == before
