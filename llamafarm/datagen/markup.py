"""The chat mark-up of the embedded model, as text."""

from __future__ import annotations

from collections.abc import Iterable

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"


def render_chat(turns: Iterable[tuple[str, str]]) -> str:
    """Return turns of (role, content) as the embedded model's chat template writes them."""
    return "".join(f"{TURN_START}{role}\n{content}{TURN_END}\n" for role, content in turns)
