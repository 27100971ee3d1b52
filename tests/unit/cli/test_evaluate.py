"""`evaluate` on models that were really trained, against figures computed by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

import llamafarm.cli.evaluate
from llamafarm.errors import DiskError
from llamafarm.models._load import load_for_generation
from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_dir):
    """A run of a tiny model on 40 rows, 10 held out, with two checkpoints."""
    from llamafarm.cli.guard import run

    folder = tmp_path_factory.mktemp("evaluate")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_fields(40)), encoding="utf-8")
    sets = ["data_splitter=random", "data_splitter.config.eval_percentage=25", "training.save_steps=10"]
    argv = ["train", "-m", str(tiny_model_dir("llama")), "-d", str(data), "-o", str(folder / "run"), "--quiet"]
    argv += ["--max-steps", "20", "--lr", "0.02", *(part for one in sets for part in ("--set", one))]
    assert run(argv) == 0
    return folder


def results(ended):
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def hand_loss(model, tokenizer, text):
    """Mean negative log-likelihood of every token of a text but the first, one forward pass without any trick."""
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    if tokenizer.bos_token_id is not None and ids[0, 0] != tokenizer.bos_token_id:
        ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    picked = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])
    return -picked.mean().item(), ids.shape[1] - 1


def test_a_tuned_model_stands_beside_its_base(cli, trained):
    found = results(cli("evaluate", str(trained / "run"), "--json"))
    base, tuned = (found["models"][name] for name in found["evaluation_config"]["models"])
    assert list(base) == ["loss", "perplexity", "token_accuracy", "exact_match"]
    assert tuned["loss"]["value"] < base["loss"]["value"] - 0.1
    assert found["difference"]["loss"]["high"] < 0
    assert found["difference"]["loss"]["value"] == pytest.approx(tuned["loss"]["value"] - base["loss"]["value"])
    assert tuned["perplexity"]["value"] == pytest.approx(math.exp(tuned["loss"]["value"]))
    assert found["evaluation_config"]["rows"] == 10
    assert found["perplexity_evaluation"]["total_tokens"] > 0


def test_the_loss_is_that_of_training(cli, trained):
    """The same rows, masks and weights as the evaluation during training; float32 in other batches."""
    found = results(cli("evaluate", str(trained / "run"), "--baseline", "none", "--metrics", "loss", "--json"))
    logged = json.loads((trained / "run" / "eval_results.json").read_text())["eval_loss"]
    assert found["models"][str(trained / "run")]["loss"]["value"] == pytest.approx(logged, abs=1e-5)


def test_perplexity_of_raw_text_equals_a_loop_by_hand(cli, trained, tiny_model_dir, tmp_path):
    text = "Turn the light in the kitchen on, then lock the front door and set the alarm."
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    model, tokenizer = load_for_generation(str(tiny_model_dir("llama")))
    loss, targets = hand_loss(model, tokenizer, text)
    found = results(cli("evaluate", str(tiny_model_dir("llama")), "--data", "text.jsonl", "--json"))
    assert found["perplexity_evaluation"]["total_tokens"] == targets
    assert found["perplexity_evaluation"]["loss"] == pytest.approx(loss, abs=1e-5)
    assert found["perplexity_evaluation"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_windows_lose_no_token(cli, tiny_model_dir, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "one two three four five six seven eight " * 4}) + "\n")
    model = str(tiny_model_dir("llama"))
    whole = results(cli("evaluate", model, "--data", "text.jsonl", "--json"))
    short = ["--set", "training.max_seq_length=16", "--metrics", "loss"]
    cut = results(cli("evaluate", model, "--data", "text.jsonl", "--json", *short))
    assert cut["perplexity_evaluation"]["total_tokens"] == whole["perplexity_evaluation"]["total_tokens"]
    assert cut["perplexity_evaluation"]["loss"] != whole["perplexity_evaluation"]["loss"]


def test_an_adapter_that_changes_nothing_measures_as_its_base(cli, trained, tiny_model_dir, tmp_path):
    import peft

    model, _ = load_for_generation(str(tiny_model_dir("llama")))
    untrained = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    untrained.peft_config["default"].base_model_name_or_path = str(tiny_model_dir("llama"))
    untrained.save_pretrained(tmp_path / "zero", save_embedding_layers=False)
    data = str(trained / "rows.jsonl")
    found = results(cli("evaluate", "--adapter_path", "zero", "--data", data, "--max-samples", "8", "--json"))
    base, tuned = found["models"].values()
    assert base == tuned
    assert found["difference"]["loss"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_every_checkpoint_is_measured_in_order(cli, trained):
    argv = ["--all-checkpoints", "--baseline", "none", "--metrics", "loss", "--json"]
    found = results(cli("evaluate", str(trained / "run"), *argv))
    names = [name.rpartition("/")[2] for name in found["models"]]
    assert names == ["checkpoint-10", "checkpoint-20", "checkpoint-best", "run"]
    losses = [figures["loss"]["value"] for figures in found["models"].values()]
    assert losses[1] == losses[3] < losses[0]


def test_a_checkpoint_knows_the_rows_of_its_run(cli, trained):
    found = results(cli("evaluate", str(trained / "run" / "checkpoint-10"), "--metrics", "loss", "--json"))
    assert found["evaluation_config"]["rows"] == 10


def test_the_gate_says_what_is_missed_and_writes_the_results(cli, trained, tmp_path):
    argv = ["evaluate", str(trained / "run"), "--baseline", "none", "--output", "out"]
    missed = cli(*argv, "--min", "token_accuracy=0.999", "--max", "perplexity=1.0001")
    assert missed.code == 12
    assert "token_accuracy is " in missed.err
    assert "at least 0.999 was demanded [LF-QUALITY-010]" in missed.err
    assert "at most 1.0001 was demanded" in missed.err
    written = json.loads((tmp_path / "out" / "evaluation_results.json").read_text())
    assert set(written["models"][str(trained / "run")]) == {"loss", "perplexity", "token_accuracy"}
    assert cli(*argv, "--overwrite", "--min", "token_accuracy=0.0001").code == 0


def test_figures_are_shown_though_they_cannot_be_written(cli, trained, tmp_path, monkeypatch):
    argv = ["evaluate", str(trained / "run"), "--baseline", "none", "--metrics", "loss", "--output"]
    (tmp_path / "file").write_text("precious")
    refused = cli(*argv, "file")
    assert (refused.code, refused.out, "measuring" in refused.err) == (7, "", False)
    assert "file is a file; give another name [LF-DISK-001]" in refused.err

    def full(path, lines, *, overwrite):
        raise DiskError.of("LF-DISK-001", f"cannot write {path}")

    monkeypatch.setattr(llamafarm.cli.evaluate, "write_lines", full)
    lost = cli(*argv, "out")
    assert (lost.code, "LF-DISK-001" in lost.err) == (7, True)
    assert "loss" in lost.out


def test_answers_are_written_with_their_scores(cli, trained, tmp_path):
    argv = [
        "--metrics",
        "exact_match,extracted_match",
        "--extract",
        r"is (\w+)",
        "--output-dir",
        "out",
        "--max-samples",
        "4",
    ]
    ended = cli("evaluate", str(trained / "run"), *argv, "--generate_samples")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("EVALUATION SUMMARY\n")
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert {"model", "where", "prompt", "expected", "answer", "scores"} == set(lines[0])
    assert set(lines[0]["scores"]) == {"exact_match", "extracted_match"}
    samples = json.loads((tmp_path / "out" / "evaluation_results.json").read_text())["generation_samples"]
    assert list(samples) == ["prompt_1", "prompt_2", "prompt_3"]


def test_the_documents_spelling(cli, trained, tiny_model_dir):
    model, adapter = str(tiny_model_dir("llama")), str(trained / "run")
    argv = ["--model_name", model, "--adapter_path", adapter, "--max_samples", "2", "--batch_size", "2", "--json"]
    assert list(results(cli("finetune", "evaluate", *argv))["models"]) == [model, adapter]
    ended = cli("evaluate", "--model_name", "builtin:tiny", "--adapter_path", adapter)
    assert (ended.code, "was made for" in ended.err, "LF-MODEL-151" in ended.err) == (4, True, True)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["builtin:tiny"], 2, "no rows to measure on are named"),
        (["builtin:tiny", "--metrics", "perplexty"], 2, "did you mean 'perplexity'? [LF-USAGE-030]"),
        (["builtin:tiny", "--min", "loss"], 2, "is not a number; write --min loss=0.9 [LF-USAGE-032]"),
        (["builtin:tiny", "--max", "los=3"], 2, "no metric 'los'"),
        (["builtin:tiny", "--device", "cdua"], 2, "expected cpu, cuda, mps"),
        (["builtin:tiny", "--model", "builtin:tiny"], 2, "are one option"),
        (["builtin:tny", "--data", "x.jsonl"], 4, "no built-in model 'tny'"),
        (["builtin:tiny", "--data", "x.jsonl"], 3, "x.jsonl"),
        (["builtin:tiny", "--data", "text.jsonl", "--all-checkpoints"], 4, "[LF-MODEL-150]"),
        (["builtin:tiny", "--data", "text.jsonl", "--metrics", "exact_match"], 3, "[LF-DATA-230]"),
        (["builtin:tiny", "--adapter-path", "builtin:tiny"], 4, "is a whole model, not an adapter"),
    ],
)
def test_bad_input(cli, tmp_path, argv, code, message):
    (tmp_path / "text.jsonl").write_text('{"text": "only text"}\n')
    ended = cli("evaluate", *argv)
    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
