"""The fine-tuner `pytorch`: transformers models and PEFT adapters in a loop of our own on accelerate."""

from __future__ import annotations
