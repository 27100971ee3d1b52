"""The hooks of the `llamafarm` entry-point group. Registration hooks take nothing and return classes; observers watch.

A plugin is a module with functions of these names, marked with `hookimpl`, and one line in its pyproject.toml:

    [project.entry-points.llamafarm]
    my-plugin = "my_package.hooks"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from llamafarm.api.components import DataSplitter, FineTuner, HardwareProfile, Method
from llamafarm.api.values import RunContext, TrainingResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

    def hookspec(function: F) -> F: ...
    def hookimpl(function: F) -> F: ...

else:
    hookspec = pluggy.HookspecMarker("llamafarm")
    hookimpl = pluggy.HookimplMarker("llamafarm")


@hookspec
def llamafarm_fine_tuners() -> Sequence[type[FineTuner[Any]]]:  # type: ignore[empty-body]  # a specification
    """Fine-tuners: back ends that train."""


@hookspec
def llamafarm_methods() -> Sequence[type[Method[Any]]]:  # type: ignore[empty-body]  # a specification
    """Methods: how parameters are adapted."""


@hookspec
def llamafarm_refused_methods() -> Sequence[tuple[str, str]]:  # type: ignore[empty-body]  # a specification
    """Methods that users may ask for and that are not offered: name and reason."""


@hookspec
def llamafarm_hardware_profiles() -> Sequence[type[HardwareProfile[Any]]]:  # type: ignore[empty-body]  # a specification
    """Hardware profiles: kinds of devices."""


@hookspec
def llamafarm_data_splitters() -> Sequence[type[DataSplitter[Any]]]:  # type: ignore[empty-body]  # a specification
    """Data splitters: which rows are held out."""


@hookspec
def llamafarm_strategies() -> Sequence[Path]:  # type: ignore[empty-body]  # a specification
    """Folders of strategy files that ship with the plugin."""


@hookspec
def llamafarm_run_started(run: RunContext) -> None:
    """A run directory is open; nothing is loaded yet. An observer: it cannot change the run."""


@hookspec
def llamafarm_run_finished(run: RunContext, result: TrainingResult) -> None:
    """A run ended well."""


@hookspec
def llamafarm_run_failed(run: RunContext, error: BaseException) -> None:
    """A run ended with `error`."""
