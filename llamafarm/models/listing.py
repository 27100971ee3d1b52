"""The list that transformers makes of the names in all files of its models, made once and in less time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import unwrap
from pathlib import Path
from types import ModuleType
from typing import Any

from llamafarm.models.stand_in import adapted


@contextmanager
def listed_once() -> Iterator[None]:
    """Have transformers read the names in all files of its models once: it does so for two modules, one after another.

    The second list is the first one under shorter names.
    """
    if "transformers.models" in sys.modules:
        yield
        return
    with adapted("transformers.utils.import_utils", _hand_over_ends):
        import transformers.utils.import_utils as utils
    if hasattr(utils, "fetch__all__"):
        utils.fetch__all__ = unwrap(utils.fetch__all__)

    listing: Callable[..., Any] = utils.define_import_structure
    folder = Path(utils.__file__).parents[1] / "models"

    def list_once(module_path: Any, prefix: str | None = None) -> Any:
        if prefix is not None or Path(module_path) != folder / "__init__.py":
            return listing(module_path, prefix)
        first = listing(folder, prefix="models")  # remembered by transformers, which has added names of its own
        under = {
            needs: {name: given for name, given in names.items() if name.startswith("models.")}
            for needs, names in first.items()
        }
        return {
            needs: {name.removeprefix("models."): set(given) for name, given in names.items()}
            for needs, names in under.items()
        }

    utils.define_import_structure = list_once
    try:
        yield
    finally:
        utils.define_import_structure = listing


def _hand_over_ends(utils: ModuleType) -> None:
    """Have transformers look for the names of a file from where they are: it takes each of its lines from the top.

    A file has a thousand lines, and the last of them that starts with `__all__` counts.
    """
    names: Callable[[str], list[str]] | None = getattr(utils, "fetch__all__", None)
    if names is None:  # another transformers
        return

    @wraps(names)
    def names_at_the_end(file_content: str) -> list[str]:
        return names(file_content[max(file_content.rfind("\n__all__"), 0) :])

    utils.fetch__all__ = names_at_the_end  # type: ignore[attr-defined]
