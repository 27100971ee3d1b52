"""A frozen base in bf16, chosen by itself: when, what is learned, and what is saved, measured and resumed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamafarm.api import DeviceSpec, ResumePoint
from llamafarm.core.registry import load_registry
from llamafarm.core.trained import base_dtype_of, load_trained
from llamafarm.models.checkpoint import read_manifest
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch import _fit, _frozen, frozen

pytestmark = pytest.mark.e2e

OPTIONS = {"max_steps": 6, "learning_rate": 2e-3}


@pytest.fixture
def wide(fit, monkeypatch, tmp_path):
    """The tiny model counts as wide, on a processor that is said to be faster in bf16: torch computes it anywhere."""
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(frozen, "NARROWEST", 64)
    monkeypatch.setattr(_frozen, "_gain", lambda _: 3.0)
    fit.device = DeviceSpec("cpu", "a CPU", details={"bf16": True, "bf16_instructions": True})
    return fit


@pytest.fixture
def formats(monkeypatch):
    """Of the frozen and of the trained weights of each training."""
    found = []

    def train(work, *rest, original=_fit.train):
        course = original(work, *rest)
        parameters = list(work.trained.model.parameters())
        found.append(
            [{str(p.dtype)[6:] for p in parameters if p.requires_grad == trained} for trained in (False, True)]
        )
        return course

    monkeypatch.setattr(_fit, "train", train)
    return found


def said(done):
    (event,) = done.events("precision")
    return event


def weights(done):
    return load_file(done.folder / "adapter_model.safetensors")


def same(one, other):
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_in_bf16_says_why_and_learns_the_same(wide, formats):
    done = wide("lora", **OPTIONS)
    assert formats == [[{"bfloat16"}, {"float32"}]]
    assert said(done)["base"] == "bfloat16"
    assert "3.0 times as fast" in said(done)["reason"]
    assert "the loss of the first rows is" in said(done)["reason"]
    assert any(said(done)["reason"] in event["message"] for event in done.events("notice"))
    asked = wide("lora", **OPTIONS, base={"huggingface_id": str(done.model), "torch_dtype": "bfloat16"})
    assert same(done, asked), "it is what asking for it gives"
    full = wide("lora", **OPTIONS, base={"huggingface_id": str(done.model), "torch_dtype": "float32"})
    assert formats[2] == [{"float32"}, {"float32"}]
    assert said(full) == {"base": "float32", "trained": "float32", "autocast": "no", "reason": ""}
    # bf16 has 8 significant bits; the mean over a batch evens most of 2^-9 out
    assert done.losses == pytest.approx(full.losses, rel=1e-3)
    assert done.losses != full.losses


def test_where_products_are_not_faster_it_stays_in_fp32(wide, formats, monkeypatch):
    turns = []
    monkeypatch.setattr(_frozen, "_gain", lambda wide: turns.append(wide) or 1.1)
    done, again = (wide("lora", **OPTIONS) for _ in range(2))
    assert formats == [[{"float32"}, {"float32"}]] * 2
    assert turns == [64], "measured once"
    assert "products in bfloat16 are 1.1 times as fast" in said(again)["reason"]
    full = wide("lora", **OPTIONS, base={"huggingface_id": str(done.model), "torch_dtype": "float32"})
    assert same(done, full)


def test_where_the_losses_disagree_it_stays_in_fp32(wide, formats, monkeypatch):
    monkeypatch.setattr(_frozen, "TOLERANCE", 0.0)
    done = wide("lora", **OPTIONS)
    assert formats == [[{"float32"}, {"float32"}]]
    assert "in bfloat16 the loss of the first rows is" in said(done)["reason"]
    full = wide("lora", **OPTIONS, base={"huggingface_id": str(done.model), "torch_dtype": "float32"})
    assert same(done, full), "looking draws nothing and leaves nothing"


def test_a_loss_that_is_not_finite_is_no_agreement(wide, formats, monkeypatch):
    losses = iter([2.0, float("nan")])
    monkeypatch.setattr(_frozen, "_loss", lambda *_: next(losses))
    assert said(wide("lora", **OPTIONS))["base"] == "float32"


class Stopping(RecordingRun):
    def emit(self, type, /, **fields):  # noqa: A002
        super().emit(type, **fields)
        self.stop_requested = self.stop_requested or (type == "log" and fields["step"] >= 3)


@pytest.mark.parametrize("gain", [3.0, 1.0])
def test_a_run_keeps_the_format_that_it_began_with(wide, formats, monkeypatch, gain):
    monkeypatch.setattr(_frozen, "_gain", lambda _: gain)
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 3}
    straight = wide("lora", **options)
    folder = wide.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        wide("lora", **options, folder=folder, run=Stopping)
    begun = "bfloat16" if gain > 2 else "float32"
    manifest = read_manifest(folder / "checkpoint-3")
    assert manifest is not None
    assert manifest.identity["base_dtype"] == begun
    frozen.remember_gain(wide.device, 64, 4.0 - gain)  # what would now be chosen is the other one
    done = wide("lora", **options, folder=folder, resume=ResumePoint())
    assert formats == [[{begun}, {"float32"}]] * 2  # the one that was stopped did not end
    assert said(done)["reason"] == "the format that the run began with"
    assert same(straight, done)


def test_a_checkpoint_of_before_had_fp32(wide, formats):
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 3}
    folder = wide.root / "stopped"
    base = {"huggingface_id": str(wide.models("llama")), "torch_dtype": "float32"}
    with pytest.raises(KeyboardInterrupt):
        wide("lora", **options, base=base, folder=folder, run=Stopping)
    file = folder / "checkpoint-3" / "llamafarm_checkpoint.json"
    record = json.loads(file.read_text())
    del record["identity"]["base_dtype"]
    file.write_text(json.dumps(record))
    wide("lora", **options, folder=folder, resume=ResumePoint())
    assert formats == [[{"float32"}, {"float32"}]]


def test_another_format_is_not_gone_on_with(wide):
    from llamafarm.errors import StrategyError

    options = OPTIONS | {"save_strategy": "steps", "save_steps": 3}
    folder = wide.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        wide("lora", **options, folder=folder, run=Stopping)
    base = {"huggingface_id": str(wide.models("llama")), "torch_dtype": "float32"}
    with pytest.raises(StrategyError, match=r"base's format was bfloat16 and is float32 now.*LF-TRAIN-052"):
        wide("lora", **options, base=base, folder=folder, resume=ResumePoint())


def test_the_saved_adapter_is_measured_on_the_base_it_was_trained_on(wide):
    done = wide("lora", held_out=6, eval_strategy="epoch", **OPTIONS)
    assert base_dtype_of(str(done.folder)) == "bfloat16"
    registry = load_registry()
    as_trained, *_ = load_trained(str(done.folder), registry, device="cpu")
    assert {p.dtype for n, p in as_trained.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    whole, *_ = load_trained(str(done.folder), registry, device="cpu", dtype=torch.float32, unpacked=True)
    base = AutoModelForCausalLM.from_pretrained(done.model, dtype=torch.float32)
    kept = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): p for name, p in whole.named_parameters()
    }
    assert all(torch.equal(kept[name], p) for name, p in base.named_parameters()), (
        "an export begins from full precision"
    )
    plain = wide("lora", base={"huggingface_id": str(done.model), "torch_dtype": "float32"}, **OPTIONS)
    assert base_dtype_of(str(plain.folder)) is None


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt_neox"])
def test_full_precision_is_that_of_the_whole_model_and_leaves_it_as_it_was(wide, tiny_model_dir, architecture):
    folder = tiny_model_dir(architecture)
    short = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in short.state_dict().items()}
    rows = [_row(range(3, 60)), _row(range(60, 90))]
    with _frozen._in_full_precision(short):
        found = _frozen._loss(short, rows)
    after = short.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )
    assert found != _frozen._loss(short, rows)
    assert found == _frozen._loss(short.float(), rows)


def _row(ids):
    from llamafarm.data.tokens import TokenizedRow

    return TokenizedRow(list(ids), [-100] * len(ids))


def test_a_base_stored_in_bf16_is_loaded_once(wide, monkeypatch, tmp_path, tiny_model_dir):
    from transformers import AutoTokenizer

    source, folder = tiny_model_dir("llama"), tmp_path / "short"
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    loads = []

    def model_for(config, original=_fit.model_for, **rest):
        loads.append(config.base_model.torch_dtype)
        return original(config, **rest)

    monkeypatch.setattr(_fit, "model_for", model_for)
    done = wide("lora", base={"huggingface_id": str(folder)}, **OPTIONS)
    assert loads == ["bfloat16"]
    assert said(done)["base"] == "bfloat16"
    assert same(done, wide("lora", base={"huggingface_id": str(folder), "torch_dtype": "bfloat16"}, **OPTIONS))


def test_products_are_timed():
    assert 0.01 < _frozen._gain(64) < 100
