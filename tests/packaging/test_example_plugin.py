"""The example plugin, installed beside LlamaFarm as a wheel and in place: all it brings is there by all doors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging


def test_its_components_are_listed(with_example, tmp_path: Path) -> None:
    finished = with_example.llamafarm("plugins", "list", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for name in ("bias-only", "every-nth", "ngram", "llamafarm-example"):
        assert name in finished.stdout


def test_its_preset_is_listed_and_valid(with_example, tmp_path: Path) -> None:
    listed = with_example.llamafarm("strategies", "list", cwd=tmp_path)
    assert "ngram-baseline" in listed.stdout
    assert with_example.llamafarm("validate", "ngram-baseline", cwd=tmp_path).returncode == 0


def test_it_is_in_the_schema(with_example, tmp_path: Path) -> None:
    finished = with_example.llamafarm("schema", cwd=tmp_path)
    schema = finished.stdout
    json.loads(schema)
    for name in ("bias-only", "every-nth", "ngram", "norms", "discount"):
        assert f'"{name}"' in schema


@pytest.mark.parametrize(
    ("override", "right"),
    [("method=bias-olny", "bias-only"), ("data_splitter=evry-nth", "every-nth"), ("fine_tuner=ngrm", "ngram")],
)
def test_a_typo_gets_its_name_as_the_hint(with_example, tmp_path: Path, override: str, right: str) -> None:
    finished = with_example.llamafarm("validate", "quickstart", "--set", override, cwd=tmp_path)
    assert finished.returncode in (2, 5)
    assert f"did you mean '{right}'?" in finished.stderr, finished.stderr


def test_a_wrong_option_of_its_method_is_found(with_example, tmp_path: Path) -> None:
    sets = ["--set", "method=bias-only", "--set", "method.nroms=false"]
    finished = with_example.llamafarm("validate", "quickstart", *sets, cwd=tmp_path)
    assert finished.returncode == 2
    assert "did you mean 'norms'?" in finished.stderr


@pytest.mark.e2e
def test_its_fine_tuner_trains_on_its_splitter(example_in_place, tmp_path: Path) -> None:
    sets = ["--set", "dataset.max_samples=200"]
    finished = example_in_place.llamafarm("train", "--strategy", "ngram-baseline", *sets, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    output = tmp_path / "output" / "ngram-baseline"
    assert (output / "ngram.json").is_file()
    manifest = json.loads((output / "llamafarm" / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    assert "llamafarm-example" in json.dumps(manifest)


@pytest.mark.e2e
def test_its_method_trains_with_our_fine_tuner(example_from_wheel, tmp_path: Path) -> None:
    sets = ["--set", "method=bias-only", "--set", "training.max_steps=3", "--set", "evaluation.exact_match=false"]
    finished = example_from_wheel.llamafarm("train", "--strategy", "quickstart", *sets, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "output" / "quickstart" / "model.safetensors").is_file()


@pytest.mark.e2e
def test_its_own_tests_pass(example_from_wheel, root: Path, tmp_path: Path) -> None:
    finished = example_from_wheel.run(
        "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(root / "examples" / "plugin"), cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_disabled_it_is_gone_and_never_imported(with_example, tmp_path: Path) -> None:
    for name in ("example", "llamafarm-example"):
        finished = with_example.llamafarm("plugins", "list", cwd=tmp_path, LLAMAFARM_DISABLE_PLUGINS=name)
        assert finished.returncode == 0, finished.stderr
        assert "bias-only" not in finished.stdout
        code = "import sys; from llamafarm.core.registry import load_registry; load_registry(); print(*sys.modules)"
        loaded = with_example.run("python", "-c", code, cwd=tmp_path, LLAMAFARM_DISABLE_PLUGINS=name)
        assert "llamafarm_methods" in loaded.stdout
        assert "llamafarm_example" not in loaded.stdout
