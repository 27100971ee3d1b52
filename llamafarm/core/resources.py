"""Where strategies and fragments are: the project, the user's folder, plugins, and what ships with LlamaFarm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import llamafarm
from llamafarm.core.registry import Registry
from llamafarm.errors import StrategyError, nearest

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Source:
    """A strategy file.

    Attributes:
        path: The file.
        entry: The name inside a file that holds several.
        provider: `project`, `user`, a distribution's name, or `llamafarm`.
        preset: True when it ships with LlamaFarm or a plugin.
    """

    path: Path
    entry: str | None = None
    provider: str = "project"
    preset: bool = False


def home() -> Path:
    """The user's folder: `LLAMAFARM_HOME`, else the platform's configuration folder."""
    if given := os.environ.get("LLAMAFARM_HOME"):
        return Path(given)
    from platformdirs import user_config_path

    return user_config_path("llamafarm")


def bundled(kind: str) -> Path:
    """The folder of shipped `strategies` or `configs`, in a wheel or in a checkout."""
    package = Path(llamafarm.__file__).parent
    in_wheel = package / "_bundled" / kind
    return in_wheel if in_wheel.is_dir() else package.parent / kind


def strategy_folders(registry: Registry) -> Iterator[tuple[str, Path, bool]]:
    """Folders to look in, in order: (provider, folder, preset)."""
    own = bundled("strategies")
    if (project := Path("strategies")).resolve() != own.resolve():
        yield "project", project, False
    yield "user", home() / "strategies", False
    for plugin, folder in registry.strategy_folders:
        yield plugin.distribution, folder, True
    yield "llamafarm", own, True


def list_strategies(registry: Registry) -> dict[str, Source]:
    """All strategies by name; the first folder that has a name wins."""
    found: dict[str, Source] = {}
    for provider, folder, preset in strategy_folders(registry):
        for path in sorted(_yaml_files(folder)):
            found.setdefault(path.stem, Source(path, provider=provider, preset=preset))
    return found


def _yaml_files(folder: Path) -> Iterable[Path]:
    return (path for suffix in _SUFFIXES for path in folder.glob(f"*{suffix}")) if folder.is_dir() else ()


def find_strategy(name: str, registry: Registry) -> Source:
    """A strategy by name, path, or `path:entry`.

    Raises:
        StrategyError: If there is no such strategy; names the nearest and where was looked.
    """
    path, _, entry = name.rpartition(":") if not Path(name).exists() else (name, "", "")
    if not path:
        path, entry = name, ""
    if _looks_like_path(path):
        if not Path(path).is_file():
            raise StrategyError.of("LF-STRATEGY-010", f"no such strategy file: {path}", hint=_near_file(Path(path)))
        return Source(Path(path), entry or None)
    known = list_strategies(registry)
    if path in known:
        source = known[path]
        return Source(source.path, entry or None, source.provider, source.preset)
    hint = nearest(path, known) or f"known: {', '.join(sorted(known)) or 'none'}; or give the path of a YAML file"
    raise StrategyError.of("LF-STRATEGY-011", f"unknown strategy {name!r}", hint=hint)


def _looks_like_path(name: str) -> bool:
    return name.endswith(_SUFFIXES) or "/" in name or os.sep in name or Path(name).is_file()


def _near_file(path: Path) -> str:
    siblings = [sibling.name for sibling in path.parent.glob("*")] if path.parent.is_dir() else []
    return nearest(path.name, siblings) or ("" if siblings else f"the folder {path.parent} does not exist or is empty")


def find_fragment(key: str, name: str, where: str) -> Source:
    """The fragment `configs/<key>/<name>.yaml` of the project, the user, or the shipped ones.

    Raises:
        StrategyError: If there is none.
    """
    folders = [("project", Path("configs"), False), ("user", home() / "configs", False)]
    folders.append(("llamafarm", bundled("configs"), True))
    names: list[str] = []
    for provider, folder, preset in folders:
        for path in _yaml_files(folder / key):
            if path.stem == name:
                return Source(path, provider=provider, preset=preset)
            names.append(path.stem)
    raise StrategyError.of(
        "LF-STRATEGY-013",
        f"no fragment {name!r} for {key!r}",
        where=where,
        hint=nearest(name, names) or f"known: {', '.join(sorted(set(names))) or 'none'}",
    )
