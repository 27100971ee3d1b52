"""README.md of an exported folder."""

from __future__ import annotations

import re
from typing import Any

from llamafarm.export.report import Report

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def card(report: Report) -> str:
    """Markdown with the metadata block that the hub reads."""
    from huggingface_hub import ModelCardData

    adapter = report.target == "adapter"
    relation: dict[str, Any] = {}
    if _HUB_ID.fullmatch(report.base):
        relation = {"base_model": report.base, "base_model_relation": "adapter" if adapter else "finetune"}
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["llamafarm"],
        **relation,
    )
    origin = f"A fine-tuned version of `{report.base}`." if report.base else "A model trained from random weights."
    trained = " + ".join(report.methods)
    lines = [f"- method: {trained}"] if trained else []
    lines += [f"- weights: {report.dtype}", *(f"- {note}" for note in report.notes)]
    checks = [f"- {check.name}: {check.measured}" for check in report.checks]
    parts = ["---", metadata.to_yaml(), "---", "", "# Model card", "", origin, "", *lines]
    parts += ["", f"Checked against the trained model on {report.prompts}:", "", *checks]
    if report.commands:
        parts += ["", "```bash", *report.commands, "```"]
    return "\n".join([*parts, ""])
