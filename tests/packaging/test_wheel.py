"""What is in the wheel, and what is not."""

from __future__ import annotations

import platform
import shutil
import sysconfig
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


KERNELS = "llamafarm_tuners/pytorch/fast/native/kernels.so"


@pytest.mark.skipif(shutil.which("cc") is None or platform.machine() != "x86_64", reason="no C compiler")
def test_the_kernels_are_compiled_and_the_wheel_is_for_this_platform(wheel: Path, names: set[str], root: Path) -> None:
    platform_tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform_tag}.whl")
    assert KERNELS in names
    assert f"{Path(KERNELS).parent}/rows.c" in names


def test_without_a_compiler_the_wheel_is_for_every_platform(root: Path, tmp_path: Path, build, monkeypatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    wheel = build(root, tmp_path, "--wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert KERNELS not in archive.namelist()


def test_a_compiler_that_fails_stops_no_build(root: Path, tmp_path: Path, build, monkeypatch) -> None:
    compiler = tmp_path / "old-cc"
    compiler.write_text("#!/bin/sh\necho 'error: bad value for -march=' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build(root, tmp_path, "--wheel").name.endswith("-py3-none-any.whl")


def test_the_source_distribution_holds_what_a_checkout_holds(root: Path, wheel: Path) -> None:
    import tarfile

    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for expected in ("README.md", "Makefile", "constraints.txt", "cli.py", "tests/conftest.py", "docs/plugins.md"):
        assert expected in names
    assert "hatch_build.py" in names
    assert f"plugins/{Path(KERNELS).parent}/attention.c" in names
    assert f"plugins/{KERNELS}" not in names
