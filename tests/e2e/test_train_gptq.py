"""A base that really comes as GPTQ, where its library is installed: trained, loaded, measured, and not merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llamafarm.api import BaseModelConfig
from llamafarm.cli.guard import run as run_command
from llamafarm.models._load import load_model
from llamafarm.testing.rows import make_fields

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the library leaves its folders to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TEXT = "Turn on the light in the kitchen. The light in the kitchen is on. Lock the front door and set the alarm."


@pytest.fixture(scope="module")
def base(tiny_model_dir, tmp_path_factory: pytest.TempPathFactory):
    """A tiny model in 4 bits, quantized by the library itself."""
    pytest.importorskip("optimum")
    library = pytest.importorskip("gptqmodel")
    folder = tmp_path_factory.mktemp("gptq") / "base"
    model = library.GPTQModel.load(
        str(tiny_model_dir("llama")), library.QuantizeConfig(bits=4, group_size=32), device="cpu"
    )
    model.quantize([TEXT] * 64, batch_size=4)
    model.save(str(folder))
    return folder


def test_gradients_pass_through_packed_weights_as_through_plain_ones(base):
    model = load_model(BaseModelConfig(huggingface_id=str(base)), dtype=torch.float32)
    layer = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        weight = layer(torch.eye(64))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer(x).sum().backward()
    # the kernel may compute in half precision: 2^-11 relative, over 64 addends of size 0.02
    torch.testing.assert_close(x.grad, weight.sum(1).expand(3, 64), atol=2e-3, rtol=2e-2)


def test_it_is_trained_and_used_and_never_merged(base, tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(40)))
    train = ["train", "--model", str(base), "--dataset", "data.jsonl", "--max-steps", "12", "--learning-rate", "1e-2"]
    assert run_command([*train, "--output", "out"]) == 0
    log = [json.loads(line) for line in Path("out/trainer_log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0]
    capfd.readouterr()
    assert run_command(["evaluate", "out", "--data", "data.jsonl", "--max-samples", "4", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["generation_samples"] == {}, (
        "banners of the library do not stand in the result"
    )
    assert run_command(["export", "out", "--to", "merged"]) == 4
    assert "stored by gptq" in capfd.readouterr().err
    assert run_command(["export", "out", "--to", "adapter", "--output", "adapter"]) == 0
    for method, id_ in (("qlora", "LF-STRATEGY-055"), ("dora", "LF-STRATEGY-054"), ("full", "LF-TRAIN-007")):
        assert run_command([*train, "--output", "no", "--method", method]) == 2
        assert id_ in capfd.readouterr().err
