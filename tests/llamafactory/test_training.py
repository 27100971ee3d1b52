"""The real LLaMA-Factory trains the embedded model, and what it leaves is a run like any other."""

from __future__ import annotations

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llamafarm.cli.guard import run as run_command
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.core.run import train
from llamafarm.core.trained import load_trained
from llamafarm.errors import StrategyError
from llamafarm.testing.rows import make_fields

CHATS = {"generate": {"name": "smart-home", "size": 60}}
PAIRS = [
    {
        "prompt": f"Is it {word}?",
        "chosen": f"Yes, it is {word}.",
        "rejected": "I will not say.",
    }
    for word in ("on", "off", "open", "closed", "warm", "cold", "dark", "bright", "full", "empty", "near", "far")
]


def block(dataset=None, **config):
    training = {"max_steps": 4, "batch_size": 2, "logging_steps": 1, "save_steps": 2, "learning_rate": 1e-3}
    base = {"base_model": "builtin:tiny", "dataset": dataset or CHATS, "training": training}
    return {"type": "llamafactory", "config": {**base, **config}}


def losses(finished):
    return [event.fields["loss"] for event in finished.events if event.type == "log"]


def answer(folder):
    from llamafarm.models._generate import Sampling, generate

    model, tokenizer, _ = load_trained(str(folder), load_registry(), device="cpu")
    chat = [{"role": "user", "content": "Turn on the lamp."}]
    return generate(model, tokenizer, [chat], Sampling(max_new_tokens=4))[0]


@pytest.mark.parametrize(
    "config",
    [
        {"finetuning_type": "lora", "lora_rank": 4},
        {"method": {"type": "lora", "r": 4}},
        {"method": {"type": "dora", "r": 4}},
        {"method": {"type": "qlora", "r": 4}},
        {"finetuning_type": "qlora", "lora_rank": 4, "lora_target": "q_proj,v_proj", "double_quantization": True},
        {"finetuning_type": "lora", "lora_rank": 4, "quantization_bit": 8},
        {"method": {"type": "qlora", "r": 4, "quantization": {"load_in_4bit": False, "load_in_8bit": True}}},
        {"method": "full"},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        {"method": {"type": "freeze", "freeze_trainable_layers": 1}},
        {"finetuning_type": "oft"},
        {"finetuning_type": "lora", "training": {"max_steps": 4, "packing": True, "max_seq_length": 256}},
    ],
    ids=[
        "lora",
        "our lora",
        "dora",
        "our qlora",
        "qlora",
        "8 bit",
        "our 8 bit",
        "full",
        "freeze",
        "our freeze",
        "oft",
        "packing",
    ],
)
def test_sft(run_strategy, config):
    finished = run_strategy(block(**config))
    result, folder = finished.result, finished.output_dir
    assert losses(finished)
    assert all(map(math.isfinite, losses(finished)))
    assert 0 < result.trainable_parameters <= result.total_parameters
    assert result.metrics["train_steps"] == 4
    assert isinstance(answer(folder), str)
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(losses(finished))
    assert (folder / "training_loss.png").stat().st_size > 1000
    described = folder / "adapter_config.json"
    if described.is_file():
        assert json.loads(described.read_text())["base_model_name_or_path"] == "builtin:tiny"
    assert (folder / "checkpoint-best").is_dir()


def test_losses_fall(run_strategy):
    training = {"max_steps": 30, "batch_size": 4, "logging_steps": 1, "learning_rate": 5e-3, "save_strategy": "no"}
    seen = losses(run_strategy(block(method="lora", training=training)))
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


@pytest.mark.parametrize(
    ("stage", "arguments"), [("dpo", {}), ("dpo", {"pref_loss": "orpo"}), ("rm", {})], ids=["dpo", "orpo", "rm"]
)
def test_preferences(run_strategy, tmp_path, stage, arguments):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    finished = run_strategy(block(str(path), stage=stage, method={"type": "lora", "r": 4}, arguments=arguments))
    assert losses(finished)
    assert isinstance(answer(finished.output_dir), str)
    assert (finished.output_dir / "value_head.safetensors").exists() is (stage == "rm")


def test_kto(run_strategy, tmp_path):
    path = tmp_path / "judged.jsonl"
    rows = [
        {"prompt": row["prompt"], "completion": row[which], "label": which == "chosen"}
        for row in PAIRS
        for which in ("chosen", "rejected")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert losses(run_strategy(block(str(path), stage="kto", method={"type": "lora", "r": 4})))


def test_raw_text(run_strategy, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"The lamp number {n} is on."}) + "\n" for n in range(20)))
    assert losses(run_strategy(block(str(path), stage="pt", method={"type": "lora", "r": 4})))


