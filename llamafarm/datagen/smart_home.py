"""The entry point: rows about a smart home in the format, the languages and the number asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

from llamafarm.datagen.commands import exchanges
from llamafarm.datagen.corpus import documents
from llamafarm.datagen.formats import EXCHANGE_FORMATS
from llamafarm.datagen.vocabulary import LANGUAGES, load_vocabulary
from llamafarm.errors import Problem, UsageError, nearest, one_of

__all__ = ["FORMATS", "LANGUAGES", "MAX_ROWS_PER_LANGUAGE", "SIZES", "Format", "Size", "generate"]

Format = Literal["messages", "sharegpt", "alpaca", "text", "preference"]
Size = Literal["small", "medium", "large"]

FORMATS: tuple[Format, ...] = get_args(Format)
SIZES: dict[Size, int] = {"small": 1_000, "medium": 10_000, "large": 50_000}
MAX_ROWS_PER_LANGUAGE = 50_000
"""So many different commands can be made in each language without searching long for the next new one."""

_T = TypeVar("_T")


def generate(
    *,
    size: Size | int,
    languages: Sequence[str] = ("english",),
    format: Format = "messages",  # noqa: A002
    seed: int = 0,
    system: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield rows one by one; the same arguments give the same rows.

    Every row's command is different. `messages`, `sharegpt`, `alpaca` and `preference` hold the same commands and
    answers in the same order; `text` holds raw documents about the same home. Fewer rows are a prefix of more rows.

    Args:
        size: The number of rows, or one of `SIZES`.
        languages: Any of `LANGUAGES`; the rows take turns.
        format: One of `FORMATS`.
        seed: The same seed gives the same rows.
        system: Whether rows carry a system message that lists some devices of the home, the one meant among them.

    Yields:
        Rows that `json.dumps` can write.

    Raises:
        UsageError: An unknown size, language or format, or more rows than there are commands; raised by the call,
            before the first row.
    """
    chosen = list(dict.fromkeys(languages))
    problems = [*_unknown("format", [format], FORMATS), *_unknown("language", chosen, LANGUAGES)]
    if not chosen:
        problems.append(Problem("LF-DATAGEN-002", "no language given", hint=f"give some of {one_of(LANGUAGES)}"))
    problems += _size_problems(size, len(chosen))
    if problems:
        raise UsageError(problems)
    rows = _rows(chosen, format, seed, system=system)
    return islice(rows, size if isinstance(size, int) else SIZES[size])


def _rows(languages: Sequence[str], format_: Format, seed: int, *, system: bool) -> Iterator[dict[str, Any]]:
    vocabularies = [load_vocabulary(language) for language in languages]
    if format_ == "text":
        return ({"text": text} for text in _distinct(documents(vocabularies, seed), lambda text: text))
    pairs = _distinct(exchanges(vocabularies, seed, system=system), lambda exchange: exchange.user)
    return map(EXCHANGE_FORMATS[format_], pairs)


def _distinct(items: Iterator[_T], key: Callable[[_T], str]) -> Iterator[_T]:
    seen: set[str] = set()
    for item in items:
        if (name := key(item)) not in seen:
            seen.add(name)
            yield item


def _unknown(what: str, given: Sequence[str], valid: Sequence[str]) -> list[Problem]:
    return [
        Problem("LF-DATAGEN-001", f"{what} {name!r} is not {one_of(valid)}", hint=nearest(name, valid))
        for name in given
        if name not in valid
    ]


def _size_problems(size: Size | int, languages: int) -> list[Problem]:
    if not isinstance(size, int):
        return _unknown("size", [size], tuple(SIZES))
    most = MAX_ROWS_PER_LANGUAGE * max(languages, 1)
    if 1 <= size <= most:
        return []
    hint = f"give 1 to {most}" + (", or more languages" if size > most else "")
    return [Problem("LF-DATAGEN-003", f"{size} rows cannot be made in {languages} language(s)", hint=hint)]
