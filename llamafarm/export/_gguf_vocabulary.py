"""The tokenizer inside GGUF: byte-level BPE as llama.cpp reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from llamafarm.errors import ModelError
from llamafarm.export.report import Check

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Final = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
}
"""How text is split before merges → llama.cpp's name for it."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def splitting(tokenizer: Any) -> str | None:
    """llama.cpp's name for how the tokenizer splits text; None if it has none that is known here.

    Raises:
        ModelError: If it is no byte-level BPE.
    """
    described = _described(tokenizer)
    before = described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers") or [before]
    for step in steps:
        if step.get("type") == "Split":
            return _SPLITS.get(str(step.get("pattern", {}).get("Regex")))
    return "gpt-2" if any(step.get("use_regex", True) for step in steps if step.get("type") == "ByteLevel") else None


def add(writer: Any, tokenizer: Any, rows: int) -> None:
    """Write the vocabulary; rows of the embedding without a token get one that is never used.

    Raises:
        ModelError: If the tokenizer is no byte-level BPE.
    """
    described = _described(tokenizer)
    tokens, types = _vocabulary(tokenizer, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(tokenizer) or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(described))
    for name, write in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            write(number)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether training saw a BOS token before each text."""
    if tokenizer.bos_token is None:
        return False
    if tokenizer.chat_template:
        try:
            turns = [{"role": "user", "content": "a"}]
            return str(tokenizer.apply_chat_template(turns, tokenize=False)).startswith(tokenizer.bos_token)
        except MemoryError:  # says nothing of the template
            raise
        except Exception:  # noqa: BLE001  # a template raises what it likes
            return False
    return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def checks(file: Path, tokenizer: Any) -> list[Check]:
    """Read the file's vocabulary back and compare it."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def value(key: str) -> Any:
        return fields[key].contents() if key in fields else None

    tokens = value("tokenizer.ggml.tokens") or []
    wanted, _ = _vocabulary(tokenizer, len(tokens))
    merges = list(value("tokenizer.ggml.merges") or []) == _merges(_described(tokenizer))
    ids = all(
        value(f"tokenizer.ggml.{key}_token_id") == getattr(tokenizer, f"{name}_token_id")
        for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"))
    )
    faults = [
        what
        for what, good in (("tokens", list(tokens) == wanted), ("merges", merges), ("special ids", ids))
        if not good
    ]
    measured = f"other {' and '.join(faults)}" if faults else "the same tokens, merges and special ids"
    found = [Check("tokenizer", not faults, measured, "LF-QUALITY-003")]
    if tokenizer.chat_template is not None:
        template = value("tokenizer.chat_template")
        how = "the same" if template == tokenizer.chat_template else "missing" if template is None else "another one"
        found.append(Check("chat template", how == "the same", how, "LF-QUALITY-003"))
    return found


def _described(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    model = described.get("model", {})
    steps = json.dumps([described.get("pre_tokenizer"), described.get("decoder")])
    if model.get("type") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in steps:
        raise ModelError.of(
            "LF-MODEL-114",
            "GGUF of this tokenizer is not written here: it is no byte-level BPE",
            hint="give --llama-cpp FOLDER (its convert_hf_to_gguf.py is used)",
        )
    return described


def _vocabulary(tokenizer: Any, rows: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(_UNUSED)
        elif number in added:
            types.append(_CONTROL if added[number].special else _USER_DEFINED)
        else:
            types.append(_NORMAL)
    return tokens, types


def _merges(described: dict[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"].get("merges", [])]
