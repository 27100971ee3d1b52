"""Each bridged method on real models: learns, keeps the base, comes back from disk, and merges where it can."""

from __future__ import annotations

from dataclasses import MISSING, fields

import peft
import pytest
import torch
from method_steps import ROWS, apply, digest, load, logits, put_back, saved_and_loaded, train, trained
from pydantic import ValidationError

from llamafarm.errors import ModelError
from llamafarm.models._adapter import without_idle_warnings
from llamafarm.models._generate import Sampling, generate
from llamafarm.models._load import load_tokenizer
from llamafarm.models.vocabulary import Additions, remember_additions
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.bridged import BRIDGED
from llamafarm_methods.freeze import Freeze, FreezeConfig
from llamafarm_tuners.pytorch.tuner import BRIDGED as RUN_BY_THE_TUNER

SMALL = {
    "vera": {"r": 16},
    "oft": {"oft_block_size": 16},
    "fourierft": {"n_frequency": 50},
    "miss": {"r": 8},
    "randlora": {"r": 8},
    "vblora": {"vector_length": 16, "num_vectors": 32},
    "road": {"group_size": 32},
    "c3a": {"block_size": 16},
    "hira": {"r": 8},
    "boft": {"boft_block_size": 8, "boft_n_butterfly_factor": 2},
    "prompt-tuning": {"num_virtual_tokens": 4},
    "p-tuning": {"num_virtual_tokens": 4},
    "prefix-tuning": {"num_virtual_tokens": 4},
}
BY_NAME = {method.name: method for method in BRIDGED}


