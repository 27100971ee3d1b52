"""`datasplit`: split a file of rows into two, one to train on and one to hold out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import plain_table
from llamafarm.errors import Problem, UsageError, error_for

if TYPE_CHECKING:
    from llamafarm.api import DataSplitter
    from llamafarm.data.split import SplitReport

_WORTH_A_BAR = 50_000_000
_BAR_STEP = 1_000_000


def datasplit(
    context: typer.Context,
    input_argument: Annotated[
        Path | None, typer.Argument(metavar="INPUT", help="Rows, one JSON object a line.", show_default=False)
    ] = None,
    input_option: Annotated[Path | None, typer.Option("--input", "-i", help="The same as INPUT.")] = None,
    train_output: Annotated[Path | None, typer.Option("--train-output", help="Default: INPUT_train.jsonl.")] = None,
    eval_output: Annotated[Path | None, typer.Option("--eval-output", help="Default: INPUT_eval.jsonl.")] = None,
    eval_percentage: Annotated[
        float | None,
        typer.Option("--eval-percentage", "--eval-percent", "-e", help="Held-out rows in percent; 10 by default."),
    ] = None,
    splitter: Annotated[
        str | None,
        typer.Option(
            "--splitter",
            help="hash (by content, the default), random (seeded), stratified, group, sequential, or a plugin's.",
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Column that stratified and group go by; a.b leads in.")
    ] = None,
    stratify_by: Annotated[
        str | None, typer.Option("--stratify-by", help="Same as --splitter stratified --by COLUMN.", metavar="COLUMN")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="Same as --splitter group --by COLUMN.", metavar="COLUMN")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", "-s", help="Split at random with this seed.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="An option of the splitter: key=value.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder for both files; by default beside INPUT.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show what identifies the split data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Split rows into a file to train on and a file to hold out.

    Every row is checked first; rows of equal content stay on one side; neither side is ever empty.
    """
    from llamafarm.data.siblings import split_names
    from llamafarm.data.split import split_file

    session = session_of(context)
    path = _input(input_argument, input_option)
    splitter, by = _one_splitter(splitter, by, {"stratified": stratify_by, "group": group_by})
    options = {"eval_percentage": eval_percentage, "seed": seed, "by": by}
    chosen = _splitter(splitter, options, sets or [])
    names = split_names(path.with_suffix(".jsonl"))
    if output_dir is not None:
        names = (output_dir / names[0].name, output_dir / names[1].name)
    with _progress(session, path) as progress:
        report = split_file(
            path,
            chosen,
            train_path=train_output or names[0],
            eval_path=eval_output or names[1],
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        session.result_json(_plain(report, chosen))
        return
    session.result(typer.style("Split created successfully!", fg="green"))
    for line in plain_table(_summary(report, chosen, verbose=verbose)):
        session.result(f"  {line}")


def _input(argument: Path | None, option: Path | None) -> Path:
    if argument is not None and option is not None and argument != option:
        raise UsageError.of("LF-USAGE-004", f"two inputs are given: {argument} and {option}", hint="keep one")
    path = argument or option
    if path is None:
        raise UsageError.of("LF-USAGE-006", "no input is given", hint="name the file: llamafarm datasplit data.jsonl")
    return path


def _one_splitter(type_: str | None, by: str | None, short: dict[str, str | None]) -> tuple[str | None, str | None]:
    """The splitter and its column, in whichever way they are spelled."""
    found = [(name, column) for name, column in short.items() if column is not None]
    if not found:
        return type_, by
    name, column = found[0]
    if len(found) > 1 or type_ not in {None, name} or by not in {None, column}:
        options = [f"--splitter {type_}"] if type_ else []
        options += [f"--by {by}"] if by else []
        options += [{"stratified": "--stratify-by", "group": "--group-by"}[name] for name, _ in found]
        spelt = " and ".join(options)
        raise UsageError.of("LF-USAGE-004", f"{spelt} say different things", hint="keep one")
    return name, column


def _splitter(type_: str | None, given: dict[str, Any], sets: list[str]) -> DataSplitter[Any]:
    """The splitter that was asked for; a seed asks for the seeded one."""
    from pydantic import ValidationError

    from llamafarm.api import DataSplitter
    from llamafarm.core.plan import DEFAULT_SPLITTER
    from llamafarm.core.registry import load_registry

    name = type_ or (DEFAULT_SPLITTER if given["seed"] is None else "random")
    registry = load_registry()
    if problem := registry.problem("data_splitter", name, "--splitter" if type_ else ""):
        raise error_for([problem])
    component = registry.require("data_splitter", name)
    options = {key: value for key, value in given.items() if value is not None} | dict(map(_option, sets))
    fields = component.Config.model_fields
    unknown = [key for key in options if key not in fields]
    if unknown:
        hint = f"it takes {', '.join(fields)}" if fields else "it takes none"
        message = f"the splitter {name!r} has no option {', '.join(map(repr, unknown))}"
        raise UsageError.of("LF-USAGE-008", message, hint=hint)
    try:
        chosen = component(component.Config(**options))
    except ValidationError as error:
        raise UsageError(_problem(name, item) for item in error.errors(include_url=False)) from None
    assert isinstance(chosen, DataSplitter)
    return chosen


def _option(text: str) -> tuple[str, Any]:
    from llamafarm.core.yaml_source import parse_scalar

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError.of("LF-USAGE-008", f"--set {text!r} has no '='", hint="write --set key=value")
    return key, parse_scalar(value)


def _problem(name: str, item: Any) -> Problem:
    key = ".".join(map(str, item["loc"]))
    message = item["msg"].removeprefix("Value error, ")
    got = f", got {item['input']!r}" if key else ""
    return Problem("LF-USAGE-008", f"the splitter {name!r}: {key + ': ' if key else ''}{message}{got}")


@contextmanager
def _progress(session: Session, path: Path) -> Iterator[Callable[[int], None]]:
    """A bar for a large file on a terminal."""
    size = path.stat().st_size if path.is_file() else 0
    if size < _WORTH_A_BAR or not session.live(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True, no_color=session.no_color), transient=True) as bar:
        task, waiting = bar.add_task("splitting", total=2 * size), 0

        def advance(done: int) -> None:
            nonlocal waiting
            waiting += done
            if waiting > _BAR_STEP:
                bar.advance(task, waiting)
                waiting = 0

        yield advance


