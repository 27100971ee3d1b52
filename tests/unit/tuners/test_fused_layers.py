"""Every kind of adapter, base and family that fused layers compute, against plain training, step by step."""

from __future__ import annotations

import peft
import pytest
import torch
from fast_oracle import (
    CPU,
    ROWS,
    assert_same,
    both,
    gradients,
    load,
    oracle,
    ours,
    paths_of,
    same_with_dropout,
    tiny,
    with_lora,
)
from torch import nn

from llamafarm.api import BaseModelConfig
from llamafarm.data.packing import pack
from llamafarm.models._load import load_model
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._isolation import computes_exactly
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast import _dora
from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths

ARCHITECTURES = ("llama", "qwen2", "phi3", "gemma")  # qwen2 has biases, phi3 grouped weights, gemma other norms
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
PACKED = {
    "nf4": FOUR_BITS | {"bnb_4bit_compute_dtype": "float32"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "float32"},
    "int8": {"load_in_8bit": True},
}
KINDS = {"lora": {}, "dora": {"use_dora": True}}
# A packed base is compared with bitsandbytes' own products, whose order of sums differs from torch's; weights are the
# same, so differences are those of float32 too.


def packed(folder, quantization, dtype=torch.float32):
    pytest.importorskip("bitsandbytes")
    config = BaseModelConfig(huggingface_id=str(folder))
    model = load_model(config, dtype=dtype, attention="sdpa", quantization=quantization)
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def moved_magnitudes(model):
    """As in the middle of a training: no length is that of the base any more."""
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.randn_like(parameter)
    return model


def adapted(model, kind, **options):
    return moved_magnitudes(with_lora(model, **KINDS[kind], **options))


def fused(run):
    return paths_of(run)["fused_layers"]


# --- DoRA ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("excluded", [None, ["o_proj", "down_proj", "k_proj", "qkv_proj"]])
def test_dora_gives_the_losses_and_gradients_of_plain_training(tiny_model_dir, architecture, excluded):
    run = RecordingRun(None)
    both(adapted(load(tiny_model_dir(architecture)), "dora", exclude_modules=excluded).train(), run=run)
    assert fused(run) == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dora_drops_what_plain_layers_drop(tiny_model_dir, architecture):
    same_with_dropout(adapted(load(tiny_model_dir(architecture)), "dora", lora_dropout=0.3).train())


def test_layers_with_magnitudes_alone_beside_layers_with_both(tiny_model_dir):
    model = adapted(load(tiny_model_dir("llama")), "dora", lora_dropout=0.3, rank_pattern={"k_proj": 1})
    for name, module in model.named_modules():
        if name.endswith("k_proj"):
            module.lora_A.requires_grad_(False)
            module.lora_B.requires_grad_(False)
            module.lora_B["default"].weight.data.zero_()
            module.lora_dropout["default"] = nn.Identity()
    same_with_dropout(model.train())


def test_lengths_are_measured_once_a_step_and_whenever_weights_changed(tiny_model_dir, monkeypatch):
    seen = {}

    def length(self, weight, original=_dora.Dora._length):
        found = original(self, weight)
        seen[id(self), id(self._measured)] = self._measured
        return found

    monkeypatch.setattr(_dora.Dora, "_length", length)
    model, plain = (adapted(load(tiny_model_dir("llama")), "dora").train() for _ in range(2))
    with fast_paths(model, ROWS, CPU, RecordingRun(None)) as paths:
        for step in range(3):
            with torch.inference_mode():  # an evaluation before each step
                token_losses(model.eval(), paths.batch(ROWS, 0), selective=paths.selective, head=paths.head)
            for rows in (ROWS[:3], ROWS[3:]):
                loss, _ = token_losses(model.train(), paths.batch(rows, 0), selective=paths.selective, head=paths.head)
                loss.backward()
            oracle(plain, ROWS)
            # weights that grow so fast magnify rounding; a length that is not measured anew shows in the first digit
            assert_same((1.0, gradients(model)), (1.0, gradients(plain)), relative=1e-4)
            changed(model, step)
            changed(plain, step)
    assert len(seen) == 3 * 2 * 7  # steps, layers, adapters of each


