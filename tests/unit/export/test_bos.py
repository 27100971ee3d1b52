"""What was trained with bos-scaling, for other programs: the factor is in the weights, BOS in the chat template."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers.processors import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamafarm.cli.guard import run as run_command
from llamafarm.core.trained import first_token_of, load_trained
from llamafarm.errors import ModelError, QualityError
from llamafarm.export import _merge
from llamafarm.export._export import check, export
from llamafarm.export.beginning import beginning_with
from llamafarm.export.request import ExportRequest
from llamafarm.export.verify import by_modelfile, by_tokenizer, verify
from llamafarm.models._generate import Sampling, generate
from llamafarm.testing.rows import make_fields
from llamafarm.testing.running import run as train

BOS = {"type": "bos-scaling", "bos_scaling_factor": 0.05}
METHOD = [{"type": "lora", "r": 4, "dropout": 0.0}, BOS]
PROMPT = [{"role": "user", "content": "check the lamp number 7"}]
NO_BOS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session")
def bos_run(trained, base_of, tmp_path_factory):
    """A function: architecture → run with bos-scaling on a base whose chat template and tokenizer write no BOS."""
    made = {}

    def make(name="llama", method=METHOD):
        if (name, str(method)) not in made:
            folder = tmp_path_factory.mktemp("without-bos")
            AutoModelForCausalLM.from_pretrained(base_of(name)).save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(base_of(name))
            tokenizer.chat_template = NO_BOS
            tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)  # and puts none before a text
            tokenizer.save_pretrained(folder)
            made[name, str(method)] = trained(name, method, {"huggingface_id": str(folder)})
        return made[name, str(method)]

    return make


@pytest.fixture(scope="session")
def eager_run(base_of, tmp_path_factory):
    """A hardly trained run whose likeliest token is BOS nearly everywhere, as that of a random model may be."""
    folder = tmp_path_factory.mktemp("eager")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base_of("phi3")),
        AutoTokenizer.from_pretrained(base_of("phi3")),
    )
    with torch.no_grad():
        ids = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        head = model.lm_head.weight
        head[0] = 3 * head[model(ids["input_ids"]).logits[0, -1].argmax()]
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = "".join(json.dumps(row) + "\n" for row in make_fields(40))
    (folder / "rows.jsonl").write_text(rows)
    config = {
        "base_model": str(folder / "base"),
        "dataset": str(folder / "rows.jsonl"),
        "method": METHOD,
        "training": {"max_steps": 3, "learning_rate": 1e-3, "save_strategy": "no", "eval_strategy": "epoch"},
    }
    return train(folder, {"fine_tuner": {"type": "pytorch", "config": config}})[0].output_dir


def greedy(model, ids, count=12):
    """Token by token with plain transformers, keys and values cached."""
    config = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    return model.generate(torch.tensor([ids]), pad_token_id=0, **config)[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt_neox"])
@pytest.mark.parametrize("brings", ["lora", "full"])
def test_baked_equals_hooked_and_plain_transformers_begins_rows_with_bos(name, brings, bos_run, registry, tmp_path):
    options = {"type": brings} if brings == "full" else METHOD[0]
    run = bos_run(name, [options, BOS])
    report = export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    hooked, trained, _ = load_trained(str(run), registry, device="cpu", dtype=torch.float32)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    ids = list(tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"])
    own = list(trained.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"])
    assert ids == [0, *own]
    assert tokenizer("a lamp")["input_ids"] == [0, *trained("a lamp")["input_ids"]]
    with torch.inference_mode():
        # the merge is the same sums in another order; baking itself is exact
        assert (model(torch.tensor([ids])).logits - hooked(torch.tensor([ids])).logits).abs().max() < 1e-5
    assert greedy(model, ids) == greedy(hooked, ids)
    assert any(item.name == "rows begin with token 0 '<|bos|>'" and item.passed for item in report.checks)
    assert "has to begin with token 0 '<|bos|>'" in (tmp_path / "out" / "README.md").read_text()
    answers = [
        generate(*load_trained(str(folder), registry, device="cpu", dtype=torch.float32)[:2], [PROMPT], Sampling(12))
        for folder in (run, tmp_path / "out")
    ]
    assert answers[0] == answers[1], "our own commands do not put a second BOS"
    assert all(
        item.passed
        for item in check(ExportRequest(str(run), "merged", tmp_path / "out"), registry, tmp_path / "out").checks
    )


def test_a_model_that_says_bos_itself_is_compared_where_weights_can_do_as_training_did(eager_run, registry, tmp_path):
    report = export(ExportRequest(str(eager_run), "merged", tmp_path / "out"), registry)
    assert report.figures["first_token_taken_inside"] > 0, "the case is the one that is meant"
    told = next(note for note in report.notes if "weights cannot tell the beginning of a row" in note)
    assert f"at {report.figures['first_token_taken_inside']} of {report.figures['tokens_compared']} places" in told
    assert told in (tmp_path / "out" / "README.md").read_text()
    hooked, *_ = load_trained(str(eager_run), registry, device="cpu", dtype=torch.float32)
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    plain, inside = torch.tensor([[0, 9, 10, 11]]), torch.tensor([[0, 9, 0, 11]])
    with torch.inference_mode():
        assert (baked(plain).logits - hooked(plain).logits).abs().max() < 1e-5
        # what the note is about: the same rows apart from a BOS inside, thousands of times the rounding
        assert (baked(inside).logits - hooked(inside).logits).abs().max() > 1e-2


def test_a_template_that_writes_bos_in_every_turn_is_refused(base_of, trained, registry, tmp_path):
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(base_of("llama")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base_of("llama"))
    tokenizer.chat_template = NO_BOS.replace("{{ '<|' +", "{{ bos_token + '<|' +")
    tokenizer.save_pretrained(folder)
    run = trained("llama", METHOD, {"huggingface_id": str(folder)})
    with pytest.raises(ModelError, match="inside of conversations too") as caught:
        export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-MODEL-220"
    assert not (tmp_path / "out").exists()
    export(ExportRequest(str(run), "adapter", tmp_path / "adapter"), registry)  # our own commands know places


def test_a_factor_that_is_not_baked_is_found(bos_run, registry, tmp_path, monkeypatch):
    from llamafarm_methods._bos import Scaler, base_of
    from llamafarm_methods.bos_scaling import BosScaling

    def forgotten(self, model):
        Scaler.detach(base_of(model))
        return model

    monkeypatch.setattr(BosScaling, "bake", forgotten)
    with pytest.raises(QualityError, match="the merged model and the trained one"):
        export(ExportRequest(str(bos_run()), "merged", tmp_path / "out"), registry)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_not_told_is_found(bos_run, registry, tmp_path, monkeypatch):
    monkeypatch.setattr("llamafarm.export._export.beginning_with", lambda tokenizer, token: tokenizer)
    with pytest.raises(QualityError, match=r"rows begin with token 0 '<\|bos\|>': \d of \d prompts do not") as caught:
        export(ExportRequest(str(bos_run()), "merged", tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-QUALITY-003"


def test_gguf_and_modelfile_put_bos_first(bos_run, registry, tmp_path):
    gguf = pytest.importorskip("gguf")
    run = bos_run()
    report = export(ExportRequest(str(run), "ollama", tmp_path / "out"), registry)
    file = next((tmp_path / "out").glob("*.gguf"))
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 0
    assert next(item for item in report.checks if item.name.startswith("greedy")).passed
    own = AutoTokenizer.from_pretrained(run)
    as_trained = beginning_with(own, first_token_of(str(run), own, registry))
    modelfile = tmp_path / "out" / "Modelfile"
    assert verify(as_trained, by_modelfile(modelfile, as_trained)[0], "Modelfile", tools=False).different == 0
    assert "<|bos|>" not in modelfile.read_text(), "llama.cpp puts it there once"


def test_verify_serve_knows_how_rows_begin(bos_run, registry, tmp_path, capsys):
    run = bos_run()
    export(ExportRequest(str(run), "merged", tmp_path / "out"), registry)
    for model in (run, tmp_path / "out"):
        assert run_command(["verify-serve", str(model), "--tokenizer", str(tmp_path / "out")]) == 0
        assert "began every row with token 0 '<|bos|>'" in "".join(capsys.readouterr())
    assert run_command(["verify-serve", str(run), "--tokenizer", str(run)]) == 12
    assert "'<|bos|>" in capsys.readouterr().err, (
        "the run's own tokenizer writes no BOS: a server of it would not either"
    )


def test_a_tokenizer_that_begins_with_it_stays_as_it_is(base_of):
    own = AutoTokenizer.from_pretrained(base_of("llama"))
    assert beginning_with(own, None) is own
    assert beginning_with(own, 0).chat_template == own.chat_template
    served = beginning_with(own, 0)
    assert beginning_with(served, 0)("a")["input_ids"] == served("a")["input_ids"], "never twice"
    assert verify(own, by_tokenizer(served), "served").different == 0


@pytest.mark.parametrize("target", ["merged", "gguf"])
def test_a_tied_base_is_refused_before_training_and_at_export(target, base_of, trained, registry, tmp_path, capsys):
    run = trained("llama-tied", METHOD)
    with pytest.raises(ModelError, match="its output head is its input embedding") as caught:
        export(ExportRequest(str(run), target, tmp_path / "out"), registry)
    assert caught.value.problems[0].id == "LF-MODEL-116"
    strategy = tmp_path / "tied.yaml"
    config = {"base_model": str(base_of("llama-tied")), "dataset": {"generate": "smart-home"}, "method": METHOD}
    text = {"name": "tied", "export": {"to": target}, "fine_tuner": {"type": "pytorch", "config": config}}
    strategy.write_text(json.dumps(text))
    assert run_command(["train", "--strategy", str(strategy)]) == 2
    assert "bos-scaling cannot be written into this base" in capsys.readouterr().err


def test_an_adapter_says_who_puts_the_factor_back(bos_run, registry, tmp_path):
    run = bos_run()
    report = export(ExportRequest(str(run), "adapter", tmp_path / "out"), registry)
    assert "bos-scaling is no part of the adapter's weights: only llamafarm puts it back" in report.notes
    assert (tmp_path / "out" / "bos_zero_config.json").is_file()
    with pytest.raises(ModelError, match="vLLM does not serve bos-scaling in an adapter"):
        export(ExportRequest(str(run), "vllm", tmp_path / "lora", keep_adapter=True), registry)


def test_a_merge_takes_the_hooks_away(bos_run, registry):
    from llamafarm_methods._bos import scaler_of

    model, *_ = load_trained(str(bos_run()), registry, device="cpu", dtype=torch.float32)
    from llamafarm.core.trained import methods_of

    assert scaler_of(_merge.merge(model, methods_of(str(bos_run()), registry))) is None
