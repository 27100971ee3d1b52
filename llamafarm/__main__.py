"""`python -m llamafarm`."""

from __future__ import annotations

from llamafarm.cli import main

if __name__ == "__main__":
    main()
