"""Run LlamaFarm from a checkout: `python cli.py train --strategy …` is `llamafarm train --strategy …`."""

from __future__ import annotations

from llamafarm.cli import main

if __name__ == "__main__":
    main()
