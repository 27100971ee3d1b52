"""bos-scaling from strategy to answer: trained, saved in every checkpoint, loaded, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llamafarm.core.registry import load_registry
from llamafarm.core.trained import load_trained
from llamafarm.models.first_token import first_token
from llamafarm.testing.rows import make_fields
from llamafarm.testing.running import run
from llamafarm_methods._bos import scaler_of

pytestmark = pytest.mark.e2e


def train(folder, model, method, **training):
    rows = "".join(json.dumps(row) + "\n" for row in make_fields(24))
    (folder / "data.jsonl").write_text(rows, encoding="utf-8")
    config = {
        "base_model": str(model),
        "dataset": str(folder / "data.jsonl"),
        "method": method,
        "training": {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, **training},
    }
    return run(folder, {"fine_tuner": {"type": "pytorch", "config": config}})


@pytest.mark.parametrize("brings", ["lora", "full"])
@pytest.mark.parametrize("training", [{}, {"packing": True}, {"gradient_checkpointing": True}], ids=str)
def test_what_is_trained_is_what_is_loaded(tiny_model_dir, tmp_path, brings, training):
    method = [{"type": brings}, {"type": "bos-scaling", "bos_scaling_factor": 0.25}]
    _, events = train(tmp_path, tiny_model_dir("llama"), method, **training)
    said = [event.fields.get("message", "") for event in events]
    assert any("every row begins with token 0 '<|bos|>' (bos_token)" in text for text in said)
    assert any(text.startswith("Found embedding layer: ") for text in said)
    assert any(text.startswith("first batch: ") for text in said)
    assert "BOS scaling hook removed" in said
    folders = [tmp_path / "output", *(tmp_path / "output").glob("checkpoint-*")]
    assert len(folders) == 4
    for folder in folders:
        content = json.loads((folder / "bos_zero_config.json").read_text())
        assert (content["bos_scaling_factor"], content["bos_token_id"]) == (0.25, 0)
        model, *_ = load_trained(str(folder), load_registry(), device="cpu", dtype=torch.float32)
        scaler = scaler_of(model)
        assert scaler is not None
        assert (scaler.factor, scaler.token, first_token(model)) == (0.25, 0, 0)
        model(torch.tensor([[0, 5, 6]]))
        assert scaler.hits == 1


def test_the_loss_of_the_loaded_model_is_that_of_the_run(tiny_model_dir, tmp_path):
    """The held-out loss at the end of the run, computed again by what was saved; and without the method, another."""
    from llamafarm.api import Example, Message, RowRef
    from llamafarm.data.tokens import tokenize
    from llamafarm_tuners.pytorch._batches import padded
    from llamafarm_tuners.pytorch._loss import token_losses

    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(6)), encoding="utf-8")
    method = [{"type": "lora"}, {"type": "bos-scaling", "bos_scaling_factor": 0.0}]
    model_dir = tiny_model_dir("llama")
    rows = "".join(json.dumps(row) + "\n" for row in make_fields(24))
    (tmp_path / "data.jsonl").write_text(rows, encoding="utf-8")
    config = {
        "base_model": str(model_dir),
        "dataset": {"path": str(tmp_path / "data.jsonl"), "eval_path": str(tmp_path / "eval.jsonl")},
        "method": method,
        "training": {"max_steps": 6, "learning_rate": 1e-2, "eval_strategy": "epoch"},
    }
    run(tmp_path, {"fine_tuner": {"type": "pytorch", "config": config}})
    model, tokenizer, _ = load_trained(str(tmp_path / "output"), load_registry(), device="cpu", dtype=torch.float32)
    examples = [
        Example(RowRef("x", i), (Message("user", row["instruction"]), Message("assistant", row["output"])))
        for i, row in enumerate(make_fields(6))
    ]
    tokenized = tokenize(
        examples, tokenizer, stage="sft", max_seq_length=2048, train_on_inputs=False, first_token=first_token(model)
    )
    batch = padded(tokenized.rows, 0)
    with torch.no_grad():
        loss, _ = token_losses(model, batch, selective=False)
    # the same float32 sums over batches of another size
    saved = json.loads((tmp_path / "output" / "eval_results.json").read_text())["eval_loss"]
    assert loss.item() / batch.labels == pytest.approx(saved, abs=1e-5)


SCRIPT = """
import json, os, sys
from pathlib import Path

import torch
from llamafarm_methods._bos import Scaler, base_of, scaler_of
from llamafarm_methods.bos_scaling import BosScaling
from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch.tuner import PytorchTuner

from llamafarm.api import DeviceSpec, Example, Message, PreparedData, RowRef, RunPlan
from llamafarm.testing.run_context import RecordingRun

model, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(exist_ok=True)
found = {}

class Counting(BosScaling):
    name = "bos-scaling"

    def finish(self, model, run):
        found["hits"] = scaler_of(model).hits
        super().finish(model, run)

turns = [(Message("user", f"Lock {i * 7}."), Message("assistant", "Locked.")) for i in range(16)]
rows = [Example(RowRef("x", i), messages) for i, messages in enumerate(turns)]
training = {"learning_rate": 1e-2, "max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 2}
tuner = PytorchTuner(PytorchTuner.Config(base_model={"huggingface_id": model}, training=training))
methods = (Lora(Lora.Config(dropout=0)), Counting(Counting.Config()))
plan = RunPlan("test", methods, DeviceSpec("cpu", "a CPU"), folder, (), {})
tuner.fit(plan, PreparedData(rows, [], {"read": 16, "trained": 16, "held_out": 0}, ""), RecordingRun(folder))

from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

whole = AutoModelForCausalLM.from_pretrained(model)
ids = torch.tensor([[0, 5, 6, 7]]) + torch.tensor([[0, torch.distributed.get_rank(), 0, 0]])
Scaler.attach(base_of(whole), 0, 0.1)
expected = whole(ids).logits
for layer in whole.model.layers:
    fully_shard(layer)
fully_shard(whole)
found["fsdp_hits"] = -scaler_of(whole).hits
found["fsdp_difference"] = (whole(ids).logits - expected).abs().max().item()
found["fsdp_hits"] += scaler_of(whole).hits
Path(f"{folder}-{os.environ['RANK']}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def test_each_of_two_processes_scales(tiny_model_dir, tmp_path: Path):
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "train.py"), str(tiny_model_dir("llama")), str(tmp_path / "two")]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"two-{rank}.json").read_text())
        # before training the fast ways are tried on a few rows, the same in each process
        assert found["hits"] >= 3 * 2 * 2, "steps x micro-steps x rows of each process"
        assert found["fsdp_hits"] == 1
        assert found["fsdp_difference"] < 1e-6  # gathered weights are the same numbers
    assert (tmp_path / "two" / "checkpoint-2" / "bos_zero_config.json").is_file()
