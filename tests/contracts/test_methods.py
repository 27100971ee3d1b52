from __future__ import annotations

from typing import ClassVar

from llamafarm.testing.contracts import MethodContract
from llamafarm_methods.bos_scaling import BosScaling
from llamafarm_methods.bridged import Ia3, LnTuning, PrefixTuning, PromptTuning
from llamafarm_methods.dora import Dora
from llamafarm_methods.freeze import Freeze
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora


class TestLora(MethodContract):
    component = Lora


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
