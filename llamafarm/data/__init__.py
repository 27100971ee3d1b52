"""From files to validated, split, tokenized and label-masked examples."""

from __future__ import annotations
