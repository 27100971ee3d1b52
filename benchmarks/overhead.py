"""What the guard and the checkpoint store cost while nothing is wrong and nothing is written.

    python benchmarks/overhead.py [STEPS]

Trains one model in three ways, step by step in turn, in one process: `bare` (no guard, nobody asks for checkpoints),
`stop` (the default guard, and after each step the question whether a checkpoint is due or asked for) and `recover` (the
same, with a state to go back to in memory). Prints CPU seconds and seconds of a step, what of them is spent in the
guard's and the store's own functions, and the ratio to `bare`. The losses are compared: they are equal to the last bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).with_name("training")))

from inputs import BATCH, LEARNING_RATE, RANK, write_inputs

WAYS = {"bare": "off", "stop": "stop", "recover": "recover"}
Pair = tuple[float, float]


def now() -> Pair:
    """CPU seconds of this process, and the clock."""
    return time.process_time(), time.perf_counter()


def since(before: Pair, after: Pair) -> Pair:
    """What passed between two readings."""
    return after[0] - before[0], after[1] - before[1]


def mean(pairs: Sequence[Pair]) -> Pair:
    """Of each part."""
    return fmean(cpu for cpu, _ in pairs), fmean(clock for _, clock in pairs)


class Spent:
    """Seconds within functions that are watched; those that they call among themselves count once."""

    def __init__(self) -> None:
        self.seconds: Pair = (0.0, 0.0)
        self._inside = False

    def watch(self, owner: Any, name: str) -> None:
        """Watch a method of a class."""
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return function(*arguments, **options)
            began, self._inside = now(), True
            try:
                return function(*arguments, **options)
            finally:
                self._inside = False
                cpu, clock = since(began, now())
                self.seconds = self.seconds[0] + cpu, self.seconds[1] + clock

        setattr(owner, name, watched)


def trainings(folder: Path, stack: ExitStack, steps: int) -> Iterator[tuple[str, Any]]:
    """A training of each way: its own copy of the model, the same rows."""
    import peft
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM

    from llamafarm.api import TrainingConfig
    from llamafarm.data.fit import TokenizedRow
    from llamafarm.models._load import quiet
    from llamafarm.testing.run_context import RecordingRun
    from llamafarm_tuners.pytorch._methods import Methods
    from llamafarm_tuners.pytorch._store import Trained
    from llamafarm_tuners.pytorch._train import Continuation, _Training
    from llamafarm_tuners.pytorch._work import Work
    from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths

    class Tokenizer:
        pad_token_id = 0

    class Run(RecordingRun):
        def take_checkpoint_request(self) -> bool:  # as a real run: a look for the trigger file
            return (self.output_dir / "llamafarm" / "checkpoint-now").exists()

    quiet()
    rows = write_inputs(folder, "s", BATCH * steps)
    tokens = [TokenizedRow(row.ids, [-100] * row.prompt + row.ids[row.prompt :]) for row in rows]
    accelerator = Accelerator(cpu=True)
    for way, policy in WAYS.items():
        base: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        torch.manual_seed(1)
        options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        model: Any = peft.get_peft_model(base, peft.LoraConfig(**options))
        settings = {
            "batch_size": BATCH,
            "gradient_accumulation_steps": 1,
            "max_steps": steps + 1,  # the last step writes a checkpoint
            "learning_rate": LEARNING_RATE,
            "save_strategy": "steps",
            "save_steps": 10 * steps,
            "logging_steps": 10 * steps,
            "report_to": ["none"],
            "guard": {"policy": policy},
        }
        training = TrainingConfig.model_validate(settings)
        out = folder / way
        out.mkdir()
        run: Any = Run(out)
        paths = stack.enter_context(fast_paths(model, tokens, accelerator.device, run, Wanted()))
        trained: Any = Trained(model, Tokenizer(), "", "")  # type: ignore[arg-type]
        work = Work(trained, tokens, [], training, accelerator, out, Methods(model, (), run), paths=paths)
        made = _Training(work, run, Continuation())
        made.start()
        yield way, made


def watched() -> Spent:
    """The guard's and the store's own functions, watched."""
    from llamafarm_tuners.pytorch._memory import Attempt
    from llamafarm_tuners.pytorch._train import _Training
    from llamafarm_tuners.pytorch.guard import Guard

    spent = Spent()
    for owner, name in ((Guard, "check"), (Guard, "read"), (Attempt, "__init__"), (Attempt, "update")):
        spent.watch(owner, name)
    spent.watch(_Training, "keep")
    return spent


def main(steps: int) -> None:
    """Train `steps` steps in each way and print a table."""
    spent = watched()
    taken: dict[str, list[Pair]] = {way: [] for way in WAYS}
    own: dict[str, list[Pair]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        courses = dict(trainings(Path(folder), stack, steps))
        for step in range(1, steps + 1):
            rows = [list(range((step - 1) * BATCH, step * BATCH))]
            ways = list(courses) if step % 2 else list(reversed(courses))
            for way in ways:
                course, before, began = courses[way], spent.seconds, now()
                course.take(step, rows)
                if way != "bare":
                    course.keep(step)
                taken[way].append(since(began, now()))
                own[way].append(since(before, spent.seconds))
                losses[way].append(course.report.total.loss)
    assert losses["bare"] == losses["stop"] == losses["recover"]
    print("| way | CPU seconds a step | seconds | its own: CPU seconds | seconds | share, CPU | clock | to bare, CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        (cpu, clock), (own_cpu, own_clock) = mean(taken[way][1:]), mean(own[way][1:])  # the first step warms up
        ratio = median(this[0] / that[0] for this, that in zip(taken[way][1:], taken["bare"][1:], strict=True))
        shares = f"{100 * own_cpu / cpu:.2f} % | {100 * own_clock / clock:.2f} %"
        print(f"| {way} | {cpu:.4f} | {clock:.4f} | {own_cpu:.5f} | {own_clock:.5f} | {shares} | {ratio:.4f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
