"""Stage ppo, in a release of its own: judged by a reward model that the current release trained."""

from __future__ import annotations

import json
import math
import subprocess

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llamafarm.cli.guard import run as run_command
from llamafarm_tuners.llamafactory.environment import child_environment
from llamafarm_tuners.llamafactory.older import older_files

READ = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0, -1]
print(json.dumps({"ids": ids, "logits": logits.tolist(), "special": sorted(tokenizer.all_special_tokens)}))
"""
ASKED = "Turn on the lämp 💡  in the kitchen"
SHORT = {"max_steps": 2, "batch_size": 2, "logging_steps": 1, "learning_rate": 1e-3}


def block(dataset, **config):
    return {"type": "llamafactory", "config": {"dataset": dataset, **config}}


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Is it {n}?", "chosen": f"Yes, it is {n}.", "rejected": "I will not say."} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_judged_by_a_model_of_stage_rm(ppo, run_strategy, tiny_model_dir, pairs, method):
    base = (
        str(tiny_model_dir("llama")) if method == "full" else "builtin:tiny"
    )  # whose embeddings are one with its head
    judge = run_strategy(
        block(pairs, stage="rm", method=method, base_model=base, training={**SHORT, "save_strategy": "no"})
    )
    training = {**SHORT, "save_steps": 1}
    options = {"reward_model": str(judge.output_dir), "max_new_tokens": 6, "ppo_epochs": 2}
    finished = run_strategy(
        block(
            {"generate": {"name": "smart-home", "size": 60}},
            stage="ppo",
            method=method,
            base_model=base,
            training=training,
            **options,
        )
    )
    folder = finished.output_dir
    place = folder / "llamafarm" / "llamafactory"
    assert json.loads((place / "train.yaml").read_text())["reward_model_type"] == method
    logs = [event.fields for event in finished.events if event.type == "log"]
    assert [one["step"] for one in logs] == [1, 2]
    assert all(math.isfinite(one["reward"]) for one in logs)
    assert finished.result.metrics["train_steps"] == 2
    assert run_command(["generate", "--model", str(folder), "--prompt", "Is it on?", "--max-new-tokens", "4"]) == 0
    assert not (place / "older").exists()
    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert (folder / weights).read_bytes() != (folder / "checkpoint-1" / weights).read_bytes()
    assert (folder / "training_reward.png").stat().st_size > 1000
    manifest = json.loads((folder / "llamafarm" / "manifest.json").read_text())
    assert manifest["status"] == "completed"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "mistral", "gemma", "gpt_neox"])
def test_a_model_is_the_same_in_the_older_words(ppo, tiny_model_dir, tmp_path, architecture):
    source = tmp_path / "source"
    config = AutoConfig.from_pretrained(tiny_model_dir(architecture))
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 321.0}  # no default of any version
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(architecture), config=config).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir(architecture))
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    older = older_files(source, tmp_path / "older")
    command = [str(ppo.python), "-c", READ, str(older), ASKED]
    environment = child_environment(ppo.python, {}, hub=False, one_gpu=False)
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    theirs = json.loads(said.splitlines()[-1])
    chat = [{"role": "user", "content": ASKED}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert theirs["ids"] == ids
    assert theirs["special"] == sorted(tokenizer.all_special_tokens)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    # two versions order the same sums differently: rounding of fp32, thousands of times below what another theta makes
    torch.testing.assert_close(torch.tensor(theirs["logits"]), logits, rtol=1e-4, atol=1e-5)
