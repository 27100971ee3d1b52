"""A run on the command line that breaks, and its step taken again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llamafarm.cli.guard import run as main
from llamafarm.errors import StrategyError
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e


@pytest.fixture
def broken(tiny_model_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose learning rate throws the weights out of float32 at its second or third step."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps(row) + "\n" for row in make_fields(24))
    Path("rows.jsonl").write_text(rows)
    sets = ["training.max_steps=6", "training.batch_size=4", "training.max_grad_norm=0", "training.warmup_ratio=0"]
    sets += ["training.learning_rate=1e30", "method=lora", "method.dropout=0.1", "training.max_seq_length=64"]
    flags = [word for item in sets for word in ("--set", item)]
    code = main(["train", "--model", str(tiny_model_dir("llama")), "--dataset", "rows.jsonl", "-o", "run", *flags])
    assert code == 6
    return tmp_path / "run"


def test_a_step_that_broke_breaks_again_and_not_when_it_is_mended(broken, capsys):
    (record,) = (broken / "llamafarm").glob("broken-step-*")
    step = record.name.rpartition("-")[2]
    facts = json.loads((record / "step.json").read_text())
    assert facts["first_bad"]
    assert facts["examples"][0][0].startswith("rows.jsonl:")
    manifest = json.loads((broken / "llamafarm/manifest.json").read_text())
    assert (manifest["status"], manifest["exit_code"]) == ("failed", 6)
    text = json.loads(Path("rows.jsonl").read_text().splitlines()[0])["output"]
    assert not [file for file in record.iterdir() if text.encode() in file.read_bytes()], "no text of the rows"

    capsys.readouterr()
    assert main(["replay-step", "run", step]) == 6
    out, err = capsys.readouterr()
    assert out == ""
    assert f"step {step} breaks again: the first value that is not finite is {facts['first_bad']}" in err
    assert "LF-NUMERIC-013" in err
    assert "rows.jsonl:" in err

    assert main(["replay-step", "run", step, "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["reproduced"] is True

    tame = {name: tensor.clamp(-0.01, 0.01) for name, tensor in load_file(record / "weights.safetensors").items()}
    save_file(tame, record / "weights.safetensors")
    assert main(["replay-step", "run", step]) == 0
    assert f"step {step} is finite now" in capsys.readouterr().out

    tame["of.another.model"] = tame.pop(next(iter(tame)))
    save_file(tame, record / "weights.safetensors")
    assert main(["replay-step", "run", step]) == 9
    assert "LF-RUN-052" in capsys.readouterr().err
    (record / "step.json").write_text("{")
    assert main(["replay-step", "run", step]) == 9
    assert "LF-RUN-051" in capsys.readouterr().err
    assert main(["replay-step", "run", "999"]) == 9
    assert f"it has: {step} [LF-RUN-050]" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["bfloat16", "auto"])
def test_a_step_on_a_base_in_bf16_has_the_loss_that_it_had(tiny_model_dir, tmp_path, monkeypatch, capsys, asked):
    """To the last bit: weights, dropout, rows and the base's format are those of the step."""
    import torch

    from llamafarm_tuners.pytorch import _frozen, _step

    monkeypatch.chdir(tmp_path)
    losses, formats = [], set()
    gradient = _step.Stepper.gradient

    def spied(self, batches, *rest):
        found = gradient(self, batches, *rest)
        losses.append(float(found.loss))
        formats.update({(p.dtype, p.requires_grad) for p in self.work.trained.model.parameters() if p.dim() == 2})
        return found

    monkeypatch.setattr(_step.Stepper, "gradient", spied)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(24)))
    sets = ["training.max_steps=8", "training.batch_size=4", "training.max_grad_norm=0", "training.warmup_ratio=0"]
    sets += ["training.learning_rate=0.3", "method=lora", "method.dropout=0.1", "training.max_seq_length=64"]
    sets += ["training.guard.anomalies=stop", "training.guard.grad_norm_min=0.9", f"base_model.torch_dtype={asked}"]
    flags = [word for item in sets for word in ("--set", item)]
    train = ["train", "--model", str(tiny_model_dir("llama")), "--dataset", "rows.jsonl", "-o", "run", *flags]
    with monkeypatch.context() as patch:
        if asked == "auto":  # as on a processor where bf16 pays, for a model that is wide enough
            patch.setattr(_frozen, "choice", lambda *_: _frozen.Choice("bfloat16", "it pays"))
            patch.setattr(_frozen, "_by_speed", lambda found, *_: found)
        assert main(train) == 6
    (record,) = (tmp_path / "run/llamafarm").glob("broken-step-*")
    step, facts = record.name.rpartition("-")[2], json.loads((record / "step.json").read_text())
    assert int(step) > 1, "weights as they were loaded show nothing"
    assert facts["loss"] in losses
    assert formats == {(torch.bfloat16, False), (torch.float32, True)}

    losses.clear()
    formats.clear()
    capsys.readouterr()
    assert main(["replay-step", "run", step]) == 0
    assert losses[0] == facts["loss"]
    assert f"{facts['loss']}; as it was" in capsys.readouterr().out
    assert formats == {(torch.bfloat16, False), (torch.float32, True)}


def test_other_fine_tuners_keep_no_records():
    from llamafarm.api import FineTuner, FineTunerConfig

    class Other(FineTuner[FineTunerConfig]):
        name = "other"

        def fit(self, plan, data, run):
            raise NotImplementedError

    with pytest.raises(Exception, match="LF-RUN-053") as caught:
        FineTuner.replay_step(Other.__new__(Other), None, None, None, Path())  # type: ignore[arg-type]
    assert not isinstance(caught.value, StrategyError)
