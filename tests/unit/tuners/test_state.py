from __future__ import annotations

import errno
import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from llamafarm.api import GuardConfig
from llamafarm.errors import DiskError, LlamaFarmError, NumericError, StrategyError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._recovery import Recovery
from llamafarm_tuners.pytorch._remedies import Patient
from llamafarm_tuners.pytorch._state import (
    METHODS,
    OWN_FILES,
    Engine,
    read_methods,
    read_state,
    restore,
    snapshot,
    trained_weights,
    understood,
    write_state,
)
from llamafarm_tuners.pytorch._tree import copied, pack, unpack
from llamafarm_tuners.pytorch.guard import Figures, Offence

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers() | st.just("$tuple"), inner)
    ),
    max_leaves=20,
)


@given(TREES)
def test_nested_values_survive_json(value):
    tensors: dict[str, torch.Tensor] = {}
    described = json.loads(json.dumps(pack(value, tensors, "x"), allow_nan=False))
    assert repr(unpack(described, tensors)) == repr(value)  # repr: nan is not equal to itself, 1 is equal to True


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(TypeError, match=r"x\.a\.0: a function cannot be kept"):
        pack({"a": [lambda: 0]}, {}, "x")


def test_copies_share_no_memory():
    value = {"a": (torch.zeros(2), 1)}
    other = copied(value)
    value["a"][0].add_(1)
    assert other["a"][0].tolist() == [0, 0]
    assert math.isclose(other["a"][1], 1)


pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")


