"""A malformed component is refused when its class is defined."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from llamafarm.api import Config, ContractError, DataSplitter, FineTuner, FineTunerConfig, NoConfig, Row


class SplitConfig(Config):
    n: int = 2


def splitter(name: Any, base: Any = DataSplitter[SplitConfig]) -> type[DataSplitter[Any]]:
    class Made(base):
        def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
            return [False for _ in rows]

        locals()["name"] = name

    return Made


@pytest.mark.parametrize("name", ["x", "every-nth", "a1-b2", "llama3"])
def test_a_good_name_is_accepted(name: str) -> None:
    assert splitter(name).name == name


@pytest.mark.parametrize("name", ["", "Hash", "every_nth", "-a", "a-", "a--b", "1a", "a b", "a:b", "ä"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match=r"lower-case words joined by '-'") as caught:
        splitter(name)
    assert repr(name) in str(caught.value)


def test_the_configuration_is_the_type_parameter() -> None:
    made = splitter("x")
    assert made.Config is SplitConfig
    assert made(SplitConfig(n=3)).config.n == 3


def test_a_component_without_configuration_is_refused_with_what_to_write() -> None:
    with pytest.raises(ContractError, match=r"write Made\(DataSplitter\[MyConfig\]\)"):
        splitter("x", base=DataSplitter)


def test_a_configuration_that_is_none_is_refused() -> None:
    with pytest.raises(ContractError, match="names no configuration"):
        splitter("x", base=DataSplitter[int])


def test_a_component_may_inherit_its_configuration() -> None:
    first = splitter("first")
    second = splitter("second", base=first)
    assert second.Config is SplitConfig


def test_a_component_may_narrow_its_configuration() -> None:
    class Narrow(SplitConfig):
        m: int = 1

    class Middle(DataSplitter[SplitConfig]):
        @abstractmethod
        def held_out(self, rows: Iterable[Row]) -> Sequence[bool]: ...

    class Last(Middle):
        name = "last"
        Config = Narrow

        def held_out(self, rows: Iterable[Row]) -> Sequence[bool]:
            return []

    assert Last.Config is Narrow


def test_an_abstract_class_needs_neither_name_nor_configuration() -> None:
    class Middle(DataSplitter):
        """Leaves held_out to its subclasses."""

    assert Middle.name == ""
    with pytest.raises(TypeError, match="held_out"):
        Middle(NoConfig())


def test_the_defaults_of_a_family_change_nothing() -> None:
    class Tuner(FineTuner[FineTunerConfig]):
        name = "tuner"

        def fit(self, plan, data, run):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    assert tuple(Tuner(FineTunerConfig()).check(None)) == ()
    assert Tuner.adapter_kinds == frozenset()
