from __future__ import annotations

from llamafarm.testing.contracts import MethodContract
from llamafarm_methods.bos_scaling import BosScaling
from llamafarm_methods.full import Full
from llamafarm_methods.lora import Lora
from llamafarm_methods.qlora import Qlora


class TestLora(MethodContract):
    component = Lora


class TestQlora(MethodContract):
    component = Qlora


class TestFull(MethodContract):
    component = Full


class TestBosScaling(MethodContract):
    component = BosScaling
