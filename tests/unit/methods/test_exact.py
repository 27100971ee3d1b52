"""What every method must keep, on separate and fused projections, tied and untied heads."""

from __future__ import annotations

import pytest
import torch
from method_steps import apply, digest, load, logits, put_back, saved_and_loaded, train, trained

from llamafarm_methods.beginnings import CordaConfig
from llamafarm_methods.config import DoraConfig, LoraConfig
from llamafarm_methods.dora import Dora
from llamafarm_methods.lora import Lora

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt_neox", "gemma")
MLP = {"llama": "down_proj", "qwen2": "down_proj", "phi3": "down_proj", "gemma": "down_proj"}
VARIANTS = {
    "lora": lambda mlp: Lora(LoraConfig(r=4)),
    "rslora": lambda mlp: Lora(LoraConfig(r=4, use_rslora=True)),
    "patterns": lambda mlp: Lora(LoraConfig(r=4, rank_pattern={mlp: 2}, alpha_pattern={mlp: 3})),
    "excluded": lambda mlp: Lora(LoraConfig(r=4, exclude_modules=mlp)),
    "tokens": lambda mlp: Lora(LoraConfig(r=4, trainable_token_indices=[1, 20])),
    "pissa": lambda mlp: Lora(LoraConfig(r=4, init_lora_weights="pissa")),
    "pissa_niter": lambda mlp: Lora(LoraConfig(r=4, init_lora_weights="pissa_niter_2")),
    "olora": lambda mlp: Lora(LoraConfig(r=4, init_lora_weights="olora")),
    "orthogonal": lambda mlp: Lora(LoraConfig(r=4, init_lora_weights="orthogonal")),
    "eva": lambda mlp: Lora(LoraConfig(r=4, init_lora_weights="eva")),
    "eva, biases": lambda mlp: Lora(
        LoraConfig(r=4, init_lora_weights="eva", bias="all", use_rslora=True, rank_pattern={mlp: 6})
    ),
    "corda": lambda mlp: Lora(LoraConfig(r=4, init_lora_weights="corda")),
    "corda, patterns": lambda mlp: Lora(
        LoraConfig(
            r=4,
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method="kpm", samples=8),
            use_rslora=True,
            rank_pattern={mlp: 2},
            alpha_pattern={mlp: 3},
            trainable_token_indices=[1, 20],
        )
    ),
    "corda, dora": lambda mlp: Dora(DoraConfig(r=4, init_lora_weights="corda")),
    "eva, dora": lambda mlp: Dora(DoraConfig(r=4, init_lora_weights="eva")),
    "all biases": lambda mlp: Lora(LoraConfig(r=4, bias="all")),
    "adapted biases": lambda mlp: Lora(LoraConfig(r=4, bias="lora_only", target_modules=mlp)),
    "whole modules": lambda mlp: Lora(
        LoraConfig(r=4, modules_to_save=["embed_in" if "dense" in mlp else "embed_tokens"])
    ),
    "dora": lambda mlp: Dora(DoraConfig(r=4)),
    "magnitudes": lambda mlp: Dora(DoraConfig(r=4, magnitude_only_modules=[mlp])),
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture
def base(architecture, tiny_model_dir):
    return tiny_model_dir(architecture)


@pytest.fixture(params=VARIANTS)
def method(request, architecture):
    return VARIANTS[request.param](MLP.get(architecture, "dense_4h_to_h"))


def test_identity_then_training_then_the_same_after_loading_and_merging(method, base, tmp_path):
    model = load(base)
    before = logits(model)
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters()}
    adapted = apply(method, model, tmp_path)
    # float32 over a few dozen products; the decompositions (pissa, olora) take weights apart and add them up again
    assert torch.allclose(logits(adapted), before, atol=2e-5)

    learned = trained(adapted)
    assert all(
        any(part in name for part in ("lora_", "trainable_tokens", "bias", "modules_to_save")) for name in learned
    )
    rest = digest(parameter for name, parameter in adapted.named_parameters() if name not in learned)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for name, parameter in adapted.named_parameters() if name not in learned)
    assert digest(parameter for name, parameter in adapted.named_parameters() if name not in learned) == rest

    after = logits(adapted)
    assert (after - before).abs().max() > 1e-2, "training changed nothing, so that nothing below is tested"
    loaded = saved_and_loaded(adapted, method, base, tmp_path / "saved")
    assert torch.allclose(logits(loaded), after, atol=1e-6)
    train(adapted, steps=1)
    put_back(adapted, method, tmp_path / "saved")
    assert torch.allclose(logits(adapted), after, atol=1e-6), "a checkpoint goes back into the model it was made of"
    assert torch.allclose(logits(loaded.merge_and_unload(safe_merge=True)), after, atol=1e-5)
    again = dict(load(base).named_parameters())
    assert all(torch.equal(again[name], parameter) for name, parameter in frozen.items()), "the base on disk changed"


