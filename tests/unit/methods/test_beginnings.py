"""Starts that look at training rows: what they compute, what they keep, and what they leave to others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import peft
import pytest
import torch
from method_steps import SEEN, apply, digest, load, logits, put_back, saved_and_loaded, train, trained
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from llamafarm.api import TrainingConfig
from llamafarm.data.tokens import TokenizedRow
from llamafarm.errors import ModelError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.beginnings import CordaConfig, EvaConfig
from llamafarm_methods.config import LoraConfig, QloraConfig
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora
from llamafarm_tuners.pytorch._methods import Methods


def lora(init, **options):
    return Lora(LoraConfig(r=4, init_lora_weights=init, **options))


def layers(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}


def inputs(model, path):
    """What a layer is given in the rows that were seen, by a loop of its own: (tokens, inputs) of each."""
    found = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
    with torch.no_grad():
        for row in SEEN:
            model(torch.tensor([row.input_ids]))
    handle.remove()
    return found


@pytest.fixture
def base(tiny_model_dir):
    return tiny_model_dir("llama")


@pytest.mark.parametrize("option", [EvaConfig, CordaConfig])
def test_options_are_pefts_with_its_defaults(option):
    theirs = asdict(getattr(peft.tuners.lora.config, option.__name__)())
    ours = option().model_dump()
    ours.pop("samples", None)  # PEFT leaves it to the caller how many rows are measured
    assert ours == {name: theirs[name] for name in ours}


def test_eva_starts_from_the_directions_in_which_the_inputs_vary_most(base, tmp_path):
    method = lora("eva", eva_config=EvaConfig(rho=1, tau=0.999), target_modules="down_proj")
    plain = load(base)
    adapted = apply(method, load(base), tmp_path)
    for path, layer in layers(adapted).items():
        found = inputs(plain, path.removeprefix("base_model.model."))
        given = torch.cat([rows[1:] for rows in found])  # the first token is not learned
        directions = torch.linalg.svd(given - given.mean(dim=0), full_matrices=False).Vh[:4]
        a = layer.lora_A["default"].weight.detach()
        assert torch.allclose(a @ a.T, torch.eye(4), atol=1e-4), "directions of length 1, orthogonal"
        # the library computes by incremental, randomized decompositions: it catches about as much as is possible
        centred = given - given.mean(dim=0)
        caught, most = (centred @ a.T).square().sum(), (centred @ directions.T).square().sum()
        assert 0.95 < caught / most < 1 + 1e-5
        assert not layer.lora_B["default"].weight.any()


def test_eva_moves_ranks_and_keeps_their_sum_and_scale(base, tmp_path):
    run = RecordingRun(tmp_path)
    adapted = apply(lora("eva"), load(base), tmp_path, run)
    found = layers(adapted)
    ranks = {path: layer.r["default"] for path, layer in found.items()}
    assert sum(ranks.values()) == 4 * 14
    assert len(set(ranks.values())) > 1
    assert all(layer.scaling["default"] == 2 for layer in found.values())
    assert [layer.lora_A["default"].weight.shape[0] for layer in found.values()] == list(ranks.values())
    (notice,) = [event.fields["message"] for event in run.events if event.type == "notice"]
    assert f"ranks from {min(ranks.values())} to {max(ranks.values())}" in notice
    unmoved = apply(lora("eva", eva_config=EvaConfig(rho=1)), load(base), tmp_path)
    assert {layer.r["default"] for layer in layers(unmoved).values()} == {4}


def test_an_adapter_of_eva_is_one_that_everybody_loads(base, tmp_path):
    method = lora("eva")
    adapted = apply(method, load(base), tmp_path)
    train(adapted)
    after = logits(adapted)
    saved_and_loaded(adapted, method, base, tmp_path / "saved")
    described = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    assert (described["init_lora_weights"], described["eva_config"]) == (True, None)
    ranks = {path.removeprefix("base_model.model."): layer.r["default"] for path, layer in layers(adapted).items()}
    assert described["rank_pattern"] == {path: rank for path, rank in ranks.items() if rank != 4}
    elsewhere = peft.PeftModel.from_pretrained(load(base), tmp_path / "saved")
    assert torch.allclose(logits(elsewhere), after, atol=1e-6)


@pytest.mark.parametrize("init", ["eva", "corda"])
@pytest.mark.parametrize("patterns", [False, True])
def test_a_run_that_resumes_begins_without_rows(init, patterns, base, tmp_path):
    options = {"rank_pattern": {"up_proj": 6}, "use_rslora": True} if patterns else {}
    method = lora(init, **options)
    first = apply(method, load(base), tmp_path)
    kept = Methods(first, [method], RecordingRun(tmp_path)).state_dict()
    torch.manual_seed(99)
    again = method.apply(load(base), RecordingRun(tmp_path))
    methods = Methods(again, [method], RecordingRun(tmp_path))
    methods.load_state_dict(kept)
    methods.load_state_dict(kept)  # a run that goes back to an earlier step: it is there already
    assert str(methods.state_dict()) == str(kept), "it can be resumed again"
    shapes = {name: parameter.shape for name, parameter in trained(first).items()}
    assert {name: parameter.shape for name, parameter in trained(again).items()} == shapes
    frozen = [
        digest(parameter for name, parameter in model.named_parameters() if name not in shapes)
        for model in (first, again)
    ]
    assert frozen[0] == frozen[1], "what the base keeps is the same to the last bit"
    again.load_state_dict(first.state_dict())
    assert torch.equal(logits(again), logits(first))


def test_what_another_start_kept_is_left_alone(base, tmp_path):
    """A run that goes on with another strategy is refused by its identity, and not by a failure before that."""
    for init, kept in (("eva", {"model.x": {}}), ("corda", {"ranks": {"model.x": 2}}), ("loftq", {"ranks": {}})):
        method = lora(init)
        adapted = method.apply(load(base), RecordingRun(tmp_path))
        Methods(adapted, [method], RecordingRun(tmp_path)).load_state_dict({"lora": kept})
        assert {layer.r["default"] for layer in layers(adapted).values()} == {4}


@pytest.mark.parametrize("which", ["ipm", "kpm"])
def test_corda_takes_out_what_the_rows_use_most_or_least(which, base, tmp_path):
    """With C the mean of xᵀx: W·C = U·S·Vᵀ, and B·A is U·S·VᵀC⁻¹ of the first or the last r values."""
    method = lora("corda", corda_config=CordaConfig(corda_method=which), target_modules="v_proj")
    plain = load(base)
    adapted = apply(method, load(base), tmp_path)
    for path, layer in layers(adapted).items():
        name = path.removeprefix("base_model.model.")
        weight = plain.get_submodule(name).weight.detach()
        found = inputs(plain, name)
        # each row is scaled by its largest value, and the diagonal is raised, as the authors' code does
        covariance = sum((x / x.max()).T @ (x / x.max()) for x in found) / len(SEEN)
        for damp in (0.01 * 2**power for power in range(10)):
            raised = covariance + covariance.diagonal().mean() * damp * torch.eye(len(covariance))
            if torch.dist(raised @ raised.inverse(), torch.eye(len(raised))) < 0.05:
                break
        u, s, v = torch.linalg.svd(weight @ raised, full_matrices=False)
        chosen = slice(0, 4) if which == "ipm" else slice(-4, None)
        expected = (u[:, chosen] * s[chosen]) @ v[chosen] @ raised.inverse()
        taken = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        # float32: a product with an inverse whose condition is about 1e3
        assert torch.allclose(taken, expected, atol=1e-3 * expected.abs().max())
        assert torch.allclose(layer.base_layer.weight + taken, weight, atol=1e-6)
        assert taken.norm() > 1e-2 * weight.norm()


def test_an_adapter_of_corda_is_one_for_the_base_as_it_was(base, tmp_path):
    method = lora("corda", rank_pattern={"down_proj": 2}, use_rslora=True)
    adapted = apply(method, load(base), tmp_path)
    train(adapted)
    after = logits(adapted)
    saved_and_loaded(adapted, method, base, tmp_path / "saved")
    described = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    assert (described["init_lora_weights"], described["corda_config"], described["r"]) == (True, None, 8)
    assert described["rank_pattern"] == {"down_proj": 4}
    elsewhere = peft.PeftModel.from_pretrained(load(base), tmp_path / "saved")
    assert torch.allclose(logits(elsewhere), after, atol=1e-5)
    train(adapted, steps=1)
    assert not torch.allclose(logits(adapted), after, atol=1e-3)
    put_back(adapted, method, tmp_path / "saved")
    assert torch.allclose(logits(adapted), after, atol=1e-6)


def test_transposed_layers_begin_so_too(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=256)).eval()
    before = logits(model)
    for init in ("eva", "corda"):
        adapted = apply(Lora(LoraConfig(r=2, init_lora_weights=init)), model, tmp_path)
        assert torch.allclose(logits(adapted), before, atol=1e-5)
        train(adapted)
        assert not torch.allclose(logits(adapted), before, atol=1e-3)
        model = adapted.unload() if init == "eva" else model


def test_measuring_changes_neither_the_generators_nor_the_mode(base, tmp_path):
    for init in ("eva", "corda"):
        method = lora(init)
        adapted = method.apply(load(base), RecordingRun(tmp_path))
        adapted.train()
        before = torch.get_rng_state()
        Methods(adapted, [method], RecordingRun(tmp_path)).begin(SEEN, 0, TrainingConfig(), 5)
        assert torch.equal(torch.get_rng_state(), before)
        assert adapted.training


def test_eva_on_a_base_in_4_bits(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = load(base, four_bits())
    before = logits(model)
    adapted = apply(Qlora(QloraConfig(r=4, init_lora_weights="eva")), model, tmp_path)
    assert torch.allclose(logits(adapted), before, atol=1e-5)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    assert len({layer.r["default"] for layer in layers(adapted).values()}) > 1


def begin(method, folder, tmp_path: Path, rows=SEEN):
    run = RecordingRun(tmp_path)
    adapted = method.apply(load(folder), run)
    Methods(adapted, [method], run).begin(rows, 0, TrainingConfig(), 5)


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        (lora("eva", eva_config=EvaConfig(rho=20)), SEEN, r"80 directions .* in the 64 inputs of .*LF-MODEL-200"),
        (lora("eva"), [TokenizedRow([1, 5, 6], [-100, 5, 6])], r"8 directions .* rows have 2 tokens.*LF-MODEL-201"),
        (lora("eva", eva_config=EvaConfig(tau=1)), SEEN, r"not settled after 200 batches.*LF-MODEL-202"),
        (Lora(LoraConfig(r=65, init_lora_weights="corda")), SEEN, r"65 directions out of model.*LF-MODEL-203"),
    ],
)
def test_what_cannot_be_measured_is_said(method, rows, message, base, tmp_path):
    with pytest.raises(ModelError, match=message):
        begin(method, base, tmp_path, rows)


def test_rows_that_show_nothing_are_said(base, tmp_path):
    method = lora("corda", target_modules="q_proj")
    model = load(base)
    torch.nn.init.zeros_(model.model.layers[0].input_layernorm.weight)
    run = RecordingRun(tmp_path)
    adapted = method.apply(model, run)
    with pytest.raises(ModelError, match=r"corda found nothing to go by in the rows.*LF-MODEL-204"):
        Methods(adapted, [method], run).begin(SEEN, 0, TrainingConfig(), 5)


def four_bits(**options):
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32", **options}


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("quantization", [four_bits(), {"load_in_8bit": True}], ids=["4", "8"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_loftq_makes_up_for_as_much_as_its_rank_can(architecture, quantization, tiny_model_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = tiny_model_dir(architecture)
    run = RecordingRun(tmp_path)
    method = Qlora(QloraConfig(r=6, alpha=3, init_lora_weights="loftq"))
    adapted = apply(method, load(base, quantization), tmp_path, run)
    whole = load(base)
    for path, layer in layers(adapted).items():
        weight = whole.get_submodule(path.removeprefix("base_model.model.")).weight.detach()
        packed = peft.utils.integrations.dequantize_module_weight(layer.base_layer).float()
        made = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        values = torch.linalg.svdvals(weight - packed)
        # Eckart and Young: no product of that rank leaves less
        assert torch.allclose((weight - packed - made).norm(), values[6:].norm(), rtol=1e-3)
        assert values[:6].norm() > 0.1 * values.norm()
    assert "with what quantization took, but for" in " ".join(str(event.fields.get("message")) for event in run.events)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    after = logits(adapted)
    adapted.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    elsewhere = peft.PeftModel.from_pretrained(load(base, quantization), tmp_path / "saved")
    assert torch.allclose(logits(elsewhere), after, atol=1e-5)


def test_loftq_brings_the_answers_nearer_to_those_of_the_whole_base(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    whole, packed = logits(load(base)), logits(load(base, four_bits()))
    for use_dora in (False, True):
        method = Lora(LoraConfig(r=24, init_lora_weights="loftq", use_dora=use_dora))
        begun = logits(apply(method, load(base, four_bits()), tmp_path))
        assert (begun - whole).norm() < 0.7 * (packed - whole).norm()


def test_loftq_needs_a_base_that_lost_something_and_its_files(base, tmp_path):
    with pytest.raises(ModelError, match=r"this one is not quantized.*LF-MODEL-205"):
        begin(lora("loftq"), base, tmp_path)
    pytest.importorskip("bitsandbytes")
    model = load(base, four_bits())
    model.llamafarm_files = tmp_path
    with pytest.raises(ModelError, match=r"is not in its files.*LF-MODEL-206"):
        apply(lora("loftq"), model, tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"eva_config": {"rho": 2}},
        {"init_lora_weights": "eva", "corda_config": {}},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 0.5}},
    ],
)
def test_what_has_no_effect_or_is_not_offered_is_refused(given):
    with pytest.raises(ValidationError):
        LoraConfig(**given)


def test_a_quantized_base_is_not_taken_apart():
    with pytest.raises(ValidationError, match="cannot do so when they are quantized"):
        QloraConfig(init_lora_weights="corda")
