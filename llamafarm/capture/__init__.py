"""Captures the matrices that flow through a model's layers, as they really are. Importing it imports no torch."""

from __future__ import annotations
