"""What earlier runs teach the next estimate, and that they never stand in anybody's way."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.estimate import calibration
from llamafarm.estimate.calibration import Record, calibrate, folder, remember

RUN = Record("gpu", "pytorch", "lora fused", 1e6, 1e9, 5e8, 1e9, 1.1e9, 2e12, 4.0)
NEARBY = replace(RUN, parameters=1.5e6, estimated=1.2e9, measured=1.32e9)


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))


def after(runs, *, of):
    """What is said of a run when others have been remembered."""
    for run in runs:
        remember(run)
    return calibrate(of.key, of.size)


def test_the_median_of_the_very_same_run_corrects():
    found = after([replace(RUN, measured=measured) for measured in (1.1e9, 1.2e9, 9e9)], of=RUN)  # the last is strange
    assert (found.runs, found.memory, found.rate) == (3, 1.2, 5e11)
    assert found.last_off == pytest.approx(1 / 9 - 1)


def test_runs_nearby_correct_when_there_are_three():
    assert after([NEARBY, NEARBY], of=RUN).runs == 0
    assert after([NEARBY], of=RUN).memory == pytest.approx(1.1)


def test_what_the_same_run_has_measured_is_all_that_counts():
    found = after([*[NEARBY] * 5, replace(RUN, measured=0.9e9)], of=RUN)
    assert (found.runs, found.memory) == (1, 0.9)


@pytest.mark.parametrize(
    "other",
    [
        {"path": "other"},
        {"device": "other"},
        {"tuner": "other"},
        {"parameters": 2100000.0},
        {"parameters": 490000.0},
        {"estimated": 1600000000.0},
        {"estimated": 740000000.0},
        {"fixed": 0.0},
    ],
)
def test_runs_of_another_kind_or_size_do_not_count(other):
    found = after([replace(NEARBY, **other)] * 9, of=RUN)
    assert (found.runs, found.memory) == (0, 1.0)


def test_speed_is_that_of_runs_of_the_size_or_else_of_the_kind():
    assert after([replace(RUN, parameters=9e9, seconds=1.0)], of=RUN).rate == 2e12
    assert after([RUN], of=RUN).rate == 5e11


def test_a_correction_has_bounds():
    assert after([replace(RUN, measured=9e9)], of=RUN).memory == 1.5
    assert after([replace(NEARBY, measured=9e9)] * 3, of=replace(RUN, estimated=1.1e9)).memory == 1.25


FACTORS = st.floats(0.05, 20.0)
OTHERS = st.builds(
    lambda path, parameters, estimated, factor: replace(
        RUN, path=path, parameters=parameters, estimated=estimated, measured=factor * estimated
    ),
    st.sampled_from(["lora fused", "full fused"]),
    st.floats(2e5, 1e7),
    st.floats(6e8, 4e9),
    FACTORS,
)


def among(file: Path, runs):
    """What is said of `RUN` by a file of these runs alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(asdict(run)) + "\n" for run in runs))
    return calibrate(RUN.key, RUN.size)


@given(st.lists(OTHERS, max_size=25), st.lists(FACTORS, min_size=1, max_size=20))
def test_a_corrected_estimate_is_no_further_from_what_its_run_measured(others, factors):
    repetitions = [replace(RUN, measured=factor * RUN.estimated) for factor in factors]
    others = [run for run in others if not run.size.same(RUN.size)]
    found = among(calibration.folder() / "estimates.jsonl", [*others, *repetitions])
    corrected = sum(abs(found.memory * RUN.estimated - run.measured) for run in repetitions)
    plain = sum(abs(RUN.estimated - run.measured) for run in repetitions)
    assert corrected <= plain * (1 + 1e-9)
    assert len(factors) > 1 or abs(found.memory * RUN.estimated - repetitions[0].measured) <= plain * (1 + 1e-9)


@given(st.lists(FACTORS, max_size=12), FACTORS, st.integers(0, 12))
def test_one_odd_run_moves_others_nowhere_that_the_runs_beside_it_have_not_been(factors, odd, at):
    usual = [replace(NEARBY, measured=factor * NEARBY.estimated) for factor in factors]
    strange = replace(NEARBY, measured=odd * NEARBY.estimated)
    before = among(calibration.folder() / "estimates.jsonl", usual).memory
    found = among(calibration.folder() / "estimates.jsonl", [*usual[:at], strange, *usual[at:]]).memory
    assert 0.8 <= found <= 1.25
    assert min([before, *factors]) - 1e-9 <= found <= max([before, *factors]) + 1e-9


def test_a_damaged_file_is_none():
    remember(RUN)
    with (folder() / "estimates.jsonl").open("ab") as file:
        file.write(b'{"device": 1}\n{"half\n[]\nnull\n')
    assert calibrate(RUN.key, RUN.size).runs == 1
    (folder() / "estimates.jsonl").write_bytes(b"\xff\xfe")
    assert calibrate(RUN.key, RUN.size).runs == 0


def test_it_can_be_switched_off(monkeypatch):
    remember(RUN)
    monkeypatch.setenv("LLAMAFARM_CALIBRATION", "off")
    remember(RUN)
    assert calibrate(RUN.key, RUN.size).runs == 0
    monkeypatch.delenv("LLAMAFARM_CALIBRATION")
    assert calibrate(RUN.key, RUN.size).runs == 1


def test_a_folder_that_cannot_be_written_is_of_no_consequence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "file"))
    remember(RUN)
    assert calibrate(RUN.key, RUN.size).runs == 0


def test_the_file_does_not_grow_forever(monkeypatch):
    monkeypatch.setattr("llamafarm.estimate.calibration._MOST_BYTES", 2_000)
    monkeypatch.setattr("llamafarm.estimate.calibration._KEPT", 5)
    for _ in range(40):
        remember(RUN)
    assert (folder() / "estimates.jsonl").stat().st_size <= 2_300
