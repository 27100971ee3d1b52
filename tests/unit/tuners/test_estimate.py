"""The terms of an estimate, each against what its definition gives for a small Llama, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamafarm.api import DeviceSpec, Workload
from llamafarm_methods.dora import Dora
from llamafarm_methods.freeze import Freeze
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora
from llamafarm_tuners.pytorch import estimate as module
from llamafarm_tuners.pytorch import onednn
from llamafarm_tuners.pytorch.estimate import estimate
from llamafarm_tuners.pytorch.fast.native import library

MIB = 2**20
H, F, Q, K, HEADS, V, LAYERS = 64, 160, 64, 32, 4, 1000, 2
"""Hidden, feed-forward, all queries, all keys, heads, vocabulary, layers."""
MODEL = {
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": V,
    "tie_word_embeddings": True,
}
NEOX = {
    "model_type": "gpt_neox",
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "vocab_size": V,
}
GROUPED = H * (Q + 2 * K) + 2 * H * F
LINEAR = GROUPED + Q * H + F * H
PARAMETERS = LAYERS * (LINEAR + 2 * H) + H + V * H
ADAPTERS = LAYERS * 8 * (H + Q + 2 * (H + K) + Q + H + 3 * (H + F))
RANKS = 8 * 7
TOKENS, LEARNED = 400, 200
WORK = Workload(MODEL, (100,) * 16, 16, learned=0.5)
GPU = DeviceSpec("cuda", "a GPU", 1, 8 * 2**30, {"bf16": True, "compute_capability": "8.0"})
AMD = DeviceSpec("cpu", "a CPU", details={"maker": "AuthenticAMD"})
FUSED = 2 * H * 4 + 4 * (Q + 2 * K) + Q * 4 + 4 * HEADS + 2 * F * 4
"""Bytes for each token of a fused layer, without what adapters keep."""
GENERIC = 2 * H * 4 + (2 * Q + 2 * K) * 4 + 4 * HEADS + 3 * F * 4
BACK = 7 * F * 4 + 2 * H * 4


def lora(**options: Any) -> Lora:
    return Lora(Lora.Config(**{"r": 8, "dropout": 0.0, "target_modules": "all", **options}))


@pytest.fixture
def lets_go(monkeypatch):
    """Says whether what stands in a mapped file can be let go."""
    return lambda answer: monkeypatch.setattr(module, "lets_go", lambda: answer)


@pytest.fixture
def cost(make, lets_go):
    """Costs, with batches of four rows of a hundred tokens, where mapped files stay in memory."""
    lets_go(False)

    def build(options=None, method=None, device=None, workload=WORK, **training):
        values = {**(options or {}), "training": {"batch_size": 4, **training}}
        written = tuple(f"training.{name}" for name in training)
        made = make(values, written, *([device] if device else []), method=method or lora())
        return estimate(*made, workload)

    return build


def test_a_lora_on_a_cpu(cost):
    assert dict(cost().memory) == pytest.approx(
        {
            "process": 337 * MIB,
            "weights": 4 * (PARAMETERS + LAYERS * GROUPED),
            "adapters": 4 * ADAPTERS,
            "gradients": 4 * ADAPTERS,
            "optimizer": 8 * ADAPTERS,
            "activations": 1.1 * LAYERS * TOKENS * (FUSED + 4 * RANKS),
            "logits": 4 * 4 * LEARNED * V + 3 * 4 * LEARNED * H,
            "temporary": TOKENS * BACK,
        }
    )


def test_several_processes_import_what_waits_in_one(cost, monkeypatch):
    alone = cost().memory["process"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cost().memory["process"] == alone + 49 * MIB


def test_copies_in_the_order_of_onednn(cost, lets_go):
    """In float32 one of each matrix that stays, and two of one whose file is let go; in 16 bits two of each."""
    roomy = replace(AMD, memory_bytes=2**40)
    half = {"base_model": {"torch_dtype": "bfloat16"}}
    whole, singles = LAYERS * LINEAR + V * H, LAYERS * (LINEAR - GROUPED)
    for answer in (False, True):
        lets_go(answer)
        assert cost(device=roomy).memory["ordered copies"] == 4 * whole
        assert cost(device=roomy, workload=replace(WORK, stored_bits=16)).memory["ordered copies"] == 4 * whole
        assert cost(half, device=roomy).memory["ordered copies"] == 2 * 2 * whole
        mapped = cost(half, device=roomy, workload=replace(WORK, stored_bits=16)).memory
        assert mapped["ordered copies"] == 2 * (2 * whole - (singles if answer else 0))
        assert mapped["weights"] == 2 * (PARAMETERS + (0 if answer else LAYERS * GROUPED))
    apart = replace(WORK, model_config={**MODEL, "tie_word_embeddings": False}, stored_bits=16)
    assert cost(half, device=roomy, workload=apart).memory["ordered copies"] == 2 * (2 * whole - singles - V * H)
    needed = 4 * (whole + singles)
    for memory, fits in ((16 * needed, True), (16 * needed - 16, False)):
        found = cost(device=replace(AMD, memory_bytes=memory)).memory.get("ordered copies", 0)
        assert bool(found) == fits


def test_a_full_training_on_a_cpu(cost):
    inputs = H + Q + H + F
    assert dict(cost(method=Full(Full.Config())).memory) == pytest.approx(
        {
            "process": 337 * MIB,
            "weights": 4 * PARAMETERS,
            "gradients": 4 * PARAMETERS,
            "optimizer": 8 * PARAMETERS,
            "activations": 1.1 * LAYERS * TOKENS * (GENERIC + 2 * H * 4 + 4 * inputs),
            "logits": 4 * 4 * LEARNED * V + 3 * 4 * LEARNED * H,
            "temporary": TOKENS * BACK + 4 * V * H,
        }
    )


def test_hidden_states_are_kept_beside_logits(cost):
    """Those of the learned tokens, in the products' format, and their gradient: of each token three times its size."""
    wide = replace(WORK, model_config={**MODEL, "vocab_size": 1})
    assert cost(workload=wide).memory["logits"] == pytest.approx(4 * 4 * LEARNED + 3 * 4 * LEARNED * H)


