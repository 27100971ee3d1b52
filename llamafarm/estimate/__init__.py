"""Says before a run what it will need: memory by term, time and disk, from `config.json` alone. Imports no torch."""

from __future__ import annotations
