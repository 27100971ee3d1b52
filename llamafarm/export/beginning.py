"""A tokenizer that begins every row as training did, where a method put a token first that the tokenizer does not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers.processors import Sequence as Processors
from tokenizers.processors import TemplateProcessing

from llamafarm.errors import LlamaFarmError, ModelError
from llamafarm.export.prompts import encode
from llamafarm.export.report import Check
from llamafarm.models.first_token import begun, described_token


def beginning_with(tokenizer: Any, token: int | None) -> Any:
    """A tokenizer for servers: its chat template and its plain encoding begin with the token, where they did not.

    A server knows a model by its files alone; what training put before each row has to be said by these.

    Args:
        tokenizer: The trained one; it stays as it is.
        token: What every row begins with; None: as the tokenizer writes them.
    """
    if token is None:
        return tokenizer
    text = str(tokenizer.convert_ids_to_tokens(token))
    made = copy.deepcopy(tokenizer)
    template = made.chat_template
    if isinstance(template, str) and not _template_begins(made, text):
        made.chat_template = f"{{{{- {text!r} -}}}}{template}"
    if made.bos_token is None and "bos_token" not in str(template):
        made.bos_token = text
    backend = getattr(made, "backend_tokenizer", None)
    if backend is not None and list(made("a")["input_ids"])[:1] != [token]:
        before = TemplateProcessing(
            single=[text, "$A"], pair=[text, "$A", text, "$B:1"], special_tokens=[(text, token)]
        )
        own = backend.post_processor
        backend.post_processor = before if own is None else Processors([own, before])
    return made


def beginning_check(trained: Any, served: Any, token: int, examples: Sequence[Any]) -> Check:
    """Whether a server with `served` makes of prompts what training fed the model."""
    name = f"rows begin with {described_token(trained, token)}"
    try:
        differing = sum(begun(encode(one, trained), token) != encode(one, served) for one in examples)
    except (LlamaFarmError, ValueError, TypeError, KeyError) as error:
        return Check(name, False, f"a prompt cannot be encoded: {' '.join(str(error).split())}", "LF-QUALITY-003")
    measured = f"{differing} of {len(examples)} prompts do not" if differing else "by its chat template and tokenizer"
    return Check(name, not differing, measured, "LF-QUALITY-003")


def require_nowhere_else(tokenizer: Any, token: int) -> None:
    """Check that the chat template writes the token at the beginning of a conversation alone.

    Training scales it there and nowhere else; weights cannot tell one place from another.

    Raises:
        ModelError: If it stands inside of conversations too.
    """
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    try:
        ids = list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])
    except MemoryError:  # says nothing of the template
        raise
    except Exception:  # noqa: BLE001  # a template raises what it likes; without one there are no conversations
        return
    if token in begun(ids, token)[1:]:
        raise ModelError.of(
            "LF-MODEL-220",
            f"the factor of the first token cannot be put into the weights: the chat template writes "
            f"{described_token(tokenizer, token)} inside of conversations too, where it was not scaled in training",
            hint="use --to adapter and generate with llamafarm, or train with a bos_token of its own",
        )


def _template_begins(tokenizer: Any, text: str) -> bool:
    """Whether the chat template writes the token first."""
    try:
        return str(tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)).startswith(text)
    except MemoryError:  # says nothing of the template
        raise
    except Exception:  # noqa: BLE001  # a template raises what it likes
        return False
