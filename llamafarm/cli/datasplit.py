"""`datasplit`: split rows into files: one to train on, one to hold out, and one more if asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
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
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="Rows of any kind that can be trained on: a file (also .gz, .zst), a folder or a pattern.",
            show_default=False,
        ),
    ] = None,
    input_option: Annotated[str | None, typer.Option("--input", "-i", help="The same as INPUT.")] = None,
    train_output: Annotated[Path | None, typer.Option("--train-output", help="Default: INPUT_train.jsonl.")] = None,
    eval_output: Annotated[Path | None, typer.Option("--eval-output", help="Default: INPUT_eval.jsonl.")] = None,
    eval_percentage: Annotated[
        float | None,
        typer.Option("--eval-percentage", "--eval-percent", "-e", help="Held-out rows in percent; 10 by default."),
    ] = None,
    extra_percentage: Annotated[
        float | None,
        typer.Option("--extra-percentage", "--extra-percent", help="Rows of a third file, such as a test set."),
    ] = None,
    extra_output: Annotated[Path | None, typer.Option("--extra-output", help="Default: INPUT_extra.jsonl.")] = None,
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
        Path | None, typer.Option("--output-dir", "-o", help="Folder for the files; by default beside INPUT.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show what identifies the split data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Split rows into a file to train on, a file to hold out, and a third one if asked for; all are JSON lines.

    Every row is checked first; rows of equal content stay in one file; no file is ever empty.
    """
    from llamafarm.data.siblings import SIDES
    from llamafarm.data.sources import files_of
    from llamafarm.data.split import split_files

    session = session_of(context)
    path = _input(input_argument, input_option)
    splitter, by = _one_splitter(splitter, by, {"stratified": stratify_by, "group": group_by})
    options = {"eval_percentage": eval_percentage, "seed": seed, "by": by} | dict(map(_option, sets or []))
    chosen = _splitter(splitter, options)
    with_extra = _extra(chosen, options, extra_percentage, extra_output)
    outputs = _outputs(path, [train_output, eval_output, extra_output][: 3 if with_extra else 2], output_dir)
    inputs = files_of(path, session.notice)
    with _progress(session, inputs) as progress:
        report = split_files(inputs, chosen, outputs, extra=with_extra, overwrite=overwrite, progress=progress)
    if as_json:
        session.result_json(_plain(report, chosen))
        return
    session.result(typer.style("Split created successfully!", fg="green"))
    for line in plain_table(_summary(report, chosen, SIDES, verbose=verbose)):
        session.result(f"  {line}")


