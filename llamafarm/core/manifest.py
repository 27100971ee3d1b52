"""What ran: the facts that let somebody else run it again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llamafarm.api.config import DatasetConfig, RowsConfig
from llamafarm.api.values import PreparedData
from llamafarm.core.load import Loaded
from llamafarm.core.plan import Planned
from llamafarm.core.registry import Registry
from llamafarm.versions import versions


def now() -> str:
    """The time in ISO 8601 with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest(run_id: str, loaded: Loaded, planned: Planned, data: PreparedData, registry: Registry) -> dict[str, Any]:
    """The manifest of a run that starts."""
    config = loaded.tuner_config
    device = planned.plan.device
    return {
        "run_id": run_id,
        "status": "running",
        "strategy": loaded.strategy.name,
        "strategy_sha256": _sha256(loaded.source.path) if loaded.source else None,
        "fine_tuner": planned.tuner.name,
        "methods": [method.name for method in planned.plan.methods],
        "base_model": config.base_model.huggingface_id,
        "base_revision": config.base_model.revision,
        "dataset": _dataset(config.dataset),
        "dataset_digest": data.digest,
        "rows": dict(data.counts),
        "seed": config.training.seed,
        "device": {
            "type": device.type,
            "name": device.name,
            "count": device.count,
            "memory_bytes": device.memory_bytes,
        },
        "versions": versions(),
        "plugins": {f"{plugin.distribution}:{plugin.name}": plugin.version for plugin in registry.plugins},
        "decisions": [f"{item.subject}: {item.value} ({item.reason})" for item in planned.plan.decisions],
        "started": now(),
    }


def _dataset(config: DatasetConfig) -> str | list[str | None] | None:
    """What the rows come from, in the user's words."""
    if config.sources:
        return [_origin(source) for source in config.sources]
    return _origin(config)


def _origin(config: RowsConfig) -> str | None:
    return config.path or (config.generate.name if config.generate else None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
