"""`checkpoint-N` and `checkpoint-best`: written whole, rotated by their steps, checked before they are trusted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file
from transformers import PreTrainedModel

from llamafarm.errors import DiskError
from llamafarm.models.checkpoint import CHECKPOINT_FILE, damage, read_manifest, write_manifest
from llamafarm_tuners.pytorch._state import OWN_FILES, STATE, TrainingState, write_state
from llamafarm_tuners.pytorch._store import Trained, link_files, removed, replaced_folder, swept, write_model
from llamafarm_tuners.pytorch.journal import write_json
from llamafarm_tuners.pytorch.progress import PROGRESS

BEST: Final = "checkpoint-best"
_RECORD: Final = "trainer_state.json"
_NAME: Final = re.compile(r"checkpoint-(\d+)")
_OF_ITS_STEP: Final = frozenset({_RECORD, CHECKPOINT_FILE}) | OWN_FILES

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier run left.

    Attributes:
        checkpoint: To go on from; None if there is none.
        saved: Steps whose checkpoint exists and is whole, in order.
    """

    checkpoint: Path | None = None
    saved: tuple[int, ...] = ()


class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        saved: Steps whose checkpoint exists and is whole, in order.
    """

    def __init__(
        self,
        folder: Path,
        trained: Trained,
        limit: int | None,
        record: Callable[[int], Mapping[str, Any]],
        identity: Mapping[str, Any] | None = None,
        saved: Sequence[int] = (),
    ) -> None:
        self.saved = list(saved)
        self._folder, self._trained, self._limit, self._record = folder, trained, limit, record
        self._identity = dict(identity or {})

    def save(self, step: int, best_step: int | None, state: TrainingState | None = None) -> Path:
        """Write `checkpoint-<step>`, and remove the oldest beyond the limit, but never the best or the newest.

        Raises:
            DiskError: If it cannot be written; what was there before is intact.
            NumericError: If anything in it is not finite.
        """
        path = self._folder / f"checkpoint-{step}"
        self._write(path, step, self._folder / BEST if step == best_step else None, state)
        self.saved = sorted({*self.saved, step})
        removable = [old for old in self.saved[:-1] if old != best_step]
        kept = len(self.saved) - (best_step in self.saved[:-1])
        for old in removable[: max(0, kept - (self._limit or kept))]:
            self.saved.remove(old)
            if (gone := self._folder / f"checkpoint-{old}").exists():
                removed(gone)
        return path

    def save_best(self, step: int) -> Path:
        """Write `checkpoint-best` from the model as it is now."""
        return self.save_as(BEST, step)

    def save_as(self, name: str, step: int) -> Path:
        """Write the model as it is now into a folder of this name, from which no run goes on."""
        self._write(self._folder / name, step, None, None)
        return self._folder / name

    def require_best(self, best_step: int | None, say: Say) -> None:
        """Have `checkpoint-best` hold the best step of the state that the run goes on from.

        A run that was killed may have found a better one after its last checkpoint; it will find it again.
        """
        best = self._folder / BEST
        manifest = read_manifest(best)
        right = manifest is not None and manifest.step == best_step and damage(best) is None
        if best_step is None or right:
            return
        same = self._folder / f"checkpoint-{best_step}"
        if same.is_dir() and damage(same) is None:
            with self._staged(best, best_step) as temporary:
                link_files(
                    (file for file in same.iterdir() if file.name not in OWN_FILES | {CHECKPOINT_FILE}), temporary
                )
        elif manifest is None:
            say(f"{BEST}, of step {best_step}, is lost: the next better one takes its place")

    def _write(self, path: Path, step: int, same: Path | None, state: TrainingState | None) -> None:
        with self._staged(path, step) as temporary:
            made = read_manifest(same) if same is not None else None
            if same is not None and made is not None and made.step == step:
                link_files((file for file in same.iterdir() if file.name not in _OF_ITS_STEP), temporary)
            else:
                write_model(self._trained, temporary)
            write_json(temporary / _RECORD, self._record(step))
            PROGRESS.sign()
            if state is not None:
                write_state(state, temporary)

    @contextmanager
    def _staged(self, path: Path, step: int) -> Iterator[Path]:
        with replaced_folder(path) as temporary:
            yield temporary
            PROGRESS.sign()
            position = {"step": step, "epoch": self._record(step).get("epoch")}
            write_manifest(temporary, step, position=position, identity=self._identity)


def recover(folder: Path, wanted: Path | None, say: Say) -> Found:
    """Clear up after a run that was stopped at any instant, and find what to go on from.

    Damaged checkpoints are put aside as `damaged-checkpoint-N`, and the one before is taken.

    Args:
        folder: The run's.
        wanted: A particular checkpoint; the newest that is whole if None. Later ones are put aside, because they
            belong to another course of the training.
        say: Is told of everything that is put aside.

    Raises:
        DiskError: If the one that is wanted is not whole.
    """
    swept(folder)
    found: Path | None = None
    saved: list[int] = []
    for step, path in _numbered(folder):
        if wanted is not None and step > _step_of(wanted):
            say(f"{path.name} is later than {wanted.name}: put aside as {_aside(path, 'later').name}")
            continue
        what = damage(path, content=found is None) or (None if (path / STATE).is_file() else f"it has no {STATE}")
        if what is None:
            found = found or path
            saved.insert(0, step)
        elif wanted is not None and step == _step_of(wanted):
            hint = "resume from the run's folder: the newest checkpoint that is whole is taken"
            raise DiskError.of("LF-DISK-021", f"{wanted.name} cannot be used: {what}", where=str(path), hint=hint)
        else:
            say(f"{path.name} cannot be used: {what}; put aside as {_aside(path, 'damaged').name}")
    return Found(found, tuple(saved))


def newest(folder: Path, wanted: Path | None) -> Found:
    """The checkpoint that `recover` of another process found."""
    steps = [path for step, path in _numbered(folder) if wanted is None or step == _step_of(wanted)]
    return Found(steps[0] if steps else None)


def restore_weights(trained: Trained, folder: Path) -> None:
    """Put the weights of a checkpoint back into the model it was made of."""
    model = trained.model
    if any(method.put_back(model, folder) for method in trained.methods):
        return
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        return
    assert isinstance(model, PreTrainedModel)  # of the same class: code that a model brings is not looked up again
    dtype = next(model.parameters()).dtype
    saved = type(model).from_pretrained(folder, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    model.load_state_dict(saved.state_dict())


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """`checkpoint-N` folders, the last step first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, "the host resolves what is resumed from"
    return int(match[1])


def _aside(path: Path, why: str) -> Path:
    """Rename a folder so that it is no checkpoint any more."""
    names = (path.with_name(f"{why}-{path.name}{f'-{number}' if number else ''}") for number in count())
    target = next(name for name in names if not name.exists())
    return path.rename(target)
