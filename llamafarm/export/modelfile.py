"""Ollama's Modelfile: written from a chat template, and read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.errors import LlamaFarmError, ModelError
from llamafarm.export.conversations import Conversation, conversations
from llamafarm.export.go_template import render

_ROLES = ("system", "user", "assistant")
_INSTRUCTION = re.compile(
    r'^(?P<name>[A-Za-z]+)[ \t]+(?:"""(?P<long>.*?)"""|(?P<short>[^\n]*))[ \t]*$', re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What Ollama is told of a model.

    Attributes:
        source: Its `FROM`.
        template: Its Go template; None leaves the choice to Ollama.
        stops: Texts that end an answer.
        num_ctx: Context length.
        temperature: Sampling temperature.
        system: The system message.
    """

    source: str
    template: str | None = None
    stops: Sequence[str] = ()
    num_ctx: int | None = None
    temperature: float | None = None
    system: str | None = None

    def text(self) -> str:
        """The file."""
        lines = [f"FROM {self.source}"]
        if self.template is not None:
            lines.append(f'TEMPLATE """{self.template}"""')
        lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in self.stops]
        if self.num_ctx:
            lines.append(f"PARAMETER num_ctx {self.num_ctx}")
        if self.temperature is not None:
            lines.append(f"PARAMETER temperature {self.temperature:g}")
        if self.system:
            lines.append(f'SYSTEM """{self.system}"""')
        return "\n".join([*lines, ""])


def read_modelfile(path: Path) -> Modelfile:
    """Read a Modelfile.

    Raises:
        ModelError: If it cannot be read or has no FROM.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError.of("LF-MODEL-118", f"the Modelfile cannot be read: {error}", where=str(path)) from None
    found: dict[str, list[str]] = {}
    for match in _INSTRUCTION.finditer(text):
        value = match["long"] if match["long"] is not None else match["short"].strip()
        found.setdefault(match["name"].upper(), []).append(value)
    if "FROM" not in found:
        raise ModelError.of("LF-MODEL-118", "the Modelfile has no FROM", where=str(path))
    parameters = [value.partition(" ")[::2] for value in found.get("PARAMETER", [])]
    stops = [_unquoted(value.strip()) for name, value in parameters if name == "stop"]
    template, system = (found[key][-1] if key in found else None for key in ("TEMPLATE", "SYSTEM"))
    return Modelfile(found["FROM"][-1], template, stops, system=system)


def _unquoted(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


def rendered(template: str, conversation: Conversation) -> str:
    """What Ollama makes of a conversation with this template.

    Raises:
        ModelError: If the template uses what is not understood here.
    """
    messages = [_go_message(message) for message in conversation.messages]
    system = "\n\n".join(message["Content"] for message in messages if message["Role"] == "system")
    tools = [_go_names(tool) for tool in conversation.tools]
    data: dict[str, Any] = {"Messages": messages, "System": system, "Tools": tools or None, "Response": ""}
    if ".Messages" in template:
        return render(template, data)
    last = [message["Content"] for message in messages if message["Role"] == "user"]
    if len(last) > 1 or any(message["Role"] in ("assistant", "tool") for message in messages):
        raise ModelError.of("LF-MODEL-118", "a template without .Messages is understood here for a single turn only")
    return render(template, data | {"Prompt": last[-1] if last else ""})


def derive(tokenizer: Any) -> tuple[str | None, list[str]]:
    """A Go template that writes what the tokenizer's chat template writes, and what is to be said of it.

    Each role's text before and after its content is read off two renderings; the result is believed only as far as it
    gives the same text for whole conversations.
    """
    if tokenizer.chat_template is None:
        return None, ["the tokenizer has no chat template, so the Modelfile has none: prompts are sent as they are"]
    parts = _parts(tokenizer)
    if parts is None:
        return None, ["the chat template is more than a text around each turn: the Modelfile has no TEMPLATE"]
    template = _written(*parts)
    differing = [
        conversation
        for conversation in conversations()
        if not conversation.tools
        and (expected := _expected(tokenizer, conversation)) is not None
        and rendered(template, conversation) != expected
    ]
    if '"""' in template or differing:
        return None, ["the chat template cannot be said in Ollama's language: the Modelfile has no TEMPLATE"]
    return template, ["the Modelfile's TEMPLATE was checked on chats; Ollama does not see tools in it"]


