"""pytest fixtures for plugin authors; loaded by pytest through the `pytest11` entry point."""

from __future__ import annotations
