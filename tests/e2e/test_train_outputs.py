from __future__ import annotations

import json
import math
import os

import pytest

from llamafarm.api import Example, Message, RowRef
from llamafarm.errors import DataError, StrategyError
from llamafarm.models._load import load_for_generation

FINAL = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "checkpoint-best",
    "llamafarm_checkpoint.json",
    "llamafarm_methods.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_results.json",
    "trainer_log.jsonl",
    "trainer_state.json",
}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(folder, name):
    return json.loads((folder / name).read_text())


def lines(folder):
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]


@pytest.mark.e2e
def test_what_a_run_leaves(fit):
    done = fit()
    assert names(done.folder) == FINAL
    assert names(done.folder / "checkpoint-best") == FINAL - {
        "checkpoint-best",
        "trainer_log.jsonl",
        "train_results.json",
    }
    assert done.result.model_dir == done.folder
    assert done.result.best_step is None
    assert done.result.trainable_parameters == 32768
    for file in done.folder.rglob("*"):
        if file.suffix in (".md", ".json", ".jsonl", ".jinja") and file.name != "adapter_config.json":
            assert str(done.model) not in file.read_text()


@pytest.mark.e2e
def test_with_held_out_rows(fit):
    done = fit(held_out=6, compute_metrics=True, max_steps=-1, num_epochs=3)
    assert names(done.folder) == FINAL | {"eval_results.json"}
    evals = done.events("eval")
    assert [event["step"] for event in evals] == [6, 12, 18]  # `auto`: each epoch
    assert evals[-1]["eval_perplexity"] == pytest.approx(math.exp(evals[-1]["eval_loss"]))
    assert 0 < evals[-1]["eval_token_accuracy"] < 1
    results = read(done.folder, "eval_results.json")
    assert results["eval_loss"] == evals[-1]["eval_loss"] == done.result.metrics["eval_loss"]
    assert [event["name"] for event in done.events("phase")] == ["loading model", "training", "saving"]


@pytest.mark.e2e
def test_the_log_has_the_fields_keys_and_ends_at_100_percent(fit):
    done = fit(held_out=4, max_steps=5, logging_steps=2)
    written = lines(done.folder)
    logged = [line for line in written if "loss" in line]
    assert [line["current_steps"] for line in logged] == [1, 2, 4, 5]
    assert set(logged[0]) == {
        "current_steps",
        "total_steps",
        "loss",
        "lr",
        "grad_norm",
        "throughput",
        "total_tokens",
        "peak_memory",
        "epoch",
        "percentage",
        "elapsed_time",
        "remaining_time",
    }
    assert "eval_loss" in written[-2]
    assert written[-1]["percentage"] == 100
    assert "loss" not in written[-1]
    assert written[-1]["total_tokens"] == done.result.metrics["train_tokens"]
    history = read(done.folder, "trainer_state.json")["log_history"]
    assert [entry["step"] for entry in history] == [1, 2, 4, 5, 5]
    assert read(done.folder, "train_results.json")["train_loss"] == done.result.metrics["train_loss"]


@pytest.mark.e2e
def test_speed_and_memory_are_logged_with_each_step(fit):
    done = fit()
    for event in done.events("log"):
        assert event["tokens_per_second"] > 0
        assert event["peak_memory_bytes"] > 50e6
        assert event["total_steps"] == 10
        assert event["elapsed_s"] > 0
    assert done.events("log")[-1]["remaining_s"] == 0
    assert done.result.metrics["peak_memory_bytes"] > 50e6
    (model,) = done.events("model")
    assert (model["base"], model["method"], model["trainable_parameters"]) == (done.model.name, "lora", 32768)


@pytest.mark.e2e
def test_the_mean_loss_is_weighted_by_tokens(fit):
    done = fit(rows=fit.rows[:8], batch_size=8, max_steps=1, held_out=0, options={"dropout": 0})
    assert done.result.metrics["train_loss"] == done.losses[0]
    alone = [fit(rows=[row], batch_size=1, max_steps=1, options={"dropout": 0}).losses[0] for row in fit.rows[:8]]
    assert min(alone) < done.losses[0] < max(alone)


@pytest.mark.e2e
def test_checkpoints_are_taken_and_rotated(fit):
    done = fit(save_strategy="steps", save_steps=2, save_total_limit=2, max_steps=9)
    assert {name for name in names(done.folder) if name.startswith("checkpoint-")} == {
        "checkpoint-8",
        "checkpoint-9",
        "checkpoint-best",
    }
    assert read(done.folder / "checkpoint-8", "trainer_state.json")["global_step"] == 8
    load_for_generation(str(done.folder / "checkpoint-8"))
    assert [event["step"] for event in done.events("checkpoint")] == [2, 4, 6, 8, 9], "and one of the last step"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("strategy", "every", "steps"), [("steps", -1, [3, 6]), ("epoch", 1, [3, 6]), ("steps", 999_999, [])]
)
def test_other_rhythms_of_saving(fit, strategy, every, steps):
    done = fit(save_strategy=strategy, save_steps=every, max_steps=6, rows=fit.rows[:12])
    assert [event["step"] for event in done.events("checkpoint")] == steps


@pytest.mark.e2e
def test_the_best_checkpoint_survives_worse_ones(fit):
    # the loss falls all the time: turned round, the first evaluation is the best
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    done = fit(held_out=6, max_steps=5, save_total_limit=1, greater_is_better=True, **steps)
    losses = {event["step"]: event["eval_loss"] for event in done.events("eval")}
    kept = sorted(name for name in names(done.folder) if name.startswith("checkpoint-"))
    assert kept == ["checkpoint-1", "checkpoint-5", "checkpoint-best"]
    assert (
        read(done.folder / "checkpoint-best", "trainer_state.json")["best_metric"] == losses[1] == max(losses.values())
    )
    first, last, best = [(done.folder / name / "adapter_model.safetensors").read_bytes() for name in kept]
    assert first == best != last


