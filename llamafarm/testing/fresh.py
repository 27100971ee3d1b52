"""Look at code in an interpreter of its own: what it imports, and whether its answers depend on the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

HEAVY = frozenset(
    {"accelerate", "bitsandbytes", "datasets", "matplotlib", "peft", "tensorboard", "torch", "transformers", "trl"}
)


def fresh(code: str, *arguments: Any, hash_seed: int | None = None) -> Any:
    """Run `code` in a new interpreter and return its answer.

    Args:
        code: Sees `arguments` (a list) and sets `answer`; both travel as JSON.
        arguments: Plain JSON values.
        hash_seed: Value of PYTHONHASHSEED; by default a random one, as in real life.

    Returns:
        What the code left in `answer`.
    """
    script = (
        f"import json, sys\narguments = json.loads(sys.argv[1])\nanswer = None\n{code}\n"
        "print('\\n' + json.dumps(answer))\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "random" if hash_seed is None else str(hash_seed)}
    finished = subprocess.run(  # noqa: S603  # our own interpreter, our own code
        [sys.executable, "-c", script, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def heavy_after(code: str, *arguments: Any) -> set[str]:
    """The heavy libraries that a new interpreter has imported after `code`."""
    loaded = fresh(f"{code}\nanswer = sorted({{name.partition('.')[0] for name in sys.modules}})", *arguments)
    return set(loaded) & HEAVY