def changed(model, step):
    """A change that autograd does not hear of."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.05 * (step + 1))


def test_a_magnitude_of_zero_still_learns(tiny_model_dir):
    model = adapted(load(tiny_model_dir("llama")), "dora").train()
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data[::3] = 0.0
    both(model)


# --- packed bases ---


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize(("kind", "base"), [("lora", "nf4"), ("lora", "fp4"), ("lora", "int8"), ("dora", "nf4")])
def test_packed_bases_give_the_losses_and_gradients_of_plain_training(tiny_model_dir, architecture, kind, base):
    run = RecordingRun(None)
    both(adapted(packed(tiny_model_dir(architecture), PACKED[base]), kind).train(), run=run)
    assert (paths_of(run)["batches"], fused(run)) == ("documents in one row", 2)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize(("kind", "base"), [("lora", "nf4"), ("lora", "int8"), ("dora", "nf4")])
def test_packed_bases_drop_what_plain_layers_drop(tiny_model_dir, kind, base):
    same_with_dropout(adapted(packed(tiny_model_dir("llama"), PACKED[base]), kind, lora_dropout=0.3).train())


def test_products_of_a_packed_base_in_bf16(tiny_model_dir):
    # what goes between layers stays float32; products have 8 binary digits, some 0.5 % each
    quantization = FOUR_BITS | {"bnb_4bit_compute_dtype": "bfloat16"}
    run = RecordingRun(None)
    both(adapted(packed(tiny_model_dir("llama"), quantization), "lora").train(), relative=3e-2, run=run)
    assert fused(run) == 2


def test_a_base_that_was_packed_from_bf16(tiny_model_dir):
    # on the way back bitsandbytes rounds weights to bf16 again, and here they stay what they are: 8 digits, averaged
    model = adapted(packed(tiny_model_dir("llama"), PACKED["nf4"], torch.bfloat16), "lora").train()
    assert not computes_exactly(model)
    run = RecordingRun(None)
    both(model, relative=1e-2, run=run)
    assert fused(run) == 2


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_packed_weights_stay_packed_and_what_they_were(tiny_model_dir, base):
    model = adapted(packed(tiny_model_dir("llama"), PACKED[base]), "lora").train()
    before = {name: (p.dtype, p.data.clone()) for name, p in model.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        model(torch.tensor([ROWS[0].input_ids]))
    ours(model, [ROWS])
    after = dict(model.named_parameters())
    for name, (dtype, data) in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name].data, data), name


def test_weights_that_were_packed_again_for_inference_are_left_to_bitsandbytes(tiny_model_dir):
    model = adapted(packed(tiny_model_dir("llama"), PACKED["nf4"]), "lora").train()
    for module in model.modules():
        if hasattr(module, "quant_state"):
            module.weight.quant_state.packing_format_for_cpu = True
    from llamafarm_tuners.pytorch.fast._decoder import refusal

    layer = next(module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer")
    assert "packed again" in refusal(layer)


# --- families ---


def gemma3(**options):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 80}
    return tiny(Gemma3TextConfig, Gemma3ForCausalLM, layer_types=["sliding_attention", "full_attention"], **sizes)


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 80}
    return tiny(Gemma2Config, Gemma2ForCausalLM, attn_logit_softcapping=0.5, **sizes)  # so small that it matters


def granite():
    from transformers import GraniteConfig, GraniteForCausalLM

    factors = {"residual_multiplier": 0.3, "attention_multiplier": 0.2, "embedding_multiplier": 5.0}
    return tiny(GraniteConfig, GraniteForCausalLM, num_key_value_heads=1, logits_scaling=3.0, **factors)


def smollm3():
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    return tiny(SmolLM3Config, SmolLM3ForCausalLM, num_key_value_heads=1, no_rope_layers=[1, 0])


def ministral():
    from transformers import MinistralConfig, MinistralForCausalLM

    return tiny(MinistralConfig, MinistralForCausalLM, num_key_value_heads=1, head_dim=16)


FAMILIES = {"gemma2": gemma2, "gemma3": gemma3, "granite": granite, "smollm3": smollm3, "ministral": ministral}


def uneven(model):
    """Norms that are not all one, and biases that are not all zero: else forgetting them would change nothing."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_give_the_losses_and_gradients_of_plain_training(family, kind):
    run = RecordingRun(None)
    both(adapted(uneven(FAMILIES[family]()), kind).train(), run=run)
    assert fused(run) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_families_without_the_compiled_kernels(family):
    run = RecordingRun(None)
    both(adapted(FAMILIES[family](), "lora").train(), wanted=Wanted(compiled=False), run=run)
    assert fused(run) == 2
    assert paths_of(run)["compiled_kernels"] == "switched off"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_on_a_bf16_base_are_about_as_far_from_float32_as_plain_training(family, kind):
    """Some weights make much of a rounded bit; then plain training is as far off, by chance a little less or more.

    PEFT computes the adapters' part in float32, fused layers in the base's format: not twice as far then.
    """
    half = adapted(uneven(FAMILIES[family]()).to(torch.bfloat16), kind).train()
    run = RecordingRun(None)
    fast = ours(half, [ROWS], run=run), flat(gradients(half))
    plain = oracle(half, ROWS), flat(gradients(half))
    exact = oracle(half.float(), ROWS), flat(gradients(half))
    assert fused(run) == 2
    assert fast[0] == pytest.approx(exact[0], rel=1e-3)
    assert (fast[1] - exact[1]).norm() <= 2 * (plain[1] - exact[1]).norm()
    assert (fast[1] - exact[1]).norm() <= 0.1 * exact[1].norm()


