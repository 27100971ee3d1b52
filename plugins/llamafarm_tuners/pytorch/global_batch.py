"""Rows of an optimizer step over all devices: what `global_batch_size` makes of the other two numbers. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llamafarm.api import Decision, RunPlan, TrainingConfig
from llamafarm.api.launch import world_size
from llamafarm.errors import Problem, StrategyError
from llamafarm_tuners.pytorch.config import PytorchConfig

_TOTAL, _MICRO, _ACCUMULATION = (
    "training.global_batch_size",
    "training.batch_size",
    "training.gradient_accumulation_steps",
)


def check_global_batch(config: PytorchConfig, plan: RunPlan) -> Iterator[Problem | Decision]:
    """Refuse numbers that do not divide; say what follows from those that do."""
    if config.training.global_batch_size is None:
        return
    devices = world_size()
    settled = _settle(config.training, plan.given, devices)
    if isinstance(settled, Problem):
        yield settled
        return
    micro, accumulation = settled
    reason = f"{config.training.global_batch_size} rows a step = {micro} x {accumulation} x {_devices(devices)}"
    for path, value in ((_MICRO, micro), (_ACCUMULATION, accumulation)):
        if path not in plan.given:
            yield Decision(path, str(value), reason)


def settle_batches(training: TrainingConfig, given: Mapping[str, str], devices: int) -> TrainingConfig:
    """The same settings with batch size and accumulation as `global_batch_size` wants them.

    Raises:
        StrategyError: If it does not divide by the devices, or by what was given beside it.
    """
    if training.global_batch_size is None:
        return training
    settled = _settle(training, given, devices)
    if isinstance(settled, Problem):
        raise StrategyError([settled])
    micro, accumulation = settled
    return training.model_copy(update={"batch_size": micro, "gradient_accumulation_steps": accumulation})


def _settle(training: TrainingConfig, given: Mapping[str, str], devices: int) -> tuple[int, int] | Problem:
    """Batch size and accumulation, or what is wrong. A number that nobody wrote gives way."""
    total = training.global_batch_size or 0
    if training.auto_find_batch_size:
        given = {path: place for path, place in given.items() if path != _MICRO}
    micro, accumulation = training.batch_size, training.gradient_accumulation_steps
    if total % devices:
        return _problem(
            given, f"{total} rows a step cannot be shared by {_devices(devices)}", _multiples(total, devices)
        )
    share = total // devices
    if _MICRO in given and _ACCUMULATION in given:
        if micro * accumulation == share:
            return micro, accumulation
        makes = f"{micro} x {accumulation} x {_devices(devices)} make {micro * accumulation * devices}, not {total}"
        places = f"batch_size at {given[_MICRO]}, gradient_accumulation_steps at {given[_ACCUMULATION]}"
        return _problem(given, f"{makes} ({places})", "keep two of the three numbers; the third follows")
    path, number = (_ACCUMULATION, accumulation) if _ACCUMULATION in given else (_MICRO, micro)
    if path not in given:
        micro = max(size for size in range(1, min(micro, share) + 1) if share % size == 0)
        return micro, share // micro
    if share % number:
        name = path.rpartition(".")[2]
        message = f"{name} {number} (at {given[path]}) does not divide {total} rows over {_devices(devices)}"
        near = " or ".join(str(size) for size in _divisors_near(share, number))
        return _problem(given, message, f"set {name}: {near}, or {_multiples(total, number * devices)}")
    other = share // number
    return (other, number) if path == _ACCUMULATION else (number, other)


def _problem(given: Mapping[str, str], message: str, hint: str) -> Problem:
    return Problem("LF-TRAIN-035", f"{_TOTAL}: {message}", given.get(_TOTAL, ""), hint)


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


def _divisors_near(number: int, wanted: int) -> list[int]:
    """The divisors of `number` on both sides of `wanted`."""
    divisors = [size for size in range(1, number + 1) if number % size == 0]
    below = [size for size in divisors if size < wanted][-1:]
    return below + [size for size in divisors if size > wanted][:1]


def _multiples(number: int, unit: int) -> str:
    below, above = number // unit * unit, -(-number // unit) * unit
    return f"set global_batch_size: {' or '.join(str(size) for size in (below, above) if size)}"
