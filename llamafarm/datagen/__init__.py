"""Generated data: instruction rows and raw text about a smart home, in five languages."""

from __future__ import annotations

from llamafarm.datagen.smart_home import FORMATS, LANGUAGES, MAX_ROWS_PER_LANGUAGE, SIZES, Format, Size, generate

__all__ = ["FORMATS", "LANGUAGES", "MAX_ROWS_PER_LANGUAGE", "SIZES", "Format", "Size", "generate"]
