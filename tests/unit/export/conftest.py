from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from llamafarm.core.registry import load_registry
from llamafarm.testing.running import run


@pytest.fixture(scope="session")
def registry():
    return load_registry()


@pytest.fixture(scope="session")
def base_of(tiny_model_dir, tmp_path_factory):
    """A function: `llama` or `llama-tied` → folder of a tiny base with an untied or a tied head."""
    made = {}

    def make(name):
        if name not in made:
            architecture, _, tied = name.partition("-")
            folder = tiny_model_dir(architecture)
            made[name] = retied(folder, tmp_path_factory.mktemp(name), tied=bool(tied)) if tied else folder
        return made[name]

    return make


def retied(source: Path, target: Path, *, tied: bool) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def trained(base_of, tmp_path_factory):
    """A function: base's name and method → folder of a run; each is trained once."""
    from llamafarm.testing.rows import make_fields

    made = {}

    def make(base="llama", method=None, base_options=None):
        method = method or {"type": "lora", "r": 4, "dropout": 0.0}
        key = json.dumps([base, method, base_options])
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            data = folder / "rows.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in make_fields(40)))
            config = {
                "base_model": {"huggingface_id": str(base_of(base)), **(base_options or {})},
                "dataset": str(data),
                "method": method,
                "training": {"max_steps": 6, "learning_rate": 2e-2, "save_strategy": "no", "eval_strategy": "epoch"},
            }
            outcome, _ = run(folder, {"fine_tuner": {"type": "pytorch", "config": config}})
            made[key] = outcome.output_dir
        return made[key]

    return make


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def hashed():
    return hashes
