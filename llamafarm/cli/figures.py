"""Figures as people read them: four significant digits, GiB, `1h02m`."""

from __future__ import annotations

_GIB = 1024**3


def number(value: float) -> str:
    """`0.8412`, `3.5e-05`, `12`, `11370`."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def gib(size: float) -> str:
    """Bytes as `6.7 GiB`; below a tenth as MiB."""
    return f"{size / _GIB:,.1f} GiB" if size >= 0.1 * _GIB else f"{size / 1024**2:,.0f} MiB"


def duration(seconds: float) -> str:
    """`48s`, `2m45s`, `1h02m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def share(part: float) -> str:
    """A fraction as `97.5 %`."""
    return f"{100 * part:.1f} %"
