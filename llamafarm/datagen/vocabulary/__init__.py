"""The words of each language: names, phrasings and small talk about the home."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from llamafarm.datagen.vocabulary.table import Noun, Vocabulary

__all__ = ["LANGUAGES", "Noun", "Vocabulary", "load_vocabulary"]

LANGUAGES = ("english", "german", "french", "spanish", "polish")


def load_vocabulary(language: str) -> Vocabulary:
    """Return the words of one of ``LANGUAGES``."""
    return cast("Vocabulary", import_module(f"{__name__}.{language}").VOCABULARY)