def build(name, **options):
    component = BY_NAME[name]
    return component(component.Config(**{**SMALL.get(name, {}), **options}))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_option_is_one_of_pefts_with_its_default(name):
    bridge = BY_NAME[name].bridge
    theirs = {field.name: field for field in fields(getattr(peft, bridge.peft))}
    assert {*bridge.options, *bridge.fixed} <= set(theirs)
    chosen_by_us = {"num_virtual_tokens", "feedforward_modules"}
    for option, ours in bridge.options.items():
        default = theirs[option].default if theirs[option].default is not MISSING else theirs[option].default_factory()
        assert option in chosen_by_us or ours == getattr(default, "value", default), option


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gpt_neox", "gemma"])
@pytest.mark.parametrize("name", BY_NAME)
def test_learns_and_comes_back_and_merges(name, architecture, tiny_model_dir, tmp_path):
    base, method = tiny_model_dir(architecture), build(name)
    model = load(base)
    before = logits(model)
    adapted = apply(method, model, tmp_path)
    start = logits(adapted)
    assert start.shape == before.shape
    # float32; reflections (hra) multiply several matrices that are together the identity
    assert torch.allclose(start, before, atol=1e-5) == method.bridge.identity
    learned = trained(adapted)
    rest = digest(parameter for key, parameter in adapted.named_parameters() if key not in learned)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for key, parameter in adapted.named_parameters() if key not in learned)
    assert digest(parameter for key, parameter in adapted.named_parameters() if key not in learned) == rest
    after = logits(adapted)
    assert (after - start).abs().max() > 1e-3, "training changed nothing, so that nothing below is tested"
    loaded = saved_and_loaded(adapted, method, base, tmp_path / "saved")
    assert torch.allclose(logits(loaded), after, atol=1e-6)
    train(adapted, steps=1)
    put_back(adapted, method, tmp_path / "saved")
    assert torch.allclose(logits(adapted), after, atol=1e-6), "a checkpoint goes back into the model it was made of"
    if method.adapter().unmergeable:
        return
    assert torch.allclose(logits(loaded.merge_and_unload(safe_merge=True)), after, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width"), [(name, width) for name, method in BY_NAME.items() for width in sorted(method.bridge.bits)]
)
def test_stands_on_a_base_of_the_widths_that_it_says(name, width, tiny_model_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
    base, quantization = tiny_model_dir("llama"), four if width == 4 else {"load_in_8bit": True}
    model = load(base, quantization)
    before = logits(model)
    adapted = apply(build(name), model, tmp_path)
    # in 8 bits the scale of what comes in is rounded, so that what is scaled by one may move by a step of that
    assert torch.allclose(logits(adapted), before, atol=1e-5 if width == 4 else 2e-2) == BY_NAME[name].bridge.identity
    losses = train(adapted)
    assert losses[-1] < losses[0]
    after = logits(adapted)
    assert (after - before).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    with without_idle_warnings():
        loaded = peft.PeftModel.from_pretrained(load(base, quantization), tmp_path / "saved")
    assert torch.allclose(logits(build(name).restore(loaded, tmp_path)), after, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt-tuning", "prefix-tuning", "p-tuning"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_virtual_tokens_change_the_answers_but_not_their_places(name, architecture, tiny_model_dir, tmp_path):
    base = tiny_model_dir(architecture)
    method = build(name)
    adapted = apply(method, load(base), tmp_path)
    train(adapted, steps=8, rate=0.1)
    every = logits(adapted)
    kept = torch.tensor([1, 4])
    with torch.no_grad():
        if architecture == "llama":
            assert torch.allclose(adapted(ROWS, logits_to_keep=kept).logits, every[:, kept], atol=1e-6)
            assert torch.allclose(adapted(ROWS, logits_to_keep=2).logits, every[:, -2:], atol=1e-6)
        padded = torch.cat([ROWS, torch.zeros(2, 3, dtype=torch.long)], 1)
        mask = torch.cat([torch.ones(2, 6), torch.zeros(2, 3)], 1).long()
        output = adapted(padded, attention_mask=mask, use_cache=False).logits
        assert torch.allclose(output[:, :6], every, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt-tuning", "prefix-tuning", "p-tuning"])
def test_generation_with_virtual_tokens_is_that_of_a_loop_without_cache(name, tiny_model_dir, tmp_path):
    base = tiny_model_dir("llama")
    adapted = apply(build(name), load(base), tmp_path)
    train(adapted, steps=8, rate=0.1)
    adapted.eval()
    tokenizer = load_tokenizer_of(base)
    prompts = ["Turn on the light", "The"]
    together = generate(adapted, tokenizer, prompts, Sampling(max_new_tokens=6))
    for prompt, answer in zip(prompts, together, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        length = ids.shape[1]
        with torch.no_grad():
            for _ in range(6):
                following = adapted(ids, use_cache=False).logits[0, -1].argmax()
                if following == tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, following.view(1, 1)], 1)
        assert answer == tokenizer.decode(ids[0, length:], skip_special_tokens=True)


def load_tokenizer_of(folder):
    from llamafarm.api import BaseModelConfig

    return load_tokenizer(BaseModelConfig(huggingface_id=str(folder)))


def test_sizes_that_do_not_fit_are_said_without_a_traceback(tiny_model_dir, tmp_path):
    with pytest.raises(ModelError, match=r"road does not fit this model: .*LF-MODEL-078"):
        apply(build("road", group_size=64), load(tiny_model_dir("llama")), tmp_path)


def test_an_option_of_another_method_is_refused():
    with pytest.raises(ValidationError, match="oft_block_size"):
        build("vera", oft_block_size=3)


def test_what_scales_its_input_must_be_adapted(tiny_model_dir, tmp_path):
    method = build("ia3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    adapted = apply(method, load(tiny_model_dir("llama")), tmp_path)
    sizes = {name.split(".")[-3]: parameter.numel() for name, parameter in trained(adapted).items()}
    assert sizes == {"k_proj": 32, "down_proj": 128}
    with pytest.raises(ModelError, match=r"feedforward_modules 'up_proj'.*LF-MODEL-020"):
        apply(
            build("ia3", target_modules="k_proj", feedforward_modules=["up_proj"]),
            load(tiny_model_dir("llama")),
            tmp_path,
        )


def test_the_tuner_runs_every_one_of_them():
    assert set(BY_NAME) == set(RUN_BY_THE_TUNER)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (build("ia3"), "add embed_tokens and lm_head to modules_to_save"),
        (build("ia3", modules_to_save=["embed_tokens"]), "add lm_head to modules_to_save"),
        (build("ia3", modules_to_save=["embed_tokens", "lm_head"]), None),
        (build("prompt-tuning"), "take the method lora"),
        (Freeze(FreezeConfig()), "add embed_tokens and lm_head to freeze_extra_modules"),
        (Freeze(FreezeConfig(freeze_extra_modules="embed_tokens lm_head")), None),
    ],
)
def test_new_tokens_that_are_not_learned_are_told_of(method, expected, tiny_model_dir, tmp_path):
    model, run = load(tiny_model_dir("llama")), RecordingRun(tmp_path)
    remember_additions(model, Additions(400, {"<|new|>": 399}))
    method.apply(model, run)
    warnings = [event.fields["message"] for event in run.events if event.type == "warning"]
    assert warnings == ([f"the new tokens <|new|> are not learned; {expected}"] if expected else [])
