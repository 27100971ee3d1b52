"""What a language has to bring along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Noun(NamedTuple):
    """One thing in two forms.

    Attributes:
        name: As it stands in a list: no article, nominative.
        phrase: As it stands in a sentence. A device: object of a verb, with article. A room: where something is.
            A colour: what something is set to.
    """

    name: str
    phrase: str


@dataclass(frozen=True)
class Vocabulary:
    """The words of one language.

    Templates may use ``{the}`` (a device), ``{in}`` (a room), ``{value}`` (a parameter) and ``{who}`` (a person).

    Attributes:
        rooms: Room to its noun.
        devices: Kind of device to device to its noun.
        colors: Colour to its noun.
        commands: Service to the ways of asking for it. A template that ends in a question mark is used as it is,
            the others are put into one of ``manners``.
        manners: Ways of wrapping a command, each with one ``{}``.
        states: Service to what is reported after the call.
        narration: Service to sentences that tell of somebody doing it.
        system: The system message, with ``{devices}``.
        prose: Sentences about daily life, with ``{who}``, ``{day}``, ``{number}``, ``{room}`` and ``{color}``.
        small_talk: Questions and answers that need no home.
        days: The days of the week from Monday.
        opposites: Pairs of words.
        questions: Templates of generic questions: sum, next, day, opposite, repeat, identifier, room and color.
    """

    rooms: Mapping[str, Noun]
    devices: Mapping[str, Mapping[str, Noun]]
    colors: Mapping[str, Noun]
    commands: Mapping[str, tuple[str, ...]]
    manners: tuple[str, ...]
    states: Mapping[str, str]
    narration: Mapping[str, tuple[str, ...]]
    system: str
    prose: tuple[str, ...]
    small_talk: tuple[tuple[str, str], ...]
    days: tuple[str, ...]
    opposites: tuple[tuple[str, str], ...]
    questions: Mapping[str, str]
