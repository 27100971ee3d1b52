"""What `docs/python.md` shows, run as it stands there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from llamafarm.testing.rows import make_fields

pytestmark = pytest.mark.e2e


def test_the_example_trains_and_asks(root, tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(40)))
    shutil.copy(root / "examples" / "python" / "train_and_ask.py", tmp_path)
    finished = subprocess.run(
        [sys.executable, "train_and_ask.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    trained, losses, answer = finished.stdout.splitlines()
    assert trained.endswith(" after 4 steps, in output/from-python")
    assert len(json.loads(losses)) == 4
    assert answer
    manifest = json.loads((tmp_path / "output/from-python/llamafarm/manifest.json").read_text())
    assert manifest["status"] == "completed"
