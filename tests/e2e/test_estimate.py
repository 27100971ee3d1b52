"""An estimate beside what a training then measures, and what the next estimate makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.e2e

SIZES = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 16000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
MOST = 0.2
"""The benchmark wants 15 %; small models are mostly the process itself, which differs between builds of torch."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import AutoConfig, AutoModelForCausalLM

    from llamafarm.testing._tiny import build_tokenizer

    folder = tmp_path_factory.mktemp("model")
    build_tokenizer(folder)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SIZES)).save_pretrained(folder)
    return folder


def llamafarm(folder, *words):
    environment = {**os.environ, "LLAMAFARM_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "llamafarm", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_estimate_is_near_the_measured_peak_and_learns_from_it(model, tmp_path, method):
    turns = [{"role": "user", "content": "turn on the light " * 40}, {"role": "assistant", "content": "it is on " * 40}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": turns, "n": n}) + "\n" for n in range(4)))
    run = ["--model", str(model), "--dataset", "rows.jsonl", "--method", method, "--max-steps", "2"]
    said = llamafarm(tmp_path, "train", *run, "-o", "output")
    assert "at its peak (estimated:" in said
    manifest = json.loads((tmp_path / "output" / "llamafarm" / "manifest.json").read_text())
    expected, measured = manifest["estimate"], manifest["metrics"]["peak_memory_bytes"]
    assert expected["memory_bytes"] == pytest.approx(measured, rel=MOST)
    assert expected["trainable_parameters"] == manifest["trainable_parameters"]
    assert expected["steps"] == manifest["metrics"]["train_steps"]
    assert expected["tokens"] == pytest.approx(manifest["metrics"]["train_tokens"], rel=0.1)  # markup of the template
    after = json.loads(llamafarm(tmp_path, "estimate", *run, "--json"))
    assert after["calibration"]["runs"] == 1
    assert after["memory_bytes"] == pytest.approx(measured, rel=1e-6)
    assert after["calibration"]["last_off"] == pytest.approx(expected["memory_bytes"] / measured - 1)
    assert "1 earlier run like it" in llamafarm(tmp_path, "estimate", *run)