def _plain(report: SplitReport, splitter: DataSplitter[Any]) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "train": report.train,
        "eval": report.eval,
        "duplicates": report.duplicates,
        "train_path": str(report.train_path),
        "eval_path": str(report.eval_path),
        "digest": report.digest,
        "splitter": {"type": splitter.name, **splitter.config.model_dump(mode="json")},
    }


def _summary(report: SplitReport, splitter: DataSplitter[Any], *, verbose: bool) -> list[list[str]]:
    share = f"{100 * report.eval / report.rows:.1f} %"
    asked = getattr(splitter.config, "share", None)
    if asked is not None and getattr(splitter.config, "eval_rows", None) is None:
        wanted = f"{float(100 * asked):g} %"
        share += "" if float(wanted[:-2]) == float(share[:-2]) else f", asked for {wanted}"
    rows = [
        ["train", f"{report.train:,} rows", str(report.train_path)],
        ["eval", f"{report.eval:,} rows ({share})", str(report.eval_path)],
    ]
    if report.duplicates:
        rows.append(["duplicates", f"{report.duplicates:,} rows", "each on the side of its first"])
    seed = getattr(splitter.config, "seed", None)
    kept = "by content: rows added later move no others" if splitter.name == "hash" else ""
    rows.append(["splitter", splitter.name, kept if seed is None else f"Random seed: {seed} (same seed, same split)"])
    if verbose:
        rows.append(["digest", report.digest, "identifies the rows in their order"])
    return rows
