"""The figures of a comparison as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

OURS = ("generic", "fused", "generic_bf16", "fused_bf16")
HALF = ("trl", "torchtune")
"""Besides those that end in bf16."""

_HEADS = ("train CPU s", "train s", "tokens/CPU s", "of the limit", "times {}", "peak MiB", "of its memory")
_HEADS += ("whole CPU s", "losses")


@dataclass(frozen=True)
class Figures:
    """What was measured with one number of threads.

    Attributes:
        found: Way → its rounds; a round is what `measured.say` prints, or `{"failed": reason}`.
        limits: GFLOP a CPU second by format, in each round.
        tokens: Of all rows.
        needed: GFLOP that the rows need.
    """

    found: Mapping[str, Sequence[Mapping[str, Any]]]
    limits: Sequence[Mapping[str, float]]
    tokens: int
    needed: float

    @property
    def first(self) -> str:
        """What all are compared with."""
        return next(iter(self.found))

    def ratio(self, what: str, one: str, other: str) -> float | None:
        """`what` of one way by that of another, median over the rounds in which both ran."""
        both = zip(self.found.get(one, ()), self.found.get(other, ()), strict=False)
        ratios = [mine[what] / theirs[what] for mine, theirs in both if what in mine and what in theirs]
        return median(ratios) if ratios else None

    def middle(self, way: str, what: str) -> float | None:
        """Median of the rounds."""
        values = [run[what] for run in self.found.get(way, ()) if what in run]
        return median(values) if values else None

    def share(self, way: str) -> float | None:
        """Of the processor's matrix products, in the format of the way."""
        train = self.middle(way, "train")
        name = "bfloat16" if way.endswith("bf16") or way in HALF else "float32"
        best = max((limit[name] for limit in self.limits if name in limit), default=None)
        return None if train is None or best is None else self.needed / train / best


def table(figures: Figures) -> str:
    """One row for each way."""
    heads = ["way", *(head.format(f"`{figures.first}`") for head in _HEADS)]
    return "\n".join([_row(heads), _row(["---"] * len(heads)), *(_row(_cells(figures, way)) for way in figures.found)])


def goals(figures: Figures, model: str) -> str:
    """How far ours are, against each goal that what was measured speaks of."""
    programs = ("trainer", "trl", "torchtune", "llamafactory")
    peers = [way for way in figures.found if way.split("_")[0] in programs]
    wanted = {"s": (3.0, 4.5), "m": (2.3, 3.8)}[model]
    rows = []
    for name, peer, goal in (("Trainer's defaults", "trainer", wanted), ("TRL's defaults", "trl", (5.0, 7.5))):
        if peer in figures.found:
            rows.append([f"{name}: {goal[0]} generic, {goal[1]} fused", *_times(figures, peer)])
    fastest = _least(figures, peers, "train")
    rows.append([f"the strongest of any peer (`{fastest}`): 1.5 generic, 2.5 fused", *_times(figures, fastest)])
    memory = [_number(figures.ratio("memory", way, "trainer")) for way in OURS]
    rows.append(["peak memory of Trainer's: 0.6 generic, 0.4 fused", *memory])
    shares = [figures.share(way) for way in OURS]
    goal = "65 % in bf16, 78 % in float32" if model == "m" else "55 % in bf16, 68 % in float32"
    rows.append([f"of the limit: {goal}", *("" if share is None else f"{100 * share:.0f} %" for share in shares)])
    # torchtune's process is a loop of its parts, which reads no tokenizer and writes nothing
    leanest = _least(figures, [way for way in peers if not way.startswith("torchtune")], "whole")
    whole = [_number(figures.ratio("whole", way, leanest)) for way in OURS]
    rows.append([f"whole process: 0.33 of the best peer's (`{leanest}`)", *whole])
    heads = ["goal", *(f"`{way}`" for way in OURS)]
    return "\n".join(_row(row) for row in [heads, ["---"] * len(heads), *rows])


def _cells(figures: Figures, way: str) -> list[str]:
    train, wall, memory, whole = (figures.middle(way, what) for what in ("train", "wall", "memory", "whole"))
    if train is None or wall is None or memory is None or whole is None:
        runs = figures.found[way]
        return [f"`{way}`", str(runs[-1].get("failed", "")) if runs else "not measured", *[""] * (len(_HEADS) - 1)]
    losses = next(run["losses"] for run in figures.found[way] if "losses" in run)
    share = figures.share(way)
    return [
        f"`{way}`",
        f"{train:.2f}",
        f"{wall:.2f}",
        f"{figures.tokens / train:,.0f}",
        "" if share is None else f"{100 * share:.0f} %",
        _number(figures.ratio("train", figures.first, way)),
        f"{memory:,.0f}",
        _number(figures.ratio("memory", way, figures.first)),
        f"{whole:.1f}",
        f"{losses[0]:.4f} → {losses[-1]:.4f}" if losses else "",
    ]


def _times(figures: Figures, peer: str) -> list[str]:
    return [_number(figures.ratio("train", peer, way)) for way in OURS]


def _least(figures: Figures, ways: Sequence[str], what: str) -> str:
    measured = {way: value for way in ways if (value := figures.middle(way, what)) is not None}
    return min(measured, key=measured.__getitem__, default="none")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
