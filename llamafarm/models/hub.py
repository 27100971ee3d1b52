"""Reach a hub model, and say in plain words why it cannot be reached. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm.errors import LlamaFarmError, ModelError, NetworkError

if TYPE_CHECKING:
    from llamafarm.api import BaseModelConfig

_GIVE = "give a local folder, a builtin: model, or fill the cache with `hf download {0}` where there is a network"


def is_offline() -> bool:
    """Whether the hub library has been told to stay off the network."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def require_cached(model: str, config: BaseModelConfig) -> None:
    """Check that a hub model is in the cache; touches no network.

    Raises:
        NetworkError: If it is not.
    """
    if not is_cached(model, config):
        raise _unreachable(model)


def is_cached(model: str, config: BaseModelConfig) -> bool:
    """Whether a hub model is in the cache; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", cache_dir=config.cache_dir, revision=config.revision)
    return isinstance(found, str)


def fetch_config(model: str, config: BaseModelConfig) -> Path:
    """Download (or find in the cache) the `config.json` of a hub model: the cheapest proof that it can be had.

    Raises:
        ModelError: If the hub has no such model or revision.
        NetworkError: If the hub cannot be reached, or wants a token.
    """
    from huggingface_hub import errors, hf_hub_download

    token = config.token.get_secret_value() if config.token else None
    try:
        file = hf_hub_download(
            model, "config.json", revision=config.revision, cache_dir=config.cache_dir, token=token or None
        )
    except errors.GatedRepoError as error:
        raise NetworkError.of(
            "LF-NET-002",
            f"the hub model {model!r} is gated",
            hint="accept its terms on the hub, and set base_model.token: ${HF_TOKEN}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError.of("LF-MODEL-007", f"the hub model {model!r} has no revision {config.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError.of(
            "LF-MODEL-007",
            f"there is no model {model!r}: neither a folder here nor on the hub",
            hint="check the name; a private one needs base_model.token: ${HF_TOKEN}",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(model) from error
    except errors.EntryNotFoundError as error:
        raise ModelError.of("LF-MODEL-002", f"the hub model {model!r} has no config.json") from error
    except OSError as error:
        raise _unreachable(model) from error
    return Path(file)


def _unreachable(model: str) -> LlamaFarmError:
    return NetworkError.of(
        "LF-NET-001",
        f"{model!r} is no folder here, is not in the cache, and the hub cannot be reached",
        hint=_GIVE.format(model),
    )
