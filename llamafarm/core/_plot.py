"""Lines as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafarm.errors import DiskError, ModelError, UsageError

Points = Sequence[tuple[float, float]]


def draw_lines(
    path: Path, lines: Mapping[str, Points], *, title: str, x: str, y: str, limits: tuple[float, float] | None = None
) -> None:
    """Draw a picture with one line for each name.

    Args:
        path: The file; its ending says of what kind, without one it is a PNG.
        lines: Name → points.
        title: Above the picture.
        x: What goes to the right; whole numbers.
        y: What goes up.
        limits: Lowest and highest value of y.

    Raises:
        ModelError: If matplotlib is not installed.
        UsageError: If it knows no such kind of picture.
        DiskError: If the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ModelError.of(
            "LF-MODEL-101", "a plot needs matplotlib, which is not installed", hint="pip install 'llamafarm[plot]'"
        ) from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    kinds, kind = FigureCanvasAgg(figure).get_supported_filetypes(), path.suffix[1:].lower() or "png"
    if kind not in kinds:
        hint = f"known: {', '.join(sorted(kinds))}"
        raise UsageError.of("LF-USAGE-041", f"no kind of picture ends in '.{kind}'", where=str(path), hint=hint)
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot([one for one, _ in points], [other for _, other in points], marker=".", label=name)
    axes.set(xlabel=x, ylabel=y, title=title)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    try:
        figure.savefig(path, dpi=120, format=kind)
    except OSError as error:
        raise DiskError.of("LF-DISK-001", f"cannot write {path}: {error.strerror or error}") from error
