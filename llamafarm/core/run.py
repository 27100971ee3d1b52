"""A plan → a finished run: prepare the data, open the run directory, train, close."""

from __future__ import annotations

import json
import logging
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from llamafarm.api import NO_EFFECT, Event, RunPlan, TrainingResult
from llamafarm.core.blame import blamed
from llamafarm.core.canonical import TUNER
from llamafarm.core.contract import settings
from llamafarm.core.estimate import Estimate, compare, quietly
from llamafarm.core.explain import redact, resolved_yaml, secrets
from llamafarm.core.layers import dotted
from llamafarm.core.load import Loaded
from llamafarm.core.lock import this_process
from llamafarm.core.manifest import manifest, now
from llamafarm.core.output import strangers
from llamafarm.core.place import NewPlace, OldPlace
from llamafarm.core.plan import Planned
from llamafarm.core.record import OWN, manifest_of
from llamafarm.core.registry import Registry
from llamafarm.core.signals import Wishes
from llamafarm.data.prepare import prepare
from llamafarm.errors import DiskError, ExitCode, LlamaFarmError, Stopped, began_as_interrupt
from llamafarm.files import sync_folder, write_atomically
from llamafarm.versions import versions

Listener = Callable[[Event], None]

_LOG: Final = logging.getLogger(__name__)
_TO_REMEMBER: Final = ("recovery", "micro_batch")
_LEDGER: Final = ("rows", "tokens", "mask_audit", "token_loss")
"""Events that a run's result depends on: they are listed in its manifest too, each with its `step`."""

_TO_KNOW: Final = ("paths", "precision", "offload")
"""Events that say how a run computes: the last of each is in its manifest."""

