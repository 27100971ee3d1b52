from __future__ import annotations

from typing import ClassVar

from llamafarm.testing.contracts import MethodContract
from llamafarm_methods.adalora import Adalora
from llamafarm_methods.bos_scaling import BosScaling
from llamafarm_methods.bridged import BRIDGED, Ia3, LnTuning, PrefixTuning, PromptTuning
from llamafarm_methods.dora import Dora
from llamafarm_methods.freeze import Freeze
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.p_tuning import PTuning
from llamafarm_methods.qlora import Qlora


class TestLora(MethodContract):
    component = Lora


class TestLoraByEva(MethodContract):
    component = Lora
    config: ClassVar = {"r": 4, "init_lora_weights": "eva"}


class TestLoraByCorda(MethodContract):
    component = Lora
    config: ClassVar = {"r": 4, "init_lora_weights": "corda", "corda_config": {"corda_method": "kpm", "samples": 16}}


class TestAdalora(MethodContract):
    component = Adalora
    config: ClassVar = {"init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 5}
    training: ClassVar = {**MethodContract.training, "learning_rate": 5e-2}


class TestPTuning(MethodContract):
    component = PTuning


class TestQlora(MethodContract):
    component = Qlora


class TestFull(MethodContract):
    component = Full


class TestDora(MethodContract):
    component = Dora


class TestFreeze(MethodContract):
    component = Freeze
    config: ClassVar = {"freeze_trainable_layers": 1, "freeze_trainable_modules": ["mlp"]}


class TestIa3(MethodContract):
    component = Ia3


class TestLnTuning(MethodContract):
    component = LnTuning


class TestPromptTuning(MethodContract):
    component = PromptTuning
    training: ClassVar = {**MethodContract.training, "learning_rate": 0.1}


class TestPrefixTuning(MethodContract):
    component = PrefixTuning
    training: ClassVar = {**MethodContract.training, "learning_rate": 0.1}


class TestBosScaling(MethodContract):
    component = BosScaling


# The other bridged methods differ in their options alone: a suite each, on one architecture.
SMALL = {
    "c3a": {"block_size": 8},
    "road": {"group_size": 32},
    "vblora": {"vector_length": 16, "num_vectors": 16, "topk": 2},
}
RATES = {"vera": 0.1, "fourierft": 0.1, "vblora": 0.1, "road": 0.05, "c3a": 0.1, "randlora": 0.05}
for _method in BRIDGED:
    if f"Test{_method.__name__}" not in globals():
        globals()[f"Test{_method.__name__}"] = type(
            f"Test{_method.__name__}",
            (MethodContract,),
            {
                "component": _method,
                "config": SMALL.get(_method.name, {}),
                "architectures": ("llama",),
                "training": {**MethodContract.training, "learning_rate": RATES.get(_method.name, 2e-2)},
            },
        )
