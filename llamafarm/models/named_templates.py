"""Chat templates by name: those of the usual families, which ship with us, and those of TRL if it is installed.

Ours write the mark-up that the families' models were trained with, with generation marks. What they do not write
(tools, roles that a family has no mark-up for) they refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from llamafarm.errors import Problem, nearest
from llamafarm.models import trl_templates

_FOLDER: Final = Path(__file__).with_name("_chat_templates")


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A chat template that a strategy may name.

    Attributes:
        name: Its name, other spellings resolved.
        source: Jinja.
        tokens: Mark-up that the family's tokenizers have as single tokens.
    """

    name: str
    source: str
    tokens: tuple[str, ...] = ()


_CHATML: Final = ("<|im_start|>", "<|im_end|>")
_GEMMA: Final = ("<start_of_turn>", "<end_of_turn>")
_TOKENS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "chatml": _CHATML,
        "gemma": _GEMMA,
        "gemma3": _GEMMA,
        "llama2": (),
        "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "mistral": (),
        "phi": ("<|user|>", "<|assistant|>", "<|end|>"),
        "phi4": ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "qwen": _CHATML,
        "qwen2": _CHATML,
        "zephyr": (),
    }
)
"""Our templates → the mark-up that must be tokens. Llama 2, Mistral and Zephyr write theirs in letters."""

_OTHER_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"gemma2": "gemma", "llama-2": "llama2", "llama-3": "llama3", "phi3": "phi", "phi-3": "phi", "tinyllama": "zephyr"}
)


def names() -> list[str]:
    """Every name that can be given here, other spellings left out."""
    return sorted({*_TOKENS, *trl_templates.shipped()} - set(_OTHER_NAMES))


def problem_with(name: str, where: str = "") -> Problem | None:
    """What is wrong with a name; nothing if there is such a template."""
    if _resolved(name) in names():
        return None
    missing = "" if trl_templates.shipped() else " (TRL, of pip install 'llamafarm[data]', has more)"
    hint = nearest(name, [*names(), *_OTHER_NAMES]) or "leave it out for the tokenizer's own template"
    return Problem(
        "LF-TEMPLATE-030", f"no chat template is named {name!r}; known: {', '.join(names())}{missing}", where, hint
    )


@cache
def named_template(name: str) -> NamedTemplate:
    """The template of this name.

    Raises:
        KeyError: If there is none: see `problem_with`.
    """
    name = _resolved(name)
    if name in _TOKENS:
        source = (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        return NamedTemplate(name, source.removesuffix("\n"), _TOKENS[name])
    return NamedTemplate(name, trl_templates.shipped()[name].source)


def _resolved(name: str) -> str:
    """The name as the tables have it: `Qwen2.5` and `qwen2-5` are `qwen2_5`."""
    plain = name.casefold()
    if plain in _OTHER_NAMES or plain in _TOKENS:
        return _OTHER_NAMES.get(plain, plain)
    return plain.replace("-", "_").replace(".", "_")
