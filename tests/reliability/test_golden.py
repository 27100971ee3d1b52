"""Each preset's first losses are those that were written down; `golden.py --write` writes them anew."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from golden import ELSEWHERE, FILE, STEPS, losses, presets, tolerance

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


def test_every_preset_has_its_losses() -> None:
    assert sorted(GOLDEN) == presets()
    assert {"quickstart", "demo3_training", "minimal-memory"} < set(GOLDEN)
    assert not ELSEWHERE & set(GOLDEN)
    assert all(len(course) == STEPS and course[-1] < course[0] for course in GOLDEN.values())


@pytest.mark.e2e
@pytest.mark.parametrize("preset", GOLDEN)
def test_a_preset_learns_as_it_did(preset: str, tmp_path: Path) -> None:
    if preset in ("minimal-memory", "training_cuda_consumer") and not importlib.util.find_spec("bitsandbytes"):
        pytest.skip("needs bitsandbytes")
    assert losses(preset, tmp_path) == pytest.approx(GOLDEN[preset], rel=tolerance(preset))


@pytest.mark.e2e
def test_another_arithmetic_would_be_noticed(tmp_path: Path) -> None:
    """A learning rate that is a thousandth higher is more than the tolerance."""
    other = losses("quickstart", tmp_path, ("training.learning_rate=3.003e-3",))
    assert other != pytest.approx(GOLDEN["quickstart"], rel=tolerance("quickstart"))
