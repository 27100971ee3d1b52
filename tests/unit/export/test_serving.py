from __future__ import annotations

import json

import pytest

from llamafarm.api import AdapterSpec
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.request import Request
from llamafarm.errors import LlamaFarmError, ModelError
from llamafarm.export._export import export
from llamafarm.export.request import ExportRequest
from llamafarm.models.serving import (
    VLLM_RANKS,
    Described,
    adapter_options,
    highest_rank,
    obstacles,
    vllm_rank,
)

PLAIN = {"r": 8, "target_modules": ["q_proj"], "bias": "none", "modules_to_save": None, "use_dora": False}


def messages(model, target, **options):
    return [item.message for item in obstacles(model, target, **options)]


@pytest.mark.parametrize("target", ["merged", "adapter", "gguf", "ollama", "vllm"])
def test_plain_lora_goes_everywhere(target):
    assert messages(Described("llama", False, "", PLAIN, ["lora"]), target, keep_adapter=True) == []


@pytest.mark.parametrize(
    ("options", "methods", "says"),
    [
        ({"use_dora": True}, ["dora"], "DoRA"),
        ({"modules_to_save": ["lm_head"]}, ["lora"], "modules_to_save (lm_head)"),
        ({"bias": "all"}, ["lora"], "bias: all"),
        ({"trainable_token_indices": [1, 2]}, ["lora"], "trainable_token_indices"),
        ({"r": 1024}, ["lora"], "ranks above 512"),
        ({"rank_pattern": {"q_proj": 600}}, ["lora"], "r: 600"),
        ({"peft_type": "IA3"}, ["ia3"], "IA3 matrices"),
        ({}, ["lora", "bos-scaling"], "bos-scaling"),
    ],
)
def test_what_vllm_does_not_serve_in_an_adapter_is_named(options, methods, says):
    model = Described("llama", False, "", PLAIN | options, methods)
    (message,) = messages(model, "vllm", keep_adapter=True)
    assert says in message
    assert messages(model, "vllm") == [], "merged, it serves everything"


def test_a_quantized_base_takes_no_merge():
    for target in ("merged", "gguf", "ollama", "vllm"):
        (obstacle,) = obstacles(Described("llama", False, "gptq", PLAIN, ["lora"]), target)
        assert (obstacle.id, "gptq" in obstacle.message) == ("LF-MODEL-112", True)
    assert messages(Described("llama", False, "gptq", PLAIN, ["lora"]), "adapter") == []
    assert messages(Described("llama", False, "bitsandbytes", PLAIN, ["qlora"]), "merged") == []


def test_bos_scaling_is_not_merged_into_a_tied_base():
    tied = Described("llama", True, "", PLAIN, ["lora", "bos-scaling"])
    assert [item.id for item in obstacles(tied, "merged")] == ["LF-MODEL-116"]
    assert messages(Described("llama", False, "", PLAIN, ["lora", "bos-scaling"]), "gguf") == []


def test_ranks_are_rounded_up_to_what_vllm_takes():
    assert [vllm_rank(rank) for rank in (1, 2, 8, 9, 100, 512)] == [1, 8, 8, 16, 128, 512]
    assert vllm_rank(300) in VLLM_RANKS
    assert highest_rank({"r": 8, "rank_pattern": {"a": 4, "b": 32}}) == 32


def test_options_of_a_stack():
    lora = AdapterSpec("lora", {"r": 8, "target_modules": "all"})
    assert adapter_options([lora, AdapterSpec("scaling", {"factor": 0.1})]) == {
        "peft_type": "LORA",
        "r": 8,
        "target_modules": "all",
        "factor": 0.1,
    }
    assert adapter_options([AdapterSpec("full", changes_base=True)]) is None


def test_a_gptq_base_is_refused_before_it_is_loaded(base_of, trained, registry, tmp_path):
    import shutil

    base = shutil.copytree(base_of("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    run = shutil.copytree(trained(), tmp_path / "run")
    adapter = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(adapter | {"base_model_name_or_path": str(base)}))
    with pytest.raises(ModelError, match="stored by gptq"):
        export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)


def test_an_adapter_that_vllm_cannot_serve_is_refused_before_it_is_loaded(trained, registry, tmp_path):
    run = trained("llama", {"type": "lora", "r": 4, "dropout": 0.0, "modules_to_save": ["lm_head"]})
    with pytest.raises(ModelError, match="vLLM does not serve modules_to_save") as caught:
        export(ExportRequest(str(run), "vllm", tmp_path / "out", keep_adapter=True), registry)
    assert caught.value.problems[0].id == "LF-MODEL-111"
    assert list(tmp_path.iterdir()) == []


