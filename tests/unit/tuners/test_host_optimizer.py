"""The optimizer in main memory, from a CPU to a CPU: all of it but the streams that a GPU copies in."""

from __future__ import annotations

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn
from transformers.optimization import get_scheduler

from llamafarm.api import TrainingConfig
from llamafarm_tuners.pytorch import _host_optimizer, optim
from llamafarm_tuners.pytorch._host_optimizer import HostOptimizer
from llamafarm_tuners.pytorch._optimizer import build_optimizer, parameter_groups

TRAINING = TrainingConfig(
    optim="adamw_torch_fused", learning_rate=0.1, weight_decay=0.1, lr_scheduler_type="cosine", adam_beta1=0.8
)
OFFLOADED = TRAINING.model_copy(update={"use_cpu_offload": True})


@pytest.fixture(autouse=True)
def _beside_main_memory(monkeypatch):
    monkeypatch.setattr(optim, "BESIDE_MAIN_MEMORY", {"cpu"})


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 2)).to(dtype)


class Trainer:
    """A model that takes steps on rows that follow from their number."""

    def __init__(self, training: TrainingConfig, dtype: torch.dtype = torch.float32) -> None:
        self.model = small(dtype)
        self.optimizer = build_optimizer(self.model, training, "cpu")
        self.schedule()

    def schedule(self) -> None:
        self.scheduler = get_scheduler("cosine", self.optimizer, num_warmup_steps=2, num_training_steps=12)

    def use_parts_of(self, size: int) -> None:
        build = functools.partial(torch.optim.AdamW, fused=True, betas=(0.8, 0.999), eps=1e-8)
        self.optimizer = HostOptimizer(parameter_groups(self.model, TRAINING), build, size)
        self.schedule()

    def steps(self, first: int, last: int) -> list[torch.Tensor]:
        for step in range(first, last):
            rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(self.model[0].weight.dtype)
            # in every third step the last layer is not used: it has no gradient
            (self.model[:2] if step % 3 == 2 else self.model)(rows).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def held(trainer: Trainer) -> list[nn.Parameter]:
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def test_it_computes_what_the_optimizer_on_the_device_computes_to_the_last_bit():
    assert type(Trainer(OFFLOADED).optimizer) is HostOptimizer
    assert equal(Trainer(OFFLOADED).steps(0, 8), Trainer(TRAINING).steps(0, 8))
    assert not equal(Trainer(OFFLOADED).steps(0, 7), Trainer(TRAINING).steps(0, 8))


@pytest.mark.parametrize("size", [1, 600, 2**30])
def test_the_size_of_the_parts_does_not_matter(size):
    trainer = Trainer(TRAINING)
    trainer.use_parts_of(size)
    assert equal(trainer.steps(0, 8), Trainer(TRAINING).steps(0, 8))


@pytest.mark.parametrize(("first", "then"), [(OFFLOADED, TRAINING), (TRAINING, OFFLOADED), (OFFLOADED, OFFLOADED)])
def test_its_state_is_that_of_the_optimizer_on_the_device(first, then):
    before, after = Trainer(first), Trainer(then)
    before.steps(0, 5)
    state = copy.deepcopy(before.optimizer.state_dict())
    assert state.keys() == Trainer(TRAINING).optimizer.state_dict().keys()
    after.model.load_state_dict(before.model.state_dict())
    after.optimizer.load_state_dict(state)
    after.scheduler.load_state_dict(before.scheduler.state_dict())
    assert equal(after.steps(5, 9), Trainer(TRAINING).steps(0, 9))


@pytest.mark.parametrize("by_data", [False, True])
def test_parameters_that_somebody_else_changes_are_taken_over(by_data):
    trainers = [Trainer(OFFLOADED), Trainer(TRAINING)]
    for trainer in trainers:
        trainer.steps(0, 2)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if by_data:
                    parameter.data = parameter.data * 0.5
                else:
                    parameter.mul_(0.5)
    assert equal(*(trainer.steps(2, 5) for trainer in trainers))


def test_weights_in_16_bits_keep_a_copy_in_32_to_which_small_updates_add_up():
    tiny = {"learning_rate": 1e-5, "weight_decay": 0.0}
    inside, beside = (Trainer(training.model_copy(update=tiny), torch.bfloat16) for training in (TRAINING, OFFLOADED))
    initial = [parameter.detach().clone() for parameter in held(inside)]
    inside.steps(0, 11)
    beside.steps(0, 11)
    norm = next(index for index, parameter in enumerate(initial) if torch.all(parameter == 1))
    state = beside.optimizer.state_dict()["state"]
    assert torch.equal(held(inside)[norm], initial[norm]), "each update is less than half of the last place"
    assert not torch.equal(state[norm]["master"], initial[norm].float())
    for index, parameter in enumerate(held(beside)):
        assert torch.equal(parameter, state[index]["master"].bfloat16())
        assert state[index]["exp_avg"].dtype == torch.float32


def test_copies_in_32_bits_are_part_of_the_state():
    training = OFFLOADED.model_copy(update={"learning_rate": 1e-4})
    before, after, straight = (Trainer(training, torch.bfloat16) for _ in range(3))
    before.steps(0, 5)
    state = copy.deepcopy(before.optimizer.state_dict())
    after.model.load_state_dict(before.model.state_dict())
    after.optimizer.load_state_dict(state)
    after.scheduler.load_state_dict(before.scheduler.state_dict())
    after.steps(5, 9)
    straight.steps(0, 9)
    masters = [[entry["master"] for entry in t.optimizer.state_dict()["state"].values()] for t in (after, straight)]
    assert equal(*masters)
    assert "master" not in Trainer(OFFLOADED).optimizer.state_dict()["state"].get(0, {})


@pytest.mark.parametrize("name", ["sgd", "adamw_8bit", "adamw_torch"])
def test_only_what_torch_computes_on_a_cpu_is_kept_there(name):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    optimizer = build_optimizer(small(), OFFLOADED.model_copy(update={"optim": name}), "cpu")
    assert (type(optimizer) is HostOptimizer) == (name == "adamw_torch")


class Stream:
    """A stream whose copies are there when somebody waits for them, and not before."""

    device = "a GPU"

    def __init__(self) -> None:
        self.under_way: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.waits: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waits.append(other)

    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None:
        for there, here in self.under_way:
            there.copy_(here)
        self.under_way.clear()

    def send(self, gradient: torch.Tensor) -> torch.Tensor:
        there = torch.full_like(gradient, float("nan"))
        self.under_way.append((there, gradient))
        return there


def test_gradients_are_waited_for_and_the_device_waits_for_its_weights(monkeypatch):
    """The order of things in a stream of its own, without one: a gradient that is used too early is no number."""
    copies, device = Stream(), Stream()
    monkeypatch.setattr(_host_optimizer, "_sent", copies.send)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: device)
    trainer = Trainer(TRAINING)
    trainer.use_parts_of(1)
    trainer.optimizer._stream = copies
    assert equal(trainer.steps(0, 8), Trainer(TRAINING).steps(0, 8))
    assert copies.waits == [device] * 8, "for the gradients to be computed"
    assert device.waits == [copies] * 8, "for the weights to be back"
