from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError, SecurityError
from llamafarm.models._load import load_for_generation, load_model, load_tokenizer
from llamafarm.models.special import ensure_pad

TinyModel = Callable[[str], Path]


@pytest.fixture
def copy(tiny_model_dir: TinyModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir("llama"), tmp_path / "copy"))


def load(folder: Path):
    return load_model(BaseModelConfig(huggingface_id=str(folder)), dtype=torch.float32)


def test_the_dtype_is_the_one_asked_for(tiny_model_dir: TinyModel):
    config = BaseModelConfig(huggingface_id=str(tiny_model_dir("llama")))
    for dtype in (torch.float32, torch.bfloat16):
        assert load_model(config, dtype=dtype).dtype == dtype


def test_an_unknown_architecture_is_named(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llamma"}))
    with pytest.raises(ModelError, match=r"model_type 'llamma' \[LF-MODEL-004\]"):
        load(copy)


def test_an_adapter_is_no_base(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = AutoModelForCausalLM.from_pretrained(copy)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter is an adapter, not a whole model.*--to merged.*\[LF-MODEL-223\]"):
        load(tmp_path / "adapter")
    monkeypatch.setattr("llamafarm.models.locate.Located.is_adapter", False)  # as of one that is on the hub
    with pytest.raises(ModelError, match="LF-MODEL-223"):
        load(tmp_path / "adapter")


def test_a_damaged_weight_file_is_refused(copy: Path):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"cannot load the model of .*\[LF-MODEL-005\]"):
        load(copy)


def test_a_folder_without_weights_is_refused(copy: Path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="LF-MODEL-005"):
        load(copy)


def test_a_folder_without_a_tokenizer_is_refused(copy: Path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copy / file).unlink()
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(BaseModelConfig(huggingface_id=str(copy)))


def test_code_of_a_model_does_not_run_unasked(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto_map}))
    (copy / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(SecurityError, match=r"--trust-remote-code.*LF-SECURITY-001"):
        load(copy)


def test_an_existing_pad_token_stays(tiny_model_dir: TinyModel):
    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("llama"))))
    assert tokenizer.pad_token == "<|pad|>"


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        (["<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        (["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"], "<|reserved_special_token_0|>"),
        (["[PAD]", "<|reserved_special_token_0|>"], "[PAD]"),
        ([], "<|pad|>"),
    ],
)
def test_a_pad_token_is_chosen_among_the_unused(tiny_model_dir: TinyModel, special: list[str], expected: str):
    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=str(tiny_model_dir("gpt_neox"))))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] != "<|pad|>"]
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="<|eos|>", extra_special_tokens=special
    )
    assert bare.pad_token is None
    ensure_pad(bare)
    assert bare.pad_token == expected


def test_a_tokenizer_larger_than_the_embedding_is_refused(copy: Path):
    tokenizer = load_tokenizer(BaseModelConfig(huggingface_id=str(copy)))
    tokenizer.add_tokens(["<|one|>", "<|two|>"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match="LF-MODEL-010"):
        load_for_generation(str(copy))


def test_an_adapter_brings_its_base(tiny_model_dir: TinyModel, tmp_path: Path):
    base = tiny_model_dir("llama")
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False),
    ).eval()
    adapted.save_pretrained(tmp_path)
    model, tokenizer = load_for_generation(str(tmp_path))
    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, adapted(ids).logits)
    assert tokenizer.chat_template
    assert not model.training


def test_an_adapter_whose_base_is_gone_says_so(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match="no such model folder"):
        load_for_generation(str(tmp_path))


def test_an_adapter_that_does_not_fit_is_refused(tiny_model_dir: TinyModel, tmp_path: Path):
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama")),
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    )
    adapted.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for base, why in (
        (tiny_model_dir("gpt_neox"), "cannot load the adapter"),
        (None, "what its base model is .LF-MODEL-009"),
    ):
        path = str(base) if base else None
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": path}))
        with pytest.raises(ModelError, match=why):
            load_for_generation(str(tmp_path))
