"""Trains in one way of the fine-tuner `pytorch`: `ours.py WAY FOLDER METHOD`."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from inputs import ACCUMULATION, BATCH, LEARNING_RATE, read_rows
from measured import Clock, say

from llamafarm.models.lean import lean_imports

with lean_imports():  # as `llamafarm train` does
    import torch
    from accelerate import Accelerator
    from adapters import adapted

    from llamafarm.api import TrainingConfig
    from llamafarm.data.fit import TokenizedRow
    from llamafarm.models._load import quiet
    from llamafarm.testing.run_context import RecordingRun
    from llamafarm_tuners.pytorch import _fit  # noqa: F401  # all that `llamafarm train` imports
    from llamafarm_tuners.pytorch._methods import Methods
    from llamafarm_tuners.pytorch._step import Stepper
    from llamafarm_tuners.pytorch._store import Trained
    from llamafarm_tuners.pytorch._work import Work
    from llamafarm_tuners.pytorch.fast._install import Wanted, fast_paths
    from llamafarm_tuners.pytorch.schedule import plan_sizes

WAYS = {
    "plain": (),
    "documents": ("documents",),
    "head": ("head",),
    "products": ("products",),
    "documents+head": ("documents", "head"),
    "adapters": ("adapters", "compiled"),
    "generic": ("documents", "head", "products", "adapters", "compiled"),
    "fused": ("documents", "head", "products", "layers", "adapters", "compiled"),
    "uncompiled": ("documents", "head", "products", "layers", "adapters"),
}


class _Tokenizer:
    pad_token_id = 0


def main() -> None:
    """Train once over the rows, in their order."""
    quiet()
    (name, half, _), folder = sys.argv[1].partition("_bf16"), Path(sys.argv[2])
    rows = [TokenizedRow(row.ids, [-100] * row.prompt + row.ids[row.prompt :]) for row in read_rows(folder)]
    dtype = torch.bfloat16 if half else torch.float32
    model: Any = adapted(folder, sys.argv[3], dtype)
    training = TrainingConfig(
        batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        num_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
    )
    accelerator = Accelerator(cpu=True)
    wanted = Wanted(**{way: way in WAYS[name] for way in Wanted.__slots__})
    with tempfile.TemporaryDirectory() as out, ExitStack() as stack:
        run = RecordingRun(Path(out))
        paths = stack.enter_context(fast_paths(model, rows, accelerator.device, run, wanted))
        trained: Any = Trained(model, _Tokenizer(), "", "")  # type: ignore[arg-type]
        stepper = Stepper(
            Work(trained, rows, [], training, accelerator, Path(out), Methods(model, (), run), paths=paths),
            plan_sizes(len(rows), training, 1),
            run.emit,
        )
        clock, losses = Clock(), []
        for step, start in enumerate(range(0, len(rows), BATCH * ACCUMULATION)):
            mine = range(start, min(start + BATCH * ACCUMULATION, len(rows)))
            clock.start()
            tally, _, _ = stepper.take(step, [mine[at : at + BATCH] for at in range(0, len(mine), BATCH)])
            clock.stop()
            losses.append(tally.mean_loss)
    say(clock, losses)


if __name__ == "__main__":
    main()
