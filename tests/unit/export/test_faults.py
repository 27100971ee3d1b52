"""Every fault that exports are known for, planted: the check must find it, and leave nothing behind."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llamafarm.errors import ExitCode, QualityError
from llamafarm.export import _merge
from llamafarm.export._export import check, export
from llamafarm.export.request import ExportRequest

HONEST = _merge.merge


def wrong_alpha(model, methods):
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling = {name: 2 * value for name, value in module.scaling.items()}
    return HONEST(model, methods)


def skipped_module(model, methods):
    kept = model.base_model.model.model.layers[1].self_attn.v_proj.lora_B["default"].weight
    torch.nn.init.zeros_(kept)
    return HONEST(model, methods)


def no_op(model, methods):
    return model.unload()


def unbaked(model, methods):
    merged = HONEST(model, methods)
    merged.get_input_embeddings().weight.data[0] *= 1.01  # the row of one token, as a method that was not baked
    return merged


@pytest.mark.parametrize(
    ("fault", "ids"),
    [
        (wrong_alpha, {"LF-QUALITY-001"}),
        (skipped_module, {"LF-QUALITY-001"}),
        (no_op, {"LF-QUALITY-001", "LF-QUALITY-002"}),
        (unbaked, {"LF-QUALITY-001"}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_merge_is_found_whatever_the_precision(fault, ids, dtype, trained, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(_merge, "merge", fault)
    with pytest.raises(QualityError) as caught:
        export(ExportRequest(str(trained()), "merged", tmp_path / "out", dtype=dtype), registry)
    assert caught.value.exit_code is ExitCode.QUALITY
    assert {problem.id for problem in caught.value.problems} == ids
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def retied_head(folder):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def one_weight_of_the_base(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def other_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|user|>", "<|system|>").replace("message['role']", "'user'"))


def wrong_tokenizer(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:10]
    file.write_text(json.dumps(content))


def wrong_end(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"eos_token": "<|eos|>"', '"eos_token": "<|user|>"'))


@pytest.mark.parametrize(
    ("fault", "id_"),
    [
        (retied_head, "LF-QUALITY-001"),
        (one_weight_of_the_base, "LF-QUALITY-001"),
        (cut_off, "LF-QUALITY-001"),
        (no_template, "LF-QUALITY-003"),
        (other_template, "LF-QUALITY-003"),
        (wrong_tokenizer, "LF-QUALITY-003"),
        (wrong_end, "LF-QUALITY-003"),
    ],
)
def test_a_damaged_folder_is_found(fault, id_, trained, registry, tmp_path, monkeypatch):
    honest = _merge.write

    def damaged(model, tokenizer, folder, **options):
        honest(model, tokenizer, folder, **options)
        fault(folder)

    monkeypatch.setattr(_merge, "write", damaged)
    with pytest.raises(QualityError) as caught:
        export(ExportRequest(str(trained()), "merged", tmp_path / "out"), registry)
    assert id_ in {problem.id for problem in caught.value.problems}
    assert list(tmp_path.iterdir()) == []


def test_the_base_in_the_place_of_the_merged_model_is_found(base_of, trained, registry, tmp_path):
    with pytest.raises(QualityError) as caught:
        check(ExportRequest(str(trained()), "merged", tmp_path), registry, base_of("llama"))
    assert {"LF-QUALITY-001", "LF-QUALITY-002"} <= {problem.id for problem in caught.value.problems}


def test_another_adapter_is_found(trained, registry, tmp_path):
    export(ExportRequest(str(trained()), "adapter", tmp_path / "out"), registry)
    other = trained("llama", {"type": "lora", "r": 2, "dropout": 0.0})
    with pytest.raises(QualityError, match="the adapter on disk and the trained one"):
        check(ExportRequest(str(other), "adapter", tmp_path), registry, tmp_path / "out")


def test_an_adapter_that_changes_nothing_is_not_exported(trained, registry, tmp_path):
    import shutil

    run = shutil.copytree(trained(), tmp_path / "run")
    weights = {name: torch.zeros_like(value) for name, value in load_file(run / "adapter_model.safetensors").items()}
    save_file(weights, run / "adapter_model.safetensors", {"format": "pt"})
    (run / "llamafarm_checkpoint.json").unlink()  # it would say that these are not the weights that were trained
    with pytest.raises(QualityError, match="answers exactly as the base does") as caught:
        export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    assert "LF-QUALITY-002" in {problem.id for problem in caught.value.problems}
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_the_earlier_one(trained, registry, tmp_path, monkeypatch, hashed):
    request = ExportRequest(str(trained()), "merged", tmp_path / "out")
    export(request, registry)
    before = hashed(tmp_path / "out")
    monkeypatch.setattr(_merge, "merge", wrong_alpha)
    with pytest.raises(QualityError):
        export(ExportRequest(request.model, "merged", request.output, overwrite=True), registry)
    assert hashed(tmp_path / "out") == before
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
