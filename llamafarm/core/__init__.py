"""The straight line from a strategy file to a finished run."""

from __future__ import annotations
