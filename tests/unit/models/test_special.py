"""Special tokens: which token is PAD, and ChatML."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models._load import load_tokenizer, load_vocabulary
from llamafarm.models.named_templates import named_template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is the door open?"},
    {"role": "assistant", "content": "No."},
]


@pytest.fixture
def saved(tiny_model_dir, tmp_path: Path):
    """A copy of a tiny model whose tokenizer names other special tokens, or none."""

    def make(architecture: str = "llama", **changes: Any) -> Path:
        folder = Path(shutil.copytree(tiny_model_dir(architecture), tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return folder

    return make


def options(folder: Path, **more: Any) -> BaseModelConfig:
    return BaseModelConfig(huggingface_id=str(folder), **more)


def test_a_pad_token_that_is_the_end_token_stays(saved):
    """Masks go by position, so that it does no harm; tests of batches and labels prove that."""
    found = load_vocabulary(options(saved(pad_token="<|eos|>")))
    assert found.tokenizer.pad_token == "<|eos|>"
    assert (found.new, found.notices) == ({}, ())


def test_a_pad_token_with_id_0_stays_if_it_is_special(saved):
    tokenizer = load_tokenizer(options(saved(pad_token="<|bos|>")))
    assert tokenizer.pad_token_id == 0


def test_a_token_that_is_made_for_it_is_pad_though_nothing_names_it(saved):
    found = load_vocabulary(options(saved(pad_token=None, unk_token="<|system|>")))
    assert (found.tokenizer.pad_token, found.new) == ("<|pad|>", {})


def without_pad(saved, architecture: str = "llama", **changes: Any) -> Path:
    """As above, and the token `<|pad|>` is another word."""
    folder = saved(architecture, pad_token=None, **changes)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|pad|>", "<|spare|>"))
    return folder


def test_without_anything_to_spare_a_token_is_added_once(saved):
    folder = without_pad(saved)
    found = load_vocabulary(options(folder))
    tokenizer = found.tokenizer
    assert found.new == {"<|pad|>": 354}
    assert (tokenizer.pad_token_id, len(tokenizer)) == (354, 355)
    assert found.notices == (
        "Adding dedicated PAD token <|pad|> (original pad_token_id: None). New pad_token_id: 354, vocab size: 355",
    )
    tokenizer.save_pretrained(folder)
    again = load_vocabulary(options(folder, add_pad_token=True))
    assert (len(again.tokenizer), again.new) == (355, {})


def test_the_unknown_token_is_taken_before_one_is_added(saved):
    found = load_vocabulary(options(without_pad(saved, unk_token="<|spare|>")))
    assert (found.tokenizer.pad_token, found.new) == ("<|spare|>", {})


def test_a_reserved_token_that_the_template_writes_is_not_free(saved):
    folder = without_pad(saved)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|spare|>", "<|reserved_0|>").replace("<|system|>", "<|reserved_1|>"))
    (folder / "chat_template.jinja").write_text("{{ '<|reserved_0|>' }}")
    assert load_tokenizer(options(folder)).pad_token == "<|reserved_1|>"


def test_no_token_is_added_if_that_is_forbidden(saved):
    found = load_vocabulary(options(without_pad(saved), add_pad_token=False))
    assert (found.tokenizer.pad_token, found.new) == ("<|eos|>", {})


@pytest.mark.parametrize("pad", ["<|eos|>", "<|bos|>"])
def test_a_pad_token_of_its_own_is_made_when_asked_for(saved, pad: str):
    folder = without_pad(saved)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": pad}))
    found = load_vocabulary(options(folder, add_pad_token=True))
    assert (found.tokenizer.pad_token, found.new) == ("<|pad|>", {"<|pad|>": 354})


def test_a_pad_token_of_its_own_is_kept_when_one_is_asked_for(tiny_model_dir):
    found = load_vocabulary(options(tiny_model_dir("llama"), add_pad_token=True))
    assert (found.tokenizer.pad_token_id, found.new) == (2, {})


def test_a_pad_token_that_is_text_is_text_again(saved):
    folder = saved(pad_token="!")
    as_it_is = AutoTokenizer.from_pretrained(folder)
    assert as_it_is.decode(as_it_is("hi!")["input_ids"], skip_special_tokens=True) == "hi"  # what has to be mended
    found = load_vocabulary(options(folder))
    tokenizer = found.tokenizer
    assert tokenizer.decode(tokenizer("hi!")["input_ids"], skip_special_tokens=True) == "hi!"
    assert tokenizer.pad_token == "<|pad|>"
    assert "'!' is ordinary text" in found.notices[0]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_chatml_tokens_begin_and_end(tiny_model_dir, architecture: str):
    found = load_vocabulary(options(tiny_model_dir(architecture), add_chatml_tokens=True))
    tokenizer = found.tokenizer
    assert found.new == {"<|im_start|>": 354, "<|im_end|>": 355}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (354, 355)
    assert "before: <|eos|>" in found.notices[0]


def test_chatml_tokens_that_are_there_are_used(tiny_model_dir, tmp_path: Path):
    load_tokenizer(options(tiny_model_dir("llama"), add_chatml_tokens=True)).save_pretrained(tmp_path)
    shutil.copy(tiny_model_dir("llama") / "config.json", tmp_path)
    found = load_vocabulary(options(tmp_path, add_chatml_tokens=True))
    assert (len(found.tokenizer), found.new) == (356, {})


def test_a_tokenizer_without_bos_gets_along(saved):
    found = load_vocabulary(options(saved("qwen2", bos_token=None), add_pad_token=True))
    assert found.tokenizer.bos_token is None
    assert found.tokenizer.pad_token == "<|pad|>"


def test_the_chatml_template_writes_chatml(tiny_model_dir):
    config = options(tiny_model_dir("llama"), add_chatml_tokens=True, add_chatml_prompt_template=True)
    tokenizer = load_tokenizer(config)
    assert tokenizer.chat_template == named_template("chatml").source
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nIs the door open?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
    )
    asked = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("open?<|im_end|>\n<|im_start|>assistant\n")


def test_the_chatml_template_needs_its_tokens(tiny_model_dir):
    config = options(tiny_model_dir("llama"), add_chatml_prompt_template=True)
    with pytest.raises(ModelError, match=r"no token <\|im_start\|> and no <\|im_end\|>.*LF-TEMPLATE-031"):
        load_tokenizer(config)
