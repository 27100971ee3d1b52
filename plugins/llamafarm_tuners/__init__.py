"""Fine-tuners that ship with LlamaFarm."""

from __future__ import annotations
