"""What `evaluate` measures of a saved run is what the run measured of itself, whatever made it; bos-scaling too."""

from __future__ import annotations

import json

import pytest
import torch

from llamafarm.cli.guard import run as run_command
from llamafarm.core.registry import load_registry
from llamafarm.core.trained import load_trained
from llamafarm.models._generate import Sampling, generate
from llamafarm.testing.rows import make_fields
from llamafarm.testing.running import run

pytestmark = pytest.mark.e2e

NF4 = {"load_in_4bit": True}
BITS = [
    {"type": "qlora", "quantization": NF4},
    {
        "type": "qlora",
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "bfloat16"},
    },
    {"type": "qlora", "quantization": {"load_in_8bit": True}},
    {"type": "dora", "quantization": NF4},
    {"type": "qlora", "quantization": NF4, "r": 4, "init_lora_weights": "eva"},
]
WHOLE = [
    {"type": name}
    for name in ("lora", "dora", "freeze", "full", "ia3", "vera", "oft", "prompt-tuning", "prefix-tuning", "p-tuning")
]
WHOLE += [
    {"type": "adalora", "init_r": 6, "target_r": 2},
    {"type": "boft", "boft_n_butterfly_factor": 2},
    {"type": "lora", "r": 4, "init_lora_weights": "eva"},
    {"type": "dora", "r": 4, "init_lora_weights": "eva"},
    {"type": "lora", "r": 4, "init_lora_weights": "corda"},
    {"type": "dora", "r": 4, "init_lora_weights": "corda"},
]
PROMPT = [{"role": "user", "content": "check the lamp number 7"}]


@pytest.fixture
def trained(tiny_model_dir, tmp_path):
    """A function: method → folder of a short run with held-out rows."""

    def train(method, base=None, **training):
        rows = [json.dumps(row) + "\n" for row in make_fields(24)]
        (tmp_path / "data.jsonl").write_text("".join(rows[:16]), encoding="utf-8")
        (tmp_path / "eval.jsonl").write_text("".join(rows[16:]), encoding="utf-8")
        config = {
            "base_model": base or str(tiny_model_dir("llama")),
            "dataset": {"path": str(tmp_path / "data.jsonl"), "eval_path": str(tmp_path / "eval.jsonl")},
            "method": method,
            "training": {"max_steps": 4, "learning_rate": 1e-2, "eval_strategy": "epoch", "save_steps": 2, **training},
        }
        run(tmp_path, {"fine_tuner": {"type": "pytorch", "config": config}})
        return tmp_path / "output"

    return train


def losses(folder, capsys):
    """Of the run itself, and of `evaluate`."""
    capsys.readouterr()
    code = run_command(["evaluate", str(folder), "--baseline", "none", "--metrics", "loss", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    measured = json.loads(said.out)["perplexity_evaluation"]["loss"]
    return json.loads((folder / "eval_results.json").read_text())["eval_loss"], measured


def named(method):
    methods = method if isinstance(method, list) else [method]
    named = [[one["type"], one.get("init_lora_weights"), *one.get("quantization", {}).values()] for one in methods]
    return "+".join("-".join(str(part) for part in parts if part) for parts in named)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "bos"])
@pytest.mark.parametrize("method", [*WHOLE, *BITS], ids=named)
def test_evaluate_measures_the_loss_that_the_run_measured(method, stacked, trained, capsys):
    if "quantization" in method:
        pytest.importorskip("bitsandbytes")
    if stacked and method["type"].endswith("-tuning"):
        pytest.skip("they do not combine")
    method = [method, {"type": "bos-scaling", "bos_scaling_factor": 0.05}] if stacked else method
    own, measured = losses(trained(method), capsys)
    # float32 sums of the same numbers in batches of another size
    assert measured == pytest.approx(own, abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_a_base_in_bf16_is_measured_in_bf16(fused, trained, tiny_model_dir, capsys):
    base = {"huggingface_id": str(tiny_model_dir("llama")), "torch_dtype": "bfloat16"}
    own, measured = losses(trained({"type": "lora"}, base=base, fused=fused), capsys)
    # logits have 8 significant bits here and more there (2^-9 = 2e-3 of each), and their mean is over 64 tokens
    assert measured == pytest.approx(own, rel=5e-4)


@pytest.mark.parametrize("method", [{"type": "freeze"}, {"type": "dora"}, BITS[0], BITS[3]], ids=named)
def test_a_stack_is_saved_loaded_and_answers_with_and_without_a_cache(method, trained):
    """What the last step left, its checkpoint of the same step, and the answers of both, token by token."""
    if "quantization" in method:
        pytest.importorskip("bitsandbytes")
    method = [method, {"type": "bos-scaling", "bos_scaling_factor": 0.05}]
    folder = trained(method, save_total_limit=5)
    answers = []
    for name in (folder, folder / "checkpoint-4"):
        model, tokenizer, _ = load_trained(str(name), load_registry(), device="cpu", dtype=torch.float32)
        (cached,) = generate(model, tokenizer, [PROMPT], Sampling(12))
        ids = list(tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"])
        row = torch.tensor([ids])
        with torch.inference_mode():
            for _ in range(12):
                following = model(row, use_cache=False).logits[0, -1].argmax().view(1, 1)
                row = torch.cat([row, following], dim=1)
        uncached = tokenizer.decode(row[0, len(ids) :], skip_special_tokens=True)
        assert uncached.startswith(cached), "generation stops at an end token, the loop does not"
        answers.append(cached)
    assert answers[0] == answers[1]
