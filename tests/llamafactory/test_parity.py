"""Both engines make the same of the same strategy."""

from __future__ import annotations

from llamafarm.core.backends import compare
from llamafarm.core.registry import load_registry
from llamafarm_tuners.llamafactory.environment import BACKEND


def test_token_ids_labels_and_losses(backend):
    compared = compare(BACKEND, backend, load_registry())
    assert len(compared) == 4
    assert [one for one in compared if not one.same] == []
