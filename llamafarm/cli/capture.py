"""`capture`: every matrix of a model's layers for one row, with figures, and what the first token draws to itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamafarm.cli.hush import hushed
from llamafarm.cli.session import Session, session_of
from llamafarm.errors import DataError, DiskError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLOT = "attention_sink.png"


def capture(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", "--model-id", help="Folder of a model or adapter, builtin:NAME, or hub id."),
    ] = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Folder to write to.")] = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=2, help="Longest row, in tokens; by default 1024, or the model's longest."),
    ] = None,
    data_seed: Annotated[int, typer.Option("--data-seed", min=0, help="Seed of the row, if no text is given.")] = 42,
    text: Annotated[str | None, typer.Option("--text", help="The row as text, instead of tokens by chance.")] = None,
    text_file: Annotated[Path | None, typer.Option("--text-file", help="The same from a file.")] = None,
    device: Annotated[str, typer.Option("--device", help="torch's name of a device.")] = "cpu",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Precision of the weights.")
    ] = "float32",
    stats_only: Annotated[bool, typer.Option("--stats-only", help="Write figures, no matrices.")] = False,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="Folder of another capture of the same row, e.g. the base's.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help=f"Draw {PLOT}: attention to the first token.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder with an earlier capture.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write the true tensors of one forward pass: rotated, masked, repeated for grouped heads, as the model has them.

    A model trained with bos-scaling is captured with its factor, and its row begins as in training.
    """
    session = session_of(context)
    if model is None or output_dir is None:
        missing = "--model" if model is None else "--output-dir"
        raise UsageError.of("LF-USAGE-006", f"{missing} is not given", where=context.command_path)
    if text is not None and text_file is not None:
        raise UsageError.of("LF-USAGE-004", "--text and --text-file exclude each other", hint="keep one")
    given = _text(text, text_file)
    other = _other(compare)
    _prepare(output_dir, overwrite=overwrite)
    options = {"length": seq_len, "seed": data_seed, "text": given}
    with hushed():
        summary = _run(model, output_dir, options, device=device, dtype=dtype, tensors=not stats_only, other=other)
    if plot:
        _plot(output_dir / PLOT, [*([other] if other else []), summary])
    if as_json:
        session.result_json(summary)
    else:
        _show(session, summary, other, output_dir)


def _run(
    name: str,
    folder: Path,
    options: Mapping[str, Any],
    *,
    device: str,
    dtype: str,
    tensors: bool,
    other: Mapping[str, Any] | None,
) -> dict[str, Any]:
    import torch

    from llamafarm.capture._capture import capture, input_row, row_digest
    from llamafarm.core.registry import load_registry
    from llamafarm.core.trained import load_trained

    # adapters are merged, which packed weights would round again
    loaded, tokenizer, _ = load_trained(
        name, load_registry(), device=device, dtype=getattr(torch, dtype), unpacked=True
    )
    ids = input_row(loaded, tokenizer, **options)
    if other is not None and other.get("input_sha256") != row_digest(ids):
        hint = "capture both with the same --seq-len, --data-seed and text, and models with the same tokenizer"
        raise DataError.of("LF-DATA-224", f"the capture of {other.get('label')} ran another row", hint=hint)
    return capture(loaded, tokenizer, ids, folder, tensors=tensors, about={"label": name, **options})


def _plot(path: Path, summaries: Sequence[Mapping[str, Any]]) -> None:
    from llamafarm.core._plot import draw_lines

    lines: dict[str, list[tuple[float, float]]] = {}
    for summary in summaries:
        label = str(summary["label"])
        lines[f"{label} (again)" if label in lines else label] = list(enumerate(summary["attention_sink_mass"]))
    draw_lines(path, lines, title="Attention sink", x="layer", y="attention to the first token", limits=(0.0, 1.0))


def _text(text: str | None, file: Path | None) -> str | None:
    if file is None:
        return text
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError.of("LF-DATA-222", f"cannot read {file}: {error}") from None


def _other(folder: Path | None) -> dict[str, Any] | None:
    """The summary of the capture to compare with."""
    if folder is None:
        return None
    path = folder / "capture_summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary["attention_sink_mass"], list):
            raise TypeError  # noqa: TRY301  # one way to say it
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError.of("LF-DATA-223", f"{folder} holds no capture", hint="capture the base there first") from None
    return summary


def _prepare(folder: Path, *, overwrite: bool) -> None:
    try:
        if folder.exists() and any(folder.iterdir()):
            if not (folder / "capture_summary.json").is_file():
                raise UsageError.of("LF-USAGE-005", f"{folder} is not empty, and no capture", hint="name another")
            if not overwrite:
                raise UsageError.of("LF-USAGE-005", f"{folder} exists already", hint="name another, or --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError.of("LF-DISK-001", f"cannot write {folder}: {error.strerror or error}") from error


def _show(session: Session, summary: Mapping[str, Any], other: Mapping[str, Any] | None, folder: Path) -> None:
    first = summary["first_token"]
    session.result(f"{summary['sequence_length']} tokens, the first is {first['id']} {first['text']!r}")
    theirs = other["attention_sink_mass"] if other else []
    session.result("attention to the first token:" + (f"  here  {other['label']}" if other else ""))
    for index, mass in enumerate(summary["attention_sink_mass"]):
        compared = f"  {theirs[index]:.3f}" if index < len(theirs) else ""
        session.result(f"  layer {index:2d}  {mass:.3f}{compared}")
    session.result(f"{len(summary['captured_matrices'])} matrices in {folder}")
