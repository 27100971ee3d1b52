"""The `llamafactory` fine-tuner: LLaMA-Factory's own keys, checked before anything runs."""

from __future__ import annotations
