"""Plugins that are broken or clash: recorded while nobody asks for them, exit 5 with the cause when somebody does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

SPLITTER = """
    from llamafarm.api import DataSplitter, NoConfig, hookimpl

    class Mine(DataSplitter[NoConfig]):
        name = {name!r}

        def held_out(self, rows):
            return [False for _ in rows]

    @hookimpl
    def {hook}():
        return [Mine]
"""


def good(name: str, hook: str = "llamafarm_data_splitters") -> str:
    return SPLITTER.format(name=name, hook=hook)


@pytest.fixture(scope="module")
def environment(new_environment: Callable[[], object]):
    """One environment with every kind of trouble in it."""
    made = new_environment()
    made.plugin("farm-broken", "import no_such_library_anywhere")
    made.plugin("farm-exits", "raise SystemExit(3)")
    made.plugin("farm-syntax", "def :")
    made.plugin("farm-misspelt", good("misspelt", hook="llamafarm_data_spliters"))
    made.plugin("farm-old", good("old"), requires="llamafarm>=99", version="2.0")
    made.plugin("farm-raises", good("raises").replace("return [Mine]", "raise RuntimeError('no luck')"))
    made.plugin("farm-nothing", good("nothing").replace("return [Mine]", "return ['a text']"))
    made.plugin("farm-left", good("twice"))
    made.plugin("farm-right", good("twice"), version="1.1")
    made.plugin("farm-shadow", good("hash"))
    made.plugin("farm-good", good("good-one"))
    return made


def validate(environment, cwd: Path, splitter: str, **variables: str):
    return environment.llamafarm("validate", "quickstart", "--set", f"data_splitter={splitter}", cwd=cwd, **variables)


def test_a_good_one_works_beside_them(environment, tmp_path: Path) -> None:
    finished = validate(environment, tmp_path, "good-one")
    assert finished.returncode == 0, finished.stderr


def test_each_failure_is_listed_with_its_reason(environment, tmp_path: Path) -> None:
    finished = environment.llamafarm("plugins", "list", cwd=tmp_path, COLUMNS="300")
    assert finished.returncode == 0, finished.stderr
    shown = " ".join((finished.stdout + finished.stderr).split())
    assert "Traceback" not in shown
    for distribution, reason in {
        "farm-broken": "No module named 'no_such_library_anywhere'",
        "farm-exits": "SystemExit: 3",
        "farm-syntax": "invalid syntax",
        "farm-misspelt": "did you mean 'llamafarm_data_splitters'?",
        "farm-old": "needs llamafarm>=99",
        "farm-raises": "no luck",
        "farm-nothing": "no concrete DataSplitter",
    }.items():
        assert distribution in shown
        assert reason in shown


def test_asking_for_a_type_nobody_has_names_what_could_not_load(environment, tmp_path: Path) -> None:
    finished = validate(environment, tmp_path, "zebra")
    assert finished.returncode == 5
    assert "LF-PLUGIN-001" in finished.stderr
    assert "No module named 'no_such_library_anywhere'" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("type_", "others"),
    [("twice", ("farm-left 1.0", "farm-right 1.1")), ("hash", ("llamafarm 0.1.0", "farm-shadow 1.0"))],
)
def test_a_name_clash_names_both(environment, tmp_path: Path, type_: str, others: tuple[str, str]) -> None:
    finished = validate(environment, tmp_path, type_)
    assert finished.returncode == 5
    assert "LF-PLUGIN-002" in finished.stderr
    for other in others:
        assert other in finished.stderr
    assert "LLAMAFARM_DISABLE_PLUGINS" in finished.stderr


def test_disabling_one_side_settles_a_clash(environment, tmp_path: Path) -> None:
    finished = validate(environment, tmp_path, "twice", LLAMAFARM_DISABLE_PLUGINS="farm-left")
    assert finished.returncode == 0, finished.stderr
    finished = validate(environment, tmp_path, "hash", LLAMAFARM_DISABLE_PLUGINS="farm-shadow, farm_right")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ("farm-good>=1.0", ""),
        ("farm-good>=2", "farm-good>=2"),
        ("farm-absent", "pip install"),
        ("farm-broken", "no_such_library_anywhere"),
    ],
)
def test_plugins_that_a_strategy_requires(environment, tmp_path: Path, requirement: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"plugins: ['{requirement}']\nfine_tuner: {{type: pytorch, config: {{base_model: 'builtin:tiny'}}}}\n"
    )
    finished = environment.llamafarm("validate", "mine.yaml", cwd=tmp_path)
    assert finished.returncode == (5 if told else 0), finished.stderr
    assert told in finished.stderr
    assert not told or "mine.yaml:1" in finished.stderr
