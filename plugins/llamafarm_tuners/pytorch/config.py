"""The configuration of the fine-tuner `pytorch`."""

from __future__ import annotations

from types import MappingProxyType

from llamafarm.api import FineTunerConfig


class PytorchConfig(FineTunerConfig):
    """What all fine-tuners share is all it needs."""

    aliases = MappingProxyType({**FineTunerConfig.aliases, "template": "base_model.template"})
