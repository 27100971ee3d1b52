"""What LLaMA-Factory left → a run directory like any other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafarm.api import RunPlan, TrainingResult
from llamafarm.files import write_atomically
from llamafarm.models.locate import locate
from llamafarm.models.record import write_methods
from llamafarm_tuners.llamafactory.course import Course
from llamafarm_tuners.pytorch.card import model_card

_BEST = "checkpoint-best"


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def adopt(output: Path, folder: Path, base: str) -> None:
    """Move what LLaMA-Factory wrote to where a run has it; the base model gets the name that the user gave it."""
    for place in (output, *checkpoints(output)):
        _name_base(place, base)
    for path in sorted(output.iterdir()) if output.is_dir() else []:
        target = folder / path.name
        if path.is_dir() and path.name.startswith("checkpoint-") and path not in checkpoints(output):
            continue  # its writing was cut off
        if target.is_symlink() or target.is_file():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)
        path.replace(target)


def log_until(folder: Path, step: int) -> list[str]:
    """Lines of the run's log up to a step, from which it goes on."""
    path = folder / "trainer_log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if '"loss"' in line and int(json.loads(line).get("current_steps", 0)) <= step]


def put_before(lines: Sequence[str], folder: Path) -> None:
    """Put earlier lines before those of the log."""
    path = folder / "trainer_log.jsonl"
    if lines and path.is_file():
        write_atomically(
            path, "".join(f"{line}\n" for line in [*lines, *path.read_text(encoding="utf-8").splitlines()])
        )


def finish(plan: RunPlan, base: str, adapter: Mapping[str, Any], course: Course) -> TrainingResult:
    """Complete the run directory, and collect its figures."""
    folder = plan.output_dir
    state = _json(folder / "trainer_state.json")
    best = _best(folder, state)
    if plan.methods:
        write_methods(folder, plan.methods, None)
    metrics = _metrics(folder, course)
    write_atomically(
        folder / "train_results.json", _text({k: v for k, v in metrics.items() if not k.startswith("eval_")})
    )
    facts = {
        "method": adapter["finetuning_type"],
        "trained with": "LLaMA-Factory",
        "trained parameters": f"{course.trainable:,} of {course.total:,}",
        **{name.replace("_", " "): f"{metrics[name]:.4g}" for name in ("train_loss", "eval_loss") if name in metrics},
    }
    kind = adapter["finetuning_type"] if (folder / "adapter_config.json").is_file() else ""
    write_atomically(folder / "README.md", model_card(locate(base).public_name, facts, kind))
    return TrainingResult(metrics, folder, best, course.trainable, course.total)


def _metrics(folder: Path, course: Course) -> dict[str, Any]:
    found = {name: value for name, value in _json(folder / "all_results.json").items() if name != "total_flos"}
    found = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {"train_steps": course.step, **found}


def _best(folder: Path, state: Mapping[str, Any]) -> int | None:
    """Give the best checkpoint the name that all runs have for it; without one, the result's."""
    named = str(state.get("best_model_checkpoint") or "")
    step = named.rpartition("checkpoint-")[2] if "checkpoint-" in named else ""
    source = folder / f"checkpoint-{step}"
    if step.isdigit() and source.is_dir():
        _link(source, folder / _BEST)
        return int(step)
    _link(folder, folder / _BEST)
    return None


def _link(source: Path, target: Path) -> None:
    """Give the files that make a model a second name."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"}:
            try:
                os.link(file, target / file.name)
            except OSError:
                shutil.copy2(file, target / file.name)


def _name_base(folder: Path, base: str) -> None:
    """Put the base model's name as the user gave it in place of a path of this machine."""
    path = folder / "adapter_config.json"
    if path.is_file():
        described = _json(path)
        for key in ("target_modules", "modules_to_save"):
            if isinstance(described.get(key), list):
                described[key] = sorted(described[key])
        write_atomically(path, _text({**described, "base_model_name_or_path": base}))
    path = folder / "config.json"
    if path.is_file() and "_name_or_path" in (described := _json(path)):
        write_atomically(path, _text({key: value for key, value in described.items() if key != "_name_or_path"}))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
