"""A plan → a finished run: prepare the data, open the run directory, train, close."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from llamafarm.api.values import Event, TrainingResult
from llamafarm.core.explain import redact, resolved_yaml, secrets
from llamafarm.core.load import Loaded
from llamafarm.core.manifest import manifest, now
from llamafarm.core.output import OWN, check_output_dir
from llamafarm.core.plan import Planned
from llamafarm.core.registry import Registry
from llamafarm.data.prepare import prepare
from llamafarm.errors import DiskError, ExitCode, LlamaFarmError
from llamafarm.files import write_atomically

Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    run_id: str
    output_dir: Path
    result: TrainingResult


def train(loaded: Loaded, planned: Planned, registry: Registry, listener: Listener) -> Outcome:
    """Carry out a plan.

    A run that fails before its first training step leaves nothing behind, and what it was to overwrite is put back.

    Raises:
        LlamaFarmError: For everything a user can mend.
    """
    run = Run(loaded, planned, listener)
    for notice in loaded.notices:
        run.emit("notice", message=notice)
    run.emit("phase", name="loading data")
    config = loaded.tuner_config
    curriculum = config.training.curriculum
    data = prepare(
        config.dataset,
        planned.splitter,
        notice=lambda message: run.emit("notice", message=message),
        difficulty=curriculum.column if curriculum else None,
    )
    with run.opened(manifest(run.run_id, loaded, planned, data, registry)):
        registry.run_started(run)
        try:
            result = planned.tuner.fit(planned.plan, data, run)
        except BaseException as error:
            registry.run_failed(run, error)
            raise
        run.emit("result", **dict(result.metrics))
        registry.run_finished(run, result)
        run.close(result)
    return Outcome(run.run_id, planned.plan.output_dir, result)


class Run:
    """The run's directory and its events; what fine-tuners know as `RunContext`."""

    def __init__(self, loaded: Loaded, planned: Planned, listener: Listener) -> None:
        self.loaded, self.listener = loaded, listener
        self.output_dir = planned.plan.output_dir
        self.seed = loaded.tuner_config.training.seed
        self.run_id = f"{loaded.strategy.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        self.secrets = secrets(loaded)
        self.started = False
        self.stop_requested = False
        self._phase = ""
        self._waiting: list[str] = []
        self._events: IO[str] | None = None
        self._manifest: dict[str, Any] = {}

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the event's own word
        """Record an event and tell the listener."""
        self.started = self.started or type in ("log", "checkpoint")
        self._phase = fields["name"] if type == "phase" else self._phase
        if type == "ledger":
            self._manifest |= {name: dict(fields[name]) for name in ("rows", "tokens", "mask_audit") if name in fields}
            self._save_manifest()
        line = redact(json.dumps({"ts": now(), "type": type, **fields}, default=str), self.secrets)
        if self._events is None:
            self._waiting.append(line)
        else:
            self._events.write(f"{line}\n")
            self._events.flush()
        self.listener(Event(type, fields))

    @property
    def own(self) -> Path:
        """The folder for what is only ours."""
        return self.output_dir / OWN

    @contextmanager
    def opened(self, facts: dict[str, Any]) -> Iterator[None]:
        """Open the directory; on failure record it, or undo everything if training had not begun."""
        self._manifest = facts
        overwrite = self.loaded.tuner_config.overwrite_output_dir
        with _Place(self.output_dir, overwrite) as place, self._log(), self._interruptible():
            try:
                self._write_start()
                yield
            except BaseException as error:
                self._fail(error)
                place.keep = self.started
                raise
            finally:
                if self._events is not None:
                    self._events.close()
            place.keep = True

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """While a model trains, the first Ctrl-C asks for a stop after the step; elsewhere, and the second, stops now.

        An exception raised at an arbitrary instant may land in a callback of a library, which drops it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self._phase == "training" and not self.stop_requested:
                self.stop_requested = True
            else:
                signal.default_int_handler(number, frame)

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _write_start(self) -> None:
        source = self.loaded.source
        text = source.path.read_text(encoding="utf-8-sig") if source else "# built from command-line flags\n"
        write_atomically(self.own / "strategy.yaml", redact(text, self.secrets))
        write_atomically(self.own / "resolved.yaml", redact(resolved_yaml(self.loaded), self.secrets))
        self._save_manifest()
        self._events = (self.own / "events.jsonl").open("a", encoding="utf-8", newline="\n")
        for line in self._waiting:
            self._events.write(f"{line}\n")
        self._waiting.clear()

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Library output goes to run.log; the terminal shows events only."""
        handler = logging.FileHandler(self.own / "run.log", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handler.addFilter(_Redacting(self.secrets))
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(min(level, logging.INFO) if level else logging.INFO)
        logging.captureWarnings(capture=True)
        try:
            yield
        finally:
            logging.captureWarnings(capture=False)
            root.removeHandler(handler)
            root.setLevel(level)
            handler.close()

    def _save_manifest(self) -> None:
        text = json.dumps(self._manifest, indent=2, default=str)
        write_atomically(self.own / "manifest.json", redact(text, self.secrets) + "\n")

    def close(self, result: TrainingResult) -> None:
        """Mark the run completed."""
        self._manifest |= {
            "status": "completed",
            "exit_code": int(ExitCode.OK),
            "finished": now(),
            "metrics": dict(result.metrics),
            "trainable_parameters": result.trainable_parameters,
            "total_parameters": result.total_parameters,
            "best_step": result.best_step,
        }
        self._save_manifest()

    def _fail(self, error: BaseException) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        code = error.exit_code if isinstance(error, LlamaFarmError) else ExitCode.UNEXPECTED
        self._manifest |= {
            "status": "interrupted" if interrupted else "failed",
            "exit_code": int(ExitCode.INTERRUPTED if interrupted else code),
            "finished": now(),
            "error": redact(f"{type(error).__name__}: {error}", self.secrets),
        }
        if self.own.is_dir():
            self._save_manifest()


class _Place:
    """Makes the output folder; unless `keep` is set in the end, takes it away and puts back what was there before."""

    def __init__(self, folder: Path, overwrite: bool) -> None:
        self.folder, self.overwrite, self.keep = folder, overwrite, False
        self.before = folder.with_name(f".{folder.name}.before")
        self.made: list[Path] = []

    def __enter__(self) -> Self:
        check_output_dir(self.folder, overwrite=self.overwrite)
        try:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                self.folder.replace(self.before)
            self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            (self.folder / OWN).mkdir(parents=True)
        except OSError as error:
            raise DiskError.of(
                "LF-DISK-001", f"cannot make the output folder: {error.strerror}", where=str(self.folder)
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self.keep:
            if self.before.exists():
                shutil.rmtree(self.before)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self.made[1:]:
            parent.rmdir()
        if self.before.exists():
            self.before.replace(self.folder)


class _Redacting(logging.Filter):
    """Takes secrets out of log records."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        super().__init__()
        self.hidden = hidden

    def filter(self, record: logging.LogRecord) -> bool:
        if self.hidden:
            record.msg, record.args = redact(record.getMessage(), self.hidden), ()
        return True