TRIGGER: Final = "checkpoint-now"
"""A file of this name beside the manifest asks for a checkpoint, as SIGUSR1 does."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    run_id: str
    output_dir: Path
    result: TrainingResult
    estimate: Estimate | None = None


def train(loaded: Loaded, planned: Planned, registry: Registry, listener: Listener) -> Outcome:
    """Carry out a plan, from the start or from where an interrupted run was.

    A run that fails before its first training step leaves nothing behind, and what it was to overwrite is put back.

    Raises:
        LlamaFarmError: For everything a user can mend.
        Stopped: If somebody asked for it.
    """
    run = Run(loaded, planned, listener)
    with run.stoppable():
        for notice in (*loaded.notices, *not_as_asked(loaded, planned.plan)):
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
        expected = quietly(config, planned)
        if expected is not None and not expected.may_fit:
            run.emit("warning", message=_too_large(expected))
        facts = {"estimate": expected.as_json()} if expected is not None else {}
        with run.opened(manifest(run.run_id, loaded, planned, data, registry) | facts):
            registry.run_started(run)
            try:
                result = planned.tuner.fit(planned.plan, data, run)
            except BaseException as error:
                registry.run_failed(run, error)
                raise
            run.emit("result", **dict(result.metrics))
            registry.run_finished(run, result)
            run.close(result)
        if expected is not None and planned.plan.resume is None:
            compare(expected, result.metrics)
    return Outcome(run.run_id, planned.plan.output_dir, result, expected)


def not_as_asked(loaded: Loaded, plan: RunPlan) -> Iterator[str]:
    """What is otherwise than written, or changes nothing: a word for each.

    Whether the user wrote it, or a preset or device block that asks for what this machine has not.
    """
    origins = {dotted(path[len(TUNER) :]): origin for path, origin in loaded.origins.items() if path[:2] == TUNER[:2]}
    for decision in plan.decisions:
        path = decision.subject
        if plan.resume is not None and not any(change.startswith(f"{path} ") for change in plan.resume.changes):
            continue  # said when the run began
        origin = origins.get(path)
        wished = origin is not None and (origin.preset or origin.kind == "device")
        restated = origin is not None and decision.reason == f"from {origin.place}"  # the value as it was written
        written = any(key == path or key.startswith(f"{path}.") for key in plan.given)
        if written or decision.value == NO_EFFECT or (wished and not restated):
            yield f"{path}: {decision.value}: {decision.reason}"


def _too_large(expected: Estimate) -> str:
    needed, there = expected.needed / 2**30, expected.available / 2**30
    return (
        f"by estimate this needs {needed:.1f} GiB of memory, and {expected.device.name} has {there:.1f} GiB for it; "
        "`llamafarm estimate` with the same arguments says what would fit"
    )


class Run:
    """The run's directory and its events; what fine-tuners know as `RunContext`."""

    def __init__(self, loaded: Loaded, planned: Planned, listener: Listener) -> None:
        self.loaded, self.listener = loaded, listener
        self.output_dir = planned.plan.output_dir
        self.resume = planned.plan.resume
        self.seed = loaded.tuner_config.training.seed
        self._before = (manifest_of(self.output_dir) or {}) if self.resume else {}
        name = f"{loaded.strategy.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        self.run_id = str(self._before.get("run_id", name))
        self.secrets = secrets(loaded)
        source = loaded.source  # it may be in the folder that this run is to replace
        self._strategy = source.path.read_text(encoding="utf-8-sig") if source else "# built from command-line flags\n"
        self._beside = frozenset(path.name for path in strangers(self.output_dir)) if self.resume else frozenset()
        self.started = False
        self.wishes = Wishes(lambda: self._phase)
        self._phase = ""
        self._waiting: list[str] = []
        self._events: IO[str] | None = None
        self._recording = False
        self._manifest: dict[str, Any] = {}
        self._failing = False

    @property
    def stop_requested(self) -> bool:
        """Somebody asked to stop."""
        return self.wishes.stop is not None

    def take_checkpoint_request(self) -> bool:
        """Whether SIGUSR1 or the trigger file asked for a checkpoint since this was called last."""
        asked, self.wishes.checkpoint = self.wishes.checkpoint, False
        trigger = self.own / TRIGGER
        if trigger.exists():
            with suppress(OSError):
                trigger.unlink()
                asked = True
        return asked

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the event's own word
        """Record an event and tell the listener."""
        self.started = self.started or type in ("log", "checkpoint", "broken")
        self._phase = fields["name"] if type == "phase" else self._phase
        if type == "ledger":
            self._manifest |= {name: dict(fields[name]) for name in _LEDGER if name in fields}
            self._surviving(self._save_manifest)
        elif type in _TO_REMEMBER:
            self._manifest[type] = [*self._manifest.get(type, ()), dict(fields)]
            self._surviving(self._save_manifest)
        elif type in _TO_KNOW:
            self._manifest[type] = dict(fields)
            self._surviving(self._save_manifest)
        elif type == "resumed":
            self._surviving(lambda: self._go_on(fields))
        self._waiting.append(redact(json.dumps({"ts": now(), "type": type, **fields}, default=str), self.secrets))
        self._surviving(self._record)
        self.listener(Event(type, fields))

    @property
    def own(self) -> Path:
        """The folder for what is only ours."""
        return self.output_dir / OWN

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Hear signals; what they stop ends as `Stopped`, with the words that tell how it goes on."""
        with self.wishes.heard():
            try:
                yield
            except BaseException as error:
                if not self._was_stopped(error):
                    raise
                code, reason = self.wishes.ending(error)
                raise Stopped(code, self._farewell(reason)) from error

    @contextmanager
    def opened(self, facts: dict[str, Any]) -> Iterator[None]:
        """Open the directory; on failure record it, or undo everything if training had not begun."""
        self._manifest = self._reopened(facts) if self.resume else facts | this_process()
        overwrite = self.loaded.tuner_config.overwrite_output_dir
        place = (
            OldPlace(self.output_dir, self.run_id)
            if self.resume
            else NewPlace(self.output_dir, self.run_id, overwrite=overwrite)
        )
        with place, self._log():
            try:
                self._begin()
                yield
            except BaseException as error:
                self._fail(error)
                place.keep = place.keep or self.started
                raise
            finally:
                if self._events is not None:
                    with suppress(OSError):
                        self._events.close()
                    self._events = None
                self._recording = False
            place.keep = True

    def _reopened(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The manifest of the run, which goes on."""
        kept = {
            key: value for key, value in self._before.items() if key not in ("exit_code", "finished", "error", "files")
        }
        assert self.resume is not None
        changes = list(self.resume.changes)
        entry = {"at": now(), "changes": changes, "versions": versions(), "device": facts["device"]}
        again = [*self._before.get("resumed", ()), entry]
        return facts | kept | {"status": "running", "resumed": again} | this_process()

    def _begin(self) -> None:
        """Write what a run is, before it is anything.

        Raises:
            DiskError: If the disk does not take it.
        """
        try:
            self._write_start()
        except OSError as error:
            message = f"cannot write into the run's folder: {error.strerror or error}"
            hint = "free space, or choose another output_dir; what was written before is intact"
            raise DiskError.of("LF-DISK-022", message, where=str(self.output_dir), hint=hint) from None

    def _write_start(self) -> None:
        if self.resume is None:
            write_atomically(self.own / "strategy.yaml", redact(self._strategy, self.secrets))
        if self.resume is None or self.resume.changes:
            write_atomically(self.own / "resolved.yaml", redact(resolved_yaml(self.loaded), self.secrets))
            text = json.dumps(settings(self.loaded), indent=2, default=str)
            write_atomically(self.own / "config.json", redact(text, self.secrets) + "\n")
        self._save_manifest()
        for folder in (self.output_dir, self.output_dir.parent):  # a run that lost power is found again
            sync_folder(folder)
        self._recording = True
        self._record()

    def _record(self) -> None:
        """Append what waits to events.jsonl."""
        if not self._recording:
            return
        if self._events is None:
            self._events = (self.own / "events.jsonl").open("a", encoding="utf-8", newline="\n")
        waiting, self._waiting = self._waiting, []
        self._events.writelines(f"{line}\n" for line in waiting)
        self._events.flush()

    def _go_on(self, fields: Mapping[str, Any]) -> None:
        """Drop the events of steps that are taken again, and lines that were cut off."""
        self._manifest["resumed"][-1] |= {"step": fields["step"], "exact": fields["exact"]}
        for kind in _TO_REMEMBER:  # what is done again is told again
            if kind in self._manifest:
                self._manifest[kind] = [entry for entry in self._manifest[kind] if entry["step"] <= fields["step"]]
        self._save_manifest()
        if not self._recording:
            return
        events, self._events = self._events, None  # opened with the next event, whatever the disk says to this
        if events is not None:
            events.close()
        path = self.own / "events.jsonl"
        kept = [line for line in path.read_bytes().split(b"\n") if _at_most(line, fields["step"])]
        write_atomically(path, "".join(f"{line.decode()}\n" for line in kept))

    def _surviving(self, write: Callable[[], None]) -> None:
        """Write what the training does not depend on; a disk that does not take it is worth a warning, once."""
        try:
            write()
        except OSError as error:
            if not self._failing:
                self._failing = True
                message = f"the run's record cannot be written: {error.strerror or error}; the run goes on"
                self.listener(Event("warning", {"message": message}))
        else:
            self._failing = False

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Library output goes to run.log; the terminal shows events only."""
        handler = _LogFile(self.own / "run.log", encoding="utf-8", delay=True)
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
        sync_folder(self.own)

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
            "files": self._files(),
        }
        self._save_manifest()

    def _files(self) -> list[str] | None:
        """What the run has written, by name: whatever else is in its folder later is somebody else's."""
        try:
            return sorted({path.name for path in self.output_dir.iterdir()} - self._beside)
        except OSError:
            return None

    def _was_stopped(self, error: BaseException) -> bool:
        """Whether an error is, or came of, somebody's wish to stop."""
        return self.wishes.thrown or (began_as_interrupt(error) and not isinstance(error, LlamaFarmError))

    def _fail(self, error: BaseException) -> None:
        interrupted = self._was_stopped(error)
        code = error.exit_code if isinstance(error, LlamaFarmError) else _unexpected(error)
        if not (interrupted or isinstance(error, LlamaFarmError)):
            _LOG.error("%s", "".join(traceback.format_exception(error)).rstrip())
        what = f"{type(error).__name__}: {error}"
        if interrupted:
            code, what = self.wishes.ending(error)
        self._manifest |= {
            "status": "interrupted" if interrupted else "failed",
            "exit_code": int(code),
            "finished": now(),
            "error": redact(what, self.secrets),
            "files": self._files(),
        }
        if self.own.is_dir():
            with suppress(OSError):
                self._save_manifest()

    def _farewell(self, reason: str) -> str:
        """What is left of a run that was stopped, and how it goes on."""
        if not (self.started or self.resume):
            return f"{reason} before the first step: nothing was written"
        command = f"llamafarm train --resume {shlex.quote(str(self.output_dir))}"
        return f"{reason}; what was trained is kept\ngo on with: {command}"


def _unexpected(error: BaseException) -> ExitCode:
    """The exit code of an error that nobody foresaw."""
    plugins = blamed(error)
    return ExitCode.UNEXPECTED if plugins is None else plugins.exit_code


def _at_most(line: bytes, step: int) -> bool:
    """Whether a line of events.jsonl is whole, and of no later step."""
    try:
        event = json.loads(line.decode())
    except ValueError:  # no UTF-8 too
        return False
    return isinstance(event, dict) and not (isinstance(event.get("step"), int) and event["step"] > step)


class _LogFile(logging.FileHandler):
    """Library output; what the disk does not take is dropped, for the terminal is no place for it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
        """Drop it."""

    def close(self) -> None:
        """Close the file, full disk or not."""
        with suppress(OSError):
            super().close()


class _Redacting(logging.Filter):
    """Takes secrets out of log records."""

    def __init__(self, hidden: tuple[str, ...]) -> None:
        super().__init__()
        self.hidden = hidden

    def filter(self, record: logging.LogRecord) -> bool:
        if self.hidden:
            record.msg, record.args = redact(record.getMessage(), self.hidden), ()
        return True
