"""An adapter folder for the hub and other tools: nothing of the run, nothing of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from llamafarm.errors import LlamaFarmError
from llamafarm.models.locate import locate
from llamafarm.models.record import METHODS_FILE
from llamafarm.models.vocabulary import VOCABULARY_FILE

_RUN_FILES = ("trainer_log.jsonl", "trainer_state.json", "train_results.json", "eval_results.json", "all_results.json")


def write_adapter(source: Path, target: Path) -> None:
    """Copy the adapter, and what its methods keep beside it, into an existing folder; the run's records stay behind."""
    for file in sorted(source.iterdir()):
        if _belongs(file):
            shutil.copy2(file, target / file.name)
    path = target / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    try:
        config["base_model_name_or_path"] = locate(config["base_model_name_or_path"]).public_name
    except LlamaFarmError:
        config["base_model_name_or_path"] = Path(config["base_model_name_or_path"]).name
    config["inference_mode"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _belongs(file: Path) -> bool:
    if not file.is_file() or file.name in _RUN_FILES:
        return False
    weights = file.name.startswith("adapter_model") and file.suffix == ".safetensors"
    methods = file.name in (METHODS_FILE, VOCABULARY_FILE) or (file.suffix == ".json" and file.name.startswith("bos_"))
    return weights or methods or file.name == "adapter_config.json"
