"""Errors for users: an id, what is wrong, where, and what to do. Never a traceback for bad input.

Every id has a section in docs/errors.md and a test. One exception class per exit code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum
from typing import ClassVar, Self


class ExitCode(IntEnum):
    """What the process tells the shell. Printed by `--help`."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    DATA = 3
    MODEL = 4
    PLUGIN = 5
    NUMERIC = 6
    DISK = 7
    HARDWARE = 8
    LOCKED = 9
    REFUSED = 10
    NETWORK = 11
    QUALITY = 12
    REQUEUE = 75
    INTERRUPTED = 130


EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "ok",
    ExitCode.UNEXPECTED: "unexpected failure: a defect of LlamaFarm",
    ExitCode.USAGE: "usage, strategy or configuration",
    ExitCode.DATA: "data",
    ExitCode.MODEL: "model, adapter, tokenizer or template",
    ExitCode.PLUGIN: "plugin or backend missing or broken",
    ExitCode.NUMERIC: "numeric: non-finite values, guard stop",
    ExitCode.DISK: "disk or input/output",
    ExitCode.HARDWARE: "memory or hardware",
    ExitCode.LOCKED: "run directory locked or not ours",
    ExitCode.REFUSED: "refused for security",
    ExitCode.NETWORK: "network, authentication, offline",
    ExitCode.QUALITY: "quality gate not met",
    ExitCode.REQUEUE: "stopped with a good checkpoint: requeue",
    ExitCode.INTERRUPTED: "interrupted",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        id: Stable name, e.g. `LF-STRATEGY-003`; the anchor in docs/errors.md.
        message: What was given and what was expected, one line.
        where: `file:line:column`, `--set a.b`, an environment variable; empty when there is no place.
        hint: What to do: the nearest valid name, the exact command.
    """

    id: str
    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint} [{self.id}]"


class LlamaFarmError(Exception):
    """Base of every error meant for users; carries all problems found, not only the first."""

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "an error without a problem says nothing"
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def of(cls, id_: str, message: str, *, where: str = "", hint: str = "") -> Self:
        """An error with a single problem."""
        return cls([Problem(id_, message, where, hint)])


class UsageError(LlamaFarmError):
    """A command was called wrongly."""

    exit_code = ExitCode.USAGE


class StrategyError(LlamaFarmError):
    """A strategy or an override is not valid."""

    exit_code = ExitCode.USAGE


class DataError(LlamaFarmError):
    """A dataset cannot be used as it is."""

    exit_code = ExitCode.DATA


class ModelError(LlamaFarmError):
    """A model, adapter, tokenizer or chat template cannot be used."""

    exit_code = ExitCode.MODEL


class PluginError(LlamaFarmError):
    """A plugin or backend that was asked for is missing, broken or ambiguous."""

    exit_code = ExitCode.PLUGIN


class NumericError(LlamaFarmError):
    """Training produced values that are not finite."""

    exit_code = ExitCode.NUMERIC


class DiskError(LlamaFarmError):
    """A file could not be read or written."""

    exit_code = ExitCode.DISK


class HardwareError(LlamaFarmError):
    """The hardware asked for is absent or too small."""

    exit_code = ExitCode.HARDWARE


class RunDirectoryError(LlamaFarmError):
    """A run directory belongs to another run or is not ours."""

    exit_code = ExitCode.LOCKED


class SecurityError(LlamaFarmError):
    """Refused: the input asks for something it must not be able to do."""

    exit_code = ExitCode.REFUSED


class NetworkError(LlamaFarmError):
    """Something is needed from the network and cannot be had."""

    exit_code = ExitCode.NETWORK


class QualityError(LlamaFarmError):
    """A quality gate was not met."""

    exit_code = ExitCode.QUALITY


class Stopped(KeyboardInterrupt):
    """A run ended because somebody asked for it.

    Attributes:
        exit_code: 130 after Ctrl-C; 75, that is: run it again, after SIGTERM and SIGHUP.
        message: What stopped it, what is kept, and how it goes on.
    """

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.message = exit_code, message


_CLASSES: dict[str, type[LlamaFarmError]] = {
    "USAGE": UsageError,
    "DATAGEN": UsageError,
    "SPLIT": UsageError,
    "STRATEGY": StrategyError,
    "TRAIN": StrategyError,
    "DATA": DataError,
    "MODEL": ModelError,
    "TEMPLATE": ModelError,
    "PLUGIN": PluginError,
    "NUMERIC": NumericError,
    "DISK": DiskError,
    "HARDWARE": HardwareError,
    "RUN": RunDirectoryError,
    "SECURITY": SecurityError,
    "NET": NetworkError,
    "QUALITY": QualityError,
}


def error_for(problems: Iterable[Problem]) -> LlamaFarmError:
    """The error that carries these problems; the area in the first one's id (`LF-DATA-003`) decides its class.

    An id of a third party's, whose areas are not known here, counts as a strategy's: what can be refused by an id alone
    was asked for by one.
    """
    found = tuple(problems)
    prefix, _, rest = found[0].id.partition("-")
    area = rest.partition("-")[0] if prefix == "LF" else ""
    return _CLASSES.get(area, StrategyError)(found)


def nearest(name: str, valid: Iterable[str]) -> str:
    """`did you mean 'x'?` for the valid name closest to `name`, or an empty string."""
    folded = {candidate.casefold().replace("-", "_"): candidate for candidate in valid}
    matches = get_close_matches(name.casefold().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"did you mean {folded[matches[0]]!r}?" if matches else ""


def one_of(valid: Iterable[str]) -> str:
    """`'a', 'b' or 'c'` for messages."""
    names = [repr(name) for name in sorted(valid)]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def began_as_interrupt(error: BaseException) -> bool:
    """Whether an error came of somebody's wish to stop, which hit a library that stumbled while it cleared up."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, KeyboardInterrupt):
            return True
        if one is not None and not any(one is other for other in seen):
            seen.append(one)
            waiting += [one.__cause__, one.__context__]
    return False