def test_the_command_for_vllm_names_the_rank_and_the_template(base_of, trained, registry, tmp_path):
    run = trained()
    report = export(ExportRequest(str(run), "vllm", tmp_path / "out", keep_adapter=True, name="lamp"), registry)
    lora = f"--enable-lora --max-lora-rank 8 --lora-modules lamp={tmp_path / 'out'}"
    template = f"--chat-template {tmp_path / 'out'}/chat_template.jinja"
    assert report.commands == (f"vllm serve {base_of('llama')} {lora} {template}",)
    merged = export(ExportRequest(str(run), "vllm", tmp_path / "merged", name="lamp"), registry)
    assert merged.commands == (f"vllm serve {tmp_path / 'merged'} --served-model-name lamp",)


def test_an_adapter_that_peft_cannot_merge_is_said_so(trained, registry, tmp_path, monkeypatch):
    from peft.tuners.lora import Linear

    def refuse(*_, **__):
        raise NotImplementedError("no merge here")

    monkeypatch.setattr(Linear, "merge", refuse)
    with pytest.raises(ModelError, match="no merge here") as caught:
        export(ExportRequest(str(trained()), "merged", tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-MODEL-117"


@pytest.mark.parametrize(
    ("export_block", "method", "base", "ids"),
    [
        ("gguf", "lora", "gpt_neox", ["LF-STRATEGY-065"]),
        ("{to: [merged, vllm], keep_adapter: true}", "{type: lora, bias: all}", "llama", ["LF-STRATEGY-065"]),
        ("adapter", "full", "llama", ["LF-STRATEGY-065"]),
        ("{to: gguf, keep_adapter: true}", "lora", "llama", ["LF-STRATEGY-066"]),
        ("{to: [gguf, ollama, vllm, merged, adapter]}", "lora", "phi3", []),
    ],
)
def test_a_target_is_checked_before_training(export_block, method, base, ids, base_of, registry, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        f"export: {export_block}\nfine_tuner: {{config: {{base_model: {base_of(base)}, "
        f"dataset: {{generate: smart-home}}, method: {method}, output_dir: {tmp_path / 'out'}}}}}\n"
    )
    loaded = load(Request(str(path)), registry)
    if not ids:
        assert make_plan(loaded, registry).plan.methods
        return
    with pytest.raises(LlamaFarmError) as caught:
        make_plan(loaded, registry)
    assert [problem.id for problem in caught.value.problems] == ids
    assert all(str(path) in problem.where for problem in caught.value.problems)


def test_the_converter_comes_from_the_environment_and_never_from_a_strategy(base_of, registry, tmp_path, monkeypatch):
    path = tmp_path / "s.yaml"
    config = f"{{base_model: {base_of('gpt_neox')}, dataset: {{generate: smart-home}}, output_dir: {tmp_path / 'o'}}}"
    tuner = f"fine_tuner: {{config: {config}}}\n"
    path.write_text(f"export: gguf\n{tuner}")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    make_plan(load(Request(str(path)), registry), registry)
    path.write_text(f"export: {{to: gguf, llama_cpp: ./theirs.py}}\n{tuner}")
    with pytest.raises(LlamaFarmError, match="unknown key 'llama_cpp'"):
        load(Request(str(path)), registry)


@pytest.mark.parametrize(
    ("name", "served"), [("lamp", "lamp"), ("../../etc/x", "etc-x"), ("a b", "a-b"), ("...", "model"), ("", "run")]
)
def test_names_of_files_stay_in_the_folder(name, served, tmp_path):
    assert ExportRequest(str(tmp_path / "run"), "gguf", tmp_path, name=name).served_name == served


@pytest.mark.parametrize("block", ["excel", "{to: [merged, excel]}", "{dtype: float32}", "{to: merged, rank: 2}"])
def test_an_export_that_is_not_understood_is_an_error(block, registry, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"export: {block}\nfine_tuner: {{config: {{base_model: builtin:tiny, dataset: d.jsonl}}}}\n")
    with pytest.raises(LlamaFarmError) as caught:
        load(Request(str(path)), registry)
    assert caught.value.exit_code == 2
