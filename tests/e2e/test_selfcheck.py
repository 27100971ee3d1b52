"""`selfcheck` on real strategies: it proves what is so, and finds what is planted."""

from __future__ import annotations

import json

import pytest

from llamafarm.api import FineTuner
from llamafarm.cli import main
from llamafarm.errors import QualityError, StrategyError
from llamafarm_tuners.pytorch import _selfcheck

FOUR_BITS = {"load_in_4bit": True}
QLORA = {"type": "qlora", "quantization": FOUR_BITS}


def strategy(folder, method="lora", **training):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"light {n} on"},
                {"role": "assistant", "content": "It is on. " * (n % 4 + 1)},
            ]
        }
        for n in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "base_model": "builtin:tiny",
        "dataset": {"path": str(folder / "rows.jsonl")},
        "method": method,
        "training": {"batch_size": 3, **training},
        "output_dir": str(folder / "output"),
    }
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"name": "mine", "fine_tuner": {"type": "pytorch", "config": config}}), encoding="utf-8")
    return str(path)


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["selfcheck", *arguments])
    return ended.value.code or 0


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "fused"),
    [("lora", 2), ("full", 0), ("dora", 2), (QLORA, 2), ({"type": "dora", "quantization": FOUR_BITS}, 2)],
)
def test_a_strategy_is_proved(tmp_path, capsys, method, fused):
    assert call(strategy(tmp_path, method), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert max(found["loss"], found["gradients"]) < 1e-5
    assert found["planted_fault"] > 1e-2
    assert found["fault"] == "documents joined"
    assert (found["paths"]["fused_layers"] > 0) == bool(fused)
    assert not (tmp_path / "output").exists()


@pytest.mark.e2e
def test_the_figures_are_said(tmp_path, capsys):
    assert call(strategy(tmp_path), "--set", "training.fused=false") == 0
    said = capsys.readouterr().out
    assert "fused layers: 0" in said
    assert "planted fault (documents joined): " in said


def wrong_b(monkeypatch):
    """The gradient of B is one percent too large."""
    from llamafarm_tuners.pytorch.fast._lora import Lora

    def wrong(*arguments, original=Lora.low_backward):
        up, of_b = original(*arguments)
        return up, of_b * 1.01

    monkeypatch.setattr(Lora, "low_backward", wrong)


def wrong_magnitudes(monkeypatch):
    """So is that of DoRA's magnitudes."""
    from llamafarm_tuners.pytorch.fast._dora import Dora

    def wrong(*arguments, original=Dora.beyond):
        return [original(*arguments)[0] * 1.01]

    monkeypatch.setattr(Dora, "beyond", wrong)


def wrong_inputs(monkeypatch):
    """So is that of what goes into a layer."""
    from llamafarm_tuners.pytorch.fast._group import Group

    def wrong(*arguments, original=Group.backward, **named):
        of_x, found = original(*arguments, **named)
        return of_x if of_x is None else of_x * 1.01, found

    monkeypatch.setattr(Group, "backward", wrong)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("method", "fault"),
    [("lora", wrong_b), ("dora", wrong_b), ("dora", wrong_magnitudes), (QLORA, wrong_b), (QLORA, wrong_inputs)],
)
def test_a_broken_kernel_is_found(tmp_path, capsys, monkeypatch, method, fault):
    fault(monkeypatch)
    assert call(strategy(tmp_path, method)) == QualityError.exit_code
    assert "LF-QUALITY-020" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_fault_that_nobody_notices_proves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_selfcheck, "_joined", lambda batch: batch)
    assert call(strategy(tmp_path)) == QualityError.exit_code
    assert "LF-QUALITY-021" in capsys.readouterr().err


def test_a_strategy_that_has_run_is_proved_as_well(tmp_path, capsys):
    path = strategy(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--strategy", str(path), "--set", "training.max_steps=1"])
    assert (ended.value.code or 0) == 0
    before = sorted(tmp_path.rglob("*"))
    assert call(path) == 0, capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fine_tuner_without_a_check_says_so():
    with pytest.raises(StrategyError, match=r"has no selfcheck.*LF-TRAIN-060"):
        FineTuner.selfcheck(type("Mine", (), {"name": "mine"})(), None, None, None)