def test_as_many_parameters_as_the_formula_says(base, architecture, tmp_path):
    model = load(base)
    head = model.get_output_embeddings()
    shapes = [
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    tokens, width = 3, model.config.hidden_size
    config = LoraConfig(r=5, trainable_token_indices=range(tokens))
    adapted = apply(Lora(config), model, tmp_path)
    count = sum(parameter.numel() for parameter in trained(adapted).values())
    assert count == sum(5 * (inner + outer) for inner, outer in shapes) + tokens * width
    with_magnitudes = apply(Dora(DoraConfig(r=5)), load(base), tmp_path)
    count = sum(parameter.numel() for parameter in trained(with_magnitudes).values())
    assert count == sum(5 * (inner + outer) + outer for inner, outer in shapes)


def test_dora_is_the_formula_of_its_paper(base, tmp_path):
    """W' = m · (W + s·B·A) / ‖W + s·B·A‖, norms per output row; the norm is a constant in the gradient."""
    adapted = apply(Dora(DoraConfig(r=3, alpha=5, dropout=0)), load(base), tmp_path)
    train(adapted)
    name = next(iter(adapted.base_model.targeted_module_names))
    layer = adapted.base_model.model.get_submodule(name)
    weight = layer.base_layer.weight.detach()
    a, b = (matrix["default"].weight.detach().requires_grad_() for matrix in (layer.lora_A, layer.lora_B))
    m = layer.lora_magnitude_vector["default"].weight.detach().requires_grad_()
    assert m.shape == (weight.shape[0],)
    direction = weight + 5 / 3 * b @ a
    formula = m[:, None] * direction / direction.norm(dim=1, keepdim=True).detach()
    x = torch.randn(7, weight.shape[1])
    expected = torch.nn.functional.linear(x, formula, layer.base_layer.bias)
    # measured at 2e-7; float32 with sums of 64 products
    layer.train()
    adapted.zero_grad()
    output = layer(x)
    assert torch.allclose(output, expected, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(
            output.square().sum(),
            [
                layer.lora_A["default"].weight,
                layer.lora_B["default"].weight,
                layer.lora_magnitude_vector["default"].weight,
            ],
        ),
        torch.autograd.grad(expected.square().sum(), [a, b, m]),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_magnitude_starts_as_the_length_of_each_row(base, tmp_path):
    adapted = apply(Dora(DoraConfig(r=3)), load(base), tmp_path)
    for name in adapted.base_model.targeted_module_names:
        layer = adapted.base_model.model.get_submodule(name)
        assert torch.equal(layer.lora_magnitude_vector["default"].weight, layer.base_layer.weight.norm(dim=1))


def test_magnitude_only_layers_train_their_magnitude_alone(base, architecture, tmp_path):
    mlp = MLP.get(architecture, "dense_4h_to_h")
    method = Dora(DoraConfig(r=3, magnitude_only_modules=mlp))
    adapted = apply(method, load(base), tmp_path)
    train(adapted)
    there = {name for name in trained(adapted) if f".{mlp}." in name}
    assert there
    assert all("lora_magnitude_vector" in name for name in there)
    for name in (name for name in adapted.base_model.targeted_module_names if name.endswith(mlp)):
        layer = adapted.base_model.model.get_submodule(name)
        assert not layer.lora_B["default"].weight.any()
        formula = (
            layer.base_layer.weight
            * (layer.lora_magnitude_vector["default"].weight / layer.base_layer.weight.norm(dim=1))[:, None]
        )
        x = torch.randn(3, formula.shape[1])
        assert torch.allclose(layer(x), torch.nn.functional.linear(x, formula, layer.base_layer.bias), atol=1e-5)
