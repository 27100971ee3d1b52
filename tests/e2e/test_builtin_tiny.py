"""The model that ships is what its recipe says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from llamafarm.api import BaseModelConfig
from llamafarm.core.load import load
from llamafarm.core.plan import make_plan
from llamafarm.core.registry import load_registry
from llamafarm.core.request import Flag, Request
from llamafarm.data.prepare import prepare
from llamafarm.models._load import load_model, load_tokenizer
from llamafarm.models._scratch import train_tokenizer
from llamafarm.models.locate import locate

FOLDER = locate("builtin:tiny").folder
DATA_DIGEST = "a19de96f1c4c99ae9e2bd77b2192ee96"


def test_the_files_are_those_that_were_built():
    assert FOLDER is not None
    sums = dict(line.split()[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in sums} == sums
    assert set(sums) | {"SHA256SUMS", "README.md"} == {path.name for path in FOLDER.iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000


def test_its_size():
    model = load_model(BaseModelConfig(huggingface_id="builtin:tiny"), dtype=torch.float32)
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000


@pytest.mark.e2e
def test_the_recipe_still_makes_the_same_data_and_the_same_tokenizer(tmp_path: Path):
    registry = load_registry()
    loaded = load(Request("pretrain-tiny", (Flag("output_dir", str(tmp_path / "out"), "--output"),)), registry)
    data = prepare(loaded.tuner_config.dataset, make_plan(loaded, registry).splitter, notice=lambda _: None)
    assert data.digest == DATA_DIGEST
    scratch = loaded.tuner_config.base_model.from_scratch
    assert scratch is not None
    train_tokenizer((example.text for example in data.train), scratch).save_pretrained(tmp_path)
    assert FOLDER is not None
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_its_tokenizer_writes_any_text():
    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id="builtin:tiny"))
    text = 'Łóżko, schön, garçon, niño: {"brightness": 40}\r\n\t漢字 🙂'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
