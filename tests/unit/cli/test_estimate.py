"""`estimate`: what it says, what it refuses, and that it loads nothing."""

from __future__ import annotations

import json
import resource

import pytest

from llamafarm.testing.fresh import fresh

LARGE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def large(tmp_path):
    """The sizes of Llama 3 8B, without weights."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LARGE))
    turns = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "answer " * 200}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": turns, "n": n}) + "\n" for n in range(200)))
    return str(folder)


def estimated(cli, *argv):
    ended = cli("estimate", "--dataset", "rows.jsonl", "--json", *argv)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_an_8b_model_on_gpus_of_several_sizes(cli, large):
    a100 = estimated(cli, "--model", large, "--gpu", "a100-80g")
    assert a100["fits"] is True
    assert a100["total_parameters"] == 8_030_261_248 + a100["trainable_parameters"]
    # bf16 weights of 8.03 billion parameters are 15 GiB: what a card of 24 GB spends most on
    assert a100["memory_terms"]["weights"] == pytest.approx(2 * 8.03e9, rel=0.01)
    packed = estimated(cli, "--model", large, "--gpu", "rtx-4090", "--method", "qlora")
    assert packed["memory_terms"]["weights"] < 8e9
    full = estimated(cli, "--model", large, "--gpu", "a100-80g", "--method", "full")
    assert full["fits"] is False
    assert full["memory_terms"]["weights"] == pytest.approx(4 * 8.03e9, rel=0.01)
    assert full["memory_terms"]["optimizer"] == pytest.approx(8 * 8.03e9, rel=0.01)
    assert any("8.0 billion parameters are 32 GB" in note for note in full["notes"])


def test_an_optimizer_in_main_memory_takes_none_of_a_gpu(cli, large):
    names, offload = ["--model", large, "--method", "full"], "training.use_cpu_offload=true"
    usual = estimated(cli, *names, "--gpu", "h200")
    assert usual["fits"] is False
    assert any(offload in change["sets"] for change in usual["changes"])
    found = estimated(cli, *names, "--gpu", "h200", "--set", offload)
    assert found["fits"] is True
    assert "optimizer" not in found["memory_terms"]
    assert usual["memory_bytes"] - found["memory_bytes"] == pytest.approx(8 * 8.03e9, rel=0.01)
    # two moments and a copy of the weights, 4 bytes each
    assert any("96.4 GB of main memory" in note for note in found["notes"])
    beside = estimated(cli, *names, "--set", "hardware=cpu", "--set", offload)
    assert beside["memory_terms"]["optimizer"] == pytest.approx(8 * 8.03e9, rel=0.01)


def test_each_change_that_is_proposed_fits_by_the_same_estimate(cli, large):
    found = estimated(cli, "--model", large, "--gpu", "rtx-4090", "--batch-size", "16")
    assert found["fits"] is False
    assert found["changes"]
    for change in found["changes"]:
        sets = [word for text in change["sets"] for word in ("--set", text)]
        again = estimated(cli, "--model", large, "--gpu", "rtx-4090", "--batch-size", "16", *sets)
        batch = [text for text in change["sets"] if text.startswith("training.batch_size")]
        assert batch or again["needed_bytes"] == change["needed_bytes"]
        rows = [text.partition("=")[2] for text in change["sets"] if "batch_size" in text or "accumulation" in text]
        assert not batch or int(rows[0]) * int(rows[1]) == 16


def test_the_largest_batch_fits_and_the_next_does_not(cli, large):
    largest = estimated(cli, "--model", large, "--gpu", "a100-40g")["largest_batch_size"]
    assert 1 <= largest < 200
    fits = [
        estimated(cli, "--model", large, "--gpu", "a100-40g", "--batch-size", str(size))["fits"]
        for size in (largest, largest + 1)
    ]
    assert fits == [True, False]


def test_the_lines_for_people(cli, large):
    ended = cli("estimate", "--model", large, "--dataset", "rows.jsonl", "--gpu", "rtx-4090", "--method", "full")
    assert ended.code == 0
    assert "does not fit" in ended.out
    assert "it fits with" in ended.out
    assert "--set method=qlora" in ended.out
    assert "32 GB" in ended.err
    assert "no earlier run" in ended.out


def test_what_trained_less_needs_less(cli, large):
    names = ["--model", large, "--gpu", "a100-80g"]
    usual = estimated(cli, *names)["memory_bytes"]
    assert estimated(cli, *names, "--set", "training.gradient_checkpointing=true")["memory_bytes"] < usual
    assert estimated(cli, *names, "--batch-size", "1")["memory_bytes"] < usual
    assert estimated(cli, *names, "--set", "training.max_seq_length=128")["memory_bytes"] < usual
    assert estimated(cli, *names, "--method", "lora", "--set", "method.r=256")["memory_bytes"] > usual
    assert estimated(cli, *names, "--set", "base_model.torch_dtype=float32")["memory_bytes"] > usual


def test_layers_that_are_fused_keep_what_they_group_beside_a_mapped_file(cli, large, monkeypatch):
    names = ["--model", large, "--set", "hardware=cpu", "--set", "base_model.torch_dtype=bfloat16"]
    plain = estimated(cli, *names, "--set", "training.fused=false")["memory_terms"]["weights"]
    grouped = 32 * (4096 * (4096 + 2 * 1024) + 2 * 4096 * 14336)  # q, k, v, gate, up of each layer
    assert plain == pytest.approx(2 * 8.03e9, rel=0.01)
    for lets_go in (True, False):
        monkeypatch.setattr("llamafarm_tuners.pytorch.estimate.lets_go", lambda answer=lets_go: answer)
        assert estimated(cli, *names)["memory_terms"]["weights"] - plain == (0 if lets_go else 2 * grouped)


def test_a_step_on_a_gpu_takes_time_however_little_it_computes(cli, large):
    found = estimated(cli, "--model", "builtin:tiny", "--gpu", "a100-80g", "--max-steps", "1000")
    assert found["seconds"] == pytest.approx([10, 50], rel=0.1)


def test_gpus_are_listed_and_misspelt_ones_are_guessed(cli, large):
    assert "a100-80g" in cli("estimate", "--gpu", "list").out
    ended = cli("estimate", "--model", large, "--dataset", "rows.jsonl", "--gpu", "A100")
    assert ended.code == 8
    assert "LF-HARDWARE-040" in ended.err
    assert "a100-80g or a100-40g" in ended.err


def test_bad_input_is_refused_in_one_line(cli, large, tmp_path):
    assert "LF-USAGE-006" in cli("estimate").err
    (tmp_path / "mine.yaml").write_text("fine_tuner: {type: pytorch, config: {dataset: rows.jsonl}}\n")
    assert "LF-STRATEGY-031" in cli("estimate", "mine.yaml").err
    (tmp_path / "large" / "config.json").write_text("{")
    ended = cli("estimate", "--model", large, "--dataset", "rows.jsonl")
    assert (ended.code, "LF-MODEL-162" in ended.err) == (4, True)


def test_a_fine_tuner_without_estimates_says_so(cli, large, monkeypatch):
    from llamafarm.api import FineTuner
    from llamafarm_tuners.pytorch.tuner import PytorchTuner

    monkeypatch.setattr(PytorchTuner, "estimate", FineTuner.estimate)
    ended = cli("estimate", "--model", large, "--dataset", "rows.jsonl")
    assert (ended.code, "LF-USAGE-040" in ended.err) == (2, True)


def test_rows_that_cannot_be_read_are_assumed(cli, large):
    ended = cli("estimate", "--model", large)
    assert ended.code == 0
    assert "no rows are known" in ended.err


RUN = """
import contextlib, io, resource, sys
from llamafarm.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        main(arguments[0])
    except SystemExit as ended:
        code = ended.code
usage = resource.getrusage(resource.RUSAGE_SELF)
answer = [code, sorted({name.partition('.')[0] for name in sys.modules}), usage.ru_utime + usage.ru_stime]
"""


def test_nothing_heavy_is_imported_and_it_is_quick(large, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["estimate", "--model", large, "--dataset", "rows.jsonl", "--gpu", "rtx-4090"]
    code, loaded, seconds = fresh(RUN, argv)
    assert code == 0
    assert not {"torch", "transformers", "peft", "accelerate", "datasets", "pandas", "bitsandbytes"} & set(loaded)
    assert seconds < 3 * _unit(), "several times what importing pydantic and typer costs"


def _unit():
    """CPU seconds that the frame alone takes here and now: limits in seconds mean little on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    fresh(RUN, ["strategies", "list"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
