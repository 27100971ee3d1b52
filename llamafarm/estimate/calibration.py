"""What earlier runs measured beside their estimates, kept in a file of the user's, and what follows for the next one.

One line of JSON a run. Runs of one key have the same errors of estimation, if they are of one size: where the process
itself takes most of the memory, nothing is learned about large models, and nothing about small ones from these.

- The very same run (key, parameters, and the estimate to a hundredth): the median of measured / estimated of the last
  ones, between 2/3 and 3/2. Nothing else counts then.
- Else runs nearby: parameters, and what is estimated beside the process itself, between half and twice as large. At
  least three of them; the median of the last ones, between 0.8 and 1.25.
- Else nothing is corrected.

So a corrected estimate is no further from what the same run measured than the formula, in the sum over its repetitions
(a median does that), and one odd run moves the estimates of others nowhere that the runs beside it have not been.

`LLAMAFARM_CALIBRATION=off` neither reads nor writes. Nothing here ever fails a run.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from llamafarm.files import write_atomically

SWITCH = "LLAMAFARM_CALIBRATION"
_FILE = "estimates.jsonl"
_MOST_BYTES = 1_000_000
_KEPT = 2_000
_RECENT = 20
_SAME = 0.01
_NEAR = 2.0
_FEWEST = 3
_BOUNDS_OF_SAME = (2 / 3, 3 / 2)
_BOUNDS = (0.8, 1.25)
_POSITIVE = ("parameters", "estimated", "shown", "measured", "flops", "seconds")


@dataclass(frozen=True, slots=True)
class Key:
    """What has to be the same."""

    device: str
    tuner: str
    path: str


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is.

    Attributes:
        parameters: Of the model, adapters included.
        estimated: Bytes, before any calibration.
        fixed: Those of them that every process has.
    """

    parameters: float
    estimated: float
    fixed: float = 0.0

    def same(self, other: Size) -> bool:
        """Whether it is the size of the very same run."""
        apart = abs(self.estimated - other.estimated)
        return self.parameters == other.parameters and apart <= _SAME * min(self.estimated, other.estimated)

    def near(self, other: Size) -> bool:
        """Whether errors of one may be those of the other."""
        return _within(self.parameters, other.parameters) and _within(
            self.estimated - self.fixed, other.estimated - other.fixed
        )


def _within(one: float, other: float) -> bool:
    return 0 < max(one, other) <= _NEAR * min(one, other)


@dataclass(frozen=True, slots=True)
class Record:
    """A run.

    Attributes:
        device: Name of the device.
        tuner: The fine-tuner.
        path: How it computed.
        parameters: Of the model, adapters included.
        estimated: Bytes, before any calibration.
        fixed: Those of them that every process has.
        shown: Bytes that the user was told.
        measured: Bytes at the peak.
        flops: Operations, as estimated.
        seconds: Of training.
    """

    device: str
    tuner: str
    path: str
    parameters: float
    estimated: float
    fixed: float
    shown: float
    measured: float
    flops: float
    seconds: float

    @property
    def key(self) -> Key:
        """What other runs have to share with it."""
        return Key(self.device, self.tuner, self.path)

    @property
    def size(self) -> Size:
        """How large it was."""
        return Size(self.parameters, self.estimated, self.fixed)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What follows from earlier runs.

    Attributes:
        runs: How many counted.
        memory: What an estimate is multiplied by.
        rate: Operations a second; None if nothing was measured.
        last_off: How far the last one that was shown was above what was measured, as a share of it.
    """

    runs: int = 0
    memory: float = 1.0
    rate: float | None = None
    last_off: float = 0.0


def folder() -> Path:
    """Where the file is: in `LLAMAFARM_HOME`, else in the platform's folder for state."""
    if given := os.environ.get("LLAMAFARM_HOME"):
        return Path(given)
    from platformdirs import user_state_path

    return user_state_path("llamafarm", appauthor=False)


def enabled() -> bool:
    """Whether the user lets runs be remembered."""
    return os.environ.get(SWITCH, "").lower() not in ("off", "0", "no", "false")


def calibrate(key: Key, sized: Size) -> Calibration:
    """What earlier runs like this one say.

    Args:
        key: Of the run.
        sized: How large it is.
    """
    alike = [record for record in _read() if record.key == key]
    same = [record for record in alike if record.size.same(sized)]
    near = same or [record for record in alike if record.size.near(sized)]
    near = near[-_RECENT:]
    rates = [record.flops / record.seconds for record in near or alike[-_RECENT:]]
    rate = median(rates) if rates else None
    if not near or (not same and len(near) < _FEWEST):
        return Calibration(rate=rate)
    low, high = _BOUNDS_OF_SAME if same else _BOUNDS
    ratio = min(high, max(low, median(record.measured / record.estimated for record in near)))
    return Calibration(len(near), ratio, rate, near[-1].shown / near[-1].measured - 1)


def remember(record: Record) -> None:
    """Add a run; whatever goes wrong is of no consequence."""
    if not enabled() or min(getattr(record, name) for name in _POSITIVE) <= 0:
        return
    try:
        path = folder() / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        if path.stat().st_size > _MOST_BYTES:
            kept = path.read_text(encoding="utf-8").splitlines()[-_KEPT:]
            write_atomically(path, "\n".join(kept) + "\n")
    except OSError:
        return


def _read() -> list[Record]:
    """All runs that can be read; lines of other versions, or damaged ones, are none."""
    if not enabled():
        return []
    try:
        lines = (folder() / _FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = (_parsed(line) for line in lines)
    return [record for record in found if record is not None]


def _parsed(line: str) -> Record | None:
    try:
        values = json.loads(line)
        device, tuner, path = (str(values[name]) for name in ("device", "tuner", "path"))
        numbers = {name: float(values[name]) for name in (*_POSITIVE, "fixed")}
    except (ValueError, TypeError, KeyError):
        return None
    positive = all(0 < numbers[name] < math.inf for name in _POSITIVE)
    return Record(device, tuner, path, **numbers) if positive and 0 <= numbers["fixed"] < math.inf else None
