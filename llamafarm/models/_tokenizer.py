"""Load tokenizers, with errors that a user can act on. Needs no torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llamafarm.api import BaseModelConfig
from llamafarm.errors import ModelError, NetworkError, SecurityError
from llamafarm.models.hub import fetch_config
from llamafarm.models.locate import Located, locate
from llamafarm.models.safety import check_folder, require_floors
from llamafarm.models.special import Vocabulary, extended, pad_is_text
from llamafarm.models.templates import check_templates


def load_tokenizer(config: BaseModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, with a PAD token and the special tokens that `config` adds.

    Raises:
        ModelError: If there is none or it cannot be read.
    """
    return load_vocabulary(config).tokenizer


def load_vocabulary(config: BaseModelConfig) -> Vocabulary:
    """As `load_tokenizer`, and what is new in it.

    Raises:
        ModelError: If there is none, it cannot be read, or lacks what `config` takes for granted.
        SecurityError: If a file of it is no mere data, or its chat template costs too much.
    """
    quiet()
    located = available(config)
    arguments = hub_arguments(config)
    notices: tuple[str, ...] = ()
    with explained(located, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(located.source, **arguments)
        if pad_is_text(tokenizer):
            notices = (f"the tokenizer's PAD token {tokenizer.pad_token!r} is ordinary text: another one is taken",)
            tokenizer = AutoTokenizer.from_pretrained(located.source, pad_token=None, **arguments)
    check_templates(tokenizer.chat_template, located.given)
    found = extended(tokenizer, config)
    return replace(found, notices=(*notices, *found.notices))


def quiet() -> None:
    """Keep transformers' progress bars and chatter off the terminal; errors still raise."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def available(config: BaseModelConfig) -> Located:
    """The base model, known to be there and to be data.

    Raises:
        ModelError: If none is named, there is no such model, or its configuration cannot be used.
        NetworkError: If the hub cannot be reached.
        SecurityError: If its files choose code, or lead out of its folder.
    """
    require_floors()
    if not config.huggingface_id:
        raise ModelError.of("LF-MODEL-009", "no base model is named", hint="set base_model: NAME")
    located = locate(config.huggingface_id)
    folder = located.folder
    if located.kind == "hub":
        folder = fetch_config(located.given, config).parent
    if folder is not None and not config.trust_remote_code:
        check_folder(folder)
    return located


def hub_arguments(config: BaseModelConfig) -> dict[str, Any]:
    """How transformers is to ask the hub."""
    token = config.token.get_secret_value() if config.token else None
    return {
        "revision": config.revision or "main",
        "cache_dir": config.cache_dir,
        "token": token or None,
        "trust_remote_code": config.trust_remote_code,
    }


@contextmanager
def explained(located: Located, what: str) -> Iterator[None]:
    """Turn what transformers and PEFT raise for unusable files into errors that name the folder and the reason."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise SecurityError.of(
                "LF-SECURITY-001",
                f"{located.given} wants to run code of its own",
                hint="read that code, then add --trust-remote-code if you trust it",
            ) from error
        if isinstance(error, OSError) and located.kind == "hub":
            raise NetworkError.of("LF-NET-001", f"cannot fetch the {what} of {located.given}: {reason}") from error
        if "model type" in reason or "Unrecognized configuration class" in reason:
            raise ModelError.of(
                "LF-MODEL-004",
                f"{located.given}: its architecture is no causal language model that transformers "
                f"{transformers.__version__} knows",
                hint=_architecture(located),
            ) from error
        raise ModelError.of("LF-MODEL-005", f"cannot load the {what} of {located.given}: {reason[:400]}") from error


def _architecture(located: Located) -> str:
    try:
        config = json.loads((Path(located.source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f"config.json says model_type {config.get('model_type')!r}"
