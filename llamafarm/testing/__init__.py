"""Contract suites and pytest fixtures for plugin authors."""

from __future__ import annotations
