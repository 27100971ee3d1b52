"""The command line: the only place that prints and sets exit codes."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
