"""Trained models for other programs: merged, checked from disk, and described for the server that takes them."""

from __future__ import annotations
