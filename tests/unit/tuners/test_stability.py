from __future__ import annotations

import sys

import pytest
import torch

from llamafarm.api import DeviceSpec, TrainingConfig
from llamafarm.errors import StrategyError
from llamafarm.testing.fresh import fresh
from llamafarm_tuners.pytorch import kernels
from llamafarm_tuners.pytorch._model import keep_trained_format
from llamafarm_tuners.pytorch._stability import compiled, process_switches

SDPA = ("cudnn_sdp_enabled", "flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")
CUDA = DeviceSpec("cuda", "NVIDIA X", details={"bf16": True, "tf32": True})
MPS = DeviceSpec("mps", "Apple M")


class Halved(torch.nn.Linear):
    """A module of our own: torch leaves its own ones alone."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch) / 2


def state() -> dict[str, object]:
    return {name: getattr(torch.backends.cuda, name)() for name in SDPA} | {
        "products": torch.get_float32_matmul_precision()
    }


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({}, None, {"cudnn_sdp_enabled": False, "flash_sdp_enabled": True}),
        ({"disable_cudnn_sdpa": False}, None, {"cudnn_sdp_enabled": True, "flash_sdp_enabled": True}),
        ({"disable_flash_sdpa": True}, None, {"cudnn_sdp_enabled": False, "flash_sdp_enabled": False}),
        ({"tf32": True}, CUDA, {"products": "high"}),
        ({"tf32": False}, CUDA, {"products": "highest"}),
        ({"tf32": True}, None, {"products": "highest"}),
    ],
)
def test_switches_hold_for_the_run_and_are_put_back(make, options, device, expected):
    _, plan = make(**({"device": device} if device else {}))
    before = state()
    with process_switches(TrainingConfig(**options), plan):
        inside = state()
        assert inside["mem_efficient_sdp_enabled"] is inside["math_sdp_enabled"] is True
        assert {name: inside[name] for name in expected} == expected
    assert state() == before


def test_switches_are_put_back_as_they_were_also_after_a_failure(make):
    _, plan = make()
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        before = state()
        with pytest.raises(ZeroDivisionError), process_switches(TrainingConfig(disable_cudnn_sdpa=False), plan):
            _ = 1 / (not torch.backends.cuda.cudnn_sdp_enabled())
        assert state() == before
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize(
    ("options", "device", "kernel", "said"),
    [
        ({}, CUDA, "sdpa", "disable_cudnn_sdpa: True"),
        ({}, CUDA, "eager", "disable_cudnn_sdpa: True (no effect: it chooses among the kernels of sdpa, not of eager)"),
        ({}, None, "sdpa", "disable_cudnn_sdpa: True (no effect: there is no such kernel on cpu)"),
        ({"disable_flash_sdpa": True}, None, "sdpa", "disable_flash_sdpa: True"),
        (
            {"disable_flash_sdpa": True},
            MPS,
            "sdpa",
            "disable_flash_sdpa: True (no effect: there is no such kernel on mps)",
        ),
    ],
)
def test_the_log_says_which_switch_has_an_effect(make, options, device, kernel, said):
    config, plan = make({"training": options}, **({"device": device} if device else {}))
    line = kernels.in_words(config, plan, kernel, "torch.float32")
    assert line.startswith("dtype: torch.float32, trained weights: float32, autocast: no, ")
    assert f"attn_implementation: {kernel}" in line
    assert line.endswith(said)


@pytest.mark.parametrize(("pure", "wanted"), [(False, torch.float32), (True, torch.bfloat16)])
def test_trained_weights_are_of_one_format_and_the_others_stay(pure, wanted):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    keep_trained_format(model, TrainingConfig(pure_bf16=pure))
    assert {parameter.dtype for parameter in model[0].parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model[1].parameters()} == {wanted}


def test_what_is_compiled_is_what_is_called_and_keeps_its_names(make):
    from torch._dynamo.utils import counters

    model = Halved(3, 3)
    _, plan = make()
    counters.clear()
    with compiled(model, TrainingConfig(torch_compile=True, torch_compile_backend="aot_eager"), plan):
        model(torch.ones(2, 3)).sum().backward()
        assert counters["stats"]["unique_graphs"] == 1
        assert set(model.state_dict()) == {"weight", "bias"}
    counters.clear()
    model(torch.ones(5, 3))
    assert not counters["stats"], "afterwards nothing is compiled"
    with compiled(model, TrainingConfig(), plan):
        model(torch.ones(2, 3))
    assert not counters["stats"]


def test_a_compiler_that_fails_is_one_clear_line(make):
    from torch._dynamo.exc import BackendCompilerFailed

    options = TrainingConfig(torch_compile=True, torch_compile_backend="aot_eager")
    failed = BackendCompilerFailed(print, ValueError("no header Python.h"), None)
    with (
        pytest.raises(StrategyError, match=r"strategy.yaml:training.torch_compile: .*Python\.h.*LF-TRAIN-036"),
        compiled(Halved(3, 3), options, make(given=("training.torch_compile",))[1]),
    ):
        raise failed


def test_without_a_compiler_a_preset_that_compiles_is_run_as_it_is(make, monkeypatch):
    monkeypatch.setattr(kernels, "cpp_compiler", lambda: None)
    model = torch.nn.Linear(3, 3)
    with compiled(model, TrainingConfig(torch_compile=True), make()[1]):
        model(torch.ones(2, 3))
        assert model._compiled_call_impl is None


def test_no_kernel_comes_from_the_hub():
    code = (
        "import os, sys, types\n"
        "found = types.ModuleType('kernels')\n"
        "import llamafarm.models\n"
        "import importlib.util\n"
        "try:\n    import kernels\n    there = True\nexcept ImportError:\n    there = False\n"
        "answer = [os.environ['USE_HUB_KERNELS'], there, importlib.util.find_spec('kernels') is not None]"
    )
    assert fresh(code) == ["0", False, False]
    assert sys.modules.get("kernels") is None
