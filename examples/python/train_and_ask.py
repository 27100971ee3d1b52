"""Train on `data.jsonl`, read what came of it, and ask the result: in a script, or cell by cell in a notebook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer


def llamafarm(*arguments: str) -> Any:
    """Run a command in a process of its own; its result, as JSON. Progress and errors go to stderr."""
    command = [sys.executable, "-m", "llamafarm", *arguments, "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603  # the command is ours
    return json.loads(finished.stdout)


strategy = {
    "name": "from-python",
    "fine_tuner": {
        "type": "pytorch",
        "config": {
            "base_model": "builtin:tiny",
            "dataset": "data.jsonl",
            "method": {"type": "lora", "r": 8},
            "training": {"max_steps": 4, "batch_size": 8, "logging_steps": 1},
            "output_dir": "output/from-python",
        },
    },
}
Path("strategy.yaml").write_text(json.dumps(strategy))  # JSON is YAML

run = llamafarm("train", "--strategy", "strategy.yaml", "--quiet")
print(run["metrics"]["train_loss"], "after", run["metrics"]["train_steps"], "steps, in", run["model_dir"])

log = Path(run["output_dir"], "trainer_log.jsonl").read_text()
print([entry["loss"] for entry in map(json.loads, log.splitlines()) if "loss" in entry])

llamafarm("export", "--model", run["model_dir"], "--to", "merged", "--output", "output/merged")

tokenizer = AutoTokenizer.from_pretrained("output/merged", trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained("output/merged", trust_remote_code=False)
question = [{"role": "user", "content": "Turn on the light"}]
tokens = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**tokens, max_new_tokens=8, do_sample=False)
print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :]))