def test_logits_come_in_chunks(cost):
    many = replace(WORK, lengths=(4000,) * 16, model_config={**MODEL, "vocab_size": 50_000})
    states = 3 * 4 * 0.5 * 16_000 * H
    usual = cost(workload=many, max_seq_length=4000)
    assert usual.memory["logits"] == pytest.approx(4 * 32 * MIB + states)
    assert cost(workload=many, max_seq_length=4000, device=GPU).memory["logits"] == pytest.approx(
        4 * 256 * MIB + states
    )
    large = replace(many, model_config={**MODEL, "vocab_size": 600_000})  # a chunk has 16 rows at least
    assert cost(workload=large, max_seq_length=4000).memory["logits"] == pytest.approx(4 * 4 * 16 * 600_000 + states)
    whole = replace(many, model_config={**MODEL, "model_type": "gemma2", "head_dim": 16, "vocab_size": 50_000})
    assert cost(workload=whole, max_seq_length=4000).memory["logits"] == pytest.approx(4 * 4 * 8000 * 50_000 + states)


def test_every_token_of_pretraining_is_learned(cost):
    assert cost(stage="pt").memory["logits"] == pytest.approx(4 * 4 * TOKENS * V + 3 * 4 * TOKENS * H)


def test_trained_parts_of_the_base_are_copies(cost):
    """`modules_to_save` trains a copy, and the base keeps its own: head and gradient and state of it besides."""
    usual, found = cost().memory, cost(method=lora(modules_to_save=["lm_head"])).memory
    assert found["adapters"] - usual["adapters"] == 4 * V * H
    assert found["gradients"] - usual["gradients"] == 4 * V * H
    assert found["optimizer"] - usual["optimizer"] == 8 * V * H
    assert found["temporary"] - usual["temporary"] == 4 * V * H


def test_what_is_trained_in_place_is_no_copy(cost):
    found = cost(method=Freeze(Freeze.Config(freeze_trainable_layers=1)))
    assert "adapters" not in found.memory
    assert found.memory["gradients"] == 4 * (LINEAR + 2 * H)
    assert found.memory["optimizer"] == 8 * (LINEAR + 2 * H)
    half = 0.5 * (H + Q + H + F)
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * (GENERIC + 2 * H * 4 + 4 * half))


def test_everything_in_bf16_is_half_of_everything(cost):
    found = cost(method=Full(Full.Config()), pure_bf16=True)
    assert found.memory["weights"] == 2 * PARAMETERS
    assert found.memory["gradients"] == 2 * PARAMETERS
    assert found.memory["optimizer"] == 4 * PARAMETERS
    eight = cost(method=Full(Full.Config()), pure_bf16=True, device=GPU, optim="adamw_8bit")
    packed = 2 + 8 / 256
    assert eight.memory["optimizer"] == packed * PARAMETERS + (8 - packed) * V * H  # whose moments stay in 32 bits


