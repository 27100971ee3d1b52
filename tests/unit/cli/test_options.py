from __future__ import annotations

import pytest

from llamafarm.cli.options import typed


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["train", "--epochs", "3"], [("--epochs", "3")]),
        (["--epochs=3"], [("--epochs", "3")]),
        (["--num-epochs", "3", "--epochs=4"], [("--num-epochs", "3"), ("--epochs", "4")]),
        (["-e3"], [("-e", "3")]),
        (["--epochs"], [("--epochs", "")]),
        (["--epochs-of-time", "3"], []),
        ([], []),
    ],
)
def test_options_are_found_as_typed(argv, found):
    assert typed(argv, ["--epochs", "--num-epochs", "-e"]) == found
