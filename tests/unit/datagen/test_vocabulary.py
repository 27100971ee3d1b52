from __future__ import annotations

import string

import pytest

from llamafarm.datagen.home import COLORS, KINDS, ROOMS
from llamafarm.datagen.vocabulary import LANGUAGES, load_vocabulary

SERVICES = {service.name: (kind, service) for kind in KINDS for service in kind.services}


def fields(template):
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


@pytest.fixture(params=LANGUAGES)
def words(request):
    return load_vocabulary(request.param)


def test_a_language_has_every_word(words):
    assert words.rooms.keys() == set(ROOMS)
    assert words.colors.keys() == set(COLORS)
    assert {kind: set(devices) for kind, devices in words.devices.items()} == {
        kind.name: set(kind.devices) for kind in KINDS
    }
    assert words.commands.keys() == words.states.keys() == words.narration.keys() == SERVICES.keys()
    assert len(words.days) == 7


def test_no_two_things_share_a_name(words):
    devices = [noun for kind in words.devices.values() for noun in kind.values()]
    for nouns in (devices, words.rooms.values(), words.colors.values()):
        for form in zip(*nouns, strict=True):
            assert len(set(form)) == len(form)


@pytest.mark.parametrize("name", SERVICES)
def test_templates_say_all_that_the_answer_needs(words, name):
    kind, service = SERVICES[name]
    valued = {"value"} if service.parameter not in (None, "room") else set()
    assert fields(words.states[name]) == valued | ({"value"} if service.parameter == "room" else set())
    for template in (*words.commands[name], *words.narration[name]):
        used = fields(template) - {"who"}
        assert valued <= used <= {"the", "in", "value"}
        assert "the" in used or service.parameter == "room"
        assert "in" in used or not (kind.placed or service.parameter == "room")
        assert template[0] not in string.whitespace


def test_no_phrase_asks_for_two_services_of_one_kind(words):
    for kind in KINDS:
        templates = [template for service in kind.services for template in words.commands[service.name]]
        assert len(templates) == len(set(templates))


def test_manners_hold_one_place(words):
    assert words.manners[0] == "{}"
    assert all(fields(manner) == {""} for manner in words.manners)
