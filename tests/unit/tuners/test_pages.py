"""Memory of mapped files that is given back: values stay, changed ones too, and what is no file is left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fast_oracle import CPU, ROWS, gradients, load, ours, with_lora

from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch import processor
from llamafarm_tuners.pytorch.fast import _pages
from llamafarm_tuners.pytorch.fast._install import fast_paths
from llamafarm_tuners.pytorch.fast._linear import ordered_copies
from llamafarm_tuners.pytorch.fast._pages import in_file, let_go

ROWS_OF_FILE, COLUMNS = 4096, 1024
MIB = 2**20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the system has no such call")


@pytest.fixture
def mapped(tmp_path):
    """16 MiB of numbers in a file, mapped as weights are: private, so that changes stay with the process."""
    numbers = torch.arange(ROWS_OF_FILE * COLUMNS, dtype=torch.float32)
    path = tmp_path / "weights"
    path.write_bytes(numbers.numpy().tobytes())
    return torch.from_file(str(path), size=numbers.numel(), dtype=torch.float32).view(ROWS_OF_FILE, COLUMNS)


def of_files() -> int:
    """Bytes of files that the process has in memory, about: the system counts in lots."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssFile")) * 1024


@on_linux
def test_what_stands_in_a_file_is_let_go_and_read_again(mapped):
    total = mapped.double().sum()
    mapped[7, 7] = -1.0  # a page of the process's own from now on
    before = of_files()
    assert in_file([mapped, mapped[5:9], torch.zeros(9)]) == [True, True, False]
    let_go([mapped])
    assert before - of_files() > 8 * MIB
    assert mapped[7, 7] == -1.0
    assert mapped.double().sum() == total - (7 * COLUMNS + 7) - 1
    assert of_files() > before - 4 * MIB


@on_linux
def test_pages_that_belong_to_others_too_stay(mapped):
    mapped.sum()
    before = of_files()
    let_go([mapped[:1, :1000]])  # less than a page
    assert of_files() >= before - 4 * MIB


def test_what_is_no_file_is_left_alone(monkeypatch):
    here, nowhere = torch.ones(1024, 1024), torch.ones(4, device="meta")
    let_go([here, nowhere])
    assert here.sum() == 1024 * 1024
    monkeypatch.setattr(processor.sys, "platform", "darwin")
    assert in_file([here]) == [False]


@on_linux
def test_an_older_system_refuses(mapped, monkeypatch):
    monkeypatch.setattr(_pages, "_PAGE_OUT", 9999)
    let_go([mapped])
    assert mapped[1, 0] == COLUMNS


@on_linux
def test_a_matrix_in_a_file_is_let_go_where_it_has_copies(mapped, monkeypatch):
    from llamafarm_tuners.pytorch.fast import _linear

    monkeypatch.setattr(_linear, "onednn_pays", lambda: True)
    monkeypatch.setattr(_linear, "_available", lambda: 2**36)
    mapped.sum()
    before = of_files()
    with ordered_copies([mapped]) as taken:
        assert taken == 2 * mapped.nbytes, "in float32 one of a matrix that stays in memory, two of one that does not"
        assert before - of_files() > 8 * MIB


@on_linux
def test_fused_layers_let_go_what_they_put_side_by_side(tiny_model_dir, monkeypatch):
    """A model from a file computes the same; its q, k, v, gate and up are asked to be let go."""
    asked = []
    monkeypatch.setattr(_pages, "in_file", lambda given: asked.extend(given) or in_file(given))
    model = with_lora(load(tiny_model_dir("llama"))).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with fast_paths(model, ROWS, CPU, RecordingRun(None)):
        pass
    assert len(asked) >= 5 * model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name]), name
    assert ours(model, [ROWS]) > 0
    assert gradients(model)
