"""A loaded strategy → everything decided, or refused with reasons, before anything heavy is imported or written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamafarm.api.components import DataSplitter, FineTuner, Method, RunPlan
from llamafarm.api.config import FineTunerConfig
from llamafarm.api.launch import is_follower, world_size
from llamafarm.api.values import NO_EFFECT, Decision, DeviceSpec, ResumePoint
from llamafarm.core.canonical import TUNER
from llamafarm.core.exports import export_problems
from llamafarm.core.layers import Origin, descend, dotted
from llamafarm.core.load import Loaded
from llamafarm.core.output import check_output_dir, require_outside
from llamafarm.core.permissions import upload_refusal
from llamafarm.core.registry import DEFAULT_SPLITTER, Registry
from llamafarm.core.stacking import stack_problems
from llamafarm.data.present import missing
from llamafarm.errors import HardwareError, LlamaFarmError, Problem, StrategyError, error_for
from llamafarm.models.locate import locate

_ASKED = ("strategy", "fragment", "environment", "flag", "set")


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and the components that carry it out."""

    plan: RunPlan
    tuner: FineTuner[Any]
    splitter: DataSplitter[Any] | None


def make_plan(loaded: Loaded, registry: Registry, resume: ResumePoint | None = None) -> Planned:
    """Build the components and check that they go together on this machine; with `resume`, for a run that goes on.

    Raises:
        LlamaFarmError: With all problems; its class is that of the first.
    """
    errors = list(_errors(loaded, loaded.tuner_config, new=resume is None))
    sketched = sketch(loaded, registry, resume)
    plan, tuner, methods = sketched.plan, sketched.tuner, sketched.plan.methods
    if resume is not None and not tuner.resumes:
        message = f"the fine-tuner {tuner.name!r} cannot resume a run"
        errors.append(StrategyError.of("LF-TRAIN-055", message, hint="start a new run, with --overwrite"))
    if world_size() > 1 and not tuner.processes:
        message = f"the fine-tuner {tuner.name!r} does not train in {world_size()} processes"
        hint = "start it without a launcher, or use type: pytorch"
        errors.append(StrategyError.of("LF-TRAIN-079", message, hint=hint))
    stacked = stack_problems(tuner, methods, _place_of(loaded, "method"))
    errors += [StrategyError([problem]) for problem in stacked]
    errors += [StrategyError([problem]) for problem in export_problems(loaded, methods)]
    found = _checked(tuner, plan) if loaded.device else []
    known = {problem.message for error in errors for problem in error.problems}
    problems = [item for item in found if isinstance(item, Problem) and item.message not in known]
    if problems:
        errors.append(error_for(problems))
    if errors:
        raise type(errors[0])([problem for error in errors for problem in error.problems])
    decisions = (*plan.decisions, *(item for item in found if isinstance(item, Decision)))
    return replace(sketched, plan=replace(plan, decisions=decisions))


def sketch(loaded: Loaded, registry: Registry, resume: ResumePoint | None = None) -> Planned:
    """Build the components without checking that they go together: enough to say what a run would cost."""
    tuner, methods, splitter = _components(loaded, registry)
    plan = RunPlan(
        name=loaded.strategy.name,
        methods=methods,
        device=loaded.device or DeviceSpec(loaded.device_type, "absent"),
        output_dir=Path(loaded.tuner_config.output_dir),
        decisions=tuple(_decisions(loaded)),
        given={dotted(path[len(TUNER) :]): str(origin) for path, origin in _asked(loaded)},
        resume=resume,
    )
    return Planned(plan, tuner, splitter)


def _checked(tuner: FineTuner[Any], plan: RunPlan) -> list[Problem | Decision]:
    """What the fine-tuner says; an error that stops its check is among its problems."""
    found: list[Problem | Decision] = []
    try:
        found.extend(tuner.check(plan))
    except LlamaFarmError as error:
        found.extend(error.problems)
    return found