class Net(nn.Module):
    """Two layers with dropout between them, and a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(8, 16), nn.Linear(16, 1), nn.Dropout(0.5)
        self.one.bias.requires_grad_(requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        return self.two(self.drop(torch.relu(self.one(x))))


def optimizers() -> dict[str, Any]:
    made = {
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
        "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    }
    try:
        import bitsandbytes
    except ImportError:
        return made
    return made | {
        "adamw_8bit": lambda parameters: bitsandbytes.optim.AdamW8bit(parameters, lr=1e-2, min_8bit_size=64),
        "paged_adamw_32bit": lambda parameters: bitsandbytes.optim.PagedAdamW32bit(parameters, lr=1e-2),
    }


def engine(optimizer: str) -> Engine:
    torch.manual_seed(0)
    net = Net()
    made = optimizers()[optimizer]([p for p in net.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 / (1 + step))
    return Engine(net, made, schedule, Accelerator(cpu=True), {})


def take(engine: Engine) -> float:
    """A step on rows drawn from all three generators."""
    rows = torch.randn(4, 8) + random.random() + float(np.random.rand())  # noqa: NPY002  # what plugins may do
    loss = engine.model(rows).square().mean()
    loss.backward()
    engine.optimizer.step()
    engine.scheduler.step()
    engine.optimizer.zero_grad()
    return loss.item()


def everything(engine: Engine) -> list[list[float]]:
    return [tensor.flatten().tolist() for tensor in engine.model.state_dict().values()]


@pytest.mark.parametrize("optimizer", optimizers())
def test_rolling_back_in_memory_repeats_the_steps_as_often_as_wanted(optimizer):
    subject = engine(optimizer)
    for _ in range(3):
        take(subject)
    kept = snapshot(subject, 3)
    first, weights = [take(subject) for _ in range(4)], everything(subject)
    for _ in range(2):
        restore(subject, kept)
        assert [take(subject) for _ in range(4)] == first
        assert everything(subject) == weights


@pytest.mark.parametrize("optimizer", optimizers())
def test_a_state_from_disk_repeats_the_steps_in_a_new_engine(tmp_path, optimizer):
    subject = engine(optimizer)
    for _ in range(3):
        take(subject)
    write_state(snapshot(subject, 3, copy=False), tmp_path)
    expected = [take(subject) for _ in range(4)]
    other = engine(optimizer)
    take(other)
    read = read_state(tmp_path)
    assert read.step == 3
    restore(other, read)
    assert [take(other) for _ in range(4)] == expected
    assert everything(other) == everything(subject)
    names = {"optimizer.safetensors", "training_state.json", "training_state.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names == OWN_FILES
    assert not [path for path in tmp_path.iterdir() if path.read_bytes()[:2] in (b"\x80\x02", b"PK")], "no pickle"


DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
ODD = {
    "a number": "7",
    "a list": "[]",
    "nested for ever": DEEP,
    "not JSON": "{",
    "of another version": {"version": 2},
    "no step": {"step": None},
    "a step that is a text": {"step": "3"},
    "a step before the first": {"step": -1},
    "a weight elsewhere": {"weights": {"two.bias": ["../elsewhere.safetensors", "two.bias"]}},
    "a weight from the root": {"weights": {"two.bias": ["/etc/passwd", "x"]}},
    "a weight that is not there": {"weights": {"two.bias": ["training_state.safetensors", "x"]}},
    "weights that are a list": {"weights": [1]},
    "an optimizer of other tensors": {"optimizer": {"$tensor": "x"}},
    "an optimizer that is a text": {"optimizer": "x"},
    "parts that are none": {"optimizer": {"$tuple": 7}},
    "keys that cannot be keys": {"scheduler": {"$items": [[[1], 2]]}},
    "a schedule that is a list": {"scheduler": []},
    "others that are a list": {"others": [1]},
    "another of another kind": {"others": {"counted": {"count": "many"}}},
    "another that is a list": {"others": {"counted": [1]}},
    "generators that are none": {"random": ["{}"]},
    "generators that are a number": {"random": 7},
    "generators of code": {"random": ["__import__('os')"]},
    "generators of other sizes": {"random": [json.dumps({"python": [3, [1], None], "torch": "00"})]},
}


class Counted:
    count = 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_state_is_an_error_of_ours(tmp_path, name):
    subject = replace(engine("adamw"), others={"counted": Counted()})
    take(subject)
    write_state(snapshot(subject, 1), tmp_path)
    path, odd = tmp_path / "training_state.json", ODD[name]
    path.write_text(odd if isinstance(odd, str) else json.dumps(json.loads(path.read_text()) | odd))
    (tmp_path.parent / "elsewhere.safetensors").write_bytes((tmp_path / "training_state.safetensors").read_bytes())
    with pytest.raises(LlamaFarmError, match=r"LF-DISK-030|LF-TRAIN-050"), understood(tmp_path):
        restore(subject, read_state(tmp_path))


def test_weights_are_read_from_the_checkpoint_alone(tmp_path):
    """Whatever lies elsewhere, and fits."""
    (tmp_path / "checkpoint-1").mkdir()
    save_file({"two.bias": torch.ones(1)}, tmp_path / "elsewhere.safetensors")
    write_state(snapshot(engine("adamw"), 1), tmp_path / "checkpoint-1")
    path = tmp_path / "checkpoint-1" / "training_state.json"
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": {"two.bias": [name, "two.bias"]}}))
        with pytest.raises(DiskError, match=r"outside the checkpoint.*LF-DISK-030"):
            read_state(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("file", ["training_state.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"])
def test_tensors_that_are_none_are_an_error_of_ours(tmp_path, file, content):
    subject = engine("adamw")
    take(subject)
    write_state(snapshot(subject, 1), tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DiskError, match="LF-DISK-030"):
        read_state(tmp_path)


def test_8_bit_states_are_kept_in_8_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    subject = engine("adamw_8bit")
    take(subject)
    write_state(snapshot(subject, 1), tmp_path)
    tensors = load_file(tmp_path / "optimizer.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if name.endswith("state1")} == {torch.uint8, torch.float32}


def test_a_state_of_another_model_is_refused(tmp_path):
    subject = engine("adamw")
    take(subject)
    kept = snapshot(subject, 1)
    other = engine("adamw")
    other.model.one.bias.requires_grad_(requires_grad=True)
    with pytest.raises(StrategyError, match=r"one\.bias is trained on one side only.*LF-TRAIN-050"):
        restore(other, kept)
    wider = engine("adamw")
    wider.model.two = nn.Linear(16, 2)
    with pytest.raises(StrategyError, match="another shape"):
        restore(wider, kept)
    fewer = engine("adamw")
    fewer.optimizer.param_groups[0]["params"].pop()
    with pytest.raises(StrategyError, match="state does not fit"):
        restore(fewer, kept)
    for part in ("optimizer", "scheduler"):
        with pytest.raises(StrategyError, match=r"state does not fit.*LF-TRAIN-050"):
            restore(engine("adamw"), replace(kept, **{part: {}}))


def test_a_state_that_is_not_finite_is_never_written(tmp_path):
    subject = engine("adamw")
    take(subject)
    next(iter(subject.optimizer.state.values()))["exp_avg"][0] = math.nan
    with pytest.raises(NumericError, match="exp_avg of the training state is not finite"):
        write_state(snapshot(subject, 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_not_finite_is_none_to_go_back_to(tmp_path):
    subject, figures = engine("adamw"), Figures(math.nan, 1.0, 1.0, 1e-3, 1e-3)
    offence = Offence(3, "LF-NUMERIC-001", "non-finite", "the loss is nan", "recover", figures)
    run = RecordingRun(tmp_path)

    def patient() -> Patient:
        work: Any = subject
        return Patient(work.model, work.optimizer, work.scheduler, Accelerator(cpu=True), lambda: None, 0.1)

    recovery = Recovery(GuardConfig(policy="recover", snapshot_steps=1), run, patient)
    take(subject)
    recovery.keep(subject, 1)
    sound = everything(subject)
    with torch.no_grad():
        subject.model.one.weight[0, 0] = math.nan
    recovery.keep(subject, 2)
    assert recovery.back(subject, offence) == 1
    assert everything(subject) == sound


def test_a_state_without_a_copy_is_the_training_itself():
    subject = engine("adamw")
    take(subject)
    own, shared = snapshot(subject, 1), snapshot(subject, 1, copy=False)
    before = own.weights["two.bias"].clone()
    take(subject)
    assert torch.equal(own.weights["two.bias"], before)
    assert torch.equal(shared.weights["two.bias"], subject.model.two.bias)
    assert set(own.weights) == {"one.weight", "two.weight", "two.bias", "seen"}, "what is frozen is not kept"
    assert dict(trained_weights(subject.model))["seen"] is subject.model.seen


def test_a_state_can_be_put_back_after_the_training_has_gone_on_from_it():
    subject = engine("momentum")
    take(subject)
    kept = snapshot(subject, 1)
    restore(subject, kept)
    first = take(subject)
    restore(subject, kept)
    assert take(subject) == first, "going on has not changed what was kept"


@pytest.mark.parametrize("host", [False, True])
def test_where_a_state_is_kept(host, monkeypatch):
    """Beside what trains, or in main memory: an accelerator's is soon full."""
    from llamafarm_tuners.pytorch import _state

    asked = []
    monkeypatch.setattr(_state, "copied", lambda value, device=None: asked.append(device) or copied(value))
    snapshot(engine("adamw"), 1, **({"host": True} if host else {}))
    assert asked[:2] == (["cpu", "cpu"] if host else [None, None])


