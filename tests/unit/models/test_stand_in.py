"""Modules that wait: executed by use, once, as if they had been imported."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from threading import Barrier, Thread

import pytest

from llamafarm.models.later import Later, later
from llamafarm.models.stand_in import (
    StandIn,
    adapted,
    afterwards,
    execute_before,
    functions,
    is_waiting,
    nothing,
    wait_inside,
    waiting,
)

PACKAGE = """
import builtins
builtins.executed = getattr(builtins, "executed", 0) + 1
from heavy_one.inner import deep
class Thing: ...
def double(x):
    return 2 * x
"""


@pytest.fixture
def heavy(tmp_path, monkeypatch):
    """A package that counts how often it is executed; forgotten afterwards."""
    (tmp_path / "heavy_one").mkdir()
    (tmp_path / "heavy_one" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "heavy_one" / "inner.py").write_text("import heavy_one\ndeep = 'deep'\n")
    (tmp_path / "heavy_one" / "apart.py").write_text("import heavy_one\nvalue = 3\n")
    (tmp_path / "flat_one.py").write_text("import heavy_one\ndef double(x):\n    return heavy_one.double(x)\n")
    (tmp_path / "broken_one.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "user_one.py").write_text("from flat_one import double\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.executed", 0, raising=False)
    yield lambda: __import__("builtins").executed
    for name in [name for name in sys.modules if name.split(".")[0].endswith("_one")]:
        del sys.modules[name]


def test_a_module_waits_until_something_of_it_is_used(heavy):
    with waiting({"heavy_one": nothing}):
        module = importlib.import_module("heavy_one")
    assert is_waiting(module)
    assert find_spec("heavy_one") is module.__spec__
    assert module.__file__.endswith("__init__.py")
    assert not hasattr(module, "__wrapped__")  # what is asked of any object
    assert heavy() == 0
    assert module.double(2) == 4
    assert heavy() == 1
    assert type(module) is type(sys)
    assert sys.modules["heavy_one"] is module
    assert importlib.reload(module) is module


def test_classes_are_those_of_the_module_for_everybody(heavy):
    with waiting({"heavy_one": nothing}):
        module = importlib.import_module("heavy_one")
    thing = module.Thing()
    assert isinstance(thing, importlib.import_module("heavy_one").Thing)
    assert heavy() == 1


@pytest.mark.parametrize(
    "code", ["import heavy_one.apart", "from heavy_one import Thing", "from heavy_one import apart", "dir(heavy_one)"]
)
def test_whatever_reaches_inside_executes_it_once(heavy, code):
    with waiting({"heavy_one": nothing}):
        importlib.import_module("heavy_one")
    exec(code, {"heavy_one": sys.modules["heavy_one"]})
    assert heavy() == 1
    assert not is_waiting(sys.modules["heavy_one"])


def test_a_function_at_hand_executes_it_when_called_and_gives_way(heavy):
    with waiting({"heavy_one": nothing, "flat_one": functions("double")}):
        user = importlib.import_module("user_one")
    flat = sys.modules["flat_one"]
    assert is_waiting(flat)
    assert user.double(4) == 8
    assert heavy() == 1
    assert user.double is flat.double
    assert flat.double.__code__.co_filename.endswith("flat_one.py")


def test_a_module_inside_may_be_there_before_the_package_and_needs_nothing_of_it(heavy):
    def made(module: StandIn):
        wait_inside(module, "apart", nothing, alone=True)
        return {}

    with waiting({"heavy_one": made}):
        apart = importlib.import_module("heavy_one.apart")
    assert is_waiting(apart)
    assert apart.value == 3
    assert heavy() == 0
    assert not is_waiting(apart)
    assert sys.modules["heavy_one"].double(2) == 4
    assert sys.modules["heavy_one"].apart is apart
    assert heavy() == 1


@pytest.mark.parametrize("used", ["inner.deep", "Thing", "inner"])
def test_a_package_gets_from_inside_what_is_real(heavy, used):
    with waiting({"heavy_one": later("Thing", inside={"inner": ("deep",)})}):
        from heavy_one import Thing
        from heavy_one.inner import deep
    package = sys.modules["heavy_one"]
    assert heavy() == 0
    assert isinstance(deep, Later)
    assert not isinstance(3, Thing)
    assert heavy() == 0
    assert package.inner is sys.modules["heavy_one.inner"]
    str(eval(f"package.{used}").__class__)  # a module, a class that waits, a class that waits inside
    package.double(2)
    assert heavy() == 1
    assert package.inner.deep == package.deep == "deep"
    assert type(package.Thing) is type


def test_a_module_inside_is_imported_once_however_it_is_reached(heavy):
    with waiting({"heavy_one": nothing}):
        importlib.import_module("heavy_one")
    inner = importlib.import_module("heavy_one.inner")  # the package imports it too
    assert sys.modules["heavy_one"].inner is inner is sys.modules["heavy_one.inner"]
    assert inner.__spec__.loader is inner.__loader__
    assert importlib.reload(inner) is inner
    assert heavy() == 1


def test_a_class_that_waits_is_the_real_one_in_every_use(heavy):
    with waiting({"heavy_one": later("Thing", "double")}):
        from heavy_one import Thing, double
    assert not issubclass(int, Thing)
    assert heavy() == 0
    assert double(2) == 4
    real = sys.modules["heavy_one"].Thing
    assert type(real) is type
    assert real is not Thing
    assert type(Thing()) is real
    assert isinstance(real(), Thing)
    assert isinstance(real(), int | Thing)
    assert issubclass(real, Thing)
    assert class_of(Thing).__mro__[1] is real
    Thing.mark = 3
    assert real.mark == Thing.mark == 3
    with pytest.raises(AttributeError):
        _ = Thing.nothing_of_the_kind
    assert heavy() == 1


def class_of(base: type) -> type:
    class Made(base):
        """Made of it."""

    return Made


def test_what_is_needed_is_executed_before(heavy):
    def made(module: StandIn):
        execute_before(module, "heavy_one", "no_such_one")
        return {}

    with waiting({"heavy_one": nothing, "flat_one": made}):
        importlib.import_module("heavy_one")
        flat = importlib.import_module("flat_one")
    seen: list[bool] = []
    afterwards(sys.modules["heavy_one"], lambda: seen.append(is_waiting(flat)))
    assert flat.double(2) == 4
    assert seen == [True]


def test_a_package_that_fails_keeps_what_waits_inside(heavy, tmp_path):
    (tmp_path / "heavy_one" / "__init__.py").write_text("raise RuntimeError('broken')\n")
    with waiting({"heavy_one": later("Thing", inside={"inner": ("deep",)})}):
        from heavy_one.inner import deep
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            deep()
    assert sys.modules["heavy_one.inner"].deep is deep


def test_a_module_is_changed_before_anybody_has_it(heavy):
    with adapted("flat_one", lambda module: setattr(module, "double", lambda x: 3 * x)):
        from user_one import double
    assert double(2) == 6
    assert sys.modules["flat_one"].__spec__.loader is sys.modules["flat_one"].__loader__
    assert importlib.reload(sys.modules["flat_one"]).double(2) == 4


def test_a_module_that_fails_says_so_whenever_it_is_used(heavy):
    with waiting({"broken_one": nothing}):
        broken = importlib.import_module("broken_one")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
            broken.anything  # noqa: B018  # the access is what fails
    assert is_waiting(broken)


def test_a_name_that_is_not_there_is_an_attribute_error(heavy):
    with waiting({"heavy_one": nothing}):
        module = importlib.import_module("heavy_one")
    with pytest.raises(AttributeError, match="nowhere"):
        module.nowhere  # noqa: B018  # as above
    with pytest.raises(ImportError, match="nowhere"):
        exec("from heavy_one import nowhere")


def test_what_is_not_there_is_not_found(heavy):
    with waiting({"absent_one": nothing}):
        assert find_spec("absent_one") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("absent_one")


def test_what_is_to_follow_follows(heavy):
    with waiting({"heavy_one": nothing}):
        module = importlib.import_module("heavy_one")
    seen = []
    afterwards(module, lambda: seen.append(module.double(1)))
    assert seen == []
    assert module.deep == "deep"
    assert seen == [2]
    afterwards(module, lambda: seen.append("now"))
    assert seen == [2, "now"]


def test_outside_of_the_context_nothing_waits(heavy):
    with waiting({"heavy_one": nothing}):
        pass
    assert not is_waiting(importlib.import_module("heavy_one"))
    assert heavy() == 1


def test_threads_execute_it_once(heavy):
    with waiting({"heavy_one": nothing}):
        module = importlib.import_module("heavy_one")
    together, found = Barrier(4), []

    def use():
        together.wait()
        found.append(module.double(3))

    threads = [Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [6] * 4
    assert heavy() == 1
