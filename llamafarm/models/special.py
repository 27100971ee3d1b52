"""What a run adds to its tokenizer: PAD, the tokens of ChatML, a chat template by name. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError
from llamafarm.models.named_templates import named_template, problem_with

PAD = "<|pad|>"
"""The PAD token that is added where a tokenizer has none to spare."""

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

_PAD_NAMES = ("pad", "padding")
_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as a run uses it.

    Attributes:
        tokenizer: With a PAD token, and with what the configuration adds.
        new: Tokens that the base model's tokenizer does not have → their ids.
        notices: What was done and why, one sentence each.
    """

    tokenizer: Any
    new: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def extended(tokenizer: Any, config: BaseModelConfig) -> Vocabulary:
    """The tokenizer with the special tokens that `config` asks for; it is changed in place.

    Raises:
        ModelError: If a chat template is named that there is not, or whose tokens the tokenizer lacks.
    """
    known, notices = len(tokenizer), [*_chatml(tokenizer, config), *_templated(tokenizer, config)]
    if notice := ensure_pad(tokenizer, add=config.add_pad_token):
        notices.append(notice)
    added = range(known, len(tokenizer))
    return Vocabulary(tokenizer, {tokenizer.convert_ids_to_tokens(i): i for i in added}, tuple(notices))


def pad_is_text(tokenizer: Any) -> bool:
    """Whether the PAD token is a piece of ordinary text, so that no text could hold it any more."""
    token = tokenizer.pad_token
    if token is None or not tokenizer.is_fast or _BRACKETED.fullmatch(token):
        return False
    return token in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)


def ensure_pad(tokenizer: Any, *, add: bool | None = None) -> str:
    """Give a tokenizer a PAD token, and say in a sentence which, if it is another than before.

    An existing one stays. Else it is, in this order: a token that is named for it, a reserved one that nothing uses,
    the unknown token, a new one. Nothing relies on the choice: labels and attention masks come from lengths.

    Args:
        tokenizer: Is changed in place.
        add: True: PAD is a token of its own, a new one if need be. False: no token is added, and the end-of-text token
            is taken where nothing else is left. None: one is added only if nothing else is left.
    """
    before = tokenizer.pad_token_id
    if before is not None and not (add and _serves_elsewhere(tokenizer, tokenizer.pad_token)):
        return ""
    spare = next(_spare(tokenizer, own=bool(add)), None)
    if spare is not None:
        tokenizer.pad_token = spare
    elif add is False:
        tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer.add_special_tokens({"pad_token": PAD})
        return (
            f"Adding dedicated PAD token {PAD} (original pad_token_id: {before}). "
            f"New pad_token_id: {tokenizer.pad_token_id}, vocab size: {len(tokenizer)}"
        )
    return f"PAD token: {tokenizer.pad_token} (original pad_token_id: {before}, new: {tokenizer.pad_token_id})"


def _spare(tokenizer: Any, *, own: bool) -> Iterator[str]:
    """Tokens that could be PAD, best first; with `own` only such as serve nothing else."""
    free = [token for token in tokenizer.added_tokens_encoder if not _serves_elsewhere(tokenizer, token)]
    yield from (token for token in free if token.strip("<|[]>").casefold() in _PAD_NAMES or "_pad_" in token)
    yield from (token for token in free if "reserved" in token.casefold())
    unknown = tokenizer.unk_token
    if not own and unknown is not None and unknown not in (tokenizer.eos_token, tokenizer.bos_token):
        yield unknown


def _serves_elsewhere(tokenizer: Any, token: str) -> bool:
    """Whether a token begins, ends or replaces text, or is written by the chat template."""
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    template = tokenizer.chat_template
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    return token in named or any(token in text for text in texts)


def _chatml(tokenizer: Any, config: BaseModelConfig) -> Iterator[str]:
    if config.add_chatml_tokens:
        before = (tokenizer.bos_token, tokenizer.eos_token)
        tokenizer.add_special_tokens({"bos_token": TURN_START, "eos_token": TURN_END})
        yield (
            f"ChatML tokens: BOS {TURN_START} ({tokenizer.bos_token_id}; before: {before[0]}), "
            f"EOS {TURN_END} ({tokenizer.eos_token_id}; before: {before[1]})"
        )


def _templated(tokenizer: Any, config: BaseModelConfig) -> Iterator[str]:
    """Give the tokenizer the chat template that is named."""
    name = config.template_name
    if name is None:
        return
    if problem := problem_with(name):
        raise ModelError([problem])
    template = named_template(name)
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in template.tokens if token not in vocabulary]:
        raise _without_tokens(f"the tokenizer has no token {' and no '.join(missing)}", template.name)
    replaced = tokenizer.chat_template not in (None, template.source)
    tokenizer.chat_template = template.source
    if not _ends(tokenizer):
        raise _without_tokens("the text that ends an answer is no token of the tokenizer", template.name)
    yield f"chat template: {template.name}{', in place of its own' if replaced else ''}"


def _ends(tokenizer: Any) -> bool:
    """Whether the template ends an answer by a token that generation can stop at."""
    from llamafarm.models._turns import end_of_turn

    return end_of_turn(tokenizer) is not None


def _without_tokens(what: str, name: str) -> ModelError:
    hint = "name the template that the model was trained with, or leave it out for the tokenizer's own"
    if name == "chatml":
        hint = "set base_model.add_chatml_tokens: true"
    return ModelError.of("LF-TEMPLATE-031", f"template {name}: {what}", hint=hint)
