from __future__ import annotations

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
from safetensors.torch import load_file
from torch import nn

from llamafarm.api import GuardConfig
from llamafarm.errors import DiskError, LlamaFarmError, NumericError, StrategyError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch._recovery import Recovery
from llamafarm_tuners.pytorch._remedies import Patient
from llamafarm_tuners.pytorch._state import Engine, read_state, restore, snapshot, understood, write_state
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
    assert {path.name for path in tmp_path.iterdir()} == {
        "optimizer.safetensors",
        "training_state.json",
        "training_state.safetensors",
    }
    assert not [path for path in tmp_path.iterdir() if path.read_bytes()[:2] in (b"\x80\x02", b"PK")], "no pickle"


DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
ODD = {
    "a number": "7",
    "a list": "[]",
    "nested for ever": DEEP,
    "not JSON": "{",
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
