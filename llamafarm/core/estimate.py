"""Will it fit, how long will it take: a strategy's costs on a device, corrected by earlier runs. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from llamafarm.api.config import FineTunerConfig
from llamafarm.api.estimates import Costs, Workload
from llamafarm.api.values import DeviceSpec
from llamafarm.core.load import Loaded, load
from llamafarm.core.plan import Planned, sketch
from llamafarm.core.registry import Registry
from llamafarm.core.request import Request
from llamafarm.core.workload import workload_of
from llamafarm.errors import LlamaFarmError, UsageError
from llamafarm.estimate.arithmetic import MULTIPLES_OF_PEAK
from llamafarm.estimate.calibration import Calibration, Key, Record, Size, calibrate, remember
from llamafarm.estimate.gpus import of_device

_MARGINS: Mapping[str, float] = {"cpu": 0.15, "cuda": 0.25}
_MARGIN = 0.3
_CALIBRATED = 0.1
"""How far an estimate may be off, as a share: from the formula alone, and after runs like it."""
_CPU_RATES = ((10e9, 45e9), (15e9, 90e9))
"""Operations a second that training reaches on one core without and with AVX-512."""
_STEP_SECONDS = (0.01, 0.05)
"""What a step takes on a GPU however little there is to compute: Python, and starting its kernels."""
_LARGEST_BATCH = 1024
_MEMINFO = Path("/proc/meminfo")
_STATM = Path("/proc/self/statm")
_MAPPED = 470 * 2**20
"""Address space that the libraries take besides memory, once they are imported; measured on Linux, x86-64."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run needs on a device.

    Attributes:
        costs: As the fine-tuner works them out.
        device: The device.
        tuner: The fine-tuner's name.
        available: Bytes that a run may use there; 0: not known.
        calibration: What earlier runs say.
        rate: Operations a second, least and most; None: nothing is known of the device.
        notes: What was assumed.
    """

    costs: Costs
    device: DeviceSpec
    tuner: str
    available: float
    calibration: Calibration
    rate: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, planned: Planned, workload: Workload, available: float, notes: Sequence[str] = ()) -> Self | None:
        """The estimate of a plan; None if its fine-tuner makes none.

        Raises:
            ModelError: If the architecture is not known.
        """
        device = planned.plan.device
        costs = planned.tuner.estimate(planned.plan, workload)
        if costs is None:
            return None
        found = calibrate(
            Key(device.name, planned.tuner.name, costs.path), Size(costs.parameters, costs.peak, costs.fixed)
        )
        return cls(costs, device, planned.tuner.name, available, found, _rate(device, found), (*notes, *costs.notes))

    @property
    def peak(self) -> float:
        """Bytes that the run's `peak_memory_bytes` will say."""
        return self.costs.peak * self.calibration.memory

    @property
    def needed(self) -> float:
        """Bytes that have to be there."""
        return self.peak + self.costs.beside

    @property
    def margin(self) -> float:
        """How far `needed` may be off, as a share."""
        return _CALIBRATED if self.calibration.runs else _MARGINS.get(self.device.type, _MARGIN)

    @property
    def fits(self) -> bool | None:
        """Whether it fits even if the estimate is too low by `margin`; None: nobody knows how much there is."""
        return self.needed * (1 + self.margin) <= self.available if self.available else None

    @property
    def may_fit(self) -> bool:
        """Whether it fits if the estimate is right."""
        return not self.available or self.needed <= self.available

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Of training, least and most."""
        if self.rate is None:
            return None
        more = (0.0, 0.0) if self.device.type == "cpu" or self.calibration.rate else _STEP_SECONDS
        low, high = (
            self.costs.flops / rate + self.costs.steps * each
            for rate, each in zip(reversed(self.rate), more, strict=True)
        )
        return low, high

    def as_json(self) -> dict[str, Any]:
        """Plain values, for the manifest and `--json`."""
        terms = {name: round(value) for name, value in self.costs.memory.items()}
        seconds = self.seconds
        return {
            "memory_bytes": round(self.peak),
            "memory_terms": terms,
            "beside_bytes": round(self.costs.beside),
            "needed_bytes": round(self.needed),
            "margin": self.margin,
            "available_bytes": round(self.available) or None,
            "fits": self.fits,
            "seconds": [round(bound, 1) for bound in seconds] if seconds else None,
            "flops": self.costs.flops,
            "steps": self.costs.steps,
            "tokens": round(self.costs.tokens),
            "disk_bytes": round(self.costs.disk),
            "trainable_parameters": self.costs.trained,
            "total_parameters": self.costs.parameters,
            "path": self.costs.path,
            "calibration": asdict(self.calibration),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """Settings under which a run fits, as `--set` texts, and what it then needs."""

    sets: tuple[str, ...]
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Advice:
    """An estimate, and what follows from it.

    Attributes:
        estimate: Of the strategy as it is.
        largest_batch: The largest `training.batch_size` that fits; 0: none does.
        changes: Ways to make it fit, the gentlest first; empty if it does.
        least: What the most frugal of all settings that were tried needs, in bytes.
    """

    estimate: Estimate
    largest_batch: int
    changes: tuple[Change, ...] = ()
    least: float = 0.0


def estimate(config: FineTunerConfig, planned: Planned) -> Estimate | None:
    """Estimate a plan on its device; None if its fine-tuner makes no estimates.

    Raises:
        LlamaFarmError: If the model or its sizes are not known.
    """
    sampled = workload_of(config, planned)
    return Estimate.of(planned, sampled.workload, free(planned.plan.device), sampled.notes)


def quietly(config: FineTunerConfig, planned: Planned) -> Estimate | None:
    """The same; None wherever it fails: no run depends on it."""
    try:
        return estimate(config, planned)
    except (LlamaFarmError, OSError, ArithmeticError, LookupError, TypeError, ValueError):
        return None


def advise(request: Request, registry: Registry, device: DeviceSpec | None = None) -> Advice:
    """Estimate a request, on a device instead of this machine's if one is given, and look for what fits.

    Raises:
        LlamaFarmError: If the strategy is not valid, or its costs cannot be worked out.
    """
    return _advised(request, registry, device, failed=False)


def after_failure(request: Request, registry: Registry) -> Advice:
    """The same for a request whose memory did not suffice on this machine: it fits in no more than it was to need.

    Raises:
        LlamaFarmError: If its costs cannot be worked out.
    """
    return _advised(request, registry, None, failed=True)


def _advised(request: Request, registry: Registry, device: DeviceSpec | None, *, failed: bool) -> Advice:
    loaded = load(request, registry, device)
    planned = sketch(loaded, registry)
    sampled = workload_of(loaded.tuner_config, planned)
    available = free(planned.plan.device) if device is None else float(device.memory_bytes)
    found = Estimate.of(planned, sampled.workload, available, sampled.notes)
    if found is None:
        message = f"the fine-tuner {planned.tuner.name!r} makes no estimates"
        raise UsageError.of("LF-USAGE-040", message, hint="the fine-tuner pytorch does")
    if failed and found.fits is not False:
        available = found.needed
        found = replace(found, available=available)
    search = _Search(request, registry, device, sampled.workload, available)
    largest = search.largest_batch(planned)
    if found.fits is not False:
        return Advice(found, largest)
    changes = search.changes(loaded)
    return Advice(found, largest, tuple(changes), search.least)


@dataclass(slots=True)
class _Search:
    """Looks for settings that fit, each estimated as the strategy itself."""

    request: Request
    registry: Registry
    device: DeviceSpec | None
    workload: Workload
    available: float
    least: float = 0.0

    def largest_batch(self, planned: Planned) -> int:
        """The largest batch size that fits; 0: none does."""
        low, high = 0, min(_LARGEST_BATCH, self.workload.rows) + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._with_batch(planned, middle).fits
            low, high = (middle, high) if fits is not False else (low, middle)
        return low

    def _with_batch(self, planned: Planned, size: int) -> Estimate:
        config = planned.tuner.config
        training = config.training.model_copy(update={"batch_size": size, "global_batch_size": None})
        tuner = type(planned.tuner)(config.model_copy(update={"training": training}))
        found = Estimate.of(replace(planned, tuner=tuner), self.workload, self.available)
        assert found is not None
        return found

    def changes(self, loaded: Loaded) -> Iterator[Change]:
        """At most three ways that fit: each combination of remedies with the largest batch that still fits."""
        shown = 0
        for sets in _combinations(loaded.tuner_config):
            change = self._fitting(sets)
            if change is not None:
                yield change
                shown += 1
            if shown == 3:
                return

    def _fitting(self, sets: Sequence[str]) -> Change | None:
        """The remedies with the largest batch size that divides the rows of a step and fits."""
        try:
            loaded = load(replace(self.request, sets=(*self.request.sets, *sets)), self.registry, self.device)
        except LlamaFarmError:
            return None
        planned = sketch(loaded, self.registry)
        training = loaded.tuner_config.training
        micro = training.batch_size
        for size in (size for size in range(micro, 0, -1) if micro % size == 0):
            found = self._with_batch(planned, size)
            self.least = min(self.least or found.needed, found.needed)
            if found.fits:
                return Change((*sets, *_batch_sets(loaded.tuner_config, size)), found)
        return None


def _batch_sets(config: FineTunerConfig, size: int) -> Iterator[str]:
    """A smaller batch size, and the accumulation that keeps the rows of a step."""
    training = config.training
    if size == training.batch_size:
        return
    yield f"training.batch_size={size}"
    if training.global_batch_size is None:
        times = training.batch_size // size
        yield f"training.gradient_accumulation_steps={training.gradient_accumulation_steps * times}"


def _combinations(config: FineTunerConfig) -> Iterator[tuple[str, ...]]:
    """Sets of remedies, those that change least what is learned first."""
    again = () if config.training.gradient_checkpointing else ("training.gradient_checkpointing=true",)
    yield ()
    if again:
        yield again
    kinds = {str(getattr(method, "type", "")) for method in config.method} or {"lora"}
    if kinds == {"full"}:
        yield ("training.use_cpu_offload=true", *again)
    narrow = ("base_model.torch_dtype=bfloat16",)
    if kinds <= {"lora", "dora"} and config.base_model.torch_dtype in ("auto", "float32"):
        yield narrow
        yield (*narrow, *again)
    if kinds == {"full"}:
        yield ("method=lora", *again)
        yield ("method=lora", *narrow, *again)
    if kinds <= {"full", "lora"}:
        yield ("method=qlora", *again)
    length = config.training.max_seq_length
    while length > 256:
        length //= 2
        yield (f"training.max_seq_length={length}", *again)
        if kinds <= {"full", "lora"}:
            yield ("method=qlora", f"training.max_seq_length={length}", *again)


def free(device: DeviceSpec) -> float:
    """Bytes that a run may use: of main memory what is available now, of a GPU all that it has; 0: not known."""
    if device.type != "cpu":
        return float(device.memory_bytes)
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return float(device.memory_bytes)
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    amounts = [amount for amount in (available, device.memory_bytes, _address_space()) if amount]
    return float(min(amounts, default=0))


def _address_space() -> int:
    """Bytes that the process may use of a limit on its address space: less what is mapped and not used; 0: no limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return 0
    pages = [int(number) * resource.getpagesize() for number in _STATM.read_text(encoding="ascii").split()[:2]]
    return max(1, limit - max(pages[0] - pages[1], _MAPPED))