class Noted:
    """Says in which order it was put back, and what the weights were then."""

    def __init__(self, name: str, order: list, model: nn.Module, state: Any = None) -> None:
        self.name, self.order, self.model, self.state = name, order, model, state or {"of": name}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.order.append((self.name, state, self.model.two.bias.item()))


def test_methods_are_put_back_before_the_weights_and_the_others_after_them():
    subject, order = engine("adamw"), []
    noted = {name: Noted(name, order, subject.model) for name in ("best", METHODS, "report")}
    subject = replace(subject, others=noted)
    kept = snapshot(subject, 1)
    was = subject.model.two.bias.item()
    with torch.no_grad():
        subject.model.two.bias.add_(1)
    restore(subject, kept)
    assert order == [
        (METHODS, {"of": METHODS}, pytest.approx(was + 1)),
        ("best", {"of": "best"}, was),
        ("report", {"of": "report"}, was),
    ]


def test_what_is_new_since_begins_anew_and_what_is_gone_is_left():
    subject, order = engine("adamw"), []
    kept = replace(snapshot(subject, 1), others={"gone": {"x": 1}})
    restore(replace(subject, others={"new": Noted("new", order, subject.model)}), kept)
    assert order == []
    restore(replace(subject, others={METHODS: Noted(METHODS, order, subject.model)}), kept)
    assert [(name, state) for name, state, _ in order] == [(METHODS, {})]


