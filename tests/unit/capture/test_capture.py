"""What is captured is what the model has: compared with the modules themselves, on every architecture."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llamafarm.api import BaseModelConfig
from llamafarm.capture._capture import SUMMARY, capture, input_row, row_digest
from llamafarm.capture._stats import TOPS, sink_mass, statistics
from llamafarm.core._plot import draw_lines
from llamafarm.errors import DataError, DiskError, ModelError
from llamafarm.models._load import load_tokenizer
from llamafarm.models.first_token import set_first_token
from llamafarm.testing._tiny import ARCHITECTURES
from llamafarm_methods._bos import Scaler, base_of

ROW = [0, 9, 10, 11, 12, 30, 31, 40]
NAMED = (
    *(f"{norm}_{part}" for norm in ("input_rmsnorm", "post_attn_rmsnorm") for part in ("input", "output", "weight")),
    *("qkv_input", "qkv_output"),
    *(f"{one}_{part}" for one in "qkv" for part in ("weight", "output", "reshaped")),
    *("q_rotated", "k_rotated", "v", "k_repeated_for_gqa", "v_repeated_for_gqa"),
    *("attention_scores_pre_mask", "causal_mask", "attention_scores_masked", "attention_softmax"),
    *("attention_output", "attention_output_reshaped"),
    *(f"{one}_{part}" for one in ("o_proj", "down_proj") for part in ("input", "output", "weight")),
    *("gate_up_input", "gate_up_output", "gate_output", "up_output", "gate_weight", "up_weight"),
    *("silu_output", "swiglu_product"),
)
# float32: the same sums in another order
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def load(tiny_model_dir):
    def load(architecture, attention="eager"):
        folder = tiny_model_dir(architecture)
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()

    return load


@pytest.fixture
def tokenizer(tiny_model_dir):
    return load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))


def captured(model, tokenizer, folder, row=ROW, **options):
    folder.mkdir(exist_ok=True)
    return capture(model, tokenizer, row, folder, about={"label": "x"}, **options)


def tensor(folder: Path, name: str) -> torch.Tensor:
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt2"])
def test_the_tensors_are_the_models_own(load, tokenizer, tmp_path, architecture):
    if architecture == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, attn_implementation="eager")
        model = GPT2LMHeadModel(config).eval()
    else:
        model = load(architecture)
    base = model.base_model
    layers = next(child for child in base.children() if isinstance(child, torch.nn.ModuleList))
    seen = {}
    for at, layer in enumerate(layers):
        attention = next(m for n, m in layer.named_children() if n in ("self_attn", "attention", "attn"))
        output = next(m for n, m in attention.named_children() if n in ("o_proj", "dense", "c_proj"))
        output.register_forward_pre_hook(lambda m, args, at=at: seen.setdefault(("o", at), args[0].clone()))
        layer.register_forward_pre_hook(lambda m, args, at=at: seen.setdefault(("in", at), args[0].clone()))
    with torch.no_grad():
        plain = model(torch.tensor([ROW]), output_attentions=True)
    expected = dict(seen)
    model.set_attn_implementation("sdpa")
    summary = captured(model, tokenizer, tmp_path / "c")
    assert model.config._attn_implementation == "sdpa", "left as it was found"
    assert summary["layers"] == len(layers) == 2
    torch.testing.assert_close(tensor(tmp_path / "c", "model_output_logits"), plain.logits, **CLOSE)
    for at in range(2):
        folder, prefix = tmp_path / "c", f"layer_{at:02d}"
        softmax = tensor(folder, f"{prefix}_attention_softmax")
        assert torch.equal(softmax, plain.attentions[at])
        torch.testing.assert_close(softmax.sum(-1), torch.ones_like(softmax.sum(-1)), **CLOSE)
        assert torch.equal(tensor(folder, f"{prefix}_o_proj_input"), expected["o", at])
        norm = next(iter(sorted(folder.glob(f"{prefix}_input_*norm_input.pt")))).stem
        assert torch.equal(tensor(folder, norm), expected["in", at])
        masked = tensor(folder, f"{prefix}_attention_scores_masked")
        torch.testing.assert_close(masked.softmax(-1), softmax, **CLOSE)
        assert torch.equal(tensor(folder, f"{prefix}_v"), tensor(folder, f"{prefix}_v_reshaped"))
        for one in ("q", "k", "v"):
            weight, bias = tensor(folder, f"{prefix}_{one}_weight"), folder / f"{prefix}_{one}_bias.pt"
            product = tensor(folder, f"{prefix}_qkv_input") @ weight.T
            product = product + (torch.load(bias) if bias.exists() else 0)
            torch.testing.assert_close(product, tensor(folder, f"{prefix}_{one}_output"), **CLOSE)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "mistral"])
def test_the_documented_names(load, tokenizer, tmp_path, architecture):
    """Fused or not, biased or not: one set of names."""
    summary = captured(load(architecture), tokenizer, tmp_path)
    biases = {f"{one}_bias" for one in "qkv"} if architecture == "qwen2" else set()
    wanted = {f"layer_{at:02d}_{name}" for at in range(2) for name in {*NAMED, *biases}}
    wanted |= {"model_input", "model_output_logits"}
    assert set(summary["captured_matrices"]) == wanted
    files = {f"{name}.pt" for name in wanted} | {f"{name}_stats.json" for name in wanted} | {SUMMARY}
    assert {path.name for path in tmp_path.iterdir()} == files
    flow = summary["matrix_flow"]
    assert set(flow) == {"attention_flow", "mlp_flow"}
    assert {name for steps in flow.values() for name in steps} <= set(NAMED)
    assert flow["mlp_flow"][-1] == "down_proj_weight"
    gate, up = (tensor(tmp_path, f"layer_01_{one}_output") for one in ("gate", "up"))
    torch.testing.assert_close(
        torch.nn.functional.silu(gate) * up, tensor(tmp_path, "layer_01_swiglu_product"), **CLOSE
    )
    assert summary["model_config"]["model_type"] == architecture


def test_positions_are_rotated_and_keys_repeated(load, tokenizer, tmp_path):
    model = load("llama")
    captured(model, tokenizer, tmp_path)
    query, key = (tensor(tmp_path, f"layer_00_{one}_reshaped") for one in "qk")
    cos, sin = model.model.rotary_emb(query, torch.arange(len(ROW))[None])
    rotated = apply_rotary_pos_emb(query, key, cos, sin)
    for one, expected in zip("qk", rotated, strict=True):
        assert torch.equal(tensor(tmp_path, f"layer_00_{one}_rotated"), expected)
        assert not torch.equal(expected, query if one == "q" else key)
    repeated = tensor(tmp_path, "layer_00_k_repeated_for_gqa")
    assert repeated.shape[1] == 4
    assert torch.equal(repeated[:, 0], repeated[:, 1])
    assert torch.equal(repeated[:, ::2], rotated[1])


def test_the_factor_and_a_merged_adapter_are_in_what_is_captured(load, tokenizer, tmp_path):
    model = load("llama")
    Scaler.attach(base_of(model), 0, 0.25)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    with torch.no_grad():
        logits = adapted(torch.tensor([ROW])).logits
    captured(adapted, tokenizer, tmp_path)
    torch.testing.assert_close(tensor(tmp_path, "model_output_logits"), logits, **CLOSE)
    raw = model.get_input_embeddings().weight[torch.tensor(ROW)]
    seen = tensor(tmp_path, "layer_00_input_rmsnorm_input")[0]
    assert torch.equal(seen[0], raw[0] * 0.25)
    assert torch.equal(seen[1:], raw[1:])


def test_figures_alone(load, tokenizer, tmp_path):
    captured(load("llama"), tokenizer, tmp_path, tensors=False)
    assert not list(tmp_path.glob("*.pt"))
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"a file holds {name}"))


def test_statistics():
    found = statistics(torch.tensor([[3.0, -4.0], [0.0, 1.0]]))
    assert found["shape"] == [2, 2]
    assert found["dtype"] == "float32"
    assert (found["mean"], found["min"], found["max"]) == (0.0, -4.0, 3.0)
    assert found["std"] == pytest.approx(math.sqrt(26 / 4))
    assert found["norm"] == pytest.approx(math.sqrt(26))
    assert found["absolute"] == {"mean": 2.0, "max": 4.0, "median": 1.0, "norm": 8.0}
    assert found["ratios"] == {"max_to_mean": 2.0, "max_to_median": 4.0}
    assert found["top"] == {"2": {"max": 4.0, "mean": 3.5, "min": 3.0, "share_of_squared_norm": pytest.approx(25 / 26)}}
    big = statistics(torch.full((2000,), torch.finfo(torch.float32).min))
    assert list(big["top"]) == [str(k) for k in TOPS]
    assert math.isfinite(big["norm"])
    assert statistics(torch.zeros(3))["ratios"] == {"max_to_mean": None, "max_to_median": None}


def test_sink_mass():
    weights = torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]])
    assert sink_mass(weights) == pytest.approx(0.35)


def test_base_and_tuned_model_get_the_same_row(load, tokenizer):
    base, tuned = load("llama"), load("llama")
    set_first_token(tuned, 0)
    rows = [input_row(model, tokenizer, length=50, seed=3) for model in (base, tuned)]
    assert rows[0] == rows[1]
    assert (len(rows[0]), rows[0][0]) == (50, tokenizer.bos_token_id)
    assert not set(rows[0][1:]) & set(tokenizer.all_special_ids)
    assert input_row(base, tokenizer, length=50, seed=4) != rows[0]
    assert row_digest(rows[0]) != row_digest(rows[0][:-1])
    words = input_row(base, tokenizer, length=4, seed=0, text="Lock the front door, please.")
    assert len(words) == 4
    assert words[0] == tokenizer.bos_token_id


def test_without_a_length_a_row_is_no_longer_than_the_model_takes(load, tokenizer):
    assert len(input_row(load("llama"), tokenizer, length=None, seed=0)) == 256
    assert len(input_row(load("llama"), tokenizer, length=None, seed=0, text="Lock the door")) < 10


def test_what_cannot_be_run_is_refused(load, tokenizer, tmp_path):
    model = load("llama")
    with pytest.raises(DataError, match="longest row has 256 tokens") as caught:
        input_row(model, tokenizer, length=257, seed=0)
    assert caught.value.problems[0].id == "LF-DATA-220"
    with pytest.raises(DataError, match="no token to run") as caught:
        input_row(model, tokenizer, length=9, seed=0, text="")
    assert caught.value.problems[0].id == "LF-DATA-221"
    bloom = BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(ModelError, match="attention can be seen") as caught:
        captured(bloom, tokenizer, tmp_path)
    assert caught.value.problems[0].id == "LF-MODEL-100"


def test_a_plot_needs_matplotlib(tmp_path, monkeypatch):
    words = {"title": "t", "x": "x", "y": "y"}
    draw_lines(tmp_path / "lines.png", {"base": [(0, 0.5), (1, 0.4)], "tuned": [(0, 0.1)]}, **words)
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DiskError):
        draw_lines(tmp_path / "no folder" / "lines.png", {"base": [(0, 0.5)]}, **words)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModelError, match="matplotlib") as caught:
        draw_lines(tmp_path / "none.png", {}, **words)
    assert caught.value.problems[0].id == "LF-MODEL-101"
    assert not (tmp_path / "none.png").exists()
