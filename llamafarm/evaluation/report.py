"""Results as plain values for a file, and as what must hold (`--min`, `--max`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from llamafarm import __version__
from llamafarm.errors import Problem, QualityError, UsageError, nearest, one_of
from llamafarm.evaluation.evaluate import Measured
from llamafarm.evaluation.intervals import Figure
from llamafarm.evaluation.scorers import LOWER_IS_BETTER, METRICS

RESULTS = "evaluation_results.json"
ANSWERS = "answers.jsonl"


def report(measured: Sequence[Measured], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All results; the last model is the one that was asked about, the first its baseline if there are several."""
    final = measured[-1]
    loss = final.figures.get("loss")
    perplexity = final.figures.get("perplexity")
    return {
        "llamafarm_version": __version__,
        "evaluation_config": dict(settings),
        "models": {one.model: _figures(one.figures) for one in measured},
        "difference": _figures(final.minus(measured[0])) if len(measured) > 1 else {},
        "perplexity_evaluation": {
            "perplexity": perplexity.value if perplexity else None,
            "loss": loss.value if loss else None,
            "total_tokens": final.tokens,
            "dataset": settings.get("dataset"),
            "model": final.model,
        },
        "generation_samples": {
            f"prompt_{number}": {"prompt": prompt, "generated": text}
            for number, (prompt, text) in enumerate(final.continuations.items(), 1)
        },
    }


def answer_lines(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every generated answer with its scores, model by model."""
    return [{"model": one.model, **dataclasses.asdict(answer)} for one in measured for answer in one.answers]


def better(metric: str, difference: Figure) -> str:
    """`better` or `worse` than the baseline; `no clear difference` where 0 is within the interval."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "no clear difference"
    return "better" if (difference.value < 0) == (metric in LOWER_IS_BETTER) else "worse"


def bounds(texts: Sequence[str], flag: str) -> dict[str, float]:
    """`METRIC=VALUE` texts as numbers.

    Raises:
        UsageError: If one is neither.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in METRICS:
            message = f"{flag} {text!r}: no metric {name!r}; there is {one_of(METRICS)}"
            raise UsageError.of("LF-USAGE-030", message, hint=nearest(name, METRICS))
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not equals or math.isnan(found[name]):
            message = f"{flag} {text!r}: {value!r} is not a number"
            raise UsageError.of("LF-USAGE-032", message, hint=f"write {flag} {name}=0.9")
    return found


def gate(measured: Measured, least: Mapping[str, float], most: Mapping[str, float]) -> None:
    """Check the model against what was demanded.

    Raises:
        QualityError: With every demand that is not met; a value that is not a number meets none.
    """
    problems = []
    for limits, word in ((least, "at least"), (most, "at most")):
        for metric, limit in limits.items():
            value = measured.figures[metric].value
            if not (value >= limit if limits is least else value <= limit):
                message = f"{measured.model}: {metric} is {value:.4g}, and {word} {limit:g} was demanded"
                problems.append(Problem("LF-QUALITY-010", message))
    if problems:
        raise QualityError(problems)


def _figures(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: dataclasses.asdict(figure) for name, figure in figures.items()}