@pytest.mark.e2e
def test_the_best_adapter_can_be_the_result(fit):
    done = fit(
        held_out=6,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        greater_is_better=True,
    )
    losses = {event["step"]: event["eval_loss"] for event in done.events("eval")}
    assert done.result.metrics["eval_loss"] == losses[2] == max(losses.values())
    best = done.folder / "checkpoint-best" / "adapter_model.safetensors"
    assert (done.folder / "adapter_model.safetensors").read_bytes() == best.read_bytes()


@pytest.mark.e2e
def test_early_stopping_says_so_and_ends_at_100_percent(fit):
    done = fit(
        held_out=4,
        learning_rate=0,
        max_steps=50,
        eval_strategy="steps",
        eval_steps=2,
        early_stopping=True,
        early_stopping_patience=2,
    )
    assert done.result.metrics["train_steps"] == 6
    assert any("stopped at step 6 of 50" in event["message"] for event in done.events("notice"))
    assert lines(done.folder)[-1]["percentage"] == 100


@pytest.mark.e2e
def test_exact_match_of_base_and_tuned_model(fit):
    rows = [
        Example(RowRef("rows.jsonl", 1), (Message("user", "The light is on."), Message("assistant", "The light"))),
    ]
    fit_rows = rows * 4
    done = fit(
        "full",
        rows=fit_rows,
        held_out=3,
        learning_rate=5e-3,
        max_steps=25,
        evaluation={"exact_match": True, "max_new_tokens": 12, "max_samples": 2},
    )
    assert [(event["model"], event["samples"]) for event in done.events("exact_match")] == [("base", 2), ("tuned", 2)]
    results = read(done.folder, "eval_results.json")
    assert results["exact_match_base"] == 0
    assert len(results["samples"]) == 2
    assert set(results["samples"][0]) == {"prompt", "expected", "answer"}
    assert results["samples"][0]["answer"] == "The light", "it has learnt to say nothing else"
    assert done.result.metrics["exact_match"] == 0
    without = fit(held_out=2, max_steps=1, evaluation={"exact_match": True, "baseline": False, "max_new_tokens": 2})
    assert [event["model"] for event in without.events("exact_match")] == ["tuned"]


@pytest.mark.e2e
def test_exact_match_counts_whole_answers(fit):
    done = fit("full", learning_rate=5e-3, max_steps=120, held_out=12, evaluation={"exact_match": True})
    assert done.result.metrics["exact_match_base"] == 0
    assert done.result.metrics["exact_match"] > 0.5


@pytest.mark.e2e
def test_raw_text_is_learned_whole(fit):
    rows = [Example(RowRef("rows.txt", i), text="Lock the front door and set the alarm.") for i in range(8)]
    done = fit("full", rows=rows, stage="pt", learning_rate=5e-3, max_steps=20)
    assert done.losses[-1] < done.losses[0] - 1


@pytest.mark.e2e
def test_tensorboard_gets_the_curves(fit):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = fit(report_to=("tensorboard",), held_out=4)
    events = accumulator.EventAccumulator(str(done.folder / "runs"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"} <= set(events.Tags()["scalars"])
    assert [item.value for item in events.Scalars("train/loss")] == pytest.approx(done.losses)


@pytest.mark.e2e
def test_best_without_held_out_rows_is_refused_if_it_was_asked_for(fit):
    with pytest.raises(StrategyError, match=r"load_best_model_at_end: nothing is held out.*LF-TRAIN-010"):
        fit(load_best_model_at_end=True)
    done = fit(early_stopping=True, max_steps=2)  # here only a default
    assert any("early_stopping: nothing is held out" in event["message"] for event in done.events("notice"))


@pytest.mark.e2e
def test_nothing_temporary_is_left(fit):
    done = fit(held_out=4, save_strategy="steps", save_steps=2)
    assert [path for path in done.folder.rglob("*") if path.name.startswith(".")] == []
    assert all(os.access(path, os.R_OK) for path in done.folder.rglob("*"))


@pytest.mark.e2e
def test_a_model_without_a_chat_template_is_trained_on_plain_text(fit, tiny_model_dir, tmp_path):
    import shutil

    bare = shutil.copytree(tiny_model_dir("llama"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.jinja"))
    done = fit(
        base={"huggingface_id": str(bare)},
        held_out=2,
        max_steps=2,
        evaluation={"exact_match": True, "max_new_tokens": 2},
    )
    prompt = read(done.folder, "eval_results.json")["samples"][0]["prompt"]
    assert prompt.endswith("### Response:\n")


@pytest.mark.e2e
def test_every_row_is_accounted_for_before_training(fit):
    fitted = fit(held_out=4, max_steps=2)
    ledger = fitted.events("ledger")[0]
    assert ledger["rows"]["read"] == ledger["rows"]["trained"] + ledger["rows"]["held_out"]
    assert ledger["rows"]["held_out"] == ledger["tokens"]["eval"]["examples"] == 4
    types = [event.type for event in fitted.run.events]
    assert types.index("ledger") < types.index("model") < types.index("log")


@pytest.mark.e2e
def test_answers_without_their_end_are_not_trained_on(fit):
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+: loses \d+ trained tokens, and its answer loses its end"):
        fit(max_seq_length=12)
