"""The shape of a strategy, and the full model built from what is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from operator import or_
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, create_model

from llamafarm.api.components import Component
from llamafarm.api.config import Config, FineTunerConfig
from llamafarm.core.registry import Registry
from llamafarm.models.serving import Target

Installed: TypeAlias = tuple[tuple[str, str, type[Component[Any]]], ...]
"""Family, type and class of each component."""
COMPONENT_KEYS = ("fine_tuner", "data_splitter", "hardware")

SEVERAL_BLOCKS = ("stability",)
"""Keys of `defaults:` whose fragments hold several blocks of the fine-tuner's config, not the body of one."""

DEVICE_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "torch_dtype": "base_model.torch_dtype",
        "attn_implementation": "base_model.attn_implementation",
        "load_in_4bit": "base_model.load_in_4bit",
        "load_in_8bit": "base_model.load_in_8bit",
    }
)
"""Keys of an `optimization.<device>` block that do not belong to `training`."""


class Node(Config):
    """A selected component: its `type` and its `config`."""

    type: str
    config: Any = None


class Components(Config):
    """The components of a run."""

    fine_tuner: Node
    data_splitter: Node | None = None
    hardware: Node


class ExportConfig(Config):
    """What is written for other programs when training has ended; whether it can be is checked before."""

    shorthand = "to"

    to: Target | tuple[Target, ...] = Field(description="Targets: merged, adapter, gguf, ollama, vllm; one or a list.")
    output_dir: str | None = Field(None, description="Folder with one folder per target; OUTPUT_DIR/export if absent.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; `auto`: the base's."
    )
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[KMG]i?B$")] = Field(
        "5GB", description="Largest file of weights."
    )
    gguf_type: Literal["f32", "f16", "bf16", "q8_0"] = Field("f16", description="How GGUF stores the weights.")
    keep_adapter: bool = Field(False, description="For vllm: serve the adapter beside its base, unmerged.")
    name: str = Field("", description="What the server calls the model; the strategy's name if absent.")
    system: str | None = Field(None, description="For ollama: the system message.")
    num_ctx: Annotated[int, Field(ge=1)] | None = Field(None, description="For ollama: the context length.")
    temperature: Annotated[float, Field(ge=0)] | None = Field(None, description="For ollama: the temperature.")

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets as a list."""
        return (self.to,) if isinstance(self.to, str) else tuple(dict.fromkeys(self.to))


class Strategy(Config):
    """A complete, validated run description."""

    name: str = Field("strategy", description="What you get, in kebab-case; names the run.")
    description: str = Field("", description="What it is for, in a sentence.")
    version: int | str = Field(1, description="Version of the strategy format.")
    defaults: dict[str, str] = Field(default_factory=dict, description="Fragments of configs/: key → name.")
    plugins: tuple[str, ...] = Field((), description="Plugins that must be installed, as requirements: `name>=1.2`.")
    components: Components = Field(description="Fine-tuner, data splitter and hardware profile.")
    optimization: dict[str, Any] = Field(default_factory=dict, description="Overrides per device: cuda, mps, cpu …")
    export: ExportConfig | None = Field(None, description="What to write for other programs after training.")
    use_cases: tuple[str, ...] = Field((), description="What it suits; shown by `strategies list`.")
    notes: str = Field("", description="Anything a user should know.")


def strategy_model(registry: Registry) -> type[Strategy]:
    """The strategy model with a discriminated union per component family, from the installed components."""
    return _strategy_model(
        tuple(
            (family, name, registered.component)
            for family, members in registry.components.items()
            for name, registered in sorted(members.items())
        )
    )


@lru_cache(maxsize=8)  # building it takes longer than all else that a strategy's loading does
def _strategy_model(installed: Installed) -> type[Strategy]:
    tuners = _nodes(installed, "fine_tuner", method=_method_union(installed))
    splitters = _nodes(installed, "data_splitter")
    auto = create_model("AutoNode", __base__=Node, type=(_only("auto"), ...), config=(type(None), None))
    hardware: list[type[Config]] = [auto, *_nodes(installed, "hardware")]
    components = create_model(
        "InstalledComponents",
        __base__=Components,
        fine_tuner=(_union(tuners), Field(description="The back end that trains.")),
        data_splitter=(_union(splitters) | None, Field(None, description="Which rows are held out.")),
        hardware=(
            _union(hardware),
            Field(default_factory=lambda: auto(type="auto"), description="The device; `auto` takes the best."),
        ),
    )
    model = create_model(
        "InstalledStrategy", __base__=Strategy, components=(components, Strategy.model_fields["components"])
    )
    model.__doc__ = Strategy.__doc__
    return model


def _only(name: str) -> Any:
    """The type whose single value is `name`."""
    return Literal[name]


def _union(members: Sequence[type[Config]]) -> Any:
    """A discriminated union; a single member stands for itself."""
    if not members:
        return Node
    if len(members) == 1:
        return members[0]
    return Annotated[reduce(or_, cast("Sequence[Any]", members)), Field(discriminator="type")]


def _family(installed: Installed, wanted: str) -> Iterator[tuple[str, type[Component[Any]]]]:
    return ((name, component) for family, name, component in installed if family == wanted)


def _method_union(installed: Installed) -> Any:
    members = [
        create_model(
            f"{component.Config.__name__}Node",
            __base__=component.Config,
            __doc__=component.Config.__doc__,
            type=(_only(name), Field(description="Selects the method.")),
        )
        for name, component in _family(installed, "method")
    ]
    return _union(members)


def _nodes(installed: Installed, family: str, method: Any = None) -> list[type[Config]]:
    """A `{type, config}` model per component of a family."""
    nodes: list[type[Config]] = []
    for name, component in _family(installed, family):
        config = component.Config
        if method is not None and issubclass(config, FineTunerConfig):
            config = create_model(
                config.__name__,
                __base__=config,
                __doc__=config.__doc__,
                method=(tuple[method, ...], FineTunerConfig.model_fields["method"]),
            )
        optional = not any(field.is_required() for field in config.model_fields.values())
        nodes.append(
            create_model(
                f"{component.__name__}Node",
                __base__=Node,
                __doc__=(component.__doc__ or "").split("\n\n")[0] or None,
                type=(_only(name), Field(description="Selects the component.")),
                config=(config, Field(default_factory=config) if optional else ...),
            )
        )
    return nodes
