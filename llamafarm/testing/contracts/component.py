"""What holds for every component of every family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

import pytest
from pydantic import ValidationError

from llamafarm.api import Component, Config
from llamafarm.core.registry import load_registry
from llamafarm.testing.fresh import heavy_after

_BUILD = """
import functools, importlib
module, qualified_name, config, use = arguments
component = functools.reduce(getattr, qualified_name.split("."), importlib.import_module(module))
built = component(component.Config.model_validate(config))
if use: getattr(built, use)()
"""


class ComponentContract:
    """Base of the suites.

    Attributes:
        component: The class to test.
        config: The least configuration it needs; usually nothing.
        light_use: A method without arguments that must work without heavy libraries.
    """

    component: ClassVar[type[Component[Any]]]
    config: ClassVar[Mapping[str, Any]] = {}
    light_use: ClassVar[str] = ""

    def build(self, **options: Any) -> Any:
        """The component, with `options` on top of the least configuration."""
        return self.component(self.component.Config.model_validate({**self.config, **options}))

    def test_is_registered_by_an_installed_plugin(self) -> None:
        registry = load_registry()
        registered = registry.family(self.component.family).get(self.component.name)
        assert registered is not None, f"no installed plugin registers it; failures: {registry.failures}"
        assert registered.component is self.component

    def test_defaults_are_valid(self) -> None:
        built = self.build()
        assert type(built.config) is self.component.Config
        again = self.component.Config.model_validate(built.config.model_dump(exclude_unset=True))
        assert again == built.config

    def test_imports_nothing_heavy(self) -> None:
        where = (self.component.__module__, self.component.__qualname__)
        assert heavy_after(_BUILD, *where, dict(self.config), self.light_use) == set()

    def test_refuses_unknown_options(self) -> None:
        with pytest.raises(ValidationError, match="no_such_option"):
            self.build(no_such_option=1)

    def test_configuration_cannot_change(self) -> None:
        config = self.build().config
        for name in type(config).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(config, name, getattr(config, name))

    def test_every_option_is_described(self) -> None:
        missing = [
            f"{model.__name__}.{name}"
            for model in _models(self.component.Config)
            for name, field in model.model_fields.items()
            if not (field.description or "").strip()
        ]
        assert missing == []
        self.component.Config.model_json_schema()

    def test_aliases_lead_to_options(self) -> None:
        config = self.component.Config
        for alias, target in config.aliases.items():
            assert alias not in config.model_fields, f"{alias!r} is an option and an alias"
            assert target.partition(".")[0] in config.model_fields, f"{alias!r} leads to {target!r}, which is no option"


def _models(config: type[Config]) -> Iterator[type[Config]]:
    """A configuration class and those that its fields hold."""
    yield config
    for field in config.model_fields.values():
        for annotation in _flat(field.annotation):
            if isinstance(annotation, type) and issubclass(annotation, Config):
                yield from _models(annotation)


def _flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _flat(argument)
