"""Does a server see what training saw? Token ids of fifty conversations, compared one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.errors import LlamaFarmError, ModelError, QualityError
from llamafarm.export.conversations import Conversation, conversations
from llamafarm.export.endpoint import Endpoint
from llamafarm.export.modelfile import applied, read_modelfile, rendered, without_bos

Ids = Callable[[Conversation], list[int] | None]
"""What a server makes of a conversation; None if it refuses it."""


@dataclass(slots=True)
class Tally:
    """Conversations of one kind: how many came out the same."""

    same: int = 0
    different: int = 0
    refused: int = 0


@dataclass(slots=True)
class Verdict:
    """The comparison.

    Attributes:
        served: What was compared with the trained tokenizer.
        kinds: Per kind of conversation.
        first: The first difference, in words; empty if there is none.
        notes: What was not, or cannot be, compared.
    """

    served: str
    kinds: dict[str, Tally] = field(default_factory=dict)
    first: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def different(self) -> int:
        """Conversations that the server sees otherwise."""
        return sum(tally.different for tally in self.kinds.values())

    @property
    def compared(self) -> int:
        """Conversations that both sides took."""
        return sum(tally.same + tally.different for tally in self.kinds.values())

    def require(self) -> None:
        """Raise if the server sees something else than training.

        Raises:
            QualityError: With the first difference.
        """
        if not self.compared:
            message = "no conversation could be compared: each is refused by one side"
            raise QualityError.of("LF-QUALITY-004", message, where=self.served)
        if self.different:
            message = f"{self.different} of {self.compared} conversations become other tokens: {self.first}"
            hint = "serve with the chat template and the tokenizer of the trained model"
            raise QualityError.of("LF-QUALITY-004", message, where=self.served, hint=hint)


def verify(tokenizer: Any, served: Ids, name: str, *, tools: bool = True) -> Verdict:
    """Compare a server with the tokenizer of training.

    Args:
        tokenizer: The trained model's.
        served: What the server makes of a conversation.
        name: What the server is, in words.
        tools: Compare conversations with tools too.

    Raises:
        ModelError: If the tokenizer has no chat template, or the server cannot be asked.
    """
    if tokenizer.chat_template is None:
        hint = "there is nothing that a server could apply; it has to be sent whole prompts"
        raise ModelError.of("LF-MODEL-030", "the tokenizer has no chat template", hint=hint)
    verdict = Verdict(name)
    for conversation in conversations():
        if conversation.tools and not tools:
            continue
        tally = verdict.kinds.setdefault(conversation.kind, Tally())
        text = applied(tokenizer, conversation)
        found = served(conversation) if text is not None else None
        if text is None or found is None:
            tally.refused += 1
            if text is not None:
                tally.refused, tally.different = tally.refused - 1, tally.different + 1
                verdict.first = verdict.first or f"the server refuses a conversation ({conversation.kind})"
            continue
        expected = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        tally.same += expected == found
        tally.different += expected != found
        if expected != found:
            verdict.first = verdict.first or _difference(tokenizer, conversation, expected, found)
    if not tools:
        verdict.notes.append("conversations with tools were left out")
    elif _ignores_tools(tokenizer):
        verdict.notes.append("the trained template does not show tools to the model")
    return verdict


def by_tokenizer(other: Any) -> Ids:
    """A server that has this tokenizer."""

    def ids(conversation: Conversation) -> list[int] | None:
        text = applied(other, conversation)
        return None if text is None else list(other(text, add_special_tokens=False)["input_ids"])

    return ids


def by_endpoint(endpoint: Endpoint) -> Ids:
    """A server that runs."""
    return endpoint.ids


def by_modelfile(path: Path, tokenizer: Any) -> tuple[Ids, list[str]]:
    """Ollama with a Modelfile, and what cannot be told from it.

    The text is the template's; the BOS that the model file asks for comes before it. Splitting text into tokens is
    Ollama's: what is compared is what it has to split.

    Raises:
        ModelError: If it has no template, or one that is not understood here.
    """
    modelfile = read_modelfile(path)
    if modelfile.template is None:
        hint = "Ollama takes one of its own then: compare `ollama show --modelfile NAME` instead"
        raise ModelError.of("LF-MODEL-118", "the Modelfile has no TEMPLATE", where=str(path), hint=hint)
    template = modelfile.template
    notes = ["how Ollama splits the text into tokens cannot be seen from a Modelfile: the trained tokenizer did it"]
    weights = path.parent / modelfile.source
    bos = _adds_bos(weights) if weights.suffix == ".gguf" and weights.is_file() else None
    if bos is None:
        notes.append("whether Ollama puts a BOS token before the text cannot be seen from this Modelfile")
    if modelfile.system:
        notes.append("the Modelfile's SYSTEM stands before conversations without a system text")

    def ids(conversation: Conversation) -> list[int] | None:
        text = rendered(template, conversation)
        wanted = (applied(tokenizer, conversation) or "").startswith(tokenizer.bos_token or "\0")
        begin = wanted if bos is None else bos
        text = (tokenizer.bos_token or "" if begin else "") + without_bos(tokenizer, text)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return ids, notes


def _adds_bos(file: Path) -> bool:
    """Whether a GGUF file asks for a BOS token before each text."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError.of(
            "LF-MODEL-120", "reading GGUF needs the library gguf", hint="pip install 'llamafarm[gguf]'"
        ) from None
    field_ = GGUFReader(file).fields.get("tokenizer.ggml.add_bos_token")
    return bool(field_.contents()) if field_ else False


def _ignores_tools(tokenizer: Any) -> bool:
    """Whether the trained template writes the same with and without tools."""
    pairs = [(item, Conversation("", item.messages)) for item in conversations() if item.tools]
    return all(applied(tokenizer, one) == applied(tokenizer, other) for one, other in pairs)


def _difference(tokenizer: Any, conversation: Conversation, expected: Sequence[int], found: Sequence[int]) -> str:
    """Where two lists of ids part, as text."""
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((index for index, (a, b) in pairs if a != b), min(len(expected), len(found)))
    one, other = (_text(tokenizer, ids[at : at + 6]) for ids in (expected, found))
    return f"first at token {at} of a conversation ({conversation.kind}): {one} in training, {other} served"


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    try:
        return repr(tokenizer.decode(ids)) if ids else "its end"
    except (LlamaFarmError, ValueError, TypeError, OverflowError, IndexError):
        return str(list(ids))
