"""Run by the interpreter of LLaMA-Factory's environment: trains, and tells the process that started it how it goes.

Usage: python _launch.py ARGUMENTS.json EVENTS.jsonl

Standard input is the line to the parent: `stop` on it ends training after the step with a checkpoint, `save` writes a
checkpoint; its end means that the parent is gone, and then this process and all it has started end too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

_stop, _save = threading.Event(), threading.Event()


def listen() -> None:
    """Wait for a word of the parent's, or its end."""
    while said := os.read(0, 64):  # not through sys.stdin: its lock would be held when the interpreter ends
        if b"stop" in said:
            _stop.set()
        if b"save" in said:
            _save.set()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def say(path: Path, type_: str, **values: Any) -> None:
    """Append a line that the parent reads."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"type": type_, **values}, default=float) + "\n")


def reporter(events: Path) -> Any:
    """The trainer's callback that reports to the parent and obeys it."""
    base: Any = import_module("transformers").TrainerCallback

    class Reporter(base):  # type: ignore[misc]  # its base is that of the environment this runs in
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            sizes = [(one.requires_grad, _size(one)) for one in model.parameters()]
            trainable = sum(size for trained, size in sizes if trained)
            say(events, "model", trainable=trainable, total=sum(size for _, size in sizes), steps=state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logs = {key: value for key, value in (logs or {}).items() if key != "step"}  # of ppo's, begins at 0
            plain = {key: value for key, value in logs.items() if isinstance(value, int | float)}
            say(events, "log", step=state.global_step, steps=state.max_steps, **plain)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            described = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "trainer_state.json"
            if not described.exists():  # ppo leaves it out; it tells a whole checkpoint from one that was cut off
                state.save_to_json(str(described))
            say(events, "checkpoint", step=state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if _stop.is_set():
                control.should_save = control.should_training_stop = True
            elif _save.is_set():
                _save.clear()
                control.should_save = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stopped = _stop.is_set() and state.global_step < state.max_steps
            say(events, "end", step=state.global_step, steps=state.max_steps, stopped=stopped)

    return Reporter()


def _size(parameter: Any) -> int:
    """Elements; those of a packed 4-bit weight count as what they stand for."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else int(parameter.numel())


def take_tokens(folder: Path, target: Path) -> None:
    """Bring rows that are tokenized already into the form that LLaMA-Factory loads."""
    datasets = import_module("datasets")
    sides = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            sides[path.stem] = datasets.Dataset.from_list([json.loads(line) for line in file])
    datasets.DatasetDict(sides).save_to_disk(str(target))


def main() -> None:
    """Train with the arguments of a file."""
    arguments = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    events = Path(sys.argv[2])
    threading.Thread(target=listen, daemon=True).start()
    tokens = Path(sys.argv[1]).with_name("tokens")
    if tokens.is_dir():
        take_tokens(tokens, Path(arguments["tokenized_path"]))
    run_exp = import_module("llamafactory.train.tuner").run_exp
    try:
        run_exp(args=arguments, callbacks=[reporter(events)])
    except BaseException as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        say(events, "error", kind=kind, message=str(error)[:4000])
        raise


if __name__ == "__main__":
    main()