def _expected(tokenizer: Any, conversation: Conversation) -> str | None:
    """The chat template's own text, without the BOS that a server adds by itself; None if it refuses."""
    text = applied(tokenizer, conversation)
    return None if text is None else without_bos(tokenizer, text)


def applied(tokenizer: Any, conversation: Conversation) -> str | None:
    """What the tokenizer's chat template writes before an answer; None if it refuses the conversation."""
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in conversation.messages],
                tools=[dict(tool) for tool in conversation.tools] or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        )
    except MemoryError:  # says nothing of the template
        raise
    except Exception:  # noqa: BLE001  # templates raise what they like
        return None


def without_bos(tokenizer: Any, text: str) -> str:
    """The text without the BOS at its beginning."""
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text


def _parts(tokenizer: Any) -> tuple[Mapping[str, tuple[str, str]], str] | None:
    """The text around each role's content, and what prompts for an answer."""
    marks = {role: f"CONTENT-OF-{role.upper()}" for role in _ROLES}
    turns = [{"role": role, "content": marks[role]} for role in _ROLES]
    turns.append({"role": "user", "content": "CONTENT-OF-LAST"})
    try:
        whole = without_bos(tokenizer, str(tokenizer.apply_chat_template(turns, tokenize=False)))
        alone = without_bos(tokenizer, str(tokenizer.apply_chat_template(turns[1:2], tokenize=False)))
        asked = without_bos(
            tokenizer, str(tokenizer.apply_chat_template(turns[1:2], tokenize=False, add_generation_prompt=True))
        )
    except MemoryError:  # says nothing of the template
        raise
    except Exception:  # noqa: BLE001  # templates raise what they like
        return None
    if not asked.startswith(alone) or any(whole.count(mark) != 1 for mark in marks.values()):
        return None
    before, _, after = alone.partition(marks["user"])
    around = {"user": (before, after)}
    first, _, rest = whole.partition(marks["system"])
    between, _, rest = rest.partition(marks["user"])
    if not between.endswith(before) or not rest.startswith(after):
        return None
    around["system"] = (first, between.removesuffix(before) if before else between)
    start, _, rest = rest.removeprefix(after).partition(marks["assistant"])
    end, found, _ = rest.partition(before + "CONTENT-OF-LAST")
    if not found:
        return None
    around["assistant"] = (start, end)
    return {**around, **_tool_part(tokenizer, turns[1:3])}, asked.removeprefix(alone)


def _tool_part(tokenizer: Any, turns: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    """The text around what a tool answers, where it is that alone."""
    mark = "CONTENT-OF-TOOL"
    try:
        text = str(tokenizer.apply_chat_template([*turns, {"role": "tool", "content": mark}], tokenize=False))
        before = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except MemoryError:  # says nothing of the template
        raise
    except Exception:  # noqa: BLE001  # templates raise what they like
        return {}
    if not text.startswith(before) or text.count(mark) != 1:
        return {}
    first, _, last = text.removeprefix(before).partition(mark)
    return {"tool": (first, last)}


def _written(around: Mapping[str, tuple[str, str]], prompt: str) -> str:
    branches = []
    for index, (role, (before, after)) in enumerate(around.items()):
        word = "if" if index == 0 else "else if"
        branches.append(f'{{{{ {word} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}')
    return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_go(prompt)}"


def _go(text: str) -> str:
    """Text that Go takes as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _go_message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [_go_names(call) for call in message.get("tool_calls", ())]
    return {"Role": message["role"], "Content": message["content"], "ToolCalls": calls or None}


def _go_names(value: Any) -> Any:
    """Keys as Go's fields: `function.name` is `.Function.Name`; arguments keep their own."""
    if not isinstance(value, Mapping):
        return value
    return {
        key.capitalize(): inner if key in ("arguments", "parameters") else _go_names(inner)
        for key, inner in value.items()
    }


def problem_of(error: LlamaFarmError) -> str:
    """The reason in an error, alone."""
    return error.problems[0].message
