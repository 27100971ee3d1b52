from __future__ import annotations

import pytest

from llamafarm.cli.figures import duration, gib, number, share


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0.841234), "0.8412"),
        (number(3.5e-05), "3.5e-05"),
        (number(12.0), "12"),
        (number(11370.4), "11370"),
        (number(float("nan")), "nan"),
        (gib(6.7 * 1024**3), "6.7 GiB"),
        (gib(300 * 1024**2), "0.3 GiB"),
        (gib(20 * 1024**2), "20 MiB"),
        (duration(0.4), "0s"),
        (duration(48), "48s"),
        (duration(165), "2m45s"),
        (duration(3600 + 125), "1h02m"),
        (share(0.975), "97.5 %"),
    ],
)
def test_figures_read_as_people_write_them(shown, expected):
    assert shown == expected
