"""The prompts by which an export is compared with the model it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llamafarm.api import Example, Message
from llamafarm.core.load import load
from llamafarm.core.plan import splitter_of
from llamafarm.core.record import OWN, manifest_of
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.data.plain import plain_prompt
from llamafarm.data.prepare import prepare
from llamafarm.errors import LlamaFarmError

COUNT: Final = 8

_BUILT_IN: Final = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Turn on the light in the kitchen.",
    "List three uses of a paper clip.",
    "def add(a, b):",
    "Übersetze: Guten Morgen, wie geht es dir?",
    "2 + 2 * 3 = ?",
    "Summarize in one sentence why plants are green.",
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Conversations up to the answer, and where they come from."""

    examples: Sequence[Example | Sequence[Message]]
    source: str


def prompts_for(folder: Path | None, registry: Registry) -> Prompts:
    """Held-out rows of the run that made the model, or a built-in set where they are not known."""
    built_in = [[Message("user", text)] for text in _BUILT_IN]
    run = next((path for path in (folder, folder.parent) if manifest_of(path)), None) if folder else None
    if run is None:
        return Prompts(built_in, f"{len(built_in)} built-in prompts: no run of ours made the model")
    try:
        examples = _held_out(run, registry)
    except LlamaFarmError as error:
        reason = error.problems[0].message
        return Prompts(built_in, f"{len(built_in)} built-in prompts: the run's rows cannot be read ({reason})")
    if not examples:
        return Prompts(built_in, f"{len(built_in)} built-in prompts: the run held no rows out")
    return Prompts(examples[:COUNT], f"{len(examples[:COUNT])} held-out rows of the run")


def _held_out(run: Path, registry: Registry) -> Sequence[Example]:
    loaded = load(Request(str(run / OWN / "resolved.yaml")), registry)
    return prepare(loaded.tuner_config.dataset, splitter_of(loaded, registry), notice=lambda _: None).eval


def encode(prompt: Example | Sequence[Message], tokenizer: Any) -> list[int]:
    """Token ids up to where the answer begins, as training and generation have them."""
    if isinstance(prompt, Example) and prompt.text is not None:
        return list(tokenizer(prompt.text)["input_ids"])[:64]
    messages, tools = _question(prompt)
    if tokenizer.chat_template is None:
        given = prompt.prompt if isinstance(prompt, Example) else None
        return list(tokenizer(plain_prompt(messages, given, end=tokenizer.eos_token))["input_ids"])
    turns = [message.as_dict() for message in messages]
    encoded = tokenizer.apply_chat_template(turns, tools=tools or None, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def _question(prompt: Example | Sequence[Message]) -> tuple[list[Message], list[dict[str, Any]]]:
    """The turns before the last answer."""
    messages = list(prompt.messages if isinstance(prompt, Example) else prompt)
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    tools = [dict(tool) for tool in prompt.tools] if isinstance(prompt, Example) else []
    return (messages[: answers[-1]] if answers else messages), tools
