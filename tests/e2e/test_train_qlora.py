from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafarm.api import BaseModelConfig
from llamafarm.errors import PluginError
from llamafarm.models import _quantize
from llamafarm.models._load import load_for_generation, load_model

FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
IDS = torch.tensor([[0, 4, 30, 31, 1, 5, 60]])
WIDTHS = [
    {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    {"load_in_8bit": True},
]


@pytest.fixture(autouse=True)
def _installed():
    pytest.importorskip("bitsandbytes")


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("quantization", WIDTHS)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_quantized_base_stays_and_its_adapters_learn(fit, architecture, quantization):
    done = fit("qlora", {"quantization": quantization}, architecture=architecture, held_out=4, learning_rate=2e-2)
    assert done.losses[-1] < done.losses[0] - 0.2
    assert done.result.total_parameters - done.result.trainable_parameters == sum(
        parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(done.model).parameters()
    )
    load_for_generation(str(done.folder))


@pytest.mark.e2e
def test_evaluating_in_between_changes_nothing(fit):
    """Without the guard of `keep_weights_as_packed` some CPUs return wrong gradients after the first evaluation."""
    plain = fit("qlora", held_out=0)
    measured = fit("qlora", held_out=4, eval_strategy="steps", eval_steps=1)
    assert measured.losses == plain.losses


@pytest.mark.e2e
def test_lora_on_a_base_that_is_loaded_quantized_is_the_same(fit, tiny_model_dir):
    base = {"huggingface_id": str(tiny_model_dir("llama")), "load_in_4bit": True}
    assert fit("lora", base=base).losses == fit("qlora").losses
    assert fit("lora").losses != fit("qlora").losses


@pytest.mark.e2e
def test_the_adapter_loads_with_peft_alone_on_the_quantized_base(fit, monkeypatch):
    from llamafarm_tuners.pytorch import _fit

    seen = {}

    def train(work, run, continuation, original=_fit.train):
        course = original(work, run, continuation)
        seen["logits"] = work.trained.model.eval()(IDS).logits.detach()
        return course

    monkeypatch.setattr(_fit, "train", train)
    options = {"quantization": {"bnb_4bit_use_double_quant": False}}
    done = fit("qlora", options)
    base = load_model(BaseModelConfig(huggingface_id=str(done.model)), dtype=torch.float32, quantization=FOUR_BIT)
    loaded = peft.PeftModel.from_pretrained(base, done.folder)
    assert torch.allclose(loaded(IDS).logits, seen["logits"], atol=1e-5)


@pytest.mark.e2e
def test_gradient_checkpointing_works_on_a_quantized_base(fit):
    plain = fit("qlora", {"dropout": 0}, max_steps=4)
    assert fit("qlora", {"dropout": 0}, max_steps=4, gradient_checkpointing=True).losses == pytest.approx(
        plain.losses, abs=1e-5
    )


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(_quantize, "find_spec", lambda _: None)
    with pytest.raises(PluginError, match=r"pip install 'llamafarm\[qlora\]'"):
        _quantize.quantization_config(FOUR_BIT)
