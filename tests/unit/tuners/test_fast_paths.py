"""The fast ways give the losses and gradients of the slow one, written out here with transformers and torch."""

from __future__ import annotations

import functools

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
from torch.nn import functional

from llamafarm.data.packing import pack
from llamafarm.testing._tiny import ARCHITECTURES
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._loss import token_losses
from llamafarm_tuners.pytorch.fast._attention import KERNEL
from llamafarm_tuners.pytorch.fast._head import head_loss
from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths
from llamafarm_tuners.pytorch.fast._low import down


@pytest.fixture(params=ARCHITECTURES)
def folder(request, tiny_model_dir):
    return tiny_model_dir(request.param)


WAYS = {
    "documents": Wanted(head=False, products=False, layers=False, adapters=False),
    "head": Wanted(documents=False, products=False, layers=False, adapters=False),
    "products": Wanted(documents=False, head=False, layers=False, adapters=False),
    "all but the compiled kernels": Wanted(compiled=False),
    "all": Wanted(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_each_way_and_all_together_give_the_losses_and_gradients_of_plain_training(folder, method, way):
    model = load(folder)
    model = with_lora(model) if method == "lora" else model
    both(model.train(), wanted=WAYS[way])


def test_these_architectures_take_the_fast_ways(folder, tmp_path):
    run = RecordingRun(tmp_path)
    with fast_paths(load(folder), ROWS, CPU, run) as paths:
        assert paths.documents
        assert paths.head is not None
    assert paths_of(run)["batches"] == "documents in one row"
    assert not [event for event in run.events if event.type == "notice"]


@pytest.mark.parametrize("split", [[ROWS[:4], ROWS[4:]], [[item] for item in ROWS], [pack(ROWS, 80, 0)]])
def test_however_rows_are_spread_over_micro_batches(tiny_model_dir, split):
    model = with_lora(load(tiny_model_dir("llama"))).train()
    expected = oracle(model, ROWS), gradients(model)
    assert_same((ours(model, split), gradients(model)), expected)


def test_with_gradient_checkpointing(folder):
    model = load(folder)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model = with_lora(model)
    model.enable_input_require_grads()
    both(model.train())


def test_embeddings_and_head_that_are_trained_besides(tiny_model_dir):
    for architecture in ("llama", "gpt_neox"):  # gpt_neox: another name for both
        model = load(tiny_model_dir(architecture))
        names = [
            n for n, m in model.named_modules() if m in (model.get_input_embeddings(), model.get_output_embeddings())
        ]
        leaves = [name.rpartition(".")[2] for name in names]
        run = RecordingRun(None)
        both(with_lora(model, modules_to_save=leaves).train(), run=run)
        assert paths_of(run)["head"] == "in chunks, at learned tokens"


def test_a_tied_head_that_is_trained_besides(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr("llamafarm_tuners.pytorch.fast._linear.onednn_pays", lambda: True)  # on any processor
    model = tiny(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)
    saved = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    run = RecordingRun(None)
    both(with_lora(model, **saved).train(), run=run)
    assert (paths_of(run)["batches"], paths_of(run)["fused_layers"]) == ("documents in one row", 2)


def test_a_head_with_an_adapter_is_left_to_the_model(tiny_model_dir):
    model = load(tiny_model_dir("llama"))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    run = RecordingRun(None)
    both(peft.get_peft_model(model, config).train(), run=run)
    assert paths_of(run)["head"] == "the model's own"


def test_what_follows_a_head_is_left_to_the_model():
    from transformers import (
        Cohere2Config,
        Cohere2ForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    options = {"num_key_value_heads": 1, "head_dim": 16}
    for config, model in (
        (Gemma2Config, Gemma2ForCausalLM),  # caps its logits, and its scores
        (GraniteConfig, GraniteForCausalLM),  # divides them
        (Cohere2Config, Cohere2ForCausalLM),  # multiplies them
    ):
        extra = {"logits_scaling": 3.0} if config is GraniteConfig else {}
        run = RecordingRun(None)
        both(tiny(config, model, **options, **extra), run=run)
        assert paths_of(run)["head"] == "the model's own"


def test_an_architecture_without_positions_is_padded_and_says_so():
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(3)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=16, n_layer=1, n_head=2)).eval()
    run = RecordingRun(None)
    both(bloom, run=run)
    assert paths_of(run)["batches"] == "padded"
    (notice,) = [event.fields["message"] for event in run.events if event.type == "notice"]
    assert notice.startswith("batches are padded: ")


def test_rows_longer_than_the_window_of_the_attention_are_padded(tiny_model_dir):
    model = load(tiny_model_dir("mistral"))
    model.config.sliding_window = 40
    run = RecordingRun(None)
    both(model, run=run)
    assert paths_of(run)["batches"] == "padded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_documents_see_one_another_is_padded(folder, dtype, monkeypatch):
    from llamafarm_tuners.pytorch.fast import _attention

    def leaking(module, query, key, value, mask, cu_seq_lens_q=None, **others):
        return _attention.document_attention(module, query, key, value, None, **others)

    monkeypatch.setattr("llamafarm_tuners.pytorch.fast._install.register", lambda: _register(leaking))
    model, run = load(folder, dtype=dtype), RecordingRun(None)
    with fast_paths(model, ROWS, CPU, run) as paths:
        assert not paths.documents
        assert model.config._attn_implementation == "sdpa"
    assert "documents see one another" in next(e.fields["message"] for e in run.events if e.type == "notice")


def _register(function):
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(KERNEL, function)
    AttentionMaskInterface.register(KERNEL, sdpa_mask)


def test_half_precision_keeps_documents_apart(folder):
    run = RecordingRun(None)
    with fast_paths(load(folder, dtype=torch.bfloat16), ROWS, CPU, run) as paths:
        assert paths.documents


def test_everything_is_put_back(tiny_model_dir):
    model = with_lora(load(tiny_model_dir("llama"))).train()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with fast_paths(model, ROWS, CPU, RecordingRun(None)):
        pass
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys(), name


def test_hooks_on_the_model_and_its_embedding_see_ids_and_positions(tiny_model_dir):
    model, seen = with_lora(load(tiny_model_dir("llama"))), []
    model.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(lambda _, given, out: seen.append(given[0]))
    with fast_paths(model, ROWS, CPU, RecordingRun(None)) as paths:
        del seen[:]
        batch = paths.batch(ROWS[:2], 0)
        token_losses(model, batch, selective=paths.selective, head=paths.head)
    assert torch.equal(seen[0]["input_ids"], batch.input_ids)
    assert torch.equal(seen[0]["position_ids"], batch.positions)
    assert torch.equal(seen[1], batch.input_ids)


# --- the chunked loss alone ---


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_the_chunked_loss_equals_torchs(bias, tokens, monkeypatch):
    monkeypatch.setattr("llamafarm_tuners.pytorch.fast._head._CHUNK_BYTES", {"cpu": 16 * 4 * 320})  # 16 at a time
    torch.manual_seed(0)
    head, hidden = nn.Linear(24, 320, bias=bias), torch.randn(tokens, 24, requires_grad=True)
    targets = torch.randint(0, 320, (tokens,))
    found = []
    for compute in (
        lambda: head_loss(hidden, head, targets)[0],
        lambda: functional.cross_entropy(head(hidden), targets, reduction="sum"),
    ):
        loss = compute()
        (loss * 0.25).backward()
        found.append((loss.item(), [hidden.grad, *(p.grad for p in head.parameters())]))
        hidden.grad = None
        head.zero_grad()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        loss, right = head_loss(hidden, head, targets)
    assert loss.item() == pytest.approx(found[1][0], rel=1e-6)
    assert right.item() == int((head(hidden).argmax(-1) == targets).sum())


def test_the_chunked_loss_of_a_hopeless_token_is_exact():
    head, hidden = nn.Linear(2, 3, bias=False), torch.tensor([[200.0, 0.0]])
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    loss, _ = head_loss(hidden, head, torch.tensor([2]))
    assert loss.item() == pytest.approx(400.0)


# --- fused layers ---

FUSED = ("llama", "qwen2", "mistral", "phi3")


@pytest.mark.parametrize("architecture", FUSED)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_fused_layers_give_the_losses_and_gradients_of_plain_training(tiny_model_dir, architecture, targets):
    names = ["o_proj", "down_proj", "qkv_proj" if architecture == "phi3" else "k_proj"]
    model = with_lora(
        load(tiny_model_dir(architecture)), **({} if targets == "all-linear" else {"exclude_modules": names})
    )
    run = RecordingRun(None)
    both(model.train(), run=run)
    assert paths_of(run)["fused_layers"] == 2


def test_fused_layers_with_norms_over_heads_as_qwen3_has_them():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = tiny(Qwen3Config, Qwen3ForCausalLM, num_key_value_heads=1, head_dim=16)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    run = RecordingRun(None)
    both(with_lora(model).train(), run=run)
    assert paths_of(run)["fused_layers"] == 2


def test_fused_layers_with_gradient_checkpointing(tiny_model_dir):
    model = load(tiny_model_dir("llama"))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model = with_lora(model, lora_dropout=0.3)
    model.enable_input_require_grads()
    same_with_dropout(model.train())
    recomputed = kept(model)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    assert recomputed < kept(model) / 2


def kept(model):
    """Bytes that the backward pass of one row needs beside the model's own tensors."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes = {}

    def note(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        fast_paths(model, ROWS, CPU, RecordingRun(None), Wanted()) as paths,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        token_losses(model, paths.batch(ROWS, 0), selective=paths.selective, head=paths.head)
    return sum(sizes.values())


@pytest.mark.parametrize("architecture", FUSED)
def test_fused_layers_drop_what_plain_ones_drop(tiny_model_dir, architecture):
    same_with_dropout(with_lora(load(tiny_model_dir(architecture)), lora_dropout=0.3).train())


@pytest.mark.parametrize("architecture", FUSED)
def test_fused_layers_on_a_bf16_base(tiny_model_dir, architecture):
    # products and what stands between layers have 8 binary digits: some 0.5 % each, a few of them in a row
    model = with_lora(load(tiny_model_dir(architecture), dtype=torch.bfloat16)).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    run = RecordingRun(None)
    both(model, relative=3e-2, run=run)
    assert paths_of(run)["fused_layers"] == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kasa_config": peft.KasaConfig()}, "another kind of LoRA (KasaLinearVariant)"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "adapters with a bias"),
        ({"bias": "all"}, "the base is trained"),
        ({"modules_to_save": ["input_layernorm"]}, "norms are trained"),
    ],
)
def test_other_methods_take_the_plain_layers_and_the_record_says_why(tiny_model_dir, options, reason):
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("qwen2")), **options).train(), run=run)
    assert (paths_of(run)["fused_layers"], paths_of(run)["not_fused"]) == (0, reason)


def test_adapters_that_are_switched_off_are_off_in_fused_layers(tiny_model_dir):
    base = oracle(load(tiny_model_dir("llama")), ROWS)
    model = with_lora(load(tiny_model_dir("llama"))).train()
    with fast_paths(model, ROWS, CPU, RecordingRun(None)) as paths, torch.no_grad():
        batch = paths.batch(ROWS, 0)
        on = token_losses(model, batch, selective=paths.selective, head=paths.head)[0].item()
        with model.disable_adapter():
            off = token_losses(model, batch, selective=paths.selective, head=paths.head)[0].item()
    assert on != pytest.approx(base, rel=1e-3)
    assert off == pytest.approx(base, rel=1e-5)


def test_fused_layers_generate_as_before(tiny_model_dir):
    model = with_lora(load(tiny_model_dir("llama"))).eval()
    ids = torch.tensor([ROWS[0].input_ids])
    asked = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    before = model.generate(ids, **asked)
    with fast_paths(model, ROWS, CPU, RecordingRun(None)):
        assert torch.equal(model.generate(ids, **asked), before)


def test_mixed_precision_keeps_its_arithmetic_in_every_layer(tiny_model_dir):
    model, run = with_lora(load(tiny_model_dir("llama"))).train(), RecordingRun(None)
    expected = oracle(model, ROWS), gradients(model)
    mixed = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    with fast_paths(model, ROWS, CPU, run, arithmetic=mixed) as paths, mixed():
        batch = paths.batch(ROWS, 0)
        loss, _ = token_losses(model, batch, selective=paths.selective, head=paths.head)
    loss.backward()
    assert paths.documents
    assert paths_of(run)["not_fused"] == "mixed precision on a base in float32"
    # products of 8 binary digits: close to float32, and not the same
    assert_same((loss.item(), gradients(model)), expected, relative=3e-2)
    assert loss.item() != expected[0]


def test_a_compiled_model_computes_in_its_own_ways(tiny_model_dir):
    run = RecordingRun(None)
    both(with_lora(load(tiny_model_dir("llama"))).train(), wanted=Wanted.nothing(), run=run)
    assert paths_of(run)["batches"] == "padded"


def test_in_16_bits_an_adapter_counts_what_it_has_learned():
    """A's entries are large from the start; what a few steps added is below the last bit that bf16 has for them."""
    torch.manual_seed(0)
    x, started = (1 + 0.3 * torch.randn(200, 64)).bfloat16(), torch.randn(8, 64).bfloat16().float()
    learned = torch.full((8, 64), 1e-3)
    exact = x.float() @ learned.t()

    def arrives(gained: torch.Tensor) -> float:
        return float((gained * exact).sum() / (exact * exact).sum())

    # results around 8 are rounded by up to 2^-6, a fourth of the 0.06 that is to arrive; 1,600 of them even that out
    gained = down(x, started + learned, exact=True).float() - down(x, started, exact=True).float()
    assert arrives(gained) == pytest.approx(1, abs=0.1)
    plain = (x @ (started + learned).bfloat16().t()).float() - (x @ started.bfloat16().t()).float()
    assert arrives(plain) < 0.8, "rounding A loses a part of it"