@pytest.mark.parametrize(
    ("own", "given", "fits"),
    [
        ({"a": 1}, {"a": 1.5}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"b": "1"}, True),
        ({"a": None}, {"a": "1"}, True),
        ({"a": "1"}, {"a": None}, True),
        ({"a": [1]}, {"a": (1,)}, True),
        ({"a": [1]}, {"a": "1"}, False),
        ({"a": {"b": "x"}}, {"a": {"b": 1}}, False),
        ({"a": {"b": "x"}}, {"a": [1]}, False),
        ({"a": "x", "b": 1}, {"a": "y", "b": "1"}, False),
    ],
)
def test_only_values_of_their_kind_are_put_back(own, given, fits):
    order: list = []
    subject = engine("adamw")
    subject = replace(subject, others={"one": Noted("one", order, subject.model, own)})
    kept = replace(snapshot(subject, 1), others={"one": given})
    if fits:
        restore(subject, kept)
        assert [state for _, state, _ in order] == [given]
    else:
        with pytest.raises(ValueError, match="what it says of one is of another kind"):
            restore(subject, kept)
        assert order == []


def test_the_scale_of_the_loss_is_kept(tmp_path):
    subject, other, without = engine("adamw"), engine("adamw"), engine("adamw")
    for made, scale in ((subject, 512.0), (other, 2.0)):
        made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        made.accelerator.scaler.scale(torch.ones(1))
    write_state(snapshot(subject, 1), tmp_path)
    restore(other, read_state(tmp_path))
    assert other.accelerator.scaler.get_scale() == 512.0
    restore(without, read_state(tmp_path))
    assert without.accelerator.scaler is None
    kept = snapshot(without, 1)
    assert kept.scaler is None
    restore(other, kept)
    assert other.accelerator.scaler.get_scale() == 512.0


def test_each_process_gets_its_own_generators_back_and_one_more_keeps_those_it_has():
    subject = engine("adamw")
    torch.manual_seed(1)
    first = snapshot(subject, 1).random
    torch.manual_seed(2)
    second = snapshot(subject, 1).random
    kept = replace(snapshot(subject, 1), random=first + second)
    expected = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        expected.append(torch.rand(1).item())
    for rank in range(3):

        class Ranked:
            process_index, scaler, device = rank, None, torch.device("cpu")

        torch.manual_seed(3)
        restore(replace(subject, accelerator=Ranked()), kept)
        assert torch.rand(1).item() == expected[rank]


def test_a_weight_of_another_precision_is_refused():
    subject, other = engine("adamw"), engine("adamw")
    kept = snapshot(subject, 1)
    other.model.two.to(torch.bfloat16)
    with pytest.raises(StrategyError, match=r"two\.weight has another shape or precision"):
        restore(other, kept)
    other = engine("adamw")
    other.model.one.bias.requires_grad_(requires_grad=True)
    other.model.two.weight.requires_grad_(requires_grad=False)
    with pytest.raises(StrategyError, match=r"one\.bias is trained on one side only \(2 differ\)"):
        restore(other, kept)


