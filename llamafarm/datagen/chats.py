"""Chats in the embedded model's mark-up, about anything but calling services."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from llamafarm.datagen import wording
from llamafarm.datagen.commands import draw_call
from llamafarm.datagen.home import Call
from llamafarm.datagen.markup import render_chat
from llamafarm.datagen.people import PEOPLE
from llamafarm.datagen.vocabulary import Vocabulary

Question = tuple[str, str]


def chat(words: Vocabulary, rng: Random) -> str:
    """Return one to three questions with their answers, sometimes after a system message."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.2:
        devices = ", ".join(draw_call(rng).device_id for _ in range(rng.randint(3, 7)))
        turns.append(("system", words.system.format(devices=devices)))
    for _ in range(rng.randint(1, 3)):
        question, reply = rng.choice(_QUESTIONS)(words, rng)
        turns += [("user", question), ("assistant", reply)]
    return render_chat(turns)


def _sum(words: Vocabulary, rng: Random) -> Question:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return words.questions["sum"].format(a=a, b=b), f"{a + b}."


def _next(words: Vocabulary, rng: Random) -> Question:
    a = rng.randint(0, 99)
    return words.questions["next"].format(a=a), f"{a + 1}."


def _day(words: Vocabulary, rng: Random) -> Question:
    index = rng.randrange(7)
    return words.questions["day"].format(a=words.days[index]), wording.capitalize(f"{words.days[(index + 1) % 7]}.")


def _opposite(words: Vocabulary, rng: Random) -> Question:
    pair = rng.sample(rng.choice(words.opposites), 2)
    return words.questions["opposite"].format(a=pair[0]), wording.capitalize(f"{pair[1]}.")


def _repeat(words: Vocabulary, rng: Random) -> Question:
    text = rng.choice((_told, _listed, _counted))(words, draw_call(rng), rng)
    return words.questions["repeat"].format(a=text), text


def _told(words: Vocabulary, call: Call, rng: Random) -> str:
    return wording.narrate(words, call, rng.choice(PEOPLE), rng)


def _listed(words: Vocabulary, call: Call, _rng: Random) -> str:
    return wording.capitalize(f"{wording.place(words, call)}.")


def _counted(words: Vocabulary, _call: Call, rng: Random) -> str:
    return f"{rng.choice(words.days)} {rng.randint(0, 100)} {rng.choice(PEOPLE)} {rng.randint(0, 100)}."


def _identifier(words: Vocabulary, rng: Random) -> Question:
    call = draw_call(rng)
    named = f"{wording.capitalize(wording.place(words, call))}."
    return words.questions["identifier"].format(a=named), call.device_id


def _room(words: Vocabulary, rng: Random) -> Question:
    call = next(call for call in iter(lambda: draw_call(rng), None) if call.room is not None)
    assert call.room is not None
    return words.questions["room"].format(a=call.device_id), wording.capitalize(f"{words.rooms[call.room].phrase}.")


def _color(words: Vocabulary, rng: Random) -> Question:
    color = words.colors[rng.choice(sorted(words.colors))].name
    options = [color, *(rng.choice(rng.choice(words.opposites)) for _ in range(2))]
    rng.shuffle(options)
    return words.questions["color"].format(a=", ".join(options)), wording.capitalize(f"{color}.")


def _small_talk(words: Vocabulary, rng: Random) -> Question:
    return rng.choice(words.small_talk)


_QUESTIONS: tuple[Callable[[Vocabulary, Random], Question], ...] = (
    _sum,
    _next,
    _day,
    _opposite,
    _repeat,
    _repeat,
    _identifier,
    _identifier,
    _room,
    _color,
    _small_talk,
)
