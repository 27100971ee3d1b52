"""`strategies import`: another tool's file of arguments → a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llamafarm.cli.files import write_lines
from llamafarm.cli.session import session_of
from llamafarm.errors import StrategyError

_IDLE = {"do_train": True, "report_to": "none", "overwrite_cache": True, "plot_loss": True}
_FOR_A_SPLITTER = "val_size"


def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file of LLaMA-Factory.", show_default=False)],
    target: Annotated[Path | None, typer.Argument(help="The strategy; FILE with -strategy by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Turn a file for `llamafactory-cli train` into a strategy, and validate it.

    Its keys stay as they are; `val_size` becomes a data splitter, and what every run does anyway is left out.
    """
    from llamafarm.core.load import load
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request
    from llamafarm.core.yaml_source import read_yaml

    path = target or file.with_name(f"{file.stem}-strategy.yaml")
    reading = read_yaml(file)
    if reading.problems:
        raise StrategyError(reading.problems)
    write_lines(path, strategy_lines(reading.values), overwrite=overwrite)
    session = session_of(context)
    for notice in load(Request(str(path)), load_registry()).notices:
        session.notice(notice)
    session.result(str(path))
    session.say(f"train it with: llamafarm train --strategy {path}")


def strategy_lines(arguments: Mapping[str, Any]) -> list[str]:
    """The strategy's text, line by line.

    Raises:
        StrategyError: If these are no arguments of LLaMA-Factory.
    """
    import json

    if "model_name_or_path" not in arguments or ("finetuning_type" not in arguments and "stage" not in arguments):
        message = "no file of LLaMA-Factory: model_name_or_path and stage or finetuning_type are expected"
        raise StrategyError.of("LF-STRATEGY-090", message, hint="strategies of ours need no import")
    kept = {
        name: value for name, value in arguments.items() if _IDLE.get(name, ...) != value and name != _FOR_A_SPLITTER
    }
    lines = ["fine_tuner:", "  type: llamafactory", "  config:"]
    lines += [f"    {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in kept.items()]
    share = arguments.get(_FOR_A_SPLITTER)
    if isinstance(share, int | float) and 0 < share < 1:
        lines.append(f"data_splitter: {{type: random, config: {{eval_percentage: {round(100 * share, 6):g}}}}}")
    elif share:
        lines.append(f"    {_FOR_A_SPLITTER}: {share}")
    return lines
