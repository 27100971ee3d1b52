"""Registers the components of this package."""

from __future__ import annotations
