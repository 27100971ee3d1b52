"""The JSON Schema of strategies for editors: what the loader accepts, aliases and short forms included.

Kept to what draft-07 tools read: `definitions`, no `prefixItems`.
"""

from __future__ import annotations

from typing import Any

from llamafarm.core.registry import Registry
from llamafarm.core.schema import COMPONENT_KEYS, strategy_model


def json_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a strategy file, from the installed components."""
    schema = strategy_model(registry).model_json_schema(ref_template="#/definitions/{model}")
    definitions = schema.pop("$defs")
    for definition in definitions.values():
        _accept_short_forms(definition, registry)
    components = definitions["InstalledComponents"]
    components.pop("required", None)
    properties = schema["properties"]
    for family in COMPONENT_KEYS:
        _accept_type_alone(components["properties"][family], registry, family)
        properties[family] = components["properties"][family]
    schema.pop("required", None)
    one = {key: schema[key] for key in ("properties", "additionalProperties")}
    definitions["Strategy"] = {"type": "object", **one}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "LlamaFarm strategy",
        "description": schema["description"],
        "anyOf": [
            {"$ref": "#/definitions/Strategy"},
            {
                "type": "object",
                "required": ["strategies"],
                "properties": {
                    "version": properties["version"],
                    "strategies": {"type": "array", "items": {"$ref": "#/definitions/Strategy"}},
                },
            },
        ],
        "definitions": definitions,
    }


def _accept_short_forms(definition: dict[str, Any], registry: Registry) -> None:
    """`method` may be one mapping, a list, or types alone; numbers and switches may come from `${NAME}`."""
    for inner in definition.get("anyOf", ()):
        _accept_short_forms(inner, registry)
    properties = definition.get("properties", {})
    if properties.get("method", {}).get("type") == "array":
        for key, method in registry.loose_keys().items():
            own = registry.family("method")[method].component.Config.model_json_schema()["properties"]
            properties[key] = own[key]
    for name, field in properties.items():
        if name == "method" and field.get("type") == "array":
            one = field.pop("items")
            types = {"enum": sorted(registry.family("method"))}
            field.pop("type")
            field["anyOf"] = [one, types, {"type": "array", "items": {"anyOf": [one, types]}}]
        elif field.get("type") in ("integer", "number", "boolean"):
            plain = {key: field.pop(key) for key in [*field] if key not in ("title", "description", "default")}
            field["anyOf"] = [plain, {"type": "string", "pattern": r"^\$\{.+\}$"}]


def _accept_type_alone(field: dict[str, Any], registry: Registry, family: str) -> None:
    types = [*registry.family(family), *(["auto"] if family == "hardware" else [])]
    reference = {key: field.pop(key) for key in [*field] if key not in ("title", "description", "default")}
    field["anyOf"] = [{"enum": sorted(types)}, reference]
