"""bos-scaling on real models: the same logits however a row comes, and nothing but the first token changed."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from llamafarm.errors import ModelError
from llamafarm.models._generate import Sampling, generate
from llamafarm.models.first_token import first_token
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods._bos import Scaler, base_of, scaler_of, segment_starts
from llamafarm_methods.bos_scaling import CONFIG_FILE, BosScaling, BosScalingConfig

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt_neox")
ROWS = ([0, 9, 10, 11, 12], [0, 20, 21], [0, 30, 31, 0, 33, 34, 35])
"""Each begins with BOS; the last has it inside too, where it must stay as it is."""

PAD = 2
# float32 on a CPU: products of other shapes are summed in another order; logits here are of size 1
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture
def build(tiny_model_dir):
    """Random models with weights large enough that a changed row is seen in the logits."""

    def build(architecture, *, tied=False, **options):
        config = AutoConfig.from_pretrained(tiny_model_dir(architecture), tie_word_embeddings=tied)
        for name, value in {"initializer_range": 0.2, **options}.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    return build


def scaled(model, factor=0.1, run=None, tmp_path=None):
    method = BosScaling(BosScalingConfig(bos_scaling_factor=factor))
    return method.apply(model, run or RecordingRun(tmp_path))


def alone(model, row):
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0]


def padded(model, *, left):
    width = max(map(len, ROWS))
    gaps = [[PAD] * (width - len(row)) for row in ROWS]
    ids = [gap + row if left else row + gap for gap, row in zip(gaps, ROWS, strict=True)]
    mask = [
        [0] * len(g) + [1] * len(r) if left else [1] * len(r) + [0] * len(g) for g, r in zip(gaps, ROWS, strict=True)
    ]
    arguments = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if left:  # as generation sets them
        arguments["position_ids"] = (arguments["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**arguments).logits
    return [logits[at][torch.tensor(mask[at]).bool()] for at in range(len(ROWS))]


def packed(model):
    ids = [token for row in ROWS for token in row]
    positions = [place for row in ROWS for place in range(len(row))]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    return logits.split([len(row) for row in ROWS])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_has_the_same_logits_alone_padded_and_packed(build, tmp_path, architecture, tied):
    model = build(architecture, tied=tied)
    before = [alone(model, row) for row in ROWS]
    scaled(model, tmp_path=tmp_path)
    expected = [alone(model, row) for row in ROWS]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, expected, strict=True)), "the factor does something"
    for name, found in (
        ("left", padded(model, left=True)),
        ("right", padded(model, left=False)),
        ("packed", packed(model)),
    ):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **CLOSE, msg=f"{architecture} {name}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_first_token_of_a_row_is_scaled(build, tmp_path, architecture):
    model = scaled(build(architecture), 0.25, tmp_path=tmp_path)
    seen = []
    embedding = base_of(model).get_input_embeddings()
    base_of(model)(torch.tensor([[5]]))  # so that our hook is the first
    embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    alone(model, ROWS[2])
    raw = embedding.weight[torch.tensor(ROWS[2])]
    assert torch.equal(seen[0][0, 0], raw[0] * 0.25)
    assert torch.equal(seen[0][0, 1:], raw[1:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_factor_of_one_changes_no_bit(build, tmp_path, architecture):
    model = build(architecture)
    before = [alone(model, row) for row in ROWS]
    scaled(model, 1.0, tmp_path=tmp_path)
    for one, row in zip(before, ROWS, strict=True):
        assert torch.equal(one, alone(model, row))
    assert scaler_of(model).hits == len(ROWS)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 1.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_the_same_with_and_without_a_cache(build, tmp_path, architecture, options):
    model = scaled(build(architecture), tmp_path=tmp_path)
    width = max(map(len, ROWS))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in ROWS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ROWS])
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        found.append(
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=12,
                use_cache=use_cache,
                pad_token_id=PAD,
                eos_token_id=None,
                **options,
            )
        )
        assert scaler_of(model).hits == len(ROWS) * (1 if use_cache else 1 + 12), "once a forward over the beginning"
    assert torch.equal(*found)


def test_a_prompt_in_parts_and_a_bos_that_is_generated(build, tmp_path):
    """Only the part with the beginning holds a segment start; a BOS that a model says itself is a token like others."""
    model = scaled(build("llama"), tmp_path=tmp_path)
    cache = DynamicCache(config=model.config)
    row = torch.tensor([[PAD, PAD, 0, 9, 0, 11]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        parts = [
            model(
                row[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=torch.tensor([range(start, end)]),
                past_key_values=cache,
            ).logits
            for start, end in ((0, 1), (1, 4), (4, 5), (5, 6))
        ]
        hits = scaler_of(model).hits
        whole = model(row, attention_mask=mask, position_ids=torch.tensor([range(6)])).logits
    # position 0 is told by the mask to be padding
    torch.testing.assert_close(torch.cat(parts, dim=1)[:, 2:], whole[:, 2:], **CLOSE)
    assert hits == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [[1, 0, 0, 0]]),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, [[0, 1, 0, 0]]),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, [[1, 0, 0, 0]]),
        ({"attention_mask": torch.tensor([[0, 0, 0, 0]])}, [[0, 0, 0, 0]]),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]])}, [[1, 0, 1, 0]]),
        ({"position_ids": torch.tensor([[3, 4, 5, 6]])}, [[0, 0, 0, 0]]),
        ({"attention_mask": torch.ones(1, 4), "position_ids": torch.tensor([[0, 1, 0, 1]])}, [[1, 0, 1, 0]]),
        (
            {"attention_mask": torch.tensor([[0, 0, 1, 1]]), "position_ids": torch.tensor([[0, 0, 0, 1]])},
            [[0, 0, 1, 0]],
        ),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, [[1, 0, 0, 0]]),
    ],
)
def test_segment_starts(given, expected):
    assert segment_starts(torch.tensor([[7, 7, 7, 7]]), given).int().tolist() == expected


def gradients(model, tmp_path, *, careful, checkpointing=False):
    """Loss and gradients of LoRA on everything with factor 0; not careful: without what keeps them finite."""
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights="gaussian", lora_dropout=0.0)
    model = peft.get_peft_model(model, config).to(model.dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    scaled(model.train(), 0.0, tmp_path=tmp_path)
    if not careful:
        for handle in scaler_of(model)._handles[2:]:
            handle.remove()
    ids = torch.tensor(ROWS[:1])
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_factor_of_zero_has_finite_gradients_in_sixteen_layers(build, tmp_path, checkpointing):
    """Without care the gradient grows by 1/sqrt(eps) with each normalization of a zero stream, to NaN."""
    options = {"num_hidden_layers": 16, "initializer_range": 0.1, "rms_norm_eps": 1e-6}
    found = gradients(build("llama", **options), tmp_path, careful=True, checkpointing=checkpointing)
    careless = gradients(build("llama", **options), tmp_path, careful=False, checkpointing=checkpointing)
    assert all(torch.isfinite(grad).all() for grad in found[1].values())
    assert not all(torch.isfinite(grad).all() for grad in careless[1].values()), "or this test shows nothing"
    assert found[0] == careless[0], "the same loss"


def test_what_keeps_gradients_finite_does_not_change_them(build, tmp_path):
    """Where they are finite anyhow: few layers, float64."""
    found = gradients(build("llama").double(), tmp_path, careful=True)
    careless = gradients(build("llama").double(), tmp_path, careful=False)
    assert found[0] == careless[0]
    for name, grad in found[1].items():
        # the zero stream's gradient is 1e6 a layer here: times exact zeros, but summed with the rest in another order
        torch.testing.assert_close(grad, careless[1][name], rtol=1e-9, atol=1e-12)


ADAPTED = {
    "plain": {},
    "whole": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [0, 5]}},
    "lora": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("first", ["peft", "bos"])
@pytest.mark.parametrize("kind", ADAPTED)
def test_an_adapted_embedding_is_scaled_with_its_adapter(build, tmp_path, kind, first):
    model = build("llama")
    if first == "bos":
        scaled(model, 0.5, tmp_path=tmp_path)
    config = peft.LoraConfig(**{"target_modules": ["q_proj"], "init_lora_weights": False, **ADAPTED[kind]})
    model = peft.get_peft_model(model, config)
    if first == "peft":
        run = RecordingRun(tmp_path)
        scaled(model, 0.5, run)
        name = "base_model.model.model.embed_tokens"
        assert any(f"Found embedding layer: {name}" == event.fields["message"] for event in run.events)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    assert scaler_of(model).hits == 0
    alone(model, ROWS[0])
    seen = []
    base_of(model).layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    alone(model, ROWS[2])
    Scaler.detach(base_of(model))
    alone(model, ROWS[2])
    (with_factor, without) = (one[0] for one in seen)
    assert torch.equal(with_factor[0], without[0] * 0.5)
    assert torch.equal(with_factor[1:], without[1:])


def test_a_resized_embedding_and_a_copy_are_scaled(build, tmp_path):
    model = scaled(build("llama"), tmp_path=tmp_path)
    alone(model, ROWS[0])
    before = alone(model, ROWS[0])
    model.resize_token_embeddings(500)
    torch.testing.assert_close(alone(model, ROWS[0])[:, : before.shape[1]], before, **CLOSE)
    twin = copy.deepcopy(model)
    assert torch.equal(alone(twin, ROWS[0]), alone(model, ROWS[0]))
    assert scaler_of(twin) is not scaler_of(model)


@pytest.mark.parametrize("how", ["replaced", "wrapped"])
def test_an_embedding_that_comes_later_is_followed(build, tmp_path, how):
    model = scaled(build("llama"), 0.5, tmp_path=tmp_path)
    expected = alone(model, ROWS[2])
    old = model.get_input_embeddings()
    if how == "replaced":
        new = torch.nn.Embedding(*old.weight.shape)
        new.weight = old.weight
        model.set_input_embeddings(new)
    else:
        options = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        model = peft.get_peft_model(model, options).eval()
    hits = scaler_of(model).hits
    assert torch.equal(alone(model, ROWS[2]), expected)
    assert scaler_of(model).hits > hits
    assert not old._forward_hooks


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_baked_model_behaves_as_the_hooked_one(build, tmp_path, architecture, merged):
    model = build(architecture)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    scaled(model, 0.3, tmp_path=tmp_path)
    model = model.merge_and_unload() if merged else model
    rows = ROWS[:2]  # without the token inside
    expected = [alone(model, row) for row in rows]
    baked = BosScaling(BosScalingConfig(bos_scaling_factor=0.3)).bake(model)
    assert scaler_of(baked) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in baked.modules())
    for row, one in zip(rows, expected, strict=True):
        assert torch.equal(alone(baked, row), one)


def test_what_cannot_be_baked_is_refused(build, tmp_path):
    method = BosScaling(BosScalingConfig())
    with pytest.raises(ModelError, match=r"tied embeddings") as caught:
        method.bake(scaled(build("llama", tied=True), tmp_path=tmp_path))
    assert caught.value.problems[0].id == "LF-MODEL-098"
    ends = build("gpt_neox")
    ends.config.eos_token_id = 0
    with pytest.raises(ModelError, match="also ends texts"):
        method.bake(scaled(ends, tmp_path=tmp_path))
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(ModelError, match="merge it first"):
        method.bake(scaled(adapted, tmp_path=tmp_path))
    with pytest.raises(ModelError, match="nothing scales") as caught:
        method.bake(build("llama"))
    assert caught.value.problems[0].id == "LF-MODEL-097"


def test_a_run_is_told_at_its_start_that_only_llamafarm_will_run_the_result(build, tmp_path):
    for options, reason in (({}, None), ({"tied": True}, "tied embeddings"), ({"eos_token_id": 0}, "also ends texts")):
        run = RecordingRun(tmp_path)
        scaled(build("llama", **options), run=run)
        told = [e.fields["message"] for e in run.events if "only llamafarm will run" in e.fields["message"]]
        assert [reason in message for message in told] == ([True] if reason else [])


def test_hooks_are_gone_at_the_end(build, tmp_path):
    model, run = build("llama"), RecordingRun(tmp_path)
    before = alone(model, ROWS[0])
    scaled(model, run=run)
    alone(model, ROWS[0])
    BosScaling(BosScalingConfig()).finish(model, run)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert run.events[-1].fields["message"] == "BOS scaling hook removed"
    assert torch.equal(alone(model, ROWS[0]), before)


def test_the_first_batch_is_checked(build, tmp_path):
    run = RecordingRun(tmp_path)
    model = scaled(build("llama").train(), run=run)
    model(torch.tensor(ROWS[:1]))
    assert "first batch: 1 of 1 segments begin with token 0" in run.events[-1].fields["message"]
    model = scaled(build("llama").train(), tmp_path=tmp_path)
    with pytest.raises(ModelError, match="0 of 1 segments begin with token 0") as caught:
        model(torch.tensor([[8, 9, 10]]))
    assert caught.value.problems[0].id == "LF-MODEL-096"


def test_a_model_that_is_given_embeddings_is_refused(build, tmp_path):
    model = scaled(build("llama"), tmp_path=tmp_path)
    with pytest.raises(ModelError, match="embeddings instead of tokens") as caught:
        model(inputs_embeds=torch.zeros(1, 3, 64))
    assert caught.value.problems[0].id == "LF-MODEL-093"


def test_a_model_that_looks_up_elsewhere_is_refused(build, tmp_path):
    model = build("llama")
    scaled(model, tmp_path=tmp_path)
    model.model.get_input_embeddings = lambda: torch.nn.Embedding(4, 4)
    with pytest.raises(ModelError, match="its own input embedding") as caught:
        model(torch.tensor([[0, 1]]))
    assert caught.value.problems[0].id == "LF-MODEL-095"


def test_restored_is_as_trained(build, tmp_path):
    model = scaled(build("llama"), 0.2, tmp_path=tmp_path)
    method = BosScaling(BosScalingConfig(bos_scaling_factor=0.2))
    (tmp_path / CONFIG_FILE).write_text(method.files(model)[CONFIG_FILE])
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert content["bos_scaling_factor"] == 0.2
    assert content["bos_token_id"] == 0
    assert content["add_bos_token"] is True
    assert content["zero_bos_embedding"] is False
    fresh = method.restore(build("llama"), tmp_path)
    assert first_token(fresh) == 0
    assert torch.equal(alone(fresh, ROWS[2]), alone(model, ROWS[2]))


def test_a_file_that_does_not_fit_is_refused(build, tmp_path):
    method = BosScaling(BosScalingConfig(bos_scaling_factor=0.2))
    with pytest.raises(ModelError, match="missing or cannot be understood") as caught:
        method.restore(build("llama"), tmp_path)
    assert caught.value.problems[0].id == "LF-MODEL-092"
    good = json.loads(method.files(scaled(build("llama"), 0.2, tmp_path=tmp_path))[CONFIG_FILE])
    for change in ({"version": 2}, {"position_rule": "first"}, {"bos_scaling_factor": 2.0}, {"bos_token_id": "x"}):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(good | change))
        with pytest.raises(ModelError, match="cannot be understood"):
            method.restore(build("llama"), tmp_path)
    for change in ({"bos_scaling_factor": 0.5}, {"bos_token_id": 9999}):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(good | change))
        with pytest.raises(ModelError, match="was trained with") as caught:
            method.restore(build("llama"), tmp_path)
        assert caught.value.problems[0].id == "LF-MODEL-094"


def test_generation_begins_with_the_token(build, tiny_model_dir, tmp_path):
    model = scaled(build("llama"), tmp_path=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir("llama"))
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    seen = []
    base_of(model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    prompts = ["Turn on", [{"role": "user", "content": "What is the temperature?"}]]
    generate(model, tokenizer, prompts, Sampling(max_new_tokens=1))
    for row in seen[0].tolist():
        assert [token for token in row if token != tokenizer.pad_token_id][:2].count(0) == 1
    assert scaler_of(model).hits == 2