def test_a_base_in_bf16(cost):
    found = cost({"base_model": {"torch_dtype": "bfloat16"}})
    assert found.memory["weights"] == 2 * PARAMETERS  # the file in float32 is not mapped
    assert found.memory["adapters"] == 4 * ADAPTERS
    saved = 2 * H * 2 + 4 * (Q + 2 * K) + Q * 2 + 4 * HEADS + 2 * F * 2 + 2 * RANKS
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * saved)
    assert found.memory["temporary"] == TOKENS * BACK / 2
    assert found.memory["kernels"] == onednn.KERNEL_BYTES * onednn.SHAPES
    mapped = cost({"base_model": {"torch_dtype": "bfloat16"}}, workload=replace(WORK, stored_bits=16))
    assert mapped.memory["weights"] == 2 * (PARAMETERS + LAYERS * GROUPED)


def test_a_packed_base(cost):
    rest = PARAMETERS - LAYERS * LINEAR
    four = LAYERS * LINEAR * (0.5 + 1 / 64 + 4 / (64 * 256))
    method = Qlora(Qlora.Config(r=8, dropout=0.0, target_modules="all"))
    found = cost(method=method, workload=replace(WORK, stored_bits=16))
    assert found.memory["process"] == 407 * MIB
    assert found.memory["weights"] == pytest.approx(four + 4 * rest)
    assert found.memory["temporary"] == pytest.approx(TOKENS * BACK + 4 * 4 * H * F)
    assert cost(method=method).memory["weights"] == pytest.approx(four + 4 * rest + 4 * LAYERS * LINEAR)
    one = cost(method=method, fused=False)
    assert one.memory["temporary"] == pytest.approx(4 * H * F)
    gpu = cost(method=method, device=GPU)
    assert gpu.memory["weights"] == pytest.approx(four + 4 * rest)
    assert "process" not in gpu.memory


@pytest.fixture(params=[True, False], ids=["compiled", "uncompiled"])
def entry(request, monkeypatch):
    """Bytes for each entry of what dropout goes over, where layers are ours."""
    found = replace(library(), loaded=object() if request.param else None)
    monkeypatch.setattr(module, "library", lambda: found)
    return 1 / 8 if request.param else 1


def test_what_dropout_keeps(cost, entry):
    entries = 5 * H + Q + F  # of q, k, v, gate and up; of o; of down
    found = cost(method=lora(dropout=0.1))
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * (FUSED + 4 * RANKS + entry * entries))
    odd = cost(method=lora(dropout=0.1), workload=replace(WORK, model_config=MODEL | {"intermediate_size": F + 8}))
    more = 2 * 8 * 4 + F + 8 - entry * F  # its mask is in bytes in any case
    grown = odd.memory["activations"] - found.memory["activations"]
    assert grown == pytest.approx(1.1 * LAYERS * TOKENS * more)


def test_logits_in_16_bits_are_computed_in_place_where_kernels_are_compiled(cost, entry):
    states, share = 3 * 4 * LEARNED * H, 1 if entry == 1 else 0.25
    half = cost({"base_model": {"torch_dtype": "bfloat16"}})
    assert half.memory["logits"] == pytest.approx(share * 4 * 4 * LEARNED * V + states)
    assert cost().memory["logits"] == pytest.approx(4 * 4 * LEARNED * V + states)


def test_what_adapters_of_other_layers_keep(cost):
    entries, outputs = 5 * H + Q + F, Q + 2 * K + H + 2 * F + H
    plain = cost(fused=False)
    shared = H + Q + H + F  # inputs that adapters share are kept once
    gaps = 1.7 * 4 * outputs
    assert plain.memory["activations"] == pytest.approx(LAYERS * TOKENS * (GENERIC + 4 * shared + 4 * RANKS + gaps))
    assert "temporary" not in plain.memory
    found = cost(method=lora(dropout=0.1), fused=False)
    kept = GENERIC + 4 * entries + 4 * entries + 4 * RANKS
    assert found.memory["activations"] == pytest.approx(LAYERS * TOKENS * (kept + gaps))
    gpu = cost({"base_model": {"torch_dtype": "float32"}}, method=lora(dropout=0.1), device=GPU)
    assert gpu.memory["activations"] == pytest.approx(LAYERS * TOKENS * (kept - 3 * entries))
    assert gpu.memory["temporary"] == TOKENS * BACK


