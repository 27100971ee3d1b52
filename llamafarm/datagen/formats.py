"""The shapes a row can take. Each holds the same exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llamafarm.datagen.commands import Exchange

Row = dict[str, Any]

_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}


def _prompt(exchange: Exchange) -> list[dict[str, str]]:
    system = [{"role": "system", "content": exchange.system}] if exchange.system is not None else []
    return [*system, {"role": "user", "content": exchange.user}]


def messages(exchange: Exchange) -> Row:
    """A chat: ``{"messages": [{"role", "content"}, ...]}``."""
    return {"messages": [*_prompt(exchange), {"role": "assistant", "content": exchange.answer}]}


def sharegpt(exchange: Exchange) -> Row:
    """A chat: ``{"conversations": [{"from", "value"}, ...]}``."""
    turns = messages(exchange)["messages"]
    return {"conversations": [{"from": _SHAREGPT_ROLES[turn["role"]], "value": turn["content"]} for turn in turns]}


def alpaca(exchange: Exchange) -> Row:
    """``{"instruction", "input", "output"}``; the system message is the input."""
    return {"instruction": exchange.user, "input": exchange.system or "", "output": exchange.answer}


def preference(exchange: Exchange) -> Row:
    """``{"prompt", "chosen", "rejected"}``; the prompt is a list of messages."""
    return {"prompt": _prompt(exchange), "chosen": exchange.answer, "rejected": exchange.rejected}


EXCHANGE_FORMATS: Mapping[str, Callable[[Exchange], Row]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "preference": preference,
}
