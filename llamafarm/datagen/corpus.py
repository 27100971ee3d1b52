"""Raw text about the same world, to pre-train on: stories, records, lists, and chats about other things.

No document asks for a service and answers with a call: that task is left for fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from random import Random

from llamafarm.datagen import wording
from llamafarm.datagen.chats import chat
from llamafarm.datagen.commands import draw_call
from llamafarm.datagen.home import KINDS, ROOMS, device_id
from llamafarm.datagen.people import PEOPLE
from llamafarm.datagen.vocabulary import Vocabulary

Document = Callable[[Vocabulary, Random], str]


def documents(vocabularies: Sequence[Vocabulary], seed: int) -> Iterator[str]:
    """Yield documents without end, the languages in turn."""
    rng = Random(f"{seed}/text")  # noqa: S311
    writers, weights = zip(*_DOCUMENTS, strict=True)
    for words in cycle(vocabularies):
        (writer,) = rng.choices(writers, weights)
        yield writer(words, rng)


def _story(words: Vocabulary, rng: Random) -> str:
    who = rng.choice(PEOPLE)
    sentences = [_sentence(words, who, rng) for _ in range(rng.randint(3, 7))]
    return " ".join(sentences)


def _sentence(words: Vocabulary, who: str, rng: Random) -> str:
    if rng.random() < 0.6:
        return wording.narrate(words, draw_call(rng), who, rng)
    template = rng.choice(words.prose)
    color = words.colors[rng.choice(sorted(words.colors))].name
    return template.format(who=who, day=rng.choice(words.days), number=rng.randint(2, 20), color=color)


def _diary(words: Vocabulary, rng: Random) -> str:
    """What people did, and what each device did after it."""
    calls = [draw_call(rng) for _ in range(rng.randint(2, 5))]
    lines = [f"{wording.narrate(words, call, rng.choice(PEOPLE), rng)} {wording.report(words, call)}" for call in calls]
    return "\n".join(lines)


def _record(words: Vocabulary, rng: Random) -> str:
    """What the house has done, as it writes it down."""
    return "\n".join(wording.answer(words, draw_call(rng)) for _ in range(rng.randint(2, 5)))


def _inventory(words: Vocabulary, rng: Random) -> str:
    """What the devices are called by people and by the house."""
    calls = [draw_call(rng) for _ in range(rng.randint(3, 7))]
    return "\n".join(f"{wording.capitalize(wording.place(words, call))} = {call.device_id}" for call in calls)


def _state_dump(words: Vocabulary, rng: Random) -> str:
    """The devices of one room as nested JSON, under the name of the room."""
    room = rng.choice(ROOMS)
    kinds = rng.sample([kind for kind in KINDS if kind.placed], 3)
    devices = [device_id(kind, rng.choice(kind.devices), room) for kind in kinds]
    states = {device: rng.choice(["on", "off", rng.randint(1, 100)]) for device in devices}
    return f"{wording.capitalize(words.rooms[room].name)}\n{json.dumps({'room': room, 'states': states})}"


def _counting(words: Vocabulary, rng: Random) -> str:
    start, step, length = rng.randint(0, 60), rng.choice([1, 1, 2, 5, 10]), rng.randint(5, 12)
    numbers = range(start, start + step * length, step)
    return f"{wording.capitalize(rng.choice(words.days))}: {', '.join(map(str, numbers))}."


_DOCUMENTS: tuple[tuple[Document, int], ...] = (
    (_story, 2),
    (_diary, 4),
    (_record, 4),
    (_inventory, 2),
    (_state_dump, 1),
    (_counting, 1),
    (chat, 6),
)