def test_what_magnitudes_keep(cost, entry):
    options = {"r": 8, "target_modules": "all"}
    found = cost(method=Dora(Dora.Config(**options, dropout=0.0)))
    trained = ADAPTERS + LAYERS * (Q + 2 * K + H + 2 * F + H)
    assert found.memory["gradients"] == 4 * trained
    kept = FUSED + 4 * RANKS + 4 * (Q + 2 * K) + 4 * 2 * H
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * kept)
    found = cost(method=Dora(Dora.Config(**options, dropout=0.1)))
    kept = FUSED + 4 * RANKS + entry * (5 * H + Q + F) + 4 * (Q + 2 * K + H + 2 * F + H)
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * kept)


def test_checkpointing_keeps_what_goes_into_each_layer_and_one_layer(cost):
    found = cost(gradient_checkpointing=True)
    passing = 4 * (H + Q + 2 * K)
    kept = LAYERS * (4 * H + passing) + FUSED + 4 * RANKS
    assert found.memory["activations"] == pytest.approx(1.1 * TOKENS * kept)
    found = cost(gradient_checkpointing=True, fused=False)
    gaps = 1.7 * 4 * (Q + 2 * K + H + 2 * F + H)
    kept = LAYERS * (4 * H + 0.7 * gaps) + GENERIC + 4 * (H + Q + H + F) + 4 * RANKS
    assert found.memory["activations"] == pytest.approx(TOKENS * kept)
    gpu = cost({"base_model": {"torch_dtype": "float32"}}, gradient_checkpointing=True, device=GPU)
    kept = LAYERS * 4 * H + GENERIC + 4 * (H + Q + H + F) + 4 * RANKS
    assert gpu.memory["activations"] == pytest.approx(TOKENS * kept)


def test_scores_that_are_written_out(cost):
    found = cost({"base_model": {"attn_implementation": "eager"}}, fused=False)
    usual = cost(fused=False)
    scores = LAYERS * TOKENS * HEADS * 100 * (4 + 4)
    assert found.memory["activations"] - usual.memory["activations"] == pytest.approx(scores)


def test_autocast_casts_what_it_multiplies(cost):
    usual = cost({"base_model": {"torch_dtype": "float32"}}, device=GPU)
    mixed = cost(method=Full(Full.Config()), device=GPU, bf16=True)
    full = cost(method=Full(Full.Config()), device=GPU)
    assert mixed.memory["temporary"] == pytest.approx(TOKENS * BACK / 2 + 4 * V * H + 2 * LAYERS * LINEAR)
    assert mixed.memory["logits"] - full.memory["logits"] == 2 * V * H
    assert mixed.beside == pytest.approx(700 * MIB + 0.05 * mixed.peak)
    assert usual.memory["weights"] == 4 * PARAMETERS


def test_rows_that_are_padded_are_as_long_as_the_longest(cost):
    uneven = replace(WORK, lengths=(50,) * 8 + (150,) * 8)
    found = cost({"base_model": {"attn_implementation": "eager"}}, workload=uneven)
    assert found.path.split()[1] == "joined-padded"
    usual = GENERIC + 4 * (H + Q + H + F) + 4 * RANKS + HEADS * 150 * 8
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * 600 * usual)
    found = cost({"base_model": {"attn_implementation": "eager"}}, workload=uneven, fused=False)
    assert found.path.split()[1] == "padded"
    usual += 1.7 * 4 * (Q + 2 * K + H + 2 * F + H)
    assert found.memory["activations"] == pytest.approx(LAYERS * 600 * usual)


def test_kernels_that_stay_are_as_many_as_shapes_up_to_what_is_kept(cost, monkeypatch):
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    uneven = replace(WORK, lengths=(90, 110) * 8)
    assert "kernels" not in cost().memory  # another maker's processor, in float32
    assert "kernels" not in cost(device=GPU).memory
    one = onednn.KERNEL_BYTES * onednn.SHAPES
    assert cost(device=AMD).memory["kernels"] == one
    assert cost(device=AMD, workload=uneven, max_steps=2, gradient_accumulation_steps=2).memory["kernels"] == 4 * one
    assert cost(device=AMD, workload=uneven, max_steps=50).memory["kernels"] == onednn.KERNEL_BYTES * onednn.KEPT
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
    assert cost(device=AMD, workload=uneven, max_steps=50).memory["kernels"] == onednn.KERNEL_BYTES * 1024


