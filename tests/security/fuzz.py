"""Fuzz one target guided by coverage: `make fuzz`, or `python tests/security/fuzz.py TARGET -max_total_time=60`.

Needs atheris (`pip install atheris`), which is no dependency of the tests.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "llamafarm",
        "llamafarm_tuners.pytorch._state",
        "llamafarm_tuners.pytorch._tree",
        "ruamel",
        "jinja2",
        "json",
        "csv",
    ]
):
    from targets import SEEDS, TARGETS, attempt

    import llamafarm_tuners.pytorch._state  # noqa: F401  # instrumented by being imported here


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"usage: fuzz.py {'|'.join(TARGETS)} [-max_total_time=SECONDS]")
    corpus = Path(tempfile.mkdtemp(prefix=f"llamafarm-corpus-{name}-"))
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)
    options = ["-timeout=10", "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], lambda data: attempt(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
