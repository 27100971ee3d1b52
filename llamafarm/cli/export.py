"""`export`, also spelt `finetune export`: a trained model for another program, checked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llamafarm.cli.session import Session, session_of
from llamafarm.errors import UsageError, nearest, one_of

if TYPE_CHECKING:
    from llamafarm.core.load import Loaded
    from llamafarm.export.report import Report
    from llamafarm.export.request import Dtype, ExportRequest, GgufType

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMG]i?B)?", re.IGNORECASE)


def export(
    context: typer.Context,
    model_argument: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder of a run, checkpoint or model.", show_default=False)
    ] = None,
    model_option: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            "--model-name-or-path",
            "--model_name_or_path",
            help="The same as MODEL; beside --adapter-path, its base.",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter-path", "--adapter-name-or-path", "--adapter_name_or_path", help="Folder of an adapter."
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", help="merged, adapter, gguf, ollama or vllm.")] = "merged",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--export-dir",
            "--export_dir",
            help="The folder to write; MODEL/export/TARGET by default.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto (the base's), float32, bfloat16 or float16.")] = "auto",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", "--export-size", "--export_size", help="Largest file: 2, 5GB, 500MB.")
    ] = "5GB",
    gguf_type: Annotated[str, typer.Option("--gguf-type", help="f32, f16, bf16 or q8_0.")] = "f16",
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", envvar="LLAMA_CPP", help="A llama.cpp checkout, for its convert_hf_to_gguf.py."),
    ] = None,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="For vllm: serve the adapter beside its base, unmerged.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", "--export-device", "--export_device", help="Where the model is loaded.")
    ] = "cpu",
    name: Annotated[
        str, typer.Option("--name", help="What the server calls it; the model folder's name by default.")
    ] = "",
    system: Annotated[str | None, typer.Option("--system", help="For ollama: the system message.")] = None,
    num_ctx: Annotated[int | None, typer.Option("--num-ctx", min=1, help="For ollama: the context length.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, help="For ollama.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Write nothing: compare this earlier export with MODEL.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a trained model for another program, read it back from disk, and compare its answers with the original.

    Needs memory for the model once, in float32. Ends with 12 if what was written does not answer as what was trained.
    """
    from llamafarm.export.request import ExportRequest

    session = session_of(context)
    model = _model(context, model_argument, model_option, adapter)
    target = _one("--to", to, _targets())
    _check_options(target, {"--keep-adapter": keep_adapter}, ("vllm",))
    _check_options(target, {"--gguf-type": gguf_type != "f16"}, ("gguf", "ollama"))
    ollama = {
        "--system": system is not None,
        "--num-ctx": num_ctx is not None,
        "--temperature": temperature is not None,
    }
    _check_options(target, ollama, ("ollama",))
    request = ExportRequest(
        model,
        target,  # type: ignore[arg-type]  # checked above
        output or _default_output(model, target, check),
        cast("Dtype", _one("--dtype", dtype, _DTYPES)),
        _size(max_shard_size),
        cast("GgufType", _one("--gguf-type", gguf_type, _GGUF_TYPES)),
        llama_cpp,
        keep_adapter,
        device,
        system,
        num_ctx,
        temperature,
        name,
        overwrite,
    )
    report = run_export(session, request, check)
    if as_json:
        session.result_json({**report.as_dict(), "output": str(check or request.output)})
    else:
        show_report(session, report, check or request.output, written=check is None)


def run_export(session: Session, request: ExportRequest, check: Path | None = None, *, quiet: bool = False) -> Report:
    """Export, saying what is going on."""
    from llamafarm.core.registry import load_registry
    from llamafarm.export.place import check_place
    from llamafarm.models.locate import locate

    registry = load_registry()
    located = locate(request.model)
    if check is None:
        check_place(request.output, located.folder, overwrite=request.overwrite)
    elif not check.is_dir():
        raise UsageError.of("LF-USAGE-021", f"there is no folder {check} to check", hint="give an export's folder")
    from llamafarm.export import _export

    def say(text: str) -> None:
        if not quiet:
            session.say(text)

    if check is not None:
        return _export.check(request, registry, check, say)
    return _export.export(request, registry, say)


