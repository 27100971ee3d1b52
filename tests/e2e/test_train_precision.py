"""Formats, switches and compilation in runs that really train."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamafarm_tuners.pytorch import _fit

pytestmark = pytest.mark.e2e


@pytest.fixture
def seen(monkeypatch):
    """What the process looks like while it trains."""
    from torch._dynamo.utils import counters

    found = {}

    def train(work, run, continuation, original=_fit.train):
        counters.clear()
        course = original(work, run, continuation)
        parameters = list(work.trained.model.parameters())
        found["trained"] = {item.dtype for item in parameters if item.requires_grad}
        found["frozen"] = {item.dtype for item in parameters if not item.requires_grad}
        found["cudnn"] = torch.backends.cuda.cudnn_sdp_enabled()
        found["flash"] = torch.backends.cuda.flash_sdp_enabled()
        found["graphs"] = counters["stats"]["unique_graphs"]
        found["batch"] = work.training.batch_size, work.training.gradient_accumulation_steps
        return course

    monkeypatch.setattr(_fit, "train", train)
    return found


@pytest.mark.parametrize(
    ("method", "options", "base", "training", "trained", "frozen"),
    [
        ("lora", {}, {}, {}, "float32", "float32"),
        ("lora", {}, {"torch_dtype": "bfloat16"}, {}, "float32", "bfloat16"),
        ("lora", {}, {"torch_dtype": "bfloat16"}, {"bf16": True}, "float32", "bfloat16"),
        ("lora", {}, {"torch_dtype": "float16"}, {}, "float32", "float32"),
        ("lora", {}, {}, {"pure_bf16": True}, "bfloat16", "bfloat16"),
        ("full", {}, {"torch_dtype": "bfloat16"}, {"bf16": True}, "float32", None),
        ("full", {}, {}, {"pure_bf16": True}, "bfloat16", None),
        # parts of the base that are trained whole: PEFT would leave them in the base's format
        ("lora", {"modules_to_save": ["lm_head"]}, {"torch_dtype": "bfloat16"}, {"bf16": True}, "float32", "bfloat16"),
        ("lora", {"modules_to_save": ["lm_head"]}, {"torch_dtype": "bfloat16"}, {}, "float32", "float32"),
    ],
)
def test_trained_weights_are_fp32_unless_asked_otherwise(
    fit, seen, tiny_model_dir, method, options, base, training, trained, frozen
):
    model = {"huggingface_id": str(tiny_model_dir("llama"))} | base
    done = fit(method, options, base=model, learning_rate=2e-3, max_steps=6, **training)
    assert seen["trained"] == {getattr(torch, trained)}
    assert seen["frozen"] == ({getattr(torch, frozen)} if frozen else set())
    assert done.losses[-1] < done.losses[0]
    said = [event["message"] for event in done.events("notice") if event["message"].startswith("dtype:")]
    assert len(said) == 1
    assert f"trained weights: {trained}" in said[0]


def test_losses_in_16_bits_are_those_in_32_within_their_precision(fit):
    full = fit("lora", max_steps=5, learning_rate=1e-3).losses
    # bf16 has 8 significant bits, so a product is off by up to 2^-9 = 2e-3; the mean over a batch evens most of it out:
    # the losses of this model were off by 4e-5
    assert fit("lora", max_steps=5, learning_rate=1e-3, bf16=True).losses == pytest.approx(full, rel=1e-3)
    frozen = fit("lora", max_steps=5, learning_rate=1e-3, base={"torch_dtype": "bfloat16", **_model(fit)})
    assert frozen.losses == pytest.approx(full, rel=1e-3)
    assert frozen.losses != full


def _model(fit) -> dict[str, str]:
    return {"huggingface_id": str(fit.models("llama"))}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_switches_hold_while_training_and_are_put_back(fit, seen, method):
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()
    fit(method, max_steps=1, disable_flash_sdpa=True)
    assert (seen["cudnn"], seen["flash"]) == (False, False)
    assert (torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def test_eager_and_sdpa_train_alike(fit):
    runs = [
        fit("lora", {"dropout": 0.0}, max_steps=4, base=_model(fit) | {"attn_implementation": kernel})
        for kernel in ("eager", "sdpa")
    ]
    # two orders of the same fp32 sums, four steps long
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-4)
    for run, kernel in zip(runs, ("eager", "sdpa"), strict=True):
        assert any(f"attn_implementation: {kernel}" in event["message"] for event in run.events("notice"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_compiled_model_is_what_trains_and_its_names_are_clean(fit, seen, method):
    # padded batches and those in one row would draw other dropout
    options = {"dropout": 0.0} if method == "lora" else {}
    plain = fit(method, options, max_steps=3, learning_rate=1e-3)
    assert seen["graphs"] == 0
    done = fit(method, options, max_steps=3, learning_rate=1e-3, torch_compile=True, torch_compile_backend="aot_eager")
    assert seen["graphs"] > 0, "the compiled forward pass is the one that was called"
    assert done.losses == pytest.approx(plain.losses, rel=1e-5)
    names = [set(load_file(path)) for run in (plain, done) for path in run.folder.glob("*.safetensors")]
    assert names[0] == names[1]
    assert not any("_orig_mod" in name for name in names[1])
    if method == "full":
        AutoModelForCausalLM.from_pretrained(done.folder)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # inductor's own import
def test_inductor_trains_the_same(fit, seen, scratch):
    from llamafarm.models.kernels import cpp_compiler

    if cpp_compiler() is None:
        pytest.skip("no C++ compiler here")
    # one layer and one step: half a minute of compiling without inductor's cache
    plain = fit("full", base=scratch(), max_steps=1).losses
    done = fit("full", base=scratch(), max_steps=1, torch_compile=True)
    assert seen["graphs"] > 0
    # fused sums in another order
    assert done.losses == pytest.approx(plain, rel=1e-4)


def test_a_global_batch_trains_as_the_numbers_it_stands_for(fit, seen):
    plain = fit("lora", batch_size=2, gradient_accumulation_steps=4, max_steps=3).losses
    fit.given["training.batch_size"] = "strategy.yaml:2"
    assert fit("lora", batch_size=2, global_batch_size=8, max_steps=3).losses == plain
    assert seen["batch"] == (2, 4)
