from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llamafarm.api import BaseModelConfig, DeviceSpec, Method, RunPlan
from llamafarm_methods.lora import Lora
from llamafarm_tuners.pytorch.config import PytorchConfig

if TYPE_CHECKING:
    from llamafarm_tuners.pytorch._store import Trained

sys.path.append(str(Path(__file__).parent))  # for fast_oracle, which not every test here needs

CPU = DeviceSpec("cpu", "a CPU")


@pytest.fixture
def make():
    """Build a configuration and a plan for it; `given` lists the paths that somebody wrote down."""

    def build(
        options: Mapping[str, Any] | None = None,
        given: tuple[str, ...] = (),
        device: DeviceSpec = CPU,
        method: Method[Any] | None = None,
    ) -> tuple[PytorchConfig, RunPlan]:
        methods = (method or Lora(Lora.Config()),)
        plan = RunPlan("test", methods, device, Path("output"), (), {path: f"strategy.yaml:{path}" for path in given})
        return PytorchConfig.model_validate(options or {}), plan

    return build


@pytest.fixture(scope="session")
def make_trained(tiny_model_dir):
    """A function: a tiny model with an adapter, or one that is trained whole, as what is saved."""

    def build(*, whole: bool = False) -> Trained:
        import peft
        import torch

        from llamafarm.models._load import load_model, load_tokenizer
        from llamafarm_tuners.pytorch._store import Trained

        folder = str(tiny_model_dir("llama"))
        config = BaseModelConfig(huggingface_id=folder)
        model = load_model(config, dtype=torch.float32)
        if whole:
            return Trained(model, load_tokenizer(config), "x", "x", {"method": "full"})
        lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj", "q_proj"], init_lora_weights=False)
        return Trained(peft.get_peft_model(model, lora), load_tokenizer(config), folder, "llama", {"method": "lora"})

    return build


@pytest.fixture
def trained(make_trained) -> Trained:
    return make_trained()


@pytest.fixture
def full(make_trained) -> Trained:
    return make_trained(whole=True)
