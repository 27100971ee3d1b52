from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm.errors import ModelError, UsageError
from llamafarm.export._export import check, export
from llamafarm.export.request import ExportRequest

BASES = ["llama", "llama-tied", "qwen2", "qwen2-tied", "phi3", "phi3-tied", "gpt_neox", "gpt_neox-tied"]
PROMPT = [{"role": "user", "content": "check the lamp number 7"}]


def logits(model, ids):
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids])).logits


def plain(folder, base):
    """The adapter on its base, by peft alone."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(folder))


@pytest.mark.parametrize("base", BASES)
def test_merged_equals_unmerged_and_loads_with_plain_transformers(base, base_of, trained, registry, hashed, tmp_path):
    run, before = trained(base), hashed(base_of(base))
    report = export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    # measured: below 1e-6 on logits of at most 4; 1e-5 is what is promised
    assert (logits(merged, ids) - logits(plain(run, base_of(base)), ids)).abs().max() < 1e-5
    assert hashed(base_of(base)) == before
    assert all(item.passed for item in report.checks)
    assert merged.config.tie_word_embeddings is base.endswith("-tied")
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "held-out rows of the run" in report.prompts
    config = (tmp_path / "out" / "config.json").read_text()  # what is published tells nobody's folders
    assert str(base_of(base).parent) not in config
    assert str(run.parent) not in config


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_precision_that_is_asked_for_is_on_disk(dtype, trained, registry, tmp_path):
    report = export(ExportRequest(str(trained()), "merged", tmp_path / "out", dtype=dtype), registry)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    # what is rounded is told, and what was written is still exactly what is read
    assert report.figures["relative_difference"] > 1e-4
    assert next(item for item in report.checks if item.name.startswith("what is on disk and what")).passed


def test_large_models_are_written_in_shards(trained, registry, tmp_path):
    export(ExportRequest(str(trained()), "merged", tmp_path / "out", max_shard_size="100KB"), registry)
    shards = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0


@pytest.mark.parametrize("quantization", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_qlora_is_merged_into_the_base_as_training_saw_it(quantization, base_of, trained, registry, tmp_path):
    pytest.importorskip("bitsandbytes")
    run = trained("llama", {"type": "qlora", "r": 4, "dropout": 0.0, "quantization": quantization})
    report = export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    from llamafarm.core.trained import load_trained

    adapted, tokenizer, _ = load_trained(str(run), registry, device="cpu", dtype=torch.float32, unpacked=True)
    ids = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert (logits(merged, ids) - logits(adapted, ids)).abs().max() < 1e-5
    # on the base as it is published the same adapter answers otherwise: the merge took the right one
    assert (logits(merged, ids) - logits(plain(run, base_of("llama")), ids)).abs().max() > 1e-4
    assert any("rounded to 4 or 8 bits" in note for note in report.notes)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_trained_model_without_adapter_is_exported_too(trained, registry, tmp_path):
    run = trained("llama", {"type": "full"})
    report = export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    ids = [1, 5, 6, 7]
    one, other = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (run, tmp_path / "out")
    )
    assert torch.equal(logits(one, ids), logits(other, ids))
    assert not any("base" in item.name for item in report.checks)


def test_weights_trained_whole_untie_the_head(base_of, trained, registry, tmp_path):
    method = {"type": "lora", "r": 4, "dropout": 0.0, "modules_to_save": ["lm_head"]}
    run = trained("llama", method)
    export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    ids = [1, 5, 6, 7]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged, ids) - logits(plain(run, base_of("llama")), ids)).abs().max() < 1e-5


def test_generate_answers_the_same_from_adapter_and_export(trained, registry, tmp_path):
    from llamafarm.core.trained import load_trained
    from llamafarm.models._generate import generate

    run = trained()
    export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    answers = [
        generate(*load_trained(str(folder), registry, device="cpu", dtype=torch.float32)[:2], [PROMPT])
        for folder in (run, tmp_path / "out")
    ]
    assert answers[0] == answers[1]


def test_an_adapter_folder_is_clean_and_loads_with_plain_peft(base_of, trained, registry, tmp_path):
    run = trained()
    export(ExportRequest(str(run), "adapter", tmp_path / "out"), registry)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not names & {"trainer_log.jsonl", "trainer_state.json", "llamafarm", "train_results.json"}
    text = "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    assert str(base_of("llama")) not in text
    ids = [1, 5, 6, 7]
    assert torch.equal(
        logits(plain(run, base_of("llama")), ids), logits(plain(tmp_path / "out", base_of("llama")), ids)
    )


def test_what_is_there_is_not_replaced_unless_told(trained, registry, tmp_path, hashed):
    request = ExportRequest(str(trained()), "adapter", tmp_path / "out")
    export(request, registry)
    before = hashed(tmp_path / "out")
    with pytest.raises(UsageError, match="holds an export already") as caught:
        export(request, registry)
    assert caught.value.problems[0].id == "LF-USAGE-021"
    assert hashed(tmp_path / "out") == before
    export(ExportRequest(str(trained()), "merged", tmp_path / "out", overwrite=True), registry)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside it"


def test_what_others_put_into_an_export_stays_when_it_is_replaced(trained, registry, tmp_path):
    request = ExportRequest(str(trained()), "adapter", tmp_path / "out", overwrite=True)
    export(request, registry)
    (tmp_path / "out" / "mine").mkdir()
    (tmp_path / "out" / "mine" / "rows.jsonl").write_text("rows")
    adapter = tmp_path / "out" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(b"old")
    for _ in range(2):
        export(request, registry)
    assert (tmp_path / "out" / "mine" / "rows.jsonl").read_text() == "rows"
    assert adapter.read_bytes() == whole
    inner = replace(request, model=str(tmp_path / "out" / "mine"))
    shutil.copytree(request.model, tmp_path / "out" / "mine", dirs_exist_ok=True)
    with pytest.raises(UsageError, match=r"out holds the model itself.*LF-USAGE-022"):
        export(inner, registry)


def test_what_others_put_into_an_export_stays_where_the_next_one_has_a_file_of_that_name(trained, registry, tmp_path):
    export(ExportRequest(str(trained()), "adapter", tmp_path / "out"), registry)
    (tmp_path / "out" / "config.json").write_text("mine")
    export(ExportRequest(str(trained()), "merged", tmp_path / "out", overwrite=True), registry)
    assert (tmp_path / "out" / "config.json.before").read_text() == "mine"
    assert "architectures" in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_export_is_never_replaced(overwrite, trained, registry, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="holds no export of ours"):
        export(ExportRequest(str(trained()), "merged", tmp_path / "mine", overwrite=overwrite), registry)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    with pytest.raises(UsageError, match="is the model itself") as caught:
        export(ExportRequest(str(trained()), "merged", trained(), overwrite=True), registry)
    assert caught.value.problems[0].id == "LF-USAGE-022"


def test_a_whole_model_has_no_adapter_to_export(base_of, registry, tmp_path):
    with pytest.raises(ModelError) as caught:
        export(ExportRequest(str(base_of("llama")), "adapter", tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-MODEL-110"


def test_prompts_are_built_in_when_no_run_is_known(base_of, trained, registry, tmp_path):
    export(ExportRequest(str(trained()), "adapter", tmp_path / "adapter"), registry)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base_of("llama"))}))
    report = export(ExportRequest(str(tmp_path / "adapter"), "merged", tmp_path / "out"), registry)
    assert "8 built-in prompts" in report.prompts


def test_a_method_is_baked_after_the_merge(trained, registry, tmp_path, monkeypatch):
    from llamafarm_methods.lora import Lora

    seen = []

    def bake(self, model):
        seen.append((self.config.r, hasattr(model, "peft_config")))
        return model

    monkeypatch.setattr(Lora, "bake", bake)
    export(ExportRequest(str(trained()), "merged", tmp_path / "out"), registry)
    assert seen == [(4, False)]


def test_check_confirms_what_was_exported(trained, registry, tmp_path):
    run = trained()
    for target in ("merged", "adapter"):
        export(ExportRequest(str(run), target, tmp_path / target), registry)
        report = check(ExportRequest(str(run), target, tmp_path / target), registry, tmp_path / target)
        assert all(item.passed for item in report.checks)
