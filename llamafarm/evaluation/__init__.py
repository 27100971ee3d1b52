"""Measures a model on rows it was not trained on, and compares it with its base."""

from __future__ import annotations
