"""What the project promises about itself: dependencies, versions, light imports, the two commands."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import llamafarm
from llamafarm.testing.fresh import HEAVY, fresh

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUN_TIME = {canonicalize_name(Requirement(text).name): Requirement(text) for text in PROJECT["dependencies"]}
EXTRAS = {
    canonicalize_name(Requirement(text).name): Requirement(text)
    for texts in PROJECT["optional-dependencies"].values()
    for text in texts
}
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.MULTILINE)
}
OWN = {"llamafarm", "llamafarm_tuners", "llamafarm_methods", "llamafarm_hardware", "llamafarm_splitters"}
PARTS = {"pydantic-core": "pydantic"}  # a part that its owner pins exactly, and documents for use


def sources() -> Iterator[Path]:
    for folder in (ROOT / "llamafarm", ROOT / "plugins"):
        yield from sorted(folder.rglob("*.py"))


def module_name(path: Path) -> str:
    root = ROOT / "plugins" if path.is_relative_to(ROOT / "plugins") else ROOT
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Top-level names of absolute imports, wherever they stand in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - OWN


@cache
def known_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def distributions(names: set[str]) -> set[str]:
    known = known_distributions()
    found = {canonicalize_name(distribution) for name in names for distribution in known.get(name, [name])}
    return {PARTS.get(name, name) for name in found}


def test_whatever_is_imported_is_declared() -> None:
    declared = set(RUN_TIME)
    for path in sources():
        allowed = declared | set(EXTRAS) if path.is_relative_to(ROOT / "llamafarm" / "testing") else declared
        optional = {
            "bitsandbytes",
            "datasketch",
            "gguf",
            "liger-kernel",
            "matplotlib",
            "sacrebleu",
            "tensorboard",
        }  # extras whose absence is an error with a hint
        assert distributions(imported(path)) - allowed - optional == set(), path


def test_whatever_is_declared_is_imported() -> None:
    used = distributions(set().union(*(imported(path) for path in sources())))
    assert set(RUN_TIME) - used == {"attrs"}, "PEFT's CorDA imports it, and does not ask for it"


@pytest.mark.parametrize("requirement", [*RUN_TIME.values(), *EXTRAS.values()], ids=lambda found: found.name)
def test_declared_ranges_hold_the_tested_version(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier
    assert all(bound.operator == ">=" for bound in requirement.specifier), "only lower bounds: users may be ahead of us"


def closure(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """All distributions that installing `name` with `extras` brings here, but for what a build of torch adds."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        key = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}
        )
        if wanted and key not in found:
            found.add(key)
            if key != "torch":
                closure(requirement.name, frozenset(requirement.extras), found)
    return found


def test_all_that_an_installation_brings_is_pinned() -> None:
    assert closure("llamafarm", frozenset({"test", "qlora"}), set()) - set(PINS) == set()


def test_installing_never_replaces_a_build_of_torch() -> None:
    assert str(PINS["torch"]) == "2.13.0", "no local version: +cpu, +cu and plain builds all satisfy it"
    assert "://" not in CONSTRAINTS


@pytest.mark.parametrize("name", sorted({*RUN_TIME, *EXTRAS}))
def test_each_dependency_is_explained(name: str) -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = {canonicalize_name(found) for found in re.findall(r"^\| `([\w.-]+)`", text, re.MULTILINE)}
    assert name in explained


def test_versions_agree() -> None:
    assert PROJECT["version"] == llamafarm.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(Unreleased|" + re.escape(llamafarm.__version__) + r")\]", changelog, re.MULTILINE)


LIGHT = [name for name in map(module_name, sources()) if "._" not in name]


def test_importing_anything_public_loads_nothing_heavy() -> None:
    """One interpreter imports all modules but the underscored ones; a second look names the culprit."""
    code = "import importlib\nfor name in arguments: importlib.import_module(name)\nanswer = list(sys.modules)"
    needs_pytest = [name for name in LIGHT if name.startswith("llamafarm.testing")]
    light = [name for name in LIGHT if name not in needs_pytest and not name.endswith("__main__")]
    assert {name.partition(".")[0] for name in fresh(code, *light)} & HEAVY == set()
    assert {name.partition(".")[0] for name in fresh(code, *needs_pytest)} & HEAVY == set()


def test_the_pytest_plugin_costs_other_projects_nothing() -> None:
    code = "import pytest\nbefore = set(sys.modules)\nimport llamafarm.testing.plugin\n"
    loaded = fresh(code + "answer = sorted(set(sys.modules) - before)")
    assert loaded == ["llamafarm", "llamafarm.testing", "llamafarm.testing.plugin"]


def test_plugins_is_a_source_root() -> None:
    assert not (ROOT / "plugins" / "__init__.py").exists()
    for package in (ROOT / "plugins").iterdir():
        if package.is_dir() and not package.name.startswith((".", "_")):
            assert (package / "py.typed").exists(), package
            assert (package / "hooks.py").exists(), package


def test_hooks_modules_name_every_entry_point() -> None:
    for target in PROJECT["entry-points"]["llamafarm"].values():
        module = importlib.import_module(target)
        assert any(name.startswith("llamafarm_") for name in vars(module)), f"{target} registers nothing"


def test_continuous_integration_runs_the_readmes_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert "make test" in text
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_make_knows_the_documented_targets() -> None:
    for target in ("quickstart", "test", "lint", "types", "format"):
        finished = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr


def test_make_test_runs_every_check() -> None:
    finished = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    for check in ("ruff format --check .\n", "ruff check .\n", "lint-imports\n", "mypy\n", "-m pytest"):
        assert check in finished.stdout


def test_make_says_which_python_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "rm"):
        (tmp_path / "bin" / tool).symlink_to(next(Path("/bin").glob(tool)))
    make = next(path for path in map(Path, ("/usr/bin/make", "/bin/make")) if path.exists())
    command = [str(make), "quickstart", f"VENV={tmp_path / 'venv'}"]
    environment = {"PATH": str(tmp_path / "bin")}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "needs Python 3.11 or newer" in finished.stderr
    assert not (tmp_path / "venv").exists()


def test_no_text_of_ours_names_a_machine_or_an_index() -> None:
    """Tracked texts hold no absolute home path and no address of a package index."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"/(home|root|Users)/\w+/|--(extra-)?index-url[ =]https?:|file://")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".json", ""} and path.name != Path(__file__).name:
            assert not forbidden.search(path.read_text(encoding="utf-8", errors="ignore")), name
