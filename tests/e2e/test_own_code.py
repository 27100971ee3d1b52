"""A model that brings code of its own: only the flag lets it run, for every command that loads models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e

CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM

open(os.environ["RAN"], "w").close()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
SESSION = """
import json, os, sys
from llamafarm.cli.guard import run

for argv in json.loads(sys.argv[1]):
    if os.path.exists(os.environ["RAN"]):
        os.remove(os.environ["RAN"])
    code = run(argv)
    print(json.dumps({"code": int(code), "ran": os.path.exists(os.environ["RAN"])}), flush=True)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]  # else its code, imported already, would not run a second time
"""
TRUST = "--trust-remote-code"


@pytest.fixture(scope="module")
def folder(tiny_model_dir, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("own-code")
    torch.manual_seed(0)
    source, base = tiny_model_dir("llama"), made / "base"
    LlamaForCausalLM(LlamaConfig.from_pretrained(source)).save_pretrained(base)
    AutoTokenizer.from_pretrained(source).save_pretrained(base)
    (base / "own.py").write_text(CODE)
    config = json.loads((base / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    text = json.dumps(config | {"model_type": "own", "architectures": ["OwnModel"], "auto_map": names})
    (base / "config.json").write_text(text)
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(8)))
    return made


def session(folder: Path, *commands: list[str]) -> list[dict]:
    """What came of each command, all in one process: its exit code, and whether the model's code ran."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFARM")}
    own = {"RAN": str(folder / "ran"), "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    own |= {"LLAMAFARM_HOME": str(folder / "home"), "XDG_STATE_HOME": str(folder / "state")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(commands)],
        cwd=folder,
        env=kept | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]
    assert len(found) == len(commands), done.stderr
    return [one | {"said": done.stderr} for one in found]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_each_command_runs_it_with_the_flag_and_never_without(folder, method):
    steps = ["--set", "training.max_steps=2", "--set", "training.save_steps=1", "--set", "training.batch_size=2"]
    train = ["train", "-m", "base", "-d", "rows.jsonl", "--method", method, "-o", method, "--quiet", *steps]
    generate = ["generate", "-m", method, "-p", "hello", "--max-tokens", "2"]
    evaluate = ["evaluate", method, "-d", "rows.jsonl", "--metrics", "loss", "--json"]
    resume = ["train", "--resume", method, "--max-steps", "3", "--allow-changes", "--quiet"]
    by_set = ["evaluate", "base", *evaluate[2:], "--baseline", "none", "--set", "base_model.trust_remote_code=true"]
    refused = session(folder, train, ["generate", "-m", "base", "-p", "hello"], by_set)
    assert [(one["code"], one["ran"]) for one in refused] == [(10, False)] * 3, refused[0]["said"]
    assert "LF-SECURITY-001" in refused[0]["said"]
    loading = [argv for command in (generate, evaluate, resume) for argv in (command, [*command, TRUST])]
    done = session(folder, [*train, TRUST], *loading)
    expected = [(0, True), *[(10, False), (0, True)] * 3]
    assert [(one["code"], one["ran"]) for one in done] == expected, done[0]["said"]
