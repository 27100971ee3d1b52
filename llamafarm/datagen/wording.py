"""Puts a call into words: as a command, as a report, as a sentence of a story."""

from __future__ import annotations

from random import Random

from llamafarm.datagen.home import Call
from llamafarm.datagen.vocabulary import Noun, Vocabulary


def command(words: Vocabulary, call: Call, rng: Random) -> str:
    """Return one way of asking for ``call``, as spoken."""
    template = rng.choice(words.commands[call.service.name])
    text = _fill(words, template, call)
    if not template.endswith(("?", ".")):
        text = rng.choice(words.manners).format(text)
    return capitalize(text)


def narrate(words: Vocabulary, call: Call, who: str, rng: Random) -> str:
    """Return a sentence in which ``who`` does by hand what ``call`` would do."""
    return _fill(words, rng.choice(words.narration[call.service.name]), call, who=who)


def report(words: Vocabulary, call: Call) -> str:
    """Return the line that tells what a device does after ``call``."""
    state = words.states[call.service.name].format(value=_value(words, call).name)
    return capitalize(f"{place(words, call)}: {state}.")


def place(words: Vocabulary, call: Call) -> str:
    """Return the device of ``call`` as it stands in a list, after its room if it has one."""
    name = words.devices[call.kind.name][call.device].name
    return name if call.room is None else f"{words.rooms[call.room].name}, {name}"


def answer(words: Vocabulary, call: Call) -> str:
    """Return the whole answer to a command: the report, then the call as JSON on a line of its own."""
    return f"{report(words, call)}\n{call.to_json()}"


def capitalize(text: str) -> str:
    """Raise the first letter, after an opening mark, and leave the others as they are."""
    start = next((index for index, letter in enumerate(text) if letter.isalpha()), 0)
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]


def _fill(words: Vocabulary, template: str, call: Call, who: str = "") -> str:
    value = _value(words, call)
    inside = words.rooms[call.room].phrase if call.room else value.phrase if call.service.parameter == "room" else ""
    the = words.devices[call.kind.name][call.device].phrase
    text = template.format_map({"the": the, "in": inside, "value": value.phrase, "who": who})
    # A device outside the rooms leaves its {in} empty.
    return " ".join(text.split()).replace(" .", ".").replace(" ,", ",")


def _value(words: Vocabulary, call: Call) -> Noun:
    match call.service.parameter:
        case "color":
            return words.colors[str(call.value)]
        case "room":
            return words.rooms[str(call.value)]
        case _:
            return Noun(str(call.value), str(call.value))
