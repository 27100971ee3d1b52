"""Tokenizers built here, and chat templates in the public mark-up of the families, written for these tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llamafarm.api import Example, Message, RowRef

# [G … H … E]: where `{% generation %}` begins, and where it ends without or with the token that ends the turn
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}[G]{{ m['content'] }}[H]{{ '<|im_end|>' }}[E]{{ '\\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}"
    "{% if m['role'] == 'assistant' %}[G]{{ m['content'] }}[H]{{ eos_token }}[E]{{ '\\n' }}"
    "{% else %}{{ m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% if m['role'] == 'assistant' %}[G]{{ m['content'] | trim }}[H]{{ '<|eot_id|>' }}[E]"
    "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA3_ALWAYS_PROMPTING = LLAMA3.replace("{% if add_generation_prompt %}", "{% if true %}")
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'] | trim + ' [/INST]' }}"
    "{% else %}[G]{{ ' ' + m['content'] | trim + ' ' }}[H]{{ eos_token }}[E]{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}[G]{{ ' ' + m['content'] }}[H]{{ eos_token }}[E]"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + role + '\\n' }}"
    "{% if m['role'] == 'assistant' %}[G]{{ m['content'] | trim }}[H]{{ '<end_of_turn>' }}[E]{{ '\\n' }}"
    "{% else %}{{ m['content'] | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}"
    "{% if m['role'] == 'assistant' %}[G]{{ m['content'] }}[H]{{ '<|end|>' }}[E]{{ '\\n' }}"
    "{% else %}{{ m['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# writes an empty thought before the last answer, and drops the thoughts of earlier ones, as QWEN3 does
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}[G]{% if loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] }}[H]{{ '<|im_end|>' }}[E]{{ '\\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def plain(content: str) -> str:
    return content


@dataclass(frozen=True)
class Family:
    """A template, and what a model learns of an answer that it writes."""

    template: str
    end: str
    learned: Callable[[str], str] = plain
    system: bool = True
    eos: str = "</s>"


FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", eos="<|im_end|>"),
    "zephyr": Family(ZEPHYR, "</s>"),
    "llama3": Family(LLAMA3, "<|eot_id|>", str.strip, eos="<|eot_id|>"),
    "llama3-always-prompting": Family(LLAMA3_ALWAYS_PROMPTING, "<|eot_id|>", str.strip, eos="<|eot_id|>"),
    "llama2": Family(LLAMA2, "</s>", lambda content: f" {content.strip()} "),
    "mistral": Family(MISTRAL, "</s>", lambda content: f" {content}"),
    "gemma": Family(GEMMA, "<end_of_turn>", str.strip, system=False),
    "phi3": Family(PHI3, "<|end|>", eos="<|endoftext|>"),
}
MARKS = {
    "no-marks": {"[G]": "", "[H]": "", "[E]": ""},
    "marks": {"[G]": "{% generation %}", "[H]": "", "[E]": "{% endgeneration %}"},
    "marks-without-end": {"[G]": "{%- generation -%}", "[H]": "{%- endgeneration -%}", "[E]": ""},
}
SPECIAL = [
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]
# Ċ is a line feed, Ġ a space
MERGES = [
    "Ċ Ċ",
    "ĊĊ Ċ",
    "Ġ Ġ",
    ". Ċ",
    "t h",
    "th e",
    "Ġ the",
    "l l",
    "e ll",
    "ell o",
    "h ello",
    "Ġ hello",
    "a s",
    "o n",
]


def marked(template: str, marks: str) -> str:
    for sign, text in MARKS[marks].items():
        template = template.replace(sign, text)
    return template


def finished(tokenizer: Tokenizer, template: str | None, eos: str, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIAL)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token="<pad>", **options
    )
    whole.chat_template = template
    return whole


def byte_level(template: str | None = None, eos: str = "</s>", *, trim: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ids 0 to 255 are bytes (of the sorted alphabet), then the merges, then the special tokens."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [tuple(merge.split()) for merge in MERGES]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trim:  # offsets that leave out blanks, as of GPT-2 and Llama 3
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return finished(tokenizer, template, eos)


def metaspace(template: str | None = None, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """BPE in the manner of sentencepiece: a mark for spaces, bytes for the unknown, a decoder that drops a space."""
    words = ["▁", "h", "e", "l", "o", "▁h", "▁he", "ll", "▁hell", "▁hello", "a", "s", ":", "▁a"]
    vocabulary = {word: number for number, word in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + words)}
    merges = [("▁", "h"), ("▁h", "e"), ("l", "l"), ("▁he", "ll"), ("▁hell", "o"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(tokenizer, template, eos)


def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, which puts `<s>` before a text."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def chat(*contents: str, system: str | None = None) -> Example:
    """Turns by user and assistant, one after the other."""
    turns = [Message("system", system)] if system is not None else []
    turns += [Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(contents)]
    return Example(RowRef("rows.jsonl", 1), tuple(turns))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (or bytes) to a file of the given name."""

    def write(rows: list[dict[str, Any]] | bytes | str, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        if isinstance(rows, list):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        return str(path)

    return write


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session", params=MARKS)
def marks(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=["byte-level", "byte-level-trimmed", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, family: Family, marks: str) -> PreTrainedTokenizerFast:
    template = marked(family.template, marks)
    if request.param == "metaspace":
        return metaspace(template, family.eos)
    return byte_level(template, family.eos, trim=request.param == "byte-level-trimmed")


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The builders of this file: tests are imported apart from each other."""
    return SimpleNamespace(
        byte_level=byte_level,
        metaspace=metaspace,
        beginning=beginning,
        marked=marked,
        chat=chat,
        families=FAMILIES,
        thinking=THINKING,
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[[str | None, str], PreTrainedTokenizerFast]:
    """Builds a tokenizer with the given template, whose marks are written in the given way."""

    def build(template: str | None, marks: str) -> PreTrainedTokenizerFast:
        tokenizer = byte_level(template and marked(template, marks), "<|im_end|>")
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
        return tokenizer

    return build