def export_all(session: Session, loaded: Loaded, *, quiet: bool) -> list[str]:
    """What a strategy wants exported after training; returns the folders."""
    from llamafarm.export.request import ExportRequest

    wanted = loaded.strategy.export
    if wanted is None:
        return []
    model = loaded.tuner_config.output_dir
    llama_cpp = os.environ.get("LLAMA_CPP")
    folders = []
    for target in wanted.targets:
        ollama = target == "ollama"
        request = ExportRequest(
            model,
            target,
            Path(wanted.output_dir or Path(model) / "export") / target,
            wanted.dtype,
            wanted.max_shard_size,
            wanted.gguf_type,
            Path(llama_cpp) if llama_cpp else None,
            wanted.keep_adapter and target == "vllm",
            "cpu",
            wanted.system if ollama else None,
            wanted.num_ctx if ollama else None,
            wanted.temperature if ollama else None,
            wanted.name or loaded.strategy.name,
            overwrite=True,
        )
        report = run_export(session, request, quiet=quiet)
        if not quiet:
            show_report(session, report, request.output)
        folders.append(str(request.output))
    return folders


def show_report(session: Session, report: Report, output: Path, *, written: bool = True) -> None:
    """Write a report as text."""
    mark = typer.style("✓", fg="green")
    what = f"{report.model} → {report.target} ({report.dtype})"
    session.result(f"{mark} {what}{': ' + str(output) if written else ': ' + str(output) + ' is what was trained'}")
    session.result(f"  compared on {report.prompts}")
    for check in report.checks:
        session.result(f"  {mark} {check.name}: {check.measured}")
    for note in report.notes:
        session.result(f"  note: {note}")
    for command in report.commands if written else ():
        session.result(f"  next  {command}")


def _targets() -> tuple[str, ...]:
    from llamafarm.models.serving import TARGETS

    return TARGETS


def _model(context: typer.Context, argument: str | None, option: str | None, adapter: str | None) -> str:
    if adapter is not None and argument is None:
        _require_base(adapter, option)
        return adapter
    if (argument is None) == (option is None):
        what = "no model is named" if argument is None else "two models are named"
        hint = "give one: llamafarm export FOLDER"
        raise UsageError.of("LF-USAGE-006", what, where=context.command_path, hint=hint)
    return str(argument if option is None else option)


def _require_base(adapter: str, base: str | None) -> None:
    """Check that an adapter is put on the base that it was trained on: it cannot be put on another one."""
    from llamafarm.models.adapter_config import base_named_by
    from llamafarm.models.locate import locate

    located = locate(adapter)
    if not located.is_adapter or located.folder is None:
        message = f"--adapter-path: {adapter} is a whole model"
        raise UsageError.of("LF-USAGE-006", message, hint=f"llamafarm export {adapter}")
    own = base_named_by(located.folder)
    if base is not None and own is not None and locate(base).source != locate(own).source:
        message = f"{adapter} was trained on {own}, not on {base}"
        raise UsageError.of("LF-USAGE-006", message, hint=f"leave out the base: llamafarm export {adapter}")


def _one(option: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        hint = nearest(value, valid) or f"give {one_of(valid)}"
        raise UsageError.of("LF-USAGE-020", f"{option}: there is no {value!r}", hint=hint)
    return value


def _check_options(target: str, given: dict[str, bool], targets: tuple[str, ...]) -> None:
    """Refuse options that would have no effect."""
    for option in (option for option, on in given.items() if on and target not in targets):
        hint = f"leave it out, or use --to {' or --to '.join(targets)}"
        raise UsageError.of("LF-USAGE-020", f"{option} has no effect with --to {target}", hint=hint)


def _size(text: str) -> str:
    """A size as transformers takes it; a bare number means gigabytes."""
    text = text.strip()
    if not _SIZE.fullmatch(text) or not float(re.match(r"[\d.]+", text)[0]):  # type: ignore[index]  # it matched
        raise UsageError.of("LF-USAGE-020", f"--max-shard-size: {text!r} is no size", hint="write 2GB or 500MB")
    return text.replace(" ", "") if text[-1] in "bB" else f"{text}GB"


def _default_output(model: str, target: str, check: Path | None) -> Path:
    path = Path(model).expanduser()
    if not path.is_dir() and check is None:
        raise UsageError.of("LF-USAGE-006", "no output folder is named", hint="add --output FOLDER")
    return path / "export" / target