def test_held_out_rows_are_ours(run_strategy):
    training = {"max_steps": 4, "batch_size": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    training |= {"load_best_model_at_end": True, "learning_rate": 1e-3, "report_to": ["tensorboard"]}
    splitter = {"type": "hash", "config": {"eval_percentage": 20}}
    finished = run_strategy(block(method="lora", training=training), data_splitter=splitter)
    manifest = json.loads((finished.output_dir / "llamafarm" / "manifest.json").read_text())
    data = finished.output_dir / "llamafarm" / "llamafactory" / "tokens"
    for side, name in (("trained", "train"), ("held_out", "validation")):
        assert len((data / f"{name}.jsonl").read_text().splitlines()) == manifest["rows"][side] > 0
    assert isinstance(finished.result.metrics["eval_loss"], float)
    assert finished.result.best_step in (2, 4)
    curves = EventAccumulator(str(finished.output_dir / "runs")).Reload()
    for event_type, tag in (("log", "loss"), ("eval", "eval_loss")):
        told = [(event.fields["step"], event.fields[tag]) for event in finished.events if event.type == event_type]
        group = "train" if event_type == "log" else "eval"
        drawn = [(one.step, one.value) for one in curves.Scalars(f"{group}/loss")]
        assert drawn == [(step, pytest.approx(value)) for step, value in told if value is not None]
        assert drawn
    assert (finished.output_dir / "training_eval_loss.png").stat().st_size > 1000


def test_the_result_is_a_run_like_any_other(run_strategy, tmp_path, capsys):
    runs = [run_strategy(block(method={"type": "lora", "r": rank})).output_dir for rank in (2, 4)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Turn on {n}", "output": f"On {n}."}) + "\n" for n in range(4)))

    def say(*words: str) -> str:
        code = run_command(list(words))
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    one, other = map(str, runs)
    assert say("generate", "--model", one, "--prompt", "Is the lamp on?", "--max-new-tokens", "4")
    assert "loss" in say("evaluate", "--model", one, "--data", str(data), "--max-new-tokens", "4")
    say("export", one, "--to", "merged")
    assert (runs[0] / "export" / "merged" / "model.safetensors").is_file()
    assert "config" in say("runs", "diff", one, other)
    (runs[0] / "training_loss.png").unlink()
    say("plot-loss", one)
    assert (runs[0] / "training_loss.png").stat().st_size > 1000


def test_going_on_from_a_checkpoint_gives_the_same_weights(run_strategy):
    training = {"max_steps": 6, "batch_size": 2, "logging_steps": 1, "save_steps": 3, "learning_rate": 1e-3}
    method = {"type": "lora", "r": 4, "dropout": 0.1}
    whole = run_strategy(block(method=method, training=training))
    start = {"resume_from_checkpoint": str(whole.output_dir / "checkpoint-3")}
    gone_on = run_strategy(block(method=method, training=training, **start))
    assert losses(gone_on) == losses(whole)[3:]
    one, other = (run.output_dir / "adapter_model.safetensors" for run in (whole, gone_on))
    assert one.read_bytes() == other.read_bytes()


def test_the_preset_with_the_guides_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_fields(24)))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"alpaca_en": {"file_name": data.name}}))
    registry = load_registry()
    sets = ("base_model=builtin:tiny", "dataset=alpaca_en", f"output_dir={tmp_path / 'out'}", "hardware=cpu")
    sets += ("training.max_steps=2", "training.logging_steps=1", "template=chatml")  # it has no tokens of Phi's
    loaded = load(Request("phi3-llamafactory", sets=sets), registry)
    seen = []
    train(loaded, make_plan(loaded, registry), registry, seen.append)
    assert [event.fields["step"] for event in seen if event.type == "log"] == [1, 2]
    told = json.loads((tmp_path / "out" / "llamafarm" / "llamafactory" / "train.yaml").read_text())
    guide = {
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all",
        "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4, "lr_scheduler_type": "cosine", "save_steps": 500, "learning_rate": 5e-4,
        "num_train_epochs": 3.0, "plot_loss": True, "bf16": True,
    }  # fmt: skip
    assert {name: told[name] for name in guide} == guide
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["lora_dropout"]) == (16, 32, 0.1)
    assert isinstance(answer(tmp_path / "out"), str)


def test_an_argument_that_it_has_not(run_strategy):
    with pytest.raises(StrategyError, match=r"has no argument 'lora_rnk'; did you mean 'lora_rank'\?.*LF-STRATEGY-087"):
        run_strategy(block(arguments={"lora_rnk": 4}))


def test_a_template_that_it_has_not(run_strategy):
    with pytest.raises(StrategyError, match=r"no template 'llama22'; did you mean 'llama2'\?.*LF-STRATEGY-088"):
        run_strategy(block(template="llama22"))


def test_a_template_of_another_family(run_strategy):
    with pytest.raises(StrategyError, match=r"a token is beyond .*template of the model's own family.*LF-STRATEGY-102"):
        run_strategy(block(template="phi"))


def test_its_own_error_is_one_line(run_strategy):
    with pytest.raises(Exception, match=r"LLaMA-Factory failed: .*nothing_like_that.*LF-STRATEGY-091") as caught:
        run_strategy(block(finetuning_type="lora", lora_target="nothing_like_that"))
    assert "\n" not in str(caught.value)


def test_values_arrive_unchanged(run_strategy, tmp_path):
    odd = 'be brief; $(touch hacked) `x` "quoted"\nand on a new line'
    finished = run_strategy(block(arguments={"default_system": odd}))
    place = finished.output_dir / "llamafarm" / "llamafactory"
    assert json.loads((place / "train.yaml").read_text())["default_system"] == odd
    assert not list(tmp_path.rglob("hacked"))
