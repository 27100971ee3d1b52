"""The shipped presets train on any model folder, by the steps of `llamafarm train`; the base is never changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.core.run import train
from llamafarm.testing._tiny import ARCHITECTURES

pytestmark = pytest.mark.e2e


def run(preset: str, output: Path, *sets: str) -> list[Any]:
    """Train a preset and give back its events."""
    registry = load_registry()
    loaded = load(Request(preset, sets=(f"output_dir={output}", *sets)), registry)
    events: list[Any] = []
    train(loaded, make_plan(loaded, registry), registry, events.append)
    return events


def losses(events: list[Any]) -> list[float]:
    return [event.fields["loss"] for event in events if event.type == "log"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_demo3_trains_on_any_architecture(
    architecture: str, tiny_model_dir: Callable[[str], Path], tiny_dataset: Path, tmp_path: Path
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_model_dir(architecture)
    before = digests(base)
    sets = (f"base_model={base}", f"dataset={tiny_dataset}", "training.num_epochs=1", "training.report_to=[none]")
    first = losses(run("demo3_training", tmp_path / "a", *sets, "training.learning_rate=1e-2"))
    again = losses(run("demo3_training", tmp_path / "b", *sets, "training.learning_rate=1e-2"))
    assert first == again, "the same seed gives the same losses"
    assert first[-1] < first[0]
    assert digests(base) == before, "the base is untouched"
    plain = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "a")("The light", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert not torch.allclose(plain(ids).logits, tuned(ids).logits)


def test_quickstart_keeps_its_promise(tmp_path: Path):
    run("quickstart", tmp_path / "output")
    results = json.loads((tmp_path / "output/eval_results.json").read_text())
    assert results["exact_match_base"] < 0.05
    assert results["exact_match"] >= 0.90
    manifest = json.loads((tmp_path / "output/llamafarm/manifest.json").read_text())
    assert manifest["metrics"]["train_tokens_per_second"] > 0
    assert manifest["metrics"]["peak_memory_bytes"] > 0
