"""Finding and loading models, tokenizers and adapters; generating with them."""

from __future__ import annotations
