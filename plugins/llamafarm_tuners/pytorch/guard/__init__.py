"""Watches the figures of a training, and says what is wrong with them. Plain arithmetic, no torch."""

from __future__ import annotations

from llamafarm_tuners.pytorch.guard.watch import Figures, Guard, Offence

__all__ = ["Figures", "Guard", "Offence"]
