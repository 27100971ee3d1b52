"""What is in the wheel, and what is not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

TOP_LEVEL = {
    "llamafarm",
    "llamafarm_hardware",
    "llamafarm_methods",
    "llamafarm_splitters",
    "llamafarm_tuners",
    "llamafarm-0.1.0.dist-info",
}


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_nothing_but_our_packages_at_the_top(names: set[str]) -> None:
    assert {name.partition("/")[0] for name in names} == TOP_LEVEL


def test_every_source_file_is_in(names: set[str], root: Path) -> None:
    expected = {str(path.relative_to(root)) for path in (root / "llamafarm").rglob("*") if path.is_file()}
    expected |= {str(path.relative_to(root / "plugins")) for path in (root / "plugins").rglob("*") if path.is_file()}
    missing = {name for name in expected - names if "__pycache__" not in name}
    assert missing == set()


@pytest.mark.parametrize("kind", ["configs", "strategies"])
def test_every_preset_is_in(names: set[str], root: Path, kind: str) -> None:
    expected = {f"llamafarm/_bundled/{path.relative_to(root)}" for path in (root / kind).rglob("*.yaml")}
    assert expected
    assert {name for name in names if name.startswith(f"llamafarm/_bundled/{kind}/")} == expected


def test_the_embedded_model_is_in_and_small(wheel: Path) -> None:
    folder = "llamafarm/models/_builtin/tiny/"
    with zipfile.ZipFile(wheel) as archive:
        found = {
            entry.filename.removeprefix(folder): entry.file_size
            for entry in archive.infolist()
            if entry.filename.startswith(folder)
        }
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= set(found)
    assert found["model.safetensors"] <= 6 * 2**20


def test_no_tests_and_no_leftovers(names: set[str]) -> None:
    strays = [name for name in names if "tests/" in name or "__pycache__" in name or name.endswith((".pyc", ".lock"))]
    assert strays == []


def test_it_is_typed_and_licensed(names: set[str]) -> None:
    assert "llamafarm/py.typed" in names
    assert "llamafarm-0.1.0.dist-info/licenses/LICENSE" in names
    assert "llamafarm-0.1.0.dist-info/licenses/NOTICE" in names


def test_the_source_distribution_holds_what_a_checkout_holds(root: Path, wheel: Path) -> None:
    import tarfile

    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for expected in ("README.md", "Makefile", "constraints.txt", "cli.py", "tests/conftest.py", "docs/plugins.md"):
        assert expected in names