def flat(found):
    return torch.cat([gradient.float().flatten() for gradient in found.values()])


def test_capped_scores_stay_capped_where_rows_are_padded():
    """While a run lasts, whoever calls the model without documents gets what it itself computes."""
    model = with_lora(uneven(gemma2())).eval()
    ids = torch.tensor([ROWS[0].input_ids, [0] * 5 + ROWS[1].input_ids])
    mask = (ids > 0).long()
    asked = {"max_new_tokens": 4, "do_sample": False, "attention_mask": mask}
    with torch.no_grad():
        logits, answers = model(ids, attention_mask=mask).logits, model.generate(ids, **asked)
        with fast_paths(model, ROWS, CPU, RecordingRun(None)) as paths:
            assert paths.documents
            torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask > 0], logits[mask > 0])
            assert torch.equal(model.generate(ids, **asked), answers)


# --- everything at once ---

SPLITS = {
    "one": [ROWS],
    "two": [ROWS[:4], ROWS[4:]],
    "each": [[item] for item in ROWS],
    "packed": [pack(ROWS, 80, 0)],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("base", [None, "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_however_rows_are_spread_over_micro_batches(tiny_model_dir, kind, base, split):
    folder = tiny_model_dir("gemma")
    model = adapted(packed(folder, PACKED[base]) if base else load(folder), kind).train()
    expected = oracle(model, ROWS), gradients(model)
    assert_same((ours(model, SPLITS[split]), gradients(model)), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", [None, "nf4"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_gradient_checkpointing(tiny_model_dir, kind, base, dropout):
    folder = tiny_model_dir("gemma")
    model = packed(folder, PACKED[base]) if base else load(folder)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model = adapted(model, kind, lora_dropout=dropout).train()
    model.enable_input_require_grads()
    same_with_dropout(model)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_scales_and_beginnings_of_other_kinds(tiny_model_dir, options, kind):
    run = RecordingRun(None)
    both(adapted(load(tiny_model_dir("llama")), kind, **options).train(), run=run)
    assert fused(run) == 2


def test_dora_on_a_bf16_base(tiny_model_dir):
    # as for LoRA; PEFT measures lengths and scales in float32 there, and so is it here
    model = adapted(load(tiny_model_dir("qwen2"), dtype=torch.bfloat16), "dora").train()
    run = RecordingRun(None)
    both(model, relative=4e-2, run=run)
    assert fused(run) == 2


def test_nothing_is_left_behind(tiny_model_dir):
    """Not even by passes whose backward never comes."""
    import gc
    import weakref

    model = adapted(load(tiny_model_dir("llama")), "dora").train()
    with fast_paths(model, ROWS, CPU, RecordingRun(None), Wanted()) as paths:
        loss, _ = token_losses(model, paths.batch(ROWS, 0), selective=paths.selective, head=paths.head)
        gone = weakref.ref(loss.grad_fn)
        gc.disable()
        try:
            del loss
            assert gone() is None
        finally:
            gc.enable()
