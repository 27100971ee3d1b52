"""Values that cross to plugins only ever gain fields at the end, with a default."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llamafarm import api

FROZEN = {
    "AdapterSpec": ["kind", "options", "quantization", "changes_base"],
    "Backend": ["name", "summary", "requirements", "probe", "stubs", "disk_bytes", "parity"],
    "Comparison": ["subject", "ours", "theirs", "same", "note"],
    "Costs": [
        "memory",
        "beside",
        "flops",
        "steps",
        "tokens",
        "disk",
        "trained",
        "parameters",
        "path",
        "micro_batch",
    ],
    "Decision": ["subject", "value", "reason"],
    "DeviceSpec": ["type", "name", "count", "memory_bytes", "details"],
    "Event": ["type", "fields"],
    "Example": ["ref", "messages", "text"],
    "Installed": ["python", "owned", "versions", "facts"],
    "Message": ["role", "content", "train"],
    "PreparedData": ["train", "eval", "counts", "digest"],
    "Probe": ["device", "reason"],
    "ResumePoint": ["checkpoint", "allow_changes", "changes"],
    "Row": ["index", "digest", "fields"],
    "RowRef": ["file", "line"],
    "RunPlan": ["name", "methods", "device", "output_dir", "decisions", "given"],
    "Suggestion": ["path", "value", "reason"],
    "TrainingResult": ["metrics", "model_dir", "best_step", "trainable_parameters", "total_parameters"],
    "TrainingStart": ["steps", "batches"],
    "TrainingStep": ["step", "steps", "optimizer", "save"],
    "Workload": ["model_config", "lengths", "rows"],
}


def test_every_value_is_listed_here() -> None:
    assert {name for name in api.__all__ if dataclasses.is_dataclass(getattr(api, name))} == set(FROZEN)


@pytest.mark.parametrize("name", FROZEN)
def test_fields_keep_name_and_place(name: str) -> None:
    fields = dataclasses.fields(getattr(api, name))
    frozen = FROZEN[name]
    assert [field.name for field in fields[: len(frozen)]] == frozen
    for added in fields[len(frozen) :]:
        assert added.default is not dataclasses.MISSING or added.default_factory is not dataclasses.MISSING


@pytest.mark.parametrize("name", FROZEN)
def test_values_cannot_change(name: str) -> None:
    value: Any = getattr(api, name)
    made = value(**dict.fromkeys(FROZEN[name]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, FROZEN[name][0], 1)


def test_a_row_reference_reads_file_and_line() -> None:
    assert str(api.RowRef("data.jsonl", 12)) == "data.jsonl:12"
