"""What a running server makes of a conversation: token ids from vLLM's or llama.cpp's own endpoints."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from llamafarm.errors import ModelError, UsageError
from llamafarm.export.conversations import Conversation

Server = Literal["vllm", "llama.cpp"]
_SECONDS: Final = 60.0
_ABSENT: Final = frozenset({404, 405, 501})


@dataclass(slots=True)
class Endpoint:
    """A server.

    Attributes:
        url: Its root, e.g. `http://127.0.0.1:8000`; a `/v1` at the end is dropped.
        server: Which it is.
        model: The name it serves the model by; vLLM may need it.
    """

    url: str
    server: Server
    model: str | None = None

    def ids(self, conversation: Conversation) -> list[int] | None:
        """Token ids of the conversation up to the answer; None if the server refuses it.

        Raises:
            ModelError: If it cannot be reached or answers something else.
        """
        if self.server == "llama.cpp":
            written = self._post("/apply-template", _chat(conversation))
            if written is None:
                return None
            text = self._of(written, "prompt", str)
            answered = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        else:
            asked = _chat(conversation) | {"add_generation_prompt": True, "add_special_tokens": False}
            answered = self._post("/tokenize", asked | ({"model": self.model} if self.model else {}))
        return None if answered is None else list(self._of(answered, "tokens", list))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer; None if the server refuses the content."""
        status, answer = _post(self.url + path, body)
        if status in _ABSENT:
            hint = "a server of vLLM or llama.cpp is needed: an OpenAI-style interface alone shows no tokens"
            raise ModelError.of("LF-MODEL-119", f"the server has no {path}", where=self.url, hint=hint)
        return None if status >= 400 else answer

    def _of(self, answer: Any, key: str, kind: type) -> Any:
        if not isinstance(answer, dict) or not isinstance(answer.get(key), kind):
            message = f"the server's answer has no {key!r}: {json.dumps(answer)[:120]}"
            raise ModelError.of("LF-MODEL-119", message, where=self.url)
        return answer[key]


def find_endpoint(url: str, model: str | None = None) -> Endpoint:
    """Which server answers at a URL.

    Raises:
        UsageError: If it is no http address.
        ModelError: If it cannot be reached, or shows no tokens.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError.of("LF-USAGE-023", f"--url {url!r} is no address", hint="write http://127.0.0.1:8000")
    root = url.rstrip("/").removesuffix("/v1")
    turns = {"messages": [{"role": "user", "content": "a"}]}
    if _post(f"{root}/apply-template", turns)[0] not in _ABSENT:
        return Endpoint(root, "llama.cpp", model)
    status, _ = _post(f"{root}/tokenize", turns | ({"model": model} if model else {}))
    if status in _ABSENT:
        raise ModelError.of(
            "LF-MODEL-119",
            "the server shows no tokens: it has neither /apply-template nor /tokenize",
            where=root,
            hint="vllm serve and llama-server can be asked; for others compare --tokenizer or --modelfile",
        )
    return Endpoint(root, "vllm", model)


def _chat(conversation: Conversation) -> dict[str, Any]:
    """The conversation as OpenAI's interface has it: arguments of calls as JSON text."""
    messages = []
    for message in conversation.messages:
        turn = dict(message)
        if calls := turn.get("tool_calls"):
            turn["tool_calls"] = [
                {"id": f"call_{index}", **call, "function": _function(call)} for index, call in enumerate(calls)
            ]
        messages.append(turn)
    return {"messages": messages} | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _function(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def _post(url: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and answer.

    Raises:
        ModelError: If there is no answer.
    """
    data = json.dumps(body, ensure_ascii=False).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  # http(s) alone
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310  # checked by find_endpoint
            return int(answer.status), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError.of("LF-MODEL-119", f"the server does not answer: {reason}", where=url) from None
