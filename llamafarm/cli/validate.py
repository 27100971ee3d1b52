"""`validate`: check strategy files and say everything that is wrong with all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.options import Sets
from llamafarm.cli.session import Session, session_of
from llamafarm.errors import LlamaFarmError, StrategyError

if TYPE_CHECKING:
    from llamafarm.core.load import Loaded
    from llamafarm.core.registry import Registry
    from llamafarm.core.resources import Source


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one strategy or fragment."""

    target: str
    what: str = ""
    notices: tuple[str, ...] = ()
    error: LlamaFarmError | None = None


def validate(
    context: typer.Context,
    targets: Annotated[list[str], typer.Argument(metavar="STRATEGY", help="Names or files.", show_default=False)],
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check strategies without running them; every error of every file is shown.

    A file that holds only blocks of a strategy, such as method: or training:, is checked as a fragment.
    """
    from llamafarm.core.registry import load_registry

    session = session_of(context)
    registry = load_registry()
    verdicts = [verdict for target in targets for verdict in check(target, tuple(sets or ()), registry)]
    if as_json:
        session.result_json([_plain(verdict) for verdict in verdicts])
    else:
        _show(session, verdicts)
    errors = [verdict.error for verdict in verdicts if verdict.error]
    if not errors:
        return
    kind = next((type(error) for error in errors if isinstance(error, StrategyError)), type(errors[0]))
    if as_json:
        raise typer.Exit(kind.exit_code)
    raise kind([problem for error in errors for problem in error.problems])


def check(target: str, sets: tuple[str, ...], registry: Registry) -> Iterator[Verdict]:
    """Validate a strategy, each strategy of a file that holds several, or a fragment."""
    from llamafarm.core.fragments import check_fragment, is_fragment
    from llamafarm.core.load import load
    from llamafarm.core.request import Request
    from llamafarm.core.resources import find_strategy
    from llamafarm.core.yaml_source import read_yaml

    name = target
    try:
        source = find_strategy(target, registry)
        values = read_yaml(source.path).values
        if is_fragment(values):
            fragment = check_fragment(source.path, registry)
            yield Verdict(target, f"fragment: {', '.join(fragment.keys)}", fragment.notices)
            return
        for name in _entries(target, source, values):
            loaded = load(Request(name, sets=sets), registry)
            yield Verdict(name, _summary(loaded), loaded.notices)
    except LlamaFarmError as error:
        yield Verdict(name, error=error)


def _entries(target: str, source: Source, values: Mapping[str, Any]) -> list[str]:
    """The strategies that `target` stands for: itself, or all of a file that holds several."""
    several = values.get("strategies")
    if source.entry is not None or not isinstance(several, list) or len(several) < 2:
        return [target]
    return [f"{target}:{one.get('name', '')}" if isinstance(one, dict) else target for one in several]


def _show(session: Session, verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        for notice in verdict.notices:
            session.notice(notice)
        if verdict.error is None:
            session.result(f"{typer.style('✓', fg='green')} {verdict.target}  {verdict.what}")


def _summary(loaded: Loaded) -> str:
    components = loaded.strategy.components
    methods = "+".join(method.type for method in loaded.tuner_config.method)
    base = loaded.tuner_config.base_model
    model = base.huggingface_id or ("from scratch" if base.from_scratch else "no base model yet")
    parts = ", ".join(filter(None, [components.fine_tuner.type, methods, model]))
    return f"strategy {loaded.strategy.name!r}: {parts}"


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "strategy": verdict.target,
        "valid": verdict.error is None,
        "what": verdict.what,
        "notices": list(verdict.notices),
        "problems": [dataclasses.asdict(problem) for problem in (verdict.error.problems if verdict.error else ())],
    }
