"""What an error says of settings that fit, where the memory of a run has not sufficed."""

from __future__ import annotations

import json
import resource

import pytest

from llamafarm.core import estimate
from llamafarm.core.fixes import fixes_told
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Request
from llamafarm.errors import HardwareError

STRATEGY = {
    "name": "large",
    "fine_tuner": {
        "type": "pytorch",
        "config": {"base_model": "builtin:tiny", "dataset": "rows.jsonl", "training": {"batch_size": 64}},
    },
}


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    turns = [{"role": "user", "content": "turn on the light " * 40}, {"role": "assistant", "content": "it is on " * 40}]
    (tmp_path / "rows.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 64)
    (tmp_path / "s.yaml").write_text(json.dumps(STRATEGY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFARM_CALIBRATION", "off")
    return Request("s.yaml")


def told(request, id_):
    with pytest.raises(HardwareError) as caught, fixes_told(request, load_registry()):
        raise HardwareError.of(id_, "out of memory", hint="as it was")
    (problem,) = caught.value.problems
    return problem.hint


@pytest.mark.parametrize("id_", ["LF-HARDWARE-010", "LF-HARDWARE-011"])
def test_what_fits_is_named_with_the_rows_of_a_step_as_they_were(request_of, monkeypatch, id_):
    monkeypatch.setattr(estimate, "free", lambda _: 800 * 2.0**20)
    hint = told(request_of, id_)
    assert hint.startswith("begin anew with --overwrite and what fits in 0.8 GiB: --set training.batch_size=")
    size, times = (int(hint.split(f"{name}=")[1].split()[0]) for name in ("batch_size", "gradient_accumulation_steps"))
    assert size * times == 64


def test_what_has_failed_is_not_named_however_much_memory_there_seems_to_be(request_of, monkeypatch):
    monkeypatch.setattr(estimate, "free", lambda _: 2.0**50)
    needed = estimate.after_failure(request_of, load_registry())
    assert needed.estimate.fits is False
    assert all(change.estimate.needed < needed.estimate.needed for change in needed.changes)
    assert "training.batch_size=64" not in told(request_of, "LF-HARDWARE-010")


def test_where_nothing_fits_or_nobody_can_tell_the_hint_stays(request_of, monkeypatch):
    monkeypatch.setattr(estimate, "free", lambda _: 2.0**20)
    assert told(request_of, "LF-HARDWARE-010") == "as it was"
    assert told(Request("absent.yaml"), "LF-HARDWARE-010") == "as it was"
    assert told(request_of, "LF-HARDWARE-001") == "as it was", "another error"


def test_a_limit_on_the_address_space_bounds_what_is_free(monkeypatch):
    from llamafarm.api import DeviceSpec

    cpu = DeviceSpec("cpu", "a CPU")
    plenty = estimate.free(cpu)
    mapped = 470 * 2**20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (mapped + 2**20, resource.RLIM_INFINITY))
    assert 0 < estimate.free(cpu) <= min(2**20, plenty)
