"""Marks examples with the task that they belong to."""

from __future__ import annotations

from dataclasses import replace

from llamafarm.api import Example

_INSTRUCTION = "### Instruction:\n"


def of_task(example: Example, task: str) -> Example:
    """Put `[TASK:NAME] ` before the first user turn, or before the text."""
    prefix = f"[TASK:{task}] "
    if example.text is not None:
        return replace(example, text=prefix + example.text, task=task)
    first = next((at for at, turn in enumerate(example.messages) if turn.role == "user"), None)
    if first is None:
        return replace(example, task=task)
    asked = example.messages[first]
    turns = (
        *example.messages[:first],
        replace(asked, content=prefix + asked.content),
        *example.messages[first + 1 :],
    )
    return replace(example, messages=turns, prompt=_prompt(example.prompt, asked.content, prefix), task=task)


def _prompt(prompt: str | None, asked: str, prefix: str) -> str | None:
    """The plain text of a prompt: what is asked stands at its end, or below its first heading."""
    if prompt is None:
        return None
    if prompt.endswith(asked):
        return prompt.removesuffix(asked) + prefix + asked
    return _INSTRUCTION + prefix + prompt.removeprefix(_INSTRUCTION)
