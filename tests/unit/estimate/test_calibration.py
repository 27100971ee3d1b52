"""What earlier runs teach the next estimate, and that they never stand in anybody's way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llamafarm.estimate.calibration import Record, calibrate, folder, remember

RUN = Record("gpu", "pytorch", "lora fused", 1e9, 1e9, 1.1e9, 2e12, 4.0)


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))


def test_the_median_of_earlier_runs_corrects():
    for measured in (1.1e9, 1.2e9, 9e9):  # the last one is strange
        remember(replace(RUN, measured=measured))
    found = calibrate(RUN.key, 2e9)
    assert (found.runs, found.memory, found.rate) == (3, 1.2, 5e11)
    assert found.last_off == pytest.approx(1 / 9 - 1)


def test_only_runs_of_the_same_kind_and_of_similar_size_count():
    remember(RUN)
    assert calibrate(replace(RUN, path="other").key, 1e9).runs == 0
    assert calibrate(replace(RUN, device="other").key, 1e9).runs == 0
    far = calibrate(RUN.key, 5e9)
    assert (far.runs, far.memory, far.rate) == (0, 1.0, 5e11)  # speed does not depend on how much is learned


def test_a_damaged_file_is_none():
    remember(RUN)
    with (folder() / "estimates.jsonl").open("ab") as file:
        file.write(b'{"device": 1}\n{"half\n[]\nnull\n')
    assert calibrate(RUN.key, 1e9).runs == 1
    (folder() / "estimates.jsonl").write_bytes(b"\xff\xfe")
    assert calibrate(RUN.key, 1e9).runs == 0


def test_it_can_be_switched_off(monkeypatch):
    remember(RUN)
    monkeypatch.setenv("LLAMAFARM_CALIBRATION", "off")
    remember(RUN)
    assert calibrate(RUN.key, 1e9).runs == 0
    monkeypatch.delenv("LLAMAFARM_CALIBRATION")
    assert calibrate(RUN.key, 1e9).runs == 1


def test_a_folder_that_cannot_be_written_is_of_no_consequence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "file"))
    remember(RUN)
    assert calibrate(RUN.key, 1e9).runs == 0


def test_the_file_does_not_grow_forever(monkeypatch):
    monkeypatch.setattr("llamafarm.estimate.calibration._MOST_BYTES", 2_000)
    monkeypatch.setattr("llamafarm.estimate.calibration._KEPT", 5)
    for _ in range(40):
        remember(RUN)
    assert (folder() / "estimates.jsonl").stat().st_size <= 2_200