def _input(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None and argument != option:
        raise UsageError.of("LF-USAGE-004", f"two inputs are given: {argument} and {option}", hint="keep one")
    path = argument or option
    if path is None:
        raise UsageError.of("LF-USAGE-006", "no input is given", hint="name the file: llamafarm datasplit data.jsonl")
    return path


def _outputs(path: str, named: Sequence[Path | None], folder: Path | None) -> list[Path]:
    """Where the rows go: as told, else beside the input, under its name."""
    from glob import has_magic

    from llamafarm.data.siblings import SIDES, split_names

    if has_magic(path) and not Path(path).exists() and None in named:
        missing = ", ".join(f"--{side}-output" for side, name in zip(SIDES, named, strict=False) if name is None)
        message = f"{path} stands for many files, and none gives the outputs its name"
        raise UsageError.of("LF-SPLIT-003", message, hint=f"give {missing}")
    defaults = split_names(Path(path), SIDES[: len(named)])
    if folder is not None:
        defaults = tuple(folder / name.name for name in defaults)
    return [name or default for name, default in zip(named, defaults, strict=True)]


def _extra(
    chosen: DataSplitter[Any], options: Mapping[str, Any], percentage: float | None, output: Path | None
) -> Callable[[int], DataSplitter[Any]] | None:
    """What makes the splitter for the third file, from the number of distinct rows; None without a third file."""
    if percentage is None:
        if output is not None:
            message = "a file for extra rows is named, and not how many they are"
            raise UsageError.of("LF-SPLIT-004", message, where="--extra-output", hint="give --extra-percentage")
        return None
    fields = type(chosen).Config.model_fields
    if "eval_rows" not in fields and "eval_fraction" not in fields:
        message = f"the splitter {chosen.name!r} has neither eval_rows nor eval_fraction: it gives no third file"
        raise UsageError.of("LF-SPLIT-005", message, where="--extra-percentage", hint="take another splitter")
    share, held_out = Fraction(str(percentage)) / 100, getattr(chosen.config, "share", Fraction(0))
    if not 0 < share <= (1 - held_out) / 2:
        message = f"{percentage:g} % extra rows; they are more than 0 and at most half of what is not held out"
        raise UsageError.of("LF-SPLIT-004", message, where="--extra-percentage", hint="at least as many are trained on")
    rest = {key: value for key, value in options.items() if not key.startswith("eval_")}

    def make(rows: int) -> DataSplitter[Any]:
        exact = {"eval_rows": max(_half_up(rows * share), 1)}
        part = exact if "eval_rows" in fields else {"eval_fraction": float(share / (1 - held_out))}
        return _splitter(chosen.name, rest | part)

    return make


def _half_up(number: Fraction) -> int:
    return (2 * number.numerator + number.denominator) // (2 * number.denominator)


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


def _splitter(type_: str | None, given: Mapping[str, Any]) -> DataSplitter[Any]:
    """The splitter that was asked for; a seed asks for the seeded one."""
    from pydantic import ValidationError

    from llamafarm.api import DataSplitter
    from llamafarm.core.registry import DEFAULT_SPLITTER, load_registry

    name = type_ or (DEFAULT_SPLITTER if given.get("seed") is None else "random")
    registry = load_registry()
    if problem := registry.problem("data_splitter", name, "--splitter" if type_ else ""):
        raise error_for([problem])
    component = registry.require("data_splitter", name)
    options = {key: value for key, value in given.items() if value is not None}
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
def _progress(session: Session, inputs: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar for large files on a terminal."""
    size = sum(path.stat().st_size for path in inputs)
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
    from llamafarm.data.siblings import SIDES

    return {
        "rows": report.rows,
        **dict(zip(SIDES, report.counts, strict=False)),
        "duplicates": report.duplicates,
        **{f"{side}_path": str(path) for side, path in zip(SIDES, report.paths, strict=False)},
        "digest": report.digest,
        "splitter": {"type": splitter.name, **splitter.config.model_dump(mode="json")},
    }


def _summary(
    report: SplitReport, splitter: DataSplitter[Any], sides: Sequence[str], *, verbose: bool
) -> list[list[str]]:
    shares = [f"{100 * count / report.rows:.1f} %" for count in report.counts]
    asked = getattr(splitter.config, "share", None)
    if asked is not None and getattr(splitter.config, "eval_rows", None) is None:
        wanted = f"{float(100 * asked):g} %"
        shares[1] += "" if float(wanted[:-2]) == float(shares[1][:-2]) else f", asked for {wanted}"
    rows = [
        [side, f"{count:,} rows" + (f" ({share})" if number else ""), str(path)]
        for number, (side, count, share, path) in enumerate(
            zip(sides, report.counts, shares, report.paths, strict=False)
        )
    ]
    if report.duplicates:
        rows.append(["duplicates", f"{report.duplicates:,} rows", "each on the side of its first"])
    seed = getattr(splitter.config, "seed", None)
    kept = "by content: rows added later move no others" if splitter.name == "hash" else ""
    rows.append(["splitter", splitter.name, kept if seed is None else f"Random seed: {seed} (same seed, same split)"])
    if verbose:
        rows.append(["digest", report.digest, "identifies the rows in their order"])
    return rows
