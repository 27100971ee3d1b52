from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import atexit, os
atexit.register(lambda: print(os.environ["OMP_WAIT_POLICY"]))
from llamafarm.cli import main
main(["--version"])
"""


@pytest.mark.parametrize(("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected):
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", SHOW], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