def _rate(device: DeviceSpec, found: Calibration) -> tuple[float, float] | None:
    if found.rate is not None:
        return 0.8 * found.rate, 1.25 * found.rate
    if device.type == "cpu":
        cores = _threads(device)
        low, high = _CPU_RATES[bool(device.details.get("avx512"))]
        return low * cores, high * cores
    known = of_device(device)
    if known is None:
        return None
    peak = known.teraflops * 1e12
    return MULTIPLES_OF_PEAK[0] * peak, MULTIPLES_OF_PEAK[1] * peak


def _threads(device: DeviceSpec) -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(device.details.get("cores", 0)) or os.cpu_count() or 1
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


def compare(expected: Estimate, metrics: Mapping[str, Any]) -> None:
    """Keep what a finished run measured beside its estimate, for the next one; never fails."""
    measured, seconds, steps = (metrics.get(name) for name in ("peak_memory_bytes", "train_runtime", "train_steps"))
    if isinstance(measured, int) and isinstance(seconds, int | float) and isinstance(steps, int):
        costs = expected.costs
        remember(
            Record(
                device=expected.device.name,
                tuner=expected.tuner,
                path=costs.path,
                parameters=costs.parameters,
                estimated=costs.peak,
                fixed=costs.fixed,
                shown=expected.peak,
                measured=float(measured),
                flops=costs.flops * steps / max(1, costs.steps),
                seconds=float(seconds),
            )
        )
