"""Linear layers with adapters as one step each way, in architectures whose decoder layers have no faster way.

In evaluation PEFT computes: a model that is loaded again gives the same to the last bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn

from llamafarm_tuners.pytorch.fast._group import Group, is_wrapper, refused_member
from llamafarm_tuners.pytorch.fast._layers import AddedGroup
from llamafarm_tuners.pytorch.fast._linear import without_copies


class FastAdapted:
    """The faster way of one of PEFT's layers; `forward` takes its place.

    Attributes:
        groups: Its one group.
        tried: It computes in evaluation too, to be compared with PEFT.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.groups = [Group([module])]
        self.tried = True
        self.plain = module.forward
        module.forward = MethodType(self.forward, module)

    def release(self) -> None:
        """Put everything back."""
        del self.module.forward
        self.groups[0].release()

    def forward(self, _: Any, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        """Called in place of PEFT's; what it does not take goes there."""
        (group,) = self.groups
        strange = args or named or torch.is_autocast_enabled(x.device.type)
        strange = strange or not (self.module.training or self.tried)
        if strange or x.numel() == 0 or not group.takes(x.dtype):
            with without_copies() if group.merged else nullcontext():
                result: torch.Tensor = self.plain(x, *args, **named)
                return result
        y: torch.Tensor = AddedGroup.apply(x.reshape(-1, x.shape[-1]), None, group, None, *group.parameters())
        return y.view(*x.shape[:-1], y.shape[-1])


def adapted_layers(model: nn.Module) -> list[nn.Module]:
    """Those of PEFT's layers on a CPU that have a faster way, and that no fused layer computes."""
    return [
        module
        for module in model.modules()
        if is_wrapper(module)
        and "forward" not in module.__dict__
        and all(parameter.device.type == "cpu" for parameter in module.parameters())
        and refused_member(module) is None
    ]
