"""Packages of ours in another environment: the very files."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from llamafarm.core import reuse as module
from llamafarm.core.reuse import reuse


@pytest.fixture
def site(tmp_path):
    """The `site-packages` of an empty environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (found,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    return found


def run(site: Path, code: str) -> str:
    python = site.parents[2] / "bin" / "python"
    return subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_package_and_what_it_requires(site):
    assert reuse("jinja2", site, ()) == f"jinja2 {version('jinja2')}"
    said = run(site, "import jinja2, markupsafe; print(jinja2.Template('{{ 1 + 1 }}').render(), jinja2.__file__)")
    assert said == f"2 {site / 'jinja2' / '__init__.py'}"
    assert run(site, "import importlib.metadata as m; print(m.version('jinja2'))") == version("jinja2")


def test_what_comes_in_another_way_is_left_out(site):
    assert reuse("jinja2", site, ["MarkupSafe"])
    assert not list(site.glob("[mM]arkup*"))


def test_what_is_there_already_stays(site):
    (site / "markupsafe-0.dist-info").mkdir()
    (site / "markupsafe-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: markupsafe\nVersion: 0\n")
    assert reuse("jinja2", site, ())
    assert not (site / "markupsafe").exists()


def test_on_another_file_system_the_files_are_copied(site, monkeypatch):
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", link)
    assert reuse("jinja2", site, ())
    assert run(site, "import jinja2; print(jinja2.__version__)") == version("jinja2")


@pytest.mark.parametrize("name", ["llamafarm", "no-such-package"])
def test_sources_and_absent_packages_are_not_given(site, name):
    before = sorted(site.iterdir())
    assert reuse(name, site, ()) == ""
    assert sorted(site.iterdir()) == before
