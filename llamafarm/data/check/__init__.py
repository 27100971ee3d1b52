"""Looks for what is wrong with rows although they can be read: copies, damaged text, missing turns, odd lengths."""

from __future__ import annotations
