"""Keep the chatter of libraries off the terminal; a run's own log file still gets it, and --debug shows it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed() -> Iterator[None]:
    """Send warnings to logging, and give logging somewhere to go other than stderr."""
    silent = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(silent)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(silent)
