"""Whether what a strategy trains can be exported to where it says, told before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from llamafarm.api.components import Method
from llamafarm.core.load import Loaded
from llamafarm.errors import Problem
from llamafarm.models.serving import adapter_options, described, obstacles


def export_problems(loaded: Loaded, methods: Sequence[Method[Any]]) -> Iterator[Problem]:
    """Everything that stands between the model that will be trained and the targets of `export`."""
    wanted = loaded.strategy.export
    if wanted is None:
        return
    base = loaded.tuner_config.base_model
    options = None if base.from_scratch is not None else adapter_options([method.adapter() for method in methods])
    model = described(base.huggingface_id, options, [method.name for method in methods])
    if base.from_scratch is not None:
        model = replace(model, model_type=str(base.from_scratch.architecture.get("model_type", "")))
    origin = loaded.origins.get(("export", "to"))
    converter = bool(os.environ.get("LLAMA_CPP"))  # a script that runs is the user's word, never a strategy's
    for target in wanted.targets:
        keep = wanted.keep_adapter and target == "vllm"
        for obstacle in obstacles(model, target, keep_adapter=keep, converter=converter):
            where = origin.place if origin else ""
            yield Problem("LF-STRATEGY-065", f"export to {target}: {obstacle.message}", where, obstacle.hint)
    if wanted.keep_adapter and "vllm" not in wanted.targets:
        where = str(loaded.origins.get(("export", "keep_adapter"), ""))
        message = "export.keep_adapter has no effect: vllm is not among the targets"
        yield Problem("LF-STRATEGY-066", message, where, "leave it out")
