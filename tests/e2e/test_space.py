"""Room on the disk, before the model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llamafarm.api import DeviceSpec, PreparedData, RunPlan
from llamafarm.errors import DiskError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.hooks import llamafarm_methods
from llamafarm_tuners.pytorch.space import checkpoint_bytes, require_space
from llamafarm_tuners.pytorch.tuner import PytorchTuner

pytestmark = pytest.mark.e2e
METHODS = {method.name: method for method in llamafarm_methods()}


def planned(base: Path, method: str, options: dict, output: Path, **training):
    config = PytorchTuner.Config.model_validate({"base_model": {"huggingface_id": str(base)}, "training": training})
    chosen = METHODS[method](METHODS[method].Config.model_validate(options))
    return config, RunPlan("test", (chosen,), DeviceSpec("cpu", "a CPU"), output, (), {}, None)


def claiming(folder: Path, elements: int) -> Path:
    """A model folder whose weights say that they are large; nothing of them is there."""
    header = json.dumps(
        {"model.layers.0.q_proj.weight": {"dtype": "F32", "shape": [elements, 1], "data_offsets": [0, 0]}}
    )
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    return folder


def test_a_disk_without_room_is_refused_before_the_model_is_loaded(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    config, plan = planned(claiming(tmp_path, free // 12), "full", {}, tmp_path / "new" / "run")
    with pytest.raises(DiskError) as refused:
        PytorchTuner(config).fit(plan, PreparedData((), (), {}, ""), RecordingRun(tmp_path))
    (problem,) = refused.value.problems
    assert (problem.id, refused.value.exit_code) == ("LF-DISK-023", 7)
    assert "are free, and two checkpoints need" in problem.message


def test_too_little_for_all_checkpoints_is_a_warning(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    config, plan = planned(claiming(tmp_path, free // 12 // 4), "full", {}, tmp_path, save_total_limit=5)
    run = RecordingRun(tmp_path)
    require_space(config, plan, run)
    (event,) = run.events
    assert event.type == "warning"
    assert "lower training.save_total_limit" in event.fields["message"]


@pytest.mark.parametrize(
    ("method", "options"),
    [("full", {}), ("lora", {"r": 8}), ("lora", {"r": 4, "target_modules": ["q_proj", "v_proj"]})],
)
def test_the_estimate_is_near_what_is_written(fit, tmp_path, method, options):
    done = fit(method, options, save_strategy="steps", save_steps=5)
    heavy = [file.stat().st_size for file in (done.folder / "checkpoint-10").glob("*.safetensors")]
    config, plan = planned(done.model, method, options, tmp_path)
    # headers of tensors weigh more beside a tiny model's weights than they ever will beside a real one's
    assert checkpoint_bytes(config, plan) == pytest.approx(sum(heavy), rel=0.3)


def test_what_is_not_there_or_damaged_counts_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for content in (b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0[1,2]", b"\x0b\0\0\0\0\0\0\0" + b'{"a": null}'):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert checkpoint_bytes(*planned(tmp_path, "full", {}, tmp_path)) == 0
