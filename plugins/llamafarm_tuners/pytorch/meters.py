"""What a run costs: memory and time. No torch."""

from __future__ import annotations

import resource
import sys


def peak_resident_bytes() -> int:
    """Largest main memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def clock(seconds: float) -> str:
    """`1:02:03` for logs."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
