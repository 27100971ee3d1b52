"""A run whose memory does not suffice goes on with fewer rows at a time, and learns the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamafarm.api import ResumePoint
from llamafarm.errors import HardwareError
from llamafarm.testing.run_context import RecordingRun
from llamafarm_tuners.pytorch import _answers, _evaluate, _step

pytestmark = pytest.mark.e2e

OPTIONS: dict[str, Any] = {"max_steps": 6, "batch_size": 8, "learning_rate": 2e-3}


def run_out(monkeypatch: pytest.MonkeyPatch, where: str, step: int, most: int) -> None:
    """Let the memory be out in a step, as long as more than `most` rows go through the model at a time."""
    now: dict[str, Any] = {"hit": False}
    take = _step.Stepper._take

    def taken(stepper: Any, number: int, rows: Any) -> Any:
        largest = max(len(part) for part in stepper.micro.parts(rows))
        now["hit"] = number == step and largest > most
        optimizer = stepper.optimizer.optimizer
        if where == "optimizer" and now["hit"]:

            def out(*_: Any, **__: Any) -> None:
                raise torch.OutOfMemoryError("out of memory")

            handle = optimizer.register_step_pre_hook(out)
            try:
                return take(stepper, number, rows)
            finally:
                handle.remove()
        return take(stepper, number, rows)

    monkeypatch.setattr(_step.Stepper, "_take", taken)
    losses = _step.token_losses

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory")

    def out_of_memory(*args: Any, **options: Any) -> Any:
        if where == "forward" and now["hit"]:
            torch.rand(1)  # what was drawn is to be drawn again
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        total, right = losses(*args, **options)
        return (Backward.apply(total) if where == "backward" and now["hit"] else total), right

    monkeypatch.setattr(_step, "token_losses", out_of_memory)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def apart(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((tensor - second[name]).abs().max()) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("method", "where", "step"),
    [("lora", where, step) for where in ("forward", "backward", "optimizer") for step in (1, 3)]
    + [("full", "optimizer", 1), ("full", "backward", 3)],
)
def test_the_end_is_that_of_a_run_with_fewer_rows_at_a_time(fit, monkeypatch, method, where, step):
    dropout = {"dropout": 0.1 if step == 1 else 0.0} if method == "lora" else {}
    small = fit(method, dropout, **(OPTIONS | {"batch_size": 2, "gradient_accumulation_steps": 4}))
    run_out(monkeypatch, where, step, most=2)
    done = fit(method, dropout, **OPTIONS)
    said = [(event["step"], event["was"], event["rows"]) for event in done.events("warning")]
    assert said == [(step, 8, 4), (step, 4, 2)]
    # from the first step on the sums are the same to the last bit; before the third step they were made in another
    # order, and AdamW turns a gradient's rounding (1e-7) into up to lr = 2e-3 where the gradient is close to 0
    assert apart(done.folder, small.folder) == 0.0 if step == 1 else apart(done.folder, small.folder) < 2e-5
    assert [event["step"] for event in done.events("log")] == [1, 2, 3, 4, 5, 6]


def test_with_no_dropout_and_a_plain_optimizer_only_rounding_is_left(fit, monkeypatch):
    still = {"options": {"dropout": 0.0}, "optim": "sgd"}
    small = fit(**(OPTIONS | {"batch_size": 2, "gradient_accumulation_steps": 4}), **still)
    run_out(monkeypatch, "backward", 3, most=2)
    done = fit(**OPTIONS, **still)
    assert apart(done.folder, small.folder) < 1e-7, "a few units in the last place of weights below 0.1"


def test_nothing_smaller_ends_with_fixes(fit, monkeypatch):
    run_out(monkeypatch, "forward", 2, most=0)
    with pytest.raises(HardwareError, match=r"out of memory.*batch_size: 1 with gradient_acc.*LF-HARDWARE-010"):
        fit(**OPTIONS)
    with pytest.raises(HardwareError, match="LF-HARDWARE-010"):
        fit(**OPTIONS, on_out_of_memory="stop")


def test_a_half_made_update_is_not_made_again(fit, monkeypatch):
    take = _step.Stepper._take

    def taken(stepper: Any, number: int, rows: Any) -> Any:
        def torn(*_: Any, **__: Any) -> None:
            with torch.no_grad():
                next(iter(stepper.optimizer.param_groups[0]["params"])).add_(1.0)
            raise torch.OutOfMemoryError("out of memory")

        handle = stepper.optimizer.optimizer.register_step_pre_hook(torn) if number == 2 else None
        try:
            return take(stepper, number, rows)
        finally:
            if handle:
                handle.remove()

    monkeypatch.setattr(_step.Stepper, "_take", taken)
    with pytest.raises(HardwareError, match="LF-HARDWARE-010"):
        fit(**OPTIONS)


def test_a_resumed_run_keeps_the_rows_at_a_time(fit, monkeypatch):
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 4}
    run_out(monkeypatch, "forward", 2, most=2)
    straight = fit(**options)

    class Stopping(RecordingRun):
        def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002
            super().emit(type, **fields)
            self.stop_requested = self.stop_requested or (type == "log" and fields["step"] >= 4)

    folder = fit.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(**options, folder=folder, run=Stopping)
    again = fit(**options, folder=folder, resume=ResumePoint())
    assert again.events("warning") == []
    assert apart(straight.folder, folder) == 0.0


def test_auto_finds_the_rows_that_fit_and_changes_nothing_else(fit, monkeypatch):
    options = OPTIONS | {"batch_size": 4, "gradient_accumulation_steps": 2}
    small = fit(**(options | {"batch_size": 2, "gradient_accumulation_steps": 4}), options={"dropout": 0.1})
    losses = _step.token_losses

    def limited(model: Any, batch: Any, **rest: Any) -> Any:
        if (len(batch.input_ids) if batch.bounds is None else len(batch.bounds) - 1) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return losses(model, batch, **rest)

    monkeypatch.setattr(_step, "token_losses", limited)
    done = fit(**(options | {"batch_size": "auto"}), options={"dropout": 0.1})
    assert [(event["step"], event["rows"]) for event in done.events("micro_batch")] == [(0, 2)]
    assert done.events("warning") == []
    assert apart(done.folder, small.folder) == 0.0
    monkeypatch.setattr(_step, "token_losses", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(HardwareError, match=r"not even one row of \d+ tokens fits.*LF-HARDWARE-011"):
        fit(**(options | {"batch_size": "auto"}))


def limit_rows(monkeypatch, most):
    """Let evaluations have memory for no more than `most` rows at a time; what was tried."""
    tried = []
    losses = _evaluate.token_losses

    def limited(model: Any, batch: Any, **rest: Any) -> Any:
        rows = len(batch.input_ids) if batch.bounds is None else len(batch.bounds) - 1
        tried.append(rows)
        if rows > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return losses(model, batch, **rest)

    monkeypatch.setattr(_evaluate, "token_losses", limited)
    return tried


def evaluated(done):
    return [event["eval_loss"] for event in done.events("eval")]


EVALUATING = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 2e-3, "held_out": 11}


def test_an_evaluation_goes_on_with_fewer_rows_and_measures_the_same(fit, monkeypatch):
    plain = fit(**EVALUATING, per_device_eval_batch_size=8)
    tried = limit_rows(monkeypatch, most=3)
    done = fit(**EVALUATING, per_device_eval_batch_size=8)
    # 8 and 4 are too many: from then on 2; and the second evaluation remembers
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1]
    # sums of float32 in parts
    assert evaluated(done) == pytest.approx(evaluated(plain), rel=1e-6)
    assert [(event["kind"], event["was"], event["rows"]) for event in done.events("warning")] == [
        ("out-of-memory", 8, 4),
        ("out-of-memory", 4, 2),
    ]
    assert apart(done.folder, plain.folder) == 0.0


def test_an_evaluation_that_fits_in_no_way_ends_with_fixes(fit, monkeypatch):
    limit_rows(monkeypatch, most=0)
    with pytest.raises(HardwareError, match="LF-HARDWARE-010"):
        fit(**EVALUATING)
    tried = limit_rows(monkeypatch, most=3)
    with pytest.raises(HardwareError, match="LF-HARDWARE-010"):
        fit(**EVALUATING, on_out_of_memory="stop", per_device_eval_batch_size=8)
    assert tried == [8]


def test_answers_are_asked_for_fewer_at_a_time(fit, monkeypatch):
    asking = {"held_out": 5, "max_steps": 1, "evaluation": {"exact_match": True, "batch_size": 4, "max_new_tokens": 4}}
    plain = fit(**asking)
    generate, tried = _answers.generate, []

    def limited(*given: Any, batch_size: int) -> Any:
        tried.append(batch_size)
        if batch_size > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(*given, batch_size=batch_size)

    monkeypatch.setattr(_answers, "generate", limited)
    done = fit(**asking)
    assert tried == [4, 2, 1] * 2, "of the base and of the result"
    figures = [(event["model"], event["exact_match"]) for event in done.events("exact_match")]
    assert figures == [(event["model"], event["exact_match"]) for event in plain.events("exact_match")]
    monkeypatch.setattr(_answers, "generate", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(HardwareError, match="LF-HARDWARE-010"):
        fit(**asking)


LIMITED = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import Fit
from llamafarm.testing.run_context import RecordingRun

class Limited(RecordingRun):
    def emit(self, type, /, **fields):
        super().emit(type, **fields)
        if type == "paths" and int(sys.argv[3]):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + int(sys.argv[3])
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""


def test_an_address_space_limit_makes_the_run_smaller_not_different(scratch, tmp_path):
    pytest.importorskip("resource")
    wide = scratch(chat=False, intermediate_size=8192)
    script = tmp_path / "limited.py"
    script.write_text(
        LIMITED
        + f"""
fit = Fit(None, Path(sys.argv[1]))
fit.models = lambda _: Path(".")
from llamafarm.api import Example, RowRef
rows = [Example(RowRef("rows.jsonl", i + 1), text=f"row {{i}} " * 20) for i in range(64)]
done = fit("full", base={wide!r}, rows=rows, stage="pt", batch_size=64, max_steps=2, max_seq_length=64,
           learning_rate=1e-3, run=Limited)
print(json.dumps([done.losses, [e["rows"] for e in done.events("warning") if "rows" in e]]))
"""
    )
    found = []
    for limit in (0, 600 * 2**20):
        folder = tmp_path / str(limit)
        folder.mkdir()
        arguments = [sys.executable, str(script), str(folder), str(Path(__file__).parent), str(limit)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=os.environ, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (free, said), (limited, smaller) = found
    assert said == []
    assert min(smaller, default=64) < 64
    assert limited == pytest.approx(free, rel=1e-4), "float32 sums in another order"
