"""`validate`: check strategy files and say everything that is wrong with all of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.session import Session, session_of
from llamafarm.errors import LlamaFarmError, StrategyError

if TYPE_CHECKING:
    from llamafarm.core.load import Loaded
    from llamafarm.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one strategy."""

    target: str
    loaded: Loaded | None = None
    error: LlamaFarmError | None = None


def validate(
    context: typer.Context,
    targets: Annotated[list[str], typer.Argument(metavar="STRATEGY", help="Names or files.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check strategies without running them; every error of every file is shown.

    A file that holds only blocks of a strategy, such as method: or training:, is checked as a fragment.
    """
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    registry = load_registry()
    verdicts = [verdict for target in targets for verdict in check(target, registry)]
    if as_json:
        session.result_json([_plain(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            _show(session, verdict)
    errors = [verdict.error for verdict in verdicts if verdict.error]
    if not errors:
        return
    kind = next((type(error) for error in errors if isinstance(error, StrategyError)), type(errors[0]))
    if as_json:
        raise typer.Exit(kind.exit_code)
    raise kind([problem for error in errors for problem in error.problems])


def check(target: str, registry: Registry) -> list[Verdict]:
    """Validate a strategy, each strategy of a file that holds several, or a fragment."""
    from llamafarm.core.load import load
    from llamafarm.core.request import Request

    try:
        names = _entries(target, registry)
    except LlamaFarmError as error:
        return [Verdict(target, error=error)]
    verdicts = []
    for name in names:
        try:
            verdicts.append(Verdict(name, load(Request(name), registry)))
        except LlamaFarmError as error:
            verdicts.append(Verdict(name, error=error))
    return verdicts


def _entries(target: str, registry: Registry) -> list[str]:
    """The strategies that `target` stands for."""
    from llamafarm.core.resources import find_strategy
    from llamafarm.core.yaml_source import read_yaml

    source = find_strategy(target, registry)
    if source.entry is not None:
        return [target]
    several = read_yaml(source.path).values.get("strategies")
    if not isinstance(several, list) or len(several) < 2:
        return [target]
    return [f"{target}:{one.get('name', '')}" if isinstance(one, dict) else target for one in several]


def _show(session: Session, verdict: Verdict) -> None:
    if verdict.loaded is None:
        return
    for notice in verdict.loaded.notices:
        session.notice(notice)
    session.result(f"{typer.style('✓', fg='green')} {verdict.target}  {_summary(verdict.loaded)}")


def _summary(loaded: Loaded) -> str:
    components = loaded.strategy.components
    methods = "+".join(method.type for method in loaded.tuner_config.method)
    model = loaded.tuner_config.base_model.huggingface_id or "no base model yet"
    return f"strategy {loaded.strategy.name!r}  {components.fine_tuner.type}/{methods}  {model}"


def _plain(verdict: Verdict) -> dict[str, Any]:
    problems = verdict.error.problems if verdict.error else ()
    return {
        "strategy": verdict.target,
        "valid": verdict.error is None,
        "notices": list(verdict.loaded.notices) if verdict.loaded else [],
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }
