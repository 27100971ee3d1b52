"""What is told where the memory does not suffice is tried in the same memory: it fits."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.e2e

SIZES = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 4000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
ROOM = 1_250 * 2**20
"""Beside what the libraries map: some 64 rows of 200 tokens in float32 need twice as much, and 8 need half of it."""
STRATEGY = """
name: large
fine_tuner:
  type: pytorch
  config:
    base_model: {huggingface_id: model, torch_dtype: float32}
    dataset: rows.jsonl
    training: {max_steps: 1, batch_size: 64, on_out_of_memory: stop}
"""


@pytest.fixture
def limited(tmp_path: Path):
    """A function: words of the command → the ended process, in little memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from llamafarm.testing._tiny import build_tokenizer

    (tmp_path / "model").mkdir()
    build_tokenizer(tmp_path / "model")
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SIZES)).save_pretrained(tmp_path / "model")
    turns = ["turn on the light " * 20, "it is on " * 40]
    rows = [
        [{"role": "user", "content": f"{turns[0]}{n}"}, {"role": "assistant", "content": turns[1]}] for n in range(64)
    ]
    lines = [json.dumps({"messages": row}) + "\n" for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "large.yaml").write_text(STRATEGY)
    environment = {**os.environ, "LLAMAFARM_HOME": str(tmp_path / "home")}
    code = "import llamafarm_tuners.pytorch._fit; print(open('/proc/self/statm').read().split()[0])"
    pages = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    most = int(pages) * resource.getpagesize() + ROOM

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llamafarm", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
        )

    return call


def test_a_run_that_does_not_fit_ends_with_fixes_that_do(limited, tmp_path: Path):
    failed = limited("train", "--strategy", "large.yaml")
    assert failed.returncode == 8, failed.stderr
    assert "[LF-HARDWARE-010]" in failed.stderr
    hint = re.search(r"begin anew with --overwrite and what fits in [\d.]+ GiB: (.*) \[LF", failed.stderr)
    assert hint, failed.stderr
    fixes = [re.sub(r" \([\d.]+ GiB\)$", "", fix) for fix in hint[1].split(", or ")]
    assert len(fixes) == 3
    assert "batch_size" in fixes[0]
    for fix in (fixes[0], fixes[-1]):
        done = limited("train", "--strategy", "large.yaml", "--overwrite", *shlex.split(fix))
        assert done.returncode == 0, f"{fix}: {done.stderr}"
        manifest = json.loads((tmp_path / "output" / "llamafarm" / "manifest.json").read_text())
        assert manifest["metrics"]["train_steps"] == 1
