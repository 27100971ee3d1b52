"""Commands and their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from random import Random

from llamafarm.datagen import wording
from llamafarm.datagen.home import KINDS, ROOMS, Call, device_id
from llamafarm.datagen.vocabulary import Vocabulary


@dataclass(frozen=True)
class Exchange:
    """One command and what should be answered.

    Attributes:
        system: The system message, or None.
        user: The command.
        answer: The only right answer; the text of the command determines it.
        rejected: An answer that looks right and is not.
    """

    system: str | None
    user: str
    answer: str
    rejected: str


def exchanges(vocabularies: Sequence[Vocabulary], seed: int, *, system: bool) -> Iterator[Exchange]:
    """Yield exchanges without end, the languages in turn; the same commands with and without system messages."""
    rng = Random(f"{seed}/commands")  # noqa: S311
    homes = Random(f"{seed}/homes")  # noqa: S311
    mistakes = Random(f"{seed}/mistakes")  # noqa: S311
    for words in cycle(vocabularies):
        call = draw_call(rng)
        user = wording.command(words, call, rng)
        yield Exchange(
            system=words.system.format(devices=", ".join(_some_devices(call, homes))) if system else None,
            user=user,
            answer=wording.answer(words, call),
            rejected=_wrong_answer(words, call, mistakes),
        )


def draw_call(rng: Random) -> Call:
    """Return a random call: any device, any of its services, any value."""
    (kind,) = rng.choices(KINDS, [kind.weight for kind in KINDS])
    service = rng.choice(kind.services)
    return Call(
        kind=kind,
        service=service,
        device=rng.choice(kind.devices),
        room=rng.choice(ROOMS) if kind.placed else None,
        value=rng.choice(service.values) if service.values else None,
    )


def all_devices() -> list[str]:
    """Return the identifier of every device there is."""
    return [
        device_id(kind, device, room)
        for kind in KINDS
        for device in kind.devices
        for room in (ROOMS if kind.placed else (None,))
    ]


def _some_devices(call: Call, rng: Random) -> list[str]:
    others = [device_id(other.kind, other.device, other.room) for other in (draw_call(rng) for _ in range(6))]
    devices = sorted({call.device_id, *others})
    rng.shuffle(devices)
    return devices


def _wrong_answer(words: Vocabulary, call: Call, rng: Random) -> str:
    if rng.random() < 0.25:
        return wording.report(words, call)
    wrong_calls = [wrong for mistake in _MISTAKES if (wrong := mistake(call, rng)) is not None]
    return wording.answer(words, rng.choice(wrong_calls))


def _wrong_device(call: Call, rng: Random) -> Call | None:
    others = [device for device in call.kind.devices if device != call.device]
    return replace(call, device=rng.choice(others)) if others else None


def _wrong_room(call: Call, rng: Random) -> Call | None:
    return replace(call, room=rng.choice([room for room in ROOMS if room != call.room])) if call.room else None


def _wrong_service(call: Call, rng: Random) -> Call | None:
    service = rng.choice([service for service in call.kind.services if service != call.service])
    return replace(call, service=service, value=rng.choice(service.values) if service.values else None)


def _wrong_value(call: Call, rng: Random) -> Call | None:
    others = [value for value in call.service.values if value != call.value]
    return replace(call, value=rng.choice(others)) if others else None


_MISTAKES: tuple[Callable[[Call, Random], Call | None], ...] = (
    _wrong_device,
    _wrong_room,
    _wrong_service,
    _wrong_value,
)
