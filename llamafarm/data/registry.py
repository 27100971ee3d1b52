"""Datasets by name: the entries of a `dataset_info.json`, in the form of LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamafarm.api import RowsConfig
from llamafarm.data.strict import Fault
from llamafarm.errors import DataError, nearest, one_of

FILE = "dataset_info.json"

_SHOWN = 30
_PLACES = (".", "data")
"""Where the file is looked for, below the working folder, when no `dataset_dir` is named."""

_FORMS = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "sharegpt"}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_SHAREGPT = {"messages": "conversations"}
_ANY_COLUMN = ("system", "tools", "chosen", "rejected", "kto_tag")
_COLUMNS = {"alpaca": (*_ALPACA, "history", *_ANY_COLUMN), "sharegpt": (*_SHAREGPT, *_ANY_COLUMN)}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_KEYS = ("file_name", "hf_hub_url", "formatting", "ranking", "subset", "split", "num_samples", "columns", "tags")
_OTHER_PLACES = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_MEDIA = ("images", "videos", "audios")


@dataclass(frozen=True, slots=True)
class Entry:
    """A dataset as its registry describes it.

    Attributes:
        name: Its name there.
        path: What `dataset.path` would name: a file, a folder, or a dataset of the hub with its split.
        subset: Configuration of a hub dataset.
        form: `alpaca` or `sharegpt`.
        columns: What a column means → the name that it has in the data.
        tags: What turns and roles are called in the data.
        ranking: Whether rows hold a better and a worse answer.
    """

    name: str
    path: str
    subset: str | None = None
    form: str = "alpaca"
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ranking: bool = False


def registered(config: RowsConfig, path: str) -> Entry | None:
    """The entry that `path` names; None where it names a file, a folder, or something else.

    Raises:
        DataError: If a registry is there and does not know the name, or cannot be understood.
    """
    if Path(path).exists() or not _is_name(path):
        return None
    found = _registry(config.dataset_dir)
    if found is None:
        return None
    file, entries = found
    if path in entries:
        return _entry(path, entries[path], file)
    parts = [part.strip() for part in path.split(",")]
    hint = nearest(path, entries)
    if len(parts) > 1 and all(part in entries for part in parts):
        hint = f"write dataset.sources: [{', '.join(parts)}]"
    listed = one_of(list(entries)[:_SHOWN]) or "none"
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    raise DataError.of("LF-DATA-200", f"no dataset {path!r}; there is {listed}{more}", where=str(file), hint=hint)


def _is_name(path: str) -> bool:
    """Whether it could be a name: what looks like a file, a folder, a pattern or an id of the hub is none."""
    return not any(sign in path for sign in "/\\*?[") and not Path(path).suffix


def _registry(folder: str | None) -> tuple[Path, Mapping[str, Any]] | None:
    for place in (folder,) if folder is not None else _PLACES:
        file = Path(place) / FILE
        if file.is_file():
            return file, _read(file)
    if folder is not None:
        raise DataError.of("LF-DATA-201", f"dataset_dir: no {FILE} in the folder", where=folder)
    return None


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError.of("LF-DATA-201", f"the file cannot be read: {error}", where=str(file)) from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise DataError.of("LF-DATA-201", "expected an object of names, each with an object", where=str(file))
    return content


def _entry(name: str, given: Mapping[str, Any], file: Path) -> Entry:
    try:
        form = _one(given.get("formatting", "alpaca"), _FORMS, "formatting")
        _known(given, (*_KEYS, *_OTHER_PLACES), "key")
        columns, tags = _texts(given, "columns"), _texts(given, "tags")
        _no_media(columns)
        _known(columns, _COLUMNS[_FORMS[form]], "column")
        _known(tags, tuple(_TAGS), "tag")
        defaults = _ALPACA if form == "alpaca" else _SHAREGPT if form == "sharegpt" else {"messages": "messages"}
        return Entry(
            name,
            _path(given, file.parent),
            given.get("subset"),
            _FORMS[form],
            columns or defaults,
            _TAGS | (_OPENAI_TAGS if form == "openai" else {}) | tags,
            bool(given.get("ranking", False)),
        )
    except Fault as fault:
        raise DataError([fault.at(f"{file}: {name}")]) from None


def _no_media(columns: Mapping[str, str]) -> None:
    if media := [column for column in _MEDIA if column in columns]:
        raise Fault("LF-DATA-202", f"columns.{media[0]}: rows with {media[0]} cannot be trained on")


def _path(given: Mapping[str, Any], folder: Path) -> str:
    """A file that is there before the hub, so that nothing is fetched in vain."""
    file, hub = given.get("file_name"), given.get("hf_hub_url")
    if file and ((folder / file).exists() or not hub):
        path = str(folder / file)
    elif hub:
        path = f"{hub}:{given['split']}" if given.get("split") else str(hub)
    else:
        others = [key for key in _OTHER_PLACES if key in given]
        message = f"{others[0]}: rows cannot be fetched from there" if others else "neither file_name nor hf_hub_url"
        raise Fault("LF-DATA-202", message, hint="give file_name: a file or a folder beside dataset_info.json")
    return f"{path}#{given['num_samples']}" if given.get("num_samples") else path


def _texts(given: Mapping[str, Any], key: str) -> dict[str, str]:
    value = given.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Fault("LF-DATA-202", f"{key}: expected an object of texts")
    return dict(value)


def _known(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            raise Fault(
                "LF-DATA-202", f"unknown {what} {name!r}", hint=nearest(name, known) or f"known: {one_of(known)}"
            )


def _one(value: Any, known: Mapping[str, str], key: str) -> str:
    if value not in known:
        raise Fault(
            "LF-DATA-202", f"{key} {value!r} is not known; there is {one_of(known)}", hint=nearest(str(value), known)
        )
    return str(value)
