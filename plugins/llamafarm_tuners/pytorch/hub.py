"""Upload a result to the hub, when the strategy says so."""

from __future__ import annotations

from pathlib import Path

from llamafarm.api import TrainingConfig
from llamafarm.errors import NetworkError

_PRIVATE = ("llamafarm/*", "runs/*", ".*", "eval_results.json")
"""Our own records, and the answers to held-out rows, which quote them."""


def upload(folder: Path, training: TrainingConfig) -> None:
    """Create the repository if need be and upload the run directory, without our own records.

    Raises:
        NetworkError: If the hub cannot be reached or refuses; the result on disk is complete all the same.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    assert training.hub_model_id
    token = training.hub_token.get_secret_value() if training.hub_token else None
    api = HfApi(token=token or None)
    without_checkpoints = () if training.hub_strategy == "all_checkpoints" else ("checkpoint-*",)
    try:
        api.create_repo(training.hub_model_id, exist_ok=True, private=True)
        api.upload_folder(
            repo_id=training.hub_model_id, folder_path=folder, ignore_patterns=[*_PRIVATE, *without_checkpoints]
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise NetworkError.of(
            "LF-NET-003",
            f"cannot upload to {training.hub_model_id}: {' '.join(str(error).split())[:200]}",
            hint=f"the result in {folder} is complete; upload it with `hf upload {training.hub_model_id} {folder}`",
        ) from error
