"""Train a strategy inside a test, by the steps that `llamafarm train` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafarm.api import Event
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.core.run import Outcome, train


def run(folder: Path, strategy: Mapping[str, Any], sets: Sequence[str] = ()) -> tuple[Outcome, list[Event]]:
    """Write `strategy` into `folder`, train it there, and return its outcome and events.

    Raises:
        LlamaFarmError: As `llamafarm train` would print it.
    """
    path = folder / "strategy.yaml"
    path.write_text(json.dumps(strategy), encoding="utf-8")  # JSON is YAML
    request = Request(str(path), sets=(f"output_dir={folder / 'output'}", *sets))
    registry = load_registry()
    loaded = load(request, registry)
    events: list[Event] = []
    outcome = train(loaded, make_plan(loaded, registry), registry, events.append)
    return outcome, events
