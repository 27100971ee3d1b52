"""A small training as a child process in which the n-th change of the file system goes wrong, and what is left of it.

The parent imports everything and trains once, so that a child that is forked off it costs only its own training.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; a child can only be forked off a single thread
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from llamafarm.cli.guard import run as command
from llamafarm.testing._tiny import build_model
from llamafarm.testing.rows import make_fields

COUNT: Final = 0
KILL: Final = 1
FAIL_ONCE: Final = 2
FAIL_FROM: Final = 3
RUN: Final = "run"
TIMES: Final = ("throughput", "elapsed_time", "remaining_time", "peak_memory")
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FINISHED: Final = "LF-RUN-013"
KINDS: Final = ("lora", "full")


def compiled(folder: Path) -> Path:
    """The shim, compiled.

    Raises:
        OSError: If there is no compiler, or it is not for this machine.
    """
    target = folder / "events.so"
    source = Path(__file__).with_name("events.c")
    built = subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "-o", str(target), str(source)], capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise OSError(built.stderr)
    return target


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `mode` at event `number`, with `error` where a call fails."""

    mode: int = COUNT
    number: int = 0
    error: int = 0


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative: the signal), what it said, how many events there were."""

    code: int
    said: str
    events: int


@dataclass(frozen=True)
class Left:
    """What a run left that must not depend on what happened to it."""

    weights: str
    best: str
    log: str
    status: str


class Laboratory:
    """Runs the reference training, with faults."""

    def __init__(self, folder: Path, kind: str, rows: Path) -> None:
        self.folder, self.run, self._rows = folder, folder / RUN, rows
        self._shim = ctypes.CDLL(str(compiled(folder)))
        self._shim.events_count.restype = ctypes.c_long
        self._argv = self._prepared(kind)
        os.environ["LLAMAFARM_HOME"] = str(folder / "home")
        os.chdir(folder)
        straight = self.ended(self.argv("first"))
        assert straight == 0, "the reference run does not train"
        gc.collect()
        gc.freeze()  # else the first collection in each child copies all that the parent knows
        self.clean()

    def _prepared(self, kind: str) -> list[str]:
        build_model("llama", self.folder / "model")
        for name, rows in (("rows", make_fields(24)), ("held", make_fields(30)[24:])):
            (self._rows / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "base_model": str(self.folder / "model"),
            "dataset": {"path": str(self._rows / "rows.jsonl"), "eval_path": str(self._rows / "held.jsonl")},
            "method": {"type": "lora", "r": 4, "dropout": 0.1} if kind == "lora" else "full",
            "training": {
                "max_steps": 4,
                "batch_size": 2,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 2,
                "save_total_limit": 1,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "load_best_model_at_end": True,
                "max_seq_length": 64,
                "resume_from_checkpoint": True,
                "report_to": ["none"],
            },
            "evaluation": {"exact_match": False},
        }
        strategy = {"name": kind, "fine_tuner": {"config": config}}
        (self.folder / "strategy.yaml").write_text(json.dumps(strategy))
        return ["train", "-s", "strategy.yaml", "--quiet"]

    def argv(self, run: str = RUN) -> list[str]:
        """The one command, given again and again."""
        return [*self._argv, "-o", str(self.folder / run)]

    def ended(self, argv: Sequence[str]) -> int:
        """Run it here, silently."""
        return self._silently(argv, self.folder / "said")

    def child(self, fault: Fault | None = None, *, log: Path | None = None, graves: str = "") -> Ended:
        """Run the command in a child."""
        started = self.start(fault or Fault(), log=log, graves=graves)
        _, status = os.waitpid(started, 0)
        code = os.waitstatus_to_exitcode(status)
        counted = self.folder / "count"
        events = int(counted.read_text()) if counted.exists() else 0
        return Ended(code, (self.folder / "said").read_text(errors="replace"), events)

    def start(self, fault: Fault, *, log: Path | None = None, graves: str = "") -> int:
        """Start the command in a child; its process id."""
        (self.folder / "count").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            try:
                code = self._watched(fault, log, graves)
            except KeyboardInterrupt:  # before the command listened
                code = 130
            except BaseException as error:  # noqa: BLE001  # a child must never return into the parent's work
                (self.folder / "said").write_text(f"Traceback: {error!r}")
                code = 70
            os._exit(code)
        return pid

    def _watched(self, fault: Fault, log: Path | None, graves: str) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if log else -1
        failed = self._shim.events_watch()
        assert not failed, os.strerror(failed)
        folder = str(self.run).encode()
        number = ctypes.c_long(fault.number)
        self._shim.events_arm(folder, fault.mode, number, fault.error, descriptor, graves.encode())
        code = self._silently(self.argv(), self.folder / "said")
        events = int(self._shim.events_count())
        self._shim.events_arm(b"", -1, ctypes.c_long(0), 0, -1, b"")
        (self.folder / "count").write_text(str(events))
        return code

    def _silently(self, argv: Sequence[str], path: Path) -> int:
        kept = [os.dup(1), os.dup(2)]
        with path.open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            try:
                return int(command(argv))
            finally:
                for number, descriptor in enumerate(kept, start=1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)

    def clean(self) -> None:
        """Nothing of a run."""
        for path in self.folder.glob(f"*{RUN}*"):
            shutil.rmtree(path)
        for path in self.folder.glob(f".{RUN}*"):
            shutil.rmtree(path)

    def left(self) -> Left:
        """What matters of what is there."""
        name = "adapter_model.safetensors"
        name = name if (self.run / name).is_file() else "model.safetensors"
        lines = [json.loads(line) for line in (self.run / "trainer_log.jsonl").read_text().splitlines()]
        lines = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        manifest = json.loads((self.run / "llamafarm" / "manifest.json").read_text())
        return Left(
            _digest(self.run / name),
            _digest(self.run / "checkpoint-best" / name),
            sha256(json.dumps(lines).encode()).hexdigest(),
            manifest["status"],
        )

    def leftovers(self) -> list[str]:
        """Names that no finished run leaves."""
        found = [*self.run.rglob(".*"), *self.folder.glob(f".{RUN}*"), *self.run.glob("damaged-*")]
        return sorted(str(path.relative_to(self.folder)) for path in found)

    def verdict(self, expected: Left, ended: Ended, *, leftovers: bool = True) -> str:
        """What is wrong with a run that was recovered; empty: nothing."""
        if ended.code != 0 and not (ended.code == 9 and FINISHED in ended.said):
            return f"exit {ended.code}: {ended.said.strip()[:400]}"
        if "Traceback" in ended.said:
            return "a traceback"
        try:
            found = self.left()
        except (OSError, ValueError) as error:
            return f"incomplete: {error}"
        wrong = [
            name for name in ("weights", "best", "log", "status") if getattr(found, name) != getattr(expected, name)
        ]
        if wrong:
            return f"other {', '.join(wrong)}"
        if leftovers and (names := self.leftovers()):
            return f"left over: {', '.join(names[:4])}"
        return ""


def laboratories(kinds: Sequence[str]) -> Iterator[tuple[str, Laboratory]]:
    """A laboratory for each kind of training, in folders that go away; no rows are read from below `/dev`."""
    for kind in kinds:
        prefix = f"llamafarm-{kind}-"
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=MEMORY) as folder,
            tempfile.TemporaryDirectory(prefix=prefix) as rows,
        ):
            yield kind, Laboratory(Path(folder), kind, Path(rows).resolve())


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


ERRORS: Final = {"full": errno.ENOSPC, "io": errno.EIO}
