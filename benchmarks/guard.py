"""What the guard costs: the same steps with it and without it, in turns, in one process.

    python benchmarks/guard.py [STEPS]

Prints the CPU seconds of a step, those that the guard's judgement and the record of the generators take within it, and
the ratio. The losses of both are compared: they are the same to the last bit.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main(steps: int) -> None:
    """Train `steps` steps on a small model and print a table."""
    import torch
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForCausalLM

    from llamafarm.api import TrainingConfig
    from llamafarm.data.tokens import TokenizedRow
    from llamafarm.testing.run_context import RecordingRun
    from llamafarm_tuners.pytorch._memory import Attempt
    from llamafarm_tuners.pytorch._step import Stepper, Work
    from llamafarm_tuners.pytorch._store import Trained
    from llamafarm_tuners.pytorch.guard import Guard
    from llamafarm_tuners.pytorch.schedule import plan_sizes

    class Tokenizer:
        pad_token_id = 0

    spent = {"seconds": 0.0}

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent["seconds"] += time.process_time() - began

        return call

    Guard.check = timed(Guard.check)  # type: ignore[method-assign]
    Attempt.__init__ = timed(Attempt.__init__)  # type: ignore[method-assign]
    Attempt.update = timed(Attempt.update)  # type: ignore[method-assign]
    rows = [TokenizedRow(list(range(64)), list(range(64))) for _ in range(8)]
    steppers, totals, losses = {}, {}, {}
    with TemporaryDirectory() as folder:
        for policy in ("off", "stop"):
            torch.manual_seed(0)
            shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, **shape))
            training = TrainingConfig.model_validate({"batch_size": 8, "max_steps": steps, "guard": {"policy": policy}})
            trained: Any = Trained(model, Tokenizer(), "", "")  # type: ignore[arg-type]
            work = Work(trained, rows, [], training, Accelerator(cpu=True), Path(folder))
            steppers[policy] = Stepper(work, plan_sizes(len(rows), training), RecordingRun(Path(folder)).emit)
            totals[policy], losses[policy] = 0.0, []
        inside = 0.0
        for step in range(1, steps + 1):
            for policy, stepper in steppers.items():
                spent["seconds"], began = 0.0, time.process_time()
                tally, _, _ = stepper.take(step, [list(range(8))])
                totals[policy] += time.process_time() - began
                losses[policy].append(tally.loss)
                inside += spent["seconds"] if policy == "stop" else 0.0
    assert losses["off"] == losses["stop"]
    print("| CPU seconds a step, guard off | on | of them its own | share |")
    print("|---|---|---|---|")
    off, on, own = totals["off"] / steps, totals["stop"] / steps, inside / steps
    print(f"| {off:.5f} | {on:.5f} | {own:.6f} | {100 * own / on:.2f} % |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
