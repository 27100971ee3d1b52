"""Real distributions in real virtual environments, without downloads: those borrow the libraries of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


def build_distribution(source: Path, out: Path, *kinds: str) -> Path:
    """Build distributions of the project in `source`; returns the wheel, or what was asked for alone."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *kinds, str(source)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (built,) = out.glob("*.whl") if kinds != ("--sdist",) else out.glob("*.tar.gz")
    return built


@pytest.fixture(scope="session", name="build")
def build_fixture() -> Callable[..., Path]:
    """`build_distribution`."""
    return build_distribution


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing of its own but what a test installs."""

    folder: Path

    @property
    def site(self) -> Path:
        return next((self.folder / "lib").glob("python*")) / "site-packages"

    def install(self, *what: str) -> None:
        python = str(self.folder / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
        finished = subprocess.run(
            [*pip, "--no-deps", "--no-index", "--no-build-isolation", *what],
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr

    def run(self, *command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; nothing of the surrounding one but the libraries is visible."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LLAMAFARM"))
        }
        environment |= {"LLAMAFARM_HOME": str(self.folder / "home"), **variables}
        program = str(self.folder / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=840
        )

    def llamafarm(self, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("llamafarm", *arguments, cwd=cwd, **variables)

    def plugin(self, distribution: str, source: str, *, requires: str = "llamafarm>=0.1", version: str = "1.0") -> None:
        """Install a plugin of one module as pip would leave it."""
        module = distribution.replace("-", "_")
        (self.site / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.site / f"{module}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Dist: {requires}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[llamafarm]\n{module} = {module}\n", encoding="utf-8")


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as `python -m build` does it."""
    return build_distribution(root, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def new_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    """A function: a fresh virtual environment with the wheel installed."""

    def make() -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=False, symlinks=True)
        environment = Environment(folder)
        # A plain path: the .pth files of the surrounding site-packages, that of this checkout among them, stay unread.
        (environment.site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        environment.install(str(wheel))
        return environment

    return make


@pytest.fixture(scope="session")
def installed(new_environment: Callable[[], Environment]) -> Environment:
    """LlamaFarm from its wheel, shared by tests that install nothing more."""
    return new_environment()


@pytest.fixture(scope="session")
def example_wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_distribution(root / "examples" / "plugin", tmp_path_factory.mktemp("example"), "--wheel")


@pytest.fixture(scope="session")
def example_from_wheel(new_environment: Callable[[], Environment], example_wheel: Path) -> Environment:
    """LlamaFarm with the example plugin beside it, as a user would have both."""
    environment = new_environment()
    environment.install(str(example_wheel))
    return environment


@pytest.fixture(scope="session")
def example_in_place(new_environment: Callable[[], Environment], root: Path) -> Environment:
    """The same, as the plugin's author has it."""
    environment = new_environment()
    environment.install("--editable", str(root / "examples" / "plugin"))
    return environment


@pytest.fixture(params=["example_from_wheel", "example_in_place"])
def with_example(request: pytest.FixtureRequest) -> Environment:
    """Either."""
    return request.getfixturevalue(request.param)
