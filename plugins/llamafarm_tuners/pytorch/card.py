"""The model card that is saved as README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(base: str, facts: Mapping[str, Any], adapter: str = "") -> str:
    """Markdown with the metadata block that the hub reads.

    Args:
        base: Public name of the base model; empty when there is none.
        facts: What to list: names → values.
        adapter: The kind of adapter; empty for a whole model.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=base if _HUB_ID.fullmatch(base) else None,
        pipeline_tag="text-generation",
        tags=["llamafarm", *([adapter] if adapter else [])],
    )
    origin = f"A fine-tuned version of `{base}`." if base else "A model trained from random weights."
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    return "\n".join(["---", metadata.to_yaml(), "---", "", "# Model card", "", origin, "", *lines, ""])
