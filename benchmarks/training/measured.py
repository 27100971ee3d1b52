"""What a way reports: one line of JSON, the last that its process prints. Needs nothing but Python."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence


class Clock:
    """CPU seconds and seconds of the optimizer steps."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def start(self) -> None:
        """A step begins."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """It is done."""
        self.cpu += time.process_time() - self._cpu
        self.wall += time.perf_counter() - self._wall


def say(clock: Clock, losses: Sequence[float]) -> None:
    """Print what the steps took, their losses, CPU seconds of the whole process, and its peak memory in MiB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    found = {"train": clock.cpu, "wall": clock.wall, "losses": list(losses), "memory": memory}
    print(f"\n{json.dumps(found | {'whole': time.process_time()})}", flush=True)
