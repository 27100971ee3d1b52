"""`selfcheck` on real strategies: it proves what is so, and finds what is planted."""

from __future__ import annotations

import json

import pytest

from llamafarm.api import FineTuner
from llamafarm.cli import main
from llamafarm.errors import QualityError, StrategyError
from llamafarm_tuners.pytorch import _selfcheck


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
@pytest.mark.parametrize(("method", "fused"), [("lora", 2), ("full", 0)])
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


@pytest.mark.e2e
def test_a_broken_kernel_is_found(tmp_path, capsys, monkeypatch):
    from llamafarm_tuners.pytorch.fast import _lora

    def wrong(member, x, kept, gradient, of_x, original=_lora._low_backward):
        of_a, of_b = original(member, x, kept, gradient, of_x)
        return of_a, of_b * 1.01

    monkeypatch.setattr(_lora, "_low_backward", wrong)
    assert call(strategy(tmp_path)) == QualityError.exit_code
    assert "LF-QUALITY-020" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_fault_that_nobody_notices_proves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_selfcheck, "_joined", lambda batch: batch)
    assert call(strategy(tmp_path)) == QualityError.exit_code
    assert "LF-QUALITY-021" in capsys.readouterr().err


def test_a_fine_tuner_without_a_check_says_so():
    with pytest.raises(StrategyError, match=r"has no selfcheck.*LF-TRAIN-060"):
        FineTuner.selfcheck(type("Mine", (), {"name": "mine"})(), None, None, None)
