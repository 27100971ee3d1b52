"""Attention-sink mass per layer as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafarm.errors import ModelError


def plot_sinks(path: Path, sinks: Mapping[str, Sequence[float]]) -> None:
    """Draw one line for each model: the share of attention that its layers give to the first token.

    Raises:
        ModelError: If matplotlib is not installed.
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
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, masses in sinks.items():
        axes.plot(range(len(masses)), masses, marker="o", label=label)
    axes.set(xlabel="layer", ylabel="attention to the first token", ylim=(0, 1), title="Attention sink")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    figure.savefig(path, dpi=120)
