"""What a launcher asks for beyond processes that each have the whole model. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from llamafarm.api import RunPlan
from llamafarm.errors import Problem
from llamafarm_tuners.pytorch.config import PytorchConfig

_ASKED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""How `accelerate launch` hands on its configuration → what would spread a model over processes."""


def check_sharding(_: PytorchConfig, plan: RunPlan) -> Iterator[Problem]:
    """Refuse what spreads a model over processes: accelerate would begin with it by itself."""
    why = (
        "on a CPU it silently trains plain copies" if plan.device.type == "cpu" else "spreading a model is not built in"
    )
    for variable, name in _ASKED.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            hint = "use torchrun, or a configuration with distributed_type MULTI_GPU or MULTI_CPU: docs/processes.md"
            yield Problem("LF-TRAIN-078", f"the launcher asks for {name}: {why}", hint=hint)
