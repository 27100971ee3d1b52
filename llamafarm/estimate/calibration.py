"""What earlier runs measured beside their estimates, kept in a file of the user's, and what follows for the next one.

One line of JSON a run. A run counts for an estimate when device, fine-tuner and path are the same, and its estimate
was between a quarter and four times as large: where the process itself takes most of the memory, nothing is learned
about large models. `LLAMAFARM_CALIBRATION=off` neither reads nor writes. Nothing here ever fails a run.
"""

from __future__ import annotations

import json
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
_SIMILAR = 4.0


@dataclass(frozen=True, slots=True)
class Key:
    """What has to be the same."""

    device: str
    tuner: str
    path: str


@dataclass(frozen=True, slots=True)
class Record:
    """A run.

    Attributes:
        device: Name of the device.
        tuner: The fine-tuner.
        path: How it computed.
        estimated: Bytes, before any calibration.
        shown: Bytes that the user was told.
        measured: Bytes at the peak.
        flops: Operations, as estimated.
        seconds: Of training.
    """

    device: str
    tuner: str
    path: str
    estimated: float
    shown: float
    measured: float
    flops: float
    seconds: float

    @property
    def key(self) -> Key:
        """What other runs have to share with it."""
        return Key(self.device, self.tuner, self.path)


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


def calibrate(key: Key, estimated: float) -> Calibration:
    """What earlier runs like this one say: medians, which one strange run does not move.

    Args:
        key: Of the run.
        estimated: Bytes.
    """
    alike = [record for record in _read() if record.key == key]
    near = [record for record in alike if 1 / _SIMILAR <= record.estimated / estimated <= _SIMILAR][-_RECENT:]
    rates = [record.flops / record.seconds for record in alike[-_RECENT:]]
    rate = median(rates) if rates else None
    if not near:
        return Calibration(rate=rate)
    ratio = median(record.measured / record.estimated for record in near)
    return Calibration(len(near), ratio, rate, near[-1].shown / near[-1].measured - 1)


def remember(record: Record) -> None:
    """Add a run; whatever goes wrong is of no consequence."""
    if not enabled() or min(record.estimated, record.shown, record.measured, record.flops, record.seconds) <= 0:
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
        numbers = [float(values[name]) for name in ("estimated", "shown", "measured", "flops", "seconds")]
    except (ValueError, TypeError, KeyError):
        return None
    return Record(device, tuner, path, *numbers) if min(numbers) > 0 else None
