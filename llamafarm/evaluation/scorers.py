"""Scores of generated answers: of each answer alone, or of all of them together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llamafarm.errors import PluginError, UsageError, nearest, one_of
from llamafarm.evaluation.intervals import Figure

LIKELIHOOD = ("loss", "perplexity", "token_accuracy")
"""Figures of the expected text: nothing is generated for them."""

ANSWERS = ("exact_match", "extracted_match", "json_valid", "json_match")
"""Figures of each answer, averaged: shares between 0 and 1."""

CORPUS = ("bleu", "chrf")
"""Figures of all answers together, by sacrebleu: 0 to 100."""

METRICS = (*LIKELIHOOD, *ANSWERS, *CORPUS)
LOWER_IS_BETTER = frozenset({"loss", "perplexity"})

Score = Callable[[str, str], float]


def known(names: Sequence[str]) -> list[str]:
    """The metrics that are asked for, each once.

    Raises:
        UsageError: If one does not exist.
    """
    for name in names:
        if name not in METRICS:
            message = f"no metric {name!r}; there is {one_of(METRICS)}"
            raise UsageError.of("LF-USAGE-030", message, hint=nearest(name, METRICS))
    return list(dict.fromkeys(names))


def scorer(metric: str, extract: str | None) -> Score:
    """What scores one answer against the expected one; with a pattern, JSON is looked for in what it finds.

    Raises:
        UsageError: If `extracted_match` has no pattern, or it is not a regular expression.
    """
    if metric == "exact_match":
        return lambda answer, expected: float(answer.strip() == expected.strip())
    if metric == "extracted_match" and extract is None:
        hint = r"add --extract REGEX, e.g. --extract 'answer is (\w+)'"
        raise UsageError.of("LF-USAGE-031", "extracted_match needs a pattern to extract by", hint=hint)
    find = _whole if extract is None else _Finder(_pattern(extract))
    if metric == "json_valid":
        return lambda answer, _: float(_parsed(find(answer)) is not _NOT_JSON)
    if metric == "json_match":
        return lambda answer, expected: _json_match(find(answer), find(expected) or expected)
    return lambda answer, expected: _same(find(answer), find(expected), expected)


def _same(found: str | None, wanted: str | None, expected: str) -> float:
    """An expected text without a match, such as a bare `B`, is taken as it stands."""
    return float(found is not None and found == (expected.strip() if wanted is None else wanted))


def _whole(text: str) -> str | None:
    return text


@dataclass(frozen=True, slots=True)
class _Finder:
    """Takes what a pattern finds first: its first group, or all of the match where it has none."""

    pattern: re.Pattern[str]

    def __call__(self, text: str) -> str | None:
        match = self.pattern.search(text)
        if match is None:
            return None
        return (match.group(1) or "" if self.pattern.groups else match.group()).strip()


def _pattern(extract: str) -> re.Pattern[str]:
    try:
        return re.compile(extract)
    except re.error as error:
        message = f"--extract {extract!r} is not a regular expression: {error}"
        raise UsageError.of("LF-USAGE-031", message, hint="quote it for the shell, and escape ( ) [ ] by \\") from None


_NOT_JSON: Any = object()


def _parsed(text: str | None) -> Any:
    try:
        return _NOT_JSON if text is None else json.loads(text)
    except ValueError:
        return _NOT_JSON


def _json_match(answer: str | None, expected: str) -> float:
    parsed = _parsed(answer)
    return float(parsed is not _NOT_JSON and parsed == _parsed(expected))


def corpus(metric: str, answers: Sequence[str], expected: Sequence[str]) -> Figure:
    """BLEU or chrF of all answers, with sacrebleu's own defaults and bootstrap (Post, 2018).

    Raises:
        PluginError: If sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        message = f"{metric} is computed by sacrebleu, which is not installed"
        raise PluginError.of("LF-PLUGIN-060", message, hint="pip install 'llamafarm[evaluate]'") from None
    measure = BLEU() if metric == "bleu" else CHRF()
    several = len(answers) > 1
    scored = measure.corpus_score(list(answers), [list(expected)], n_bootstrap=1000 if several else 1)
    if not several:
        return Figure(float(scored.score))
    middle, half = float(scored._mean), float(scored._ci)  # noqa: SLF001  # in public it only formats them
    return Figure(float(scored.score), max(middle - half, 0.0), min(middle + half, 100.0))
