"""An example of a LlamaFarm plugin."""

from __future__ import annotations
