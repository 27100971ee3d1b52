"""What is kept comes back as it was, is found again only for the same thing, and is not trusted blindly."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import Example, RowRef
from llamafarm.data import cache
from llamafarm.data.cache import cache_file, cache_folder, read, write
from llamafarm.data.tokens import Tokenized, tokenize

OPTIONS: dict[str, Any] = {"stage": "sft", "max_seq_length": 40, "train_on_inputs": False, "over_long": "truncate"}


@pytest.fixture
def tokenizer(lab: Any) -> Any:
    return lab.byte_level(lab.marked(lab.families["llama3"].template, "no-marks"), "<|eot_id|>")


@pytest.fixture
def examples(lab: Any) -> list[Example]:
    return [lab.chat("x" * 50, "y" * 5), lab.chat("x", "y" * 80), lab.chat("é", "\u2028")]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / "home"))


@pytest.fixture
def kept(examples: list[Example], tokenizer: Any) -> tuple[Path, Tokenized]:
    tokenized = tokenize(examples, tokenizer, **OPTIONS)
    path = cache_file(examples, tokenizer, OPTIONS)
    assert path is not None
    assert read(path) is None
    write(path, tokenized)
    return path, tokenized


def test_what_is_kept_comes_back(kept: tuple[Path, Tokenized], tmp_path: Path) -> None:
    path, tokenized = kept
    assert path.parent == tmp_path / "home/cache/tokens" == cache_folder()
    assert list(path.parent.iterdir()) == [path]
    back = read(path)
    assert back is not None
    assert back == tokenized
    assert [row.example for row in back.rows] == [row.example for row in tokenized.rows] == [0, 1, 2]
    assert back.losses[1].open_end
    assert all(type(token) is int for row in back.rows for token in [*row.input_ids, *row.labels])


def test_another_place_in_a_file_changes_nothing(examples: list[Example], tokenizer: Any) -> None:
    moved = [replace(example, ref=RowRef("other.jsonl", 9), difficulty=1.0) for example in examples]
    assert cache_file(moved, tokenizer, OPTIONS) == cache_file(examples, tokenizer, OPTIONS)


def test_whatever_changes_tokens_changes_the_file(
    examples: list[Example], tokenizer: Any, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        cache_file(examples, tokenizer, OPTIONS),
        cache_file(examples[::-1], tokenizer, OPTIONS),
        cache_file(examples[:2], tokenizer, OPTIONS),
        cache_file([replace(examples[0], prompt="Ask: "), *examples[1:]], tokenizer, OPTIONS),
        *(
            cache_file(examples, tokenizer, OPTIONS | {name: value})
            for name, value in [
                ("stage", "pt"),
                ("max_seq_length", 41),
                ("train_on_inputs", True),
                ("over_long", "drop"),
            ]
        ),
        cache_file(examples, lab.byte_level(lab.families["mistral"].template, "<|eot_id|>"), OPTIONS),
        cache_file(examples, lab.byte_level(tokenizer.chat_template, "</s>"), OPTIONS),
        cache_file(examples, lab.byte_level(tokenizer.chat_template, "<|eot_id|>", trim=True), OPTIONS),
        cache_file(examples, lab.metaspace(tokenizer.chat_template, "<|eot_id|>"), OPTIONS),
    ]
    monkeypatch.setattr(cache, "_code", lambda: "another version")
    found.append(cache_file(examples, tokenizer, OPTIONS))
    assert None not in found
    assert len(set(found)) == len(found)


def test_a_template_that_writes_the_date_is_good_for_a_day(
    examples: list[Example], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(cache.date):
        @classmethod
        def today(cls) -> Tomorrow:
            return cls(2999, 1, 1)

    def files() -> tuple[Path | None, Path | None]:
        dated = cache_file(examples, tokenizer, OPTIONS)
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ strftime_now('%d') }}", "")
        plain = cache_file(examples, tokenizer, OPTIONS)
        tokenizer.chat_template += "{{ strftime_now('%d') }}"
        return dated, plain

    tokenizer.chat_template += "{{ strftime_now('%d') }}"
    now = files()
    monkeypatch.setattr(cache, "date", Tomorrow)
    later = files()
    assert now[0] != later[0]
    assert now[1] == later[1]


@pytest.mark.parametrize("at", ["header", "ids", "end", "missing end", "empty"])
def test_damaged_files_are_ignored_and_written_again(kept: tuple[Path, Tokenized], at: str) -> None:
    path, tokenized = kept
    content = bytearray(path.read_bytes())
    if at in ("header", "ids", "end"):
        content[{"header": 20, "ids": len(content) // 2, "end": -1}[at]] ^= 1
    path.write_bytes({"missing end": content[:-5], "empty": b""}.get(at, content))
    assert read(path) is None
    write(path, tokenized)
    assert read(path) == tokenized


def test_what_was_counted_is_protected_too(kept: tuple[Path, Tokenized]) -> None:
    path, _ = kept
    content = path.read_bytes()
    at = content.index(b'trained_tokens\\": ') + len(b'trained_tokens\\": ')
    path.write_bytes(content[:at] + (b"9" if content[at : at + 1] != b"9" else b"8") + content[at + 1 :])
    assert read(path) is None


def test_a_disk_that_refuses_is_no_error(kept: tuple[Path, Tokenized], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write(tmp_path / "file" / "x.safetensors", kept[1])


def test_what_nobody_used_for_a_month_is_removed(kept: tuple[Path, Tokenized]) -> None:
    path, tokenized = kept
    old, used = path.with_name("old.safetensors"), path.with_name("used.safetensors")
    for other in (old, used):
        write(other, tokenized)
        os.utime(other, (time.time() - 31 * 24 * 3600,) * 2)
    assert read(used) is not None
    write(path, tokenized)
    assert (old.exists(), used.exists(), path.exists()) == (False, True, True)


def test_a_tokenizer_in_python_is_not_trusted_to_be_the_same(examples: list[Example]) -> None:
    class Slow:
        is_fast = False

    assert cache_file(examples, Slow(), OPTIONS) is None
