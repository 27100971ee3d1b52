"""The smart home that the generators talk about: rooms, kinds of devices, services and their parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass

ROOMS = (
    "kitchen",
    "living_room",
    "bedroom",
    "bathroom",
    "hallway",
    "office",
    "garage",
    "basement",
    "attic",
    "dining_room",
    "guest_room",
    "nursery",
    "laundry_room",
    "terrace",
)
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white")

Value = str | int


@dataclass(frozen=True)
class Service:
    """One action of a kind of device, with at most one parameter.

    Attributes:
        name: What is called, as ``kind.action``.
        parameter: The key of the parameter in the call, or None.
        values: Every value the parameter may take; empty without a parameter.
    """

    name: str
    parameter: str | None = None
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One kind of device.

    Attributes:
        name: The first part of a device's identifier.
        devices: The devices of this kind.
        services: What the devices can do.
        placed: Whether there is one such device in every room, so that the room is part of the identifier.
        weight: How often the kind is drawn, relative to the others.
    """

    name: str
    devices: tuple[str, ...]
    services: tuple[Service, ...]
    placed: bool = True
    weight: int = 2


@dataclass(frozen=True)
class Call:
    """A service call: the part of an answer that a home would execute."""

    kind: Kind
    service: Service
    device: str
    room: str | None
    value: Value | None

    @property
    def device_id(self) -> str:
        """The identifier of the device, as in ``light.kitchen_floor_lamp``."""
        return device_id(self.kind, self.device, self.room)

    def to_json(self) -> str:
        """The call as one line of JSON."""
        fields: dict[str, Value] = {"service": self.service.name, "device": self.device_id}
        if self.service.parameter is not None and self.value is not None:
            fields[self.service.parameter] = self.value
        return json.dumps(fields, ensure_ascii=False)


def device_id(kind: Kind, device: str, room: str | None) -> str:
    """Return the identifier of a device; ``room`` is None for a kind that is not placed in rooms."""
    return f"{kind.name}.{device}" if room is None else f"{kind.name}.{room}_{device}"


def _services(kind: str, *names: str) -> tuple[Service, ...]:
    return tuple(Service(f"{kind}.{name}") for name in names)


_PERCENT = tuple(range(1, 101))
_STEPS = tuple(range(5, 100, 5))
# Every one of these takes the same plural form in Polish, which has two.
_MINUTES = (*range(5, 22), 25, 30, 35, 40, 45, 50, 55, 60, 90)

KINDS = (
    Kind(
        "light",
        ("ceiling_light", "floor_lamp", "desk_lamp", "wall_lamp", "led_strip"),
        (
            *_services("light", "turn_on", "turn_off"),
            Service("light.set_brightness", "brightness", _PERCENT),
            Service("light.set_color", "color", COLORS),
        ),
        weight=6,
    ),
    Kind(
        "cover",
        ("blind", "curtain", "shutter", "window"),
        (*_services("cover", "open", "close"), Service("cover.set_position", "position", _STEPS)),
        weight=3,
    ),
    Kind(
        "climate",
        ("thermostat", "radiator", "air_conditioner"),
        (
            *_services("climate", "turn_on", "turn_off"),
            Service("climate.set_temperature", "temperature", tuple(range(15, 29))),
        ),
        weight=3,
    ),
    Kind(
        "fan",
        ("ceiling_fan", "standing_fan", "air_purifier"),
        (*_services("fan", "turn_on", "turn_off"), Service("fan.set_speed", "speed", _STEPS)),
    ),
    Kind(
        "media",
        ("tv", "speaker", "radio"),
        (*_services("media", "play", "pause", "mute"), Service("media.set_volume", "volume", _PERCENT)),
        weight=3,
    ),
    Kind(
        "lock",
        ("front_door", "back_door", "garage_door", "cellar_door", "balcony_door", "garden_gate"),
        _services("lock", "lock", "unlock"),
        placed=False,
    ),
    Kind(
        "switch",
        ("coffee_machine", "kettle", "dishwasher", "washing_machine", "dryer", "sprinkler", "water_pump", "doorbell"),
        _services("switch", "turn_on", "turn_off"),
        placed=False,
    ),
    Kind(
        "vacuum",
        ("robot",),
        (*_services("vacuum", "start", "pause", "dock"), Service("vacuum.clean", "room", ROOMS)),
        placed=False,
        weight=3,
    ),
    Kind(
        "timer",
        ("pasta", "tea", "rice", "egg", "pizza", "cake", "nap", "laundry"),
        (Service("timer.start", "minutes", _MINUTES), *_services("timer", "cancel")),
        placed=False,
    ),
)