def test_adapters_as_one_step_with_their_layers(cost, entry):
    """GPT-NeoX has q, k, v in one: four linear layers, whose inputs are kept once, with a mask of what is dropped."""
    neox = replace(WORK, model_config=NEOX)
    inputs = H + H + H + F
    usual = 2 * H * 4 + 4 * H * 4 + 4 * HEADS + F * 4 + 4 * inputs + 4 * 8 * 4
    found = cost(workload=neox)
    assert found.path == "lora joined-one-row 32bit no"
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * usual)
    assert found.memory["temporary"] == TOKENS * BACK
    dropped = cost(method=lora(dropout=0.1), workload=neox)
    assert dropped.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * (usual + entry * inputs))
    assert cost(workload=neox, fused=False).memory["activations"] > found.memory["activations"]
    roomy = cost(workload=neox, device=replace(AMD, memory_bytes=2**40))
    linear = LAYERS * (3 * H * H + 3 * H + H * H + H + 2 * H * F + F + H)
    assert roomy.memory["ordered copies"] == 4 * (linear + V * H)


def test_layers_without_gates(cost):
    found = cost(method=Full(Full.Config()), workload=replace(WORK, model_config=NEOX))
    kept = 2 * H * 4 * 2 + 4 * H * 4 + 4 * HEADS + F * 4 + 4 * (H + H + H + F)
    assert found.memory["activations"] == pytest.approx(1.1 * LAYERS * TOKENS * kept)


def test_steps_tokens_and_operations(cost):
    found = cost(num_epochs=2)
    assert (found.steps, found.tokens) == (8, 2 * 16 * 100)
    body, head = LAYERS * LINEAR, V * H
    scores = 4 * LAYERS * Q * 50
    each = 2 * body + scores + 2 * ADAPTERS + 2 * body + 2 * scores + 4 * ADAPTERS + 0.5 * 4 * head
    assert found.flops == pytest.approx(3200 * each)
    again = cost(num_epochs=2, gradient_checkpointing=True)
    assert again.flops - found.flops == pytest.approx(3200 * (2 * body + scores + 2 * ADAPTERS))


def test_files_of_a_run(cost):
    one = 4 * ADAPTERS + 5 * MIB
    assert cost(save_strategy="no").disk == one
    assert cost(save_strategy="steps", save_steps=2, num_epochs=1, save_total_limit=None).disk == one * 3
    assert cost(save_strategy="steps", save_steps=2, num_epochs=1, save_total_limit=1).disk == one * 2
    assert cost(save_strategy="no", workload=replace(WORK, held_out=3)).disk == one * 2
    full = cost(method=Full(Full.Config()), save_strategy="no")
    assert full.disk == 4 * PARAMETERS + 5 * MIB


def test_what_is_kept_for_a_method_is_counted_for_each_parameter(cost):
    found = cost(method=lora(init_lora_weights="corda")).memory
    assert found["methods"] == 4 * ADAPTERS
    assert "methods" not in cost().memory


def test_parameters_are_those_of_the_base_and_the_adapters(cost):
    found = cost()
    assert (found.trained, found.parameters) == (ADAPTERS, PARAMETERS + ADAPTERS)
    assert found.fixed == found.memory["process"]
    assert cost(device=GPU).fixed == 0


def test_devices_share_the_work(cost):
    one, two = cost(device=GPU, num_epochs=1), cost(device=replace(GPU, count=2), num_epochs=1)
    assert (two.steps, two.tokens) == (one.steps / 2, one.tokens)
    assert two.flops == one.flops / 2


def test_packs_are_what_steps_are_made_of(cost):
    """16 rows of 100 tokens in packs of 200, of which 95 % are filled: nine of them, three micro-batches."""
    found = cost(packing=True, max_seq_length=200, num_epochs=2)
    assert found.steps == 2 * 3
    assert found.memory["temporary"] == 4 * 200 * BACK


def test_only_what_is_trained_of_the_layers_is_cast(cost):
    found = cost(method=Freeze(Freeze.Config(freeze_trainable_layers=1)), device=GPU, bf16=True)
    assert found.memory["temporary"] == pytest.approx(TOKENS * BACK / 2 + 2 * LINEAR)


def test_the_path_names_what_runs_must_share(cost):
    narrow = {"base_model": {"torch_dtype": "bfloat16"}}
    assert cost().path == "lora fused 32bit no"
    assert cost(narrow, gradient_checkpointing=True).path == "lora fused-checkpointing 16bit no"
    assert cost(method=lora(dropout=0.1), fused=False).path == "lora-dropout one-row 32bit no"
    packed = Qlora(Qlora.Config(r=8, dropout=0.0, target_modules="all"))
    assert cost(method=packed).path.startswith("4bit-")
