"""LoRA and DoRA on a base that is really packed, whatever was evaluated in between."""

from __future__ import annotations

import copy

import pytest
import torch
from method_steps import ROWS, apply, digest, load, logits, saved_and_loaded, train, trained
from pydantic import ValidationError

from llamafarm.errors import ModelError
from llamafarm_methods.config import DoraConfig, LoraConfig, QloraConfig, QuantizationConfig
from llamafarm_methods.dora import Dora
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora

bnb = pytest.importorskip("bitsandbytes")
FORMATS = [(kind, double) for kind in ("nf4", "fp4") for double in (False, True)]
# Half of the widest gap between two levels of the format, as a share of the largest weight of a block; quantizing the
# scales in 8 bits as well adds at most one 255th of their range, for which 2 % are ample.
WIDEST = {"nf4": (1.0 - 0.6961928) / 2, "fp4": (1.0 - 0.6666667) / 2}


def packed(kind="nf4", double=True):
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": "float32",
    }


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


def unpacked(layer):
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt_neox", "qwen2"])
@pytest.mark.parametrize(("kind", "double"), FORMATS)
def test_the_base_is_packed_and_as_near_as_its_format_allows(kind, double, architecture, tiny_model_dir):
    plain, model = load(tiny_model_dir(architecture)), load(tiny_model_dir(architecture), packed(kind, double))
    found = layers(model)
    head = plain.get_output_embeddings()
    linear = {
        name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert set(found) == linear
    for name, layer in found.items():
        original = plain.get_submodule(name).weight
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == original.numel(), "two weights in each byte"
        assert layer.weight.quant_state.nested == double
        assert layer.weight.quant_state.quant_type == kind
        blocks = original.reshape(-1, layer.weight.quant_state.blocksize)
        largest = blocks.abs().amax(1, keepdim=True)
        error = (unpacked(layer).reshape(blocks.shape) - blocks).abs()
        assert (error <= largest * (WIDEST[kind] + (0.02 if double else 1e-6))).all()


@pytest.mark.parametrize("method", [Qlora(QloraConfig(r=4)), Dora(DoraConfig(r=4, quantization=QuantizationConfig()))])
@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt_neox"])
def test_an_evaluation_changes_neither_gradients_nor_weights(method, architecture, tiny_model_dir, tmp_path):
    """bitsandbytes repacks layers at their first evaluation on some CPUs; gradients are wrong from then on."""
    gradients = []
    for evaluated in (False, True):
        model = load(
            tiny_model_dir(architecture), dict(method.adapter().quantization) | {"bnb_4bit_compute_dtype": "float32"}
        )
        base = digest(unpacked(layer) for layer in layers(model).values())
        adapted = apply(method, model, tmp_path)
        for module in adapted.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train(adapted, steps=2)
        if evaluated:
            logits(adapted)
        adapted.train()
        adapted(input_ids=ROWS, labels=ROWS).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained(adapted).values()]))
        assert digest(unpacked(layer) for layer in layers(adapted).values()) == base
    assert torch.equal(*gradients)


@pytest.mark.parametrize("method", [Qlora(QloraConfig(r=4)), Dora(DoraConfig(r=4, quantization=QuantizationConfig()))])
def test_merged_into_the_dequantized_base_it_answers_the_same(method, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    model = load(base, packed())
    before = logits(model)
    adapted = apply(method, model, tmp_path)
    assert torch.allclose(logits(adapted), before, atol=1e-5)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    after = logits(adapted)
    saved_and_loaded(adapted, method, base, tmp_path / "saved")
    from peft import PeftModel

    again = PeftModel.from_pretrained(load(base, packed()), tmp_path / "saved")
    assert torch.allclose(logits(again), after, atol=1e-6)
    whole = PeftModel.from_pretrained(load(base, packed()).dequantize(), tmp_path / "saved")
    # dequantized weights are multiplied in one product, packed ones block by block
    assert torch.allclose(logits(whole.merge_and_unload(safe_merge=True)), after, atol=1e-5)


def test_qdora_is_dora_on_the_dequantized_weight(tiny_model_dir, tmp_path):
    method = Dora(DoraConfig(r=3, alpha=3, dropout=0, quantization=QuantizationConfig()))
    adapted = apply(method, load(tiny_model_dir("llama"), packed()), tmp_path)
    train(adapted)
    layer = adapted.base_model.model.get_submodule("model.layers.1.mlp.up_proj")
    direction = unpacked(layer.base_layer) + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    m = layer.lora_magnitude_vector["default"].weight
    formula = m[:, None] * direction / direction.norm(dim=1, keepdim=True)
    x = torch.randn(5, 64)
    assert torch.allclose(layer(x), x @ formula.T, atol=1e-5)


def test_eight_bits_train_lora_and_refuse_dora(tiny_model_dir, tmp_path):
    eight = load(tiny_model_dir("llama"), {"load_in_8bit": True})
    integers = [module for module in eight.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    assert len(integers) == 14
    assert all(module.weight.dtype == torch.int8 for module in integers)
    weights = copy.deepcopy([module.weight.data for module in integers])
    adapted = apply(Qlora(QloraConfig(r=4, quantization=QuantizationConfig(load_in_8bit=True))), eight, tmp_path)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    assert all(torch.equal(module.weight.data, old) for module, old in zip(integers, weights, strict=True))
    with pytest.raises(ModelError, match="LF-MODEL-074"):
        apply(Lora(LoraConfig(use_dora=True)), load(tiny_model_dir("llama"), {"load_in_8bit": True}), tmp_path)
    with pytest.raises(ValidationError, match="a base in 8 bits does not go with DoRA"):
        DoraConfig(quantization=QuantizationConfig(load_in_8bit=True))
    with pytest.raises(ValidationError, match="takes the base's weights apart"):
        QloraConfig(init_lora_weights="pissa")