def _errors(loaded: Loaded, config: FineTunerConfig, *, new: bool) -> Iterator[LlamaFarmError]:
    """What can be seen from the configuration alone."""
    if loaded.device is None:
        probe = loaded.probes.get(loaded.device_type)
        reason = probe.reason if probe else "no hardware profile is installed"
        hint = "use --set hardware=auto"
        yield HardwareError.of("LF-HARDWARE-001", f"no {loaded.device_type} device: {reason}", hint=hint)
    if refusal := upload_refusal(loaded):
        yield refusal
    if config.dataset.path is None and config.dataset.generate is None and not config.dataset.sources:
        yield StrategyError.of("LF-STRATEGY-030", "no dataset is given", hint="add --dataset FILE, or dataset.path")
    yield from missing(config.dataset)
    if config.base_model.huggingface_id is None and config.base_model.from_scratch is None:
        hint = "add --model NAME, or base_model.huggingface_id"
        yield StrategyError.of("LF-STRATEGY-031", "no base model is given", hint=hint)
    if config.base_model.huggingface_id is not None:
        try:
            base = locate(config.base_model.huggingface_id)
            if new and config.overwrite_output_dir and base.folder is not None:
                require_outside(base.folder, Path(config.output_dir))
        except LlamaFarmError as error:
            yield _at(error, loaded.origins.get((*TUNER, "base_model", "huggingface_id")))
    try:
        if new and not is_follower():
            check_output_dir(Path(config.output_dir), overwrite=config.overwrite_output_dir)
    except LlamaFarmError as error:
        yield error


def _at(error: LlamaFarmError, origin: Origin | None) -> LlamaFarmError:
    """The same error with the place of the value that caused it."""
    where = origin.place if origin else ""
    return type(error)(Problem(item.id, item.message, item.where or where, item.hint) for item in error.problems)


def _place_of(loaded: Loaded, *path: str) -> str:
    origin = loaded.origins.get((*TUNER, *path))
    return origin.place if origin else ""


def _components(
    loaded: Loaded, registry: Registry
) -> tuple[FineTuner[Any], tuple[Method[Any], ...], DataSplitter[Any] | None]:
    components = loaded.strategy.components
    tuner = registry.require("fine_tuner", components.fine_tuner.type)(components.fine_tuner.config)
    assert isinstance(tuner, FineTuner)
    return tuner, methods_of(loaded.tuner_config, registry), splitter_of(loaded, registry)


def methods_of(config: FineTunerConfig, registry: Registry) -> tuple[Method[Any], ...]:
    """The methods of a configuration, in order."""
    methods = []
    for node in config.method:
        method = registry.require("method", node.type)(node)
        assert isinstance(method, Method)
        methods.append(method)
    return tuple(methods)


def _splits_by_itself(loaded: Loaded) -> bool:
    """Evaluation was asked for, and nothing says what is held out."""
    config = loaded.tuner_config
    asked = config.training.eval_strategy in ("steps", "epoch") or config.evaluation.exact_match
    return asked and loaded.strategy.components.data_splitter is None and config.dataset.eval_path is None


def splitter_of(loaded: Loaded, registry: Registry) -> DataSplitter[Any] | None:
    """What holds rows out, if anything does."""
    node = loaded.strategy.components.data_splitter
    if node is not None:
        chosen = registry.require("data_splitter", node.type)(node.config)
    elif _splits_by_itself(loaded):
        default = registry.require("data_splitter", DEFAULT_SPLITTER)
        chosen = default(default.Config())
    else:
        return None
    assert isinstance(chosen, DataSplitter)
    return chosen


def _asked(loaded: Loaded) -> Iterator[tuple[tuple[str | int, ...], Origin]]:
    """Values under the fine-tuner's config that the user wrote: not suggested, not a preset's, not a device block's."""
    for path, origin in loaded.origins.items():
        asked = origin.kind in _ASKED and not origin.preset
        if asked and path[: len(TUNER)] == TUNER and not isinstance(descend(loaded.values, path), dict):
            yield path, origin


def _decisions(loaded: Loaded) -> Iterator[Decision]:
    probe = loaded.probes.get(loaded.device_type)
    if loaded.device is not None and probe is not None:
        yield Decision("device", f"{loaded.device.type} ({loaded.device.name})", probe.reason)
        passed_over = {name: other.reason for name, other in loaded.probes.items() if other.device is None}
        for name, reason in passed_over.items():
            yield Decision("device", f"not {name}", reason)
    if _splits_by_itself(loaded):
        yield Decision("data_splitter", DEFAULT_SPLITTER, "evaluation is asked for, and no held-out rows are named")
    splitter = loaded.origins.get(("components", "data_splitter", "type"))
    if splitter is not None and not splitter.preset and loaded.tuner_config.dataset.eval_path is not None:
        yield Decision("data_splitter", NO_EFFECT, "dataset.eval_path names the held-out rows")
    for path, origin in loaded.origins.items():
        if origin.kind in ("hardware", "device", "method") and path[: len(TUNER)] == TUNER:
            value = descend(loaded.values, path)
            if not isinstance(value, dict):
                reason = origin.reason or f"from {origin.place}"
                yield Decision(dotted(path[len(TUNER) :]), str(value), reason)