def test_weights_that_stand_in_the_model_are_not_written_again(tmp_path):
    """Under their own names, or as PEFT writes them; only if they are the very same."""
    subject = engine("adamw")
    weights = {
        "a.default.weight": torch.full((2,), 1.0),
        "b.default": torch.full((2,), 2.0),
        "c": torch.full((2,), 3.0),
        "changed": torch.full((2,), 4.0),
        "other_format": torch.full((2,), 5.0),
        "new": torch.full((2,), 6.0),
    }
    there = {
        "a.weight": weights["a.default.weight"],
        "b": weights["b.default"],
        "c": weights["c"],
        "changed": torch.full((2,), 4.5),
        "other_format": weights["other_format"].to(torch.bfloat16),
    }
    save_file(there, tmp_path / "adapter_model.safetensors")
    save_file({"new": torch.zeros(3)}, tmp_path / "another.safetensors")
    write_state(replace(snapshot(subject, 1), weights=weights), tmp_path)
    assert json.loads((tmp_path / "training_state.json").read_text())["weights"] == {
        "a.default.weight": ["adapter_model.safetensors", "a.weight"],
        "b.default": ["adapter_model.safetensors", "b"],
        "c": ["adapter_model.safetensors", "c"],
    }
    written = {name for name in load_file(tmp_path / "training_state.safetensors") if name.startswith("weight.")}
    assert written == {"weight.changed", "weight.other_format", "weight.new"}
    read = read_state(tmp_path).weights
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) and read[name].dtype == weights[name].dtype for name in weights)


def test_tensors_of_any_memory_are_written_as_what_they_say(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    weights = {
        "whole": whole,
        "same": whole,
        "again": whole,
        "part": whole[1],
        "turned": torch.arange(6.0).reshape(2, 3).t(),
    }
    write_state(replace(snapshot(engine("adamw"), 1), weights=weights), tmp_path)
    read = read_state(tmp_path).weights
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert (tmp_path / "training_state.safetensors").stat().st_size < 4 * (12 + 12 + 12 + 4 + 6 + 1) + 1000


def test_whole_numbers_are_finite(tmp_path):
    weights = {"count": torch.tensor([3]), "bits": torch.tensor([1], dtype=torch.uint8)}
    write_state(replace(snapshot(engine("adamw"), 0), weights=weights), tmp_path)
    read = read_state(tmp_path)
    assert (read.step, read.weights["count"].item(), read.weights["bits"].dtype) == (0, 3, torch.uint8)
    for name in ("weight", "other"):
        bad = {"x": torch.tensor([math.inf])}
        state = replace(snapshot(engine("adamw"), 0), **({"weights": bad} if name == "weight" else {"others": bad}))
        with pytest.raises(NumericError, match="of the training state is not finite: the checkpoint is not saved"):
            write_state(state, tmp_path)


def test_what_methods_keep_is_read_alone(tmp_path):
    subject = engine("adamw")
    state = {"lora": {"ranks": [1, 2], "mask": torch.ones(2)}}
    others = {METHODS: state, "best": {"mask": torch.zeros(2)}}
    write_state(replace(snapshot(subject, 1), others=others), tmp_path)
    read = read_methods(tmp_path)
    assert read["lora"]["ranks"] == [1, 2]
    assert torch.equal(read["lora"]["mask"], torch.ones(2))
    write_state(replace(snapshot(subject, 1), others={}), tmp_path)
    assert read_methods(tmp_path) == {}


ERRORS = [KeyError("x"), TypeError("x"), ValueError("x"), AttributeError("x"), ZeroDivisionError("x"), IndexError("x")]


@pytest.mark.parametrize("error", [*ERRORS, RuntimeError("x"), OSError(errno.EIO, "x")], ids=repr)
def test_whatever_an_odd_state_makes_of_it_is_said_in_words(tmp_path, error):
    with pytest.raises(DiskError) as caught, understood(tmp_path / "checkpoint-3"):
        raise error
    (problem,) = caught.value.problems
    assert (problem.id, problem.where) == ("LF-DISK-030", str(tmp_path / "checkpoint-3"))
    assert problem.message.startswith(
        f"the training state in checkpoint-3 cannot be understood ({type(error).__name__}: "
    )
    assert caught.value.__cause__ is error


def test_a_long_reason_is_cut_and_on_one_line(tmp_path):
    with pytest.raises(DiskError) as caught, understood(tmp_path):
        raise ValueError("a\n  b" + "c" * 300)
    assert caught.value.problems[0].message.endswith(f"(ValueError: a b{'c' * 197})")


def test_too_little_memory_is_no_fault_of_the_checkpoint(tmp_path):
    with pytest.raises(torch.OutOfMemoryError), understood(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory")
