"""`evaluate`: measure a trained model beside its base, on rows it has not seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm.cli.figures import number
from llamafarm.cli.files import refuse_existing, write_lines
from llamafarm.cli.hush import hushed
from llamafarm.cli.options import TrustRemoteCode, flags_from
from llamafarm.cli.problems import printable
from llamafarm.cli.session import Session, session_of
from llamafarm.cli.tables import show_table
from llamafarm.errors import ModelError, UsageError, nearest

if TYPE_CHECKING:
    from llamafarm.api import Example
    from llamafarm.core.load import Loaded
    from llamafarm.core.registry import Registry
    from llamafarm.evaluation.evaluate import Measured
    from llamafarm.evaluation.intervals import Figure

_PROMPTS = ("Tell me about the weather on other planets.", "Write a short story about a robot.", "What is a good meal?")
_DEVICES = ("cpu", "cuda", "mps")
_DTYPES = ("float32", "bfloat16", "float16")


def evaluate(
    context: typer.Context,
    argument: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Folder of a run, model or adapter, builtin:NAME, or hub id."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            "--model-name",
            "--model_name",
            "--model-path",
            "--model_path",
            help="The same; beside --adapter-path, the base model.",
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter-path", "--adapter_path", "--lora", help="Folder of an adapter.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", "-s", help="What it trained, or (with a model) how rows are read.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", "--dataset", "--dataset-file", help="Rows to measure on; default: the run's held-out rows."
        ),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="Model to compare with: a name, auto (the adapter's base) or none.")
    ] = "auto",
    all_checkpoints: Annotated[
        bool, typer.Option("--all-checkpoints", "--all_checkpoints", help="Measure every checkpoint of the run too.")
    ] = False,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Names, comma-separated; see docs/evaluation.md.")
    ] = None,
    extract: Annotated[
        str | None, typer.Option("--extract", help="Pattern of extracted_match; its first group counts.")
    ] = None,
    max_samples: Annotated[
        int | None, typer.Option("--max-samples", "--max_samples", min=1, help="Use the first N rows only.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch_size", min=1, help="Rows at a time.")] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "--max-tokens", min=1, help="Longest answer, in tokens.")
    ] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same answers.")] = 0,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Tokens between windows of raw text; default: half a window.")
    ] = None,
    generate_samples: Annotated[
        bool, typer.Option("--generate-samples", "--generate_samples", help="Also continue three fixed prompts.")
    ] = False,
    least: Annotated[
        list[str] | None, typer.Option("--min", metavar="METRIC=VALUE", help="Exit 12 if below; may be repeated.")
    ] = None,
    most: Annotated[
        list[str] | None, typer.Option("--max", metavar="METRIC=VALUE", help="Exit 12 if above; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda or mps.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16. Default on the CPU: as the base was in training."),
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting of the strategy: a.b=c.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", "--output-dir", "--output_dir", help="Write results and answers here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model on rows it has not seen, beside its base, with 95 % confidence intervals."""
    from llamafarm.core.load import load
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request
    from llamafarm.evaluation.evaluate import Wanted, measure
    from llamafarm.evaluation.models import models_to_measure, own_strategy
    from llamafarm.evaluation.report import ANSWERS, RESULTS, answer_lines, bounds, gate, report
    from llamafarm.evaluation.scorers import LIKELIHOOD, known

    session = session_of(context)
    limits = bounds(least or (), "--min"), bounds(most or (), "--max")
    chosen = known((metrics or "").replace(",", " ").split())
    _one_of("--device", device, _DEVICES)
    _one_of("--dtype", dtype, _DTYPES)
    registry = load_registry()
    name, baseline = _named(argument, model, adapter, baseline)
    source = strategy or (own_strategy(name) if name else None)
    flags = flags_from(context, {"trust_remote_code": "base_model.trust_remote_code"})
    loaded = load(Request(source, flags, tuple(sets or ())), registry)
    config = loaded.tuner_config
    names = models_to_measure(name or config.output_dir, baseline, every=all_checkpoints)
    if output is not None:
        refuse_existing(output / RESULTS, overwrite=overwrite)
    examples = _examples(session, loaded, registry, data, told=source is not None)[:max_samples]
    wanted = Wanted(
        _with_demanded(chosen, limits, LIKELIHOOD),
        extract,
        max_samples or config.evaluation.max_samples,
        batch_size,
        {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed},
        _PROMPTS if generate_samples else (),
        stride,
        device,
        dtype or _dtype(device or loaded.device_type, names[-1]),
    )
    measured: list[Measured] = []
    for name in names:
        session.say(f"measuring {name} on {len(examples):,} rows")
        with hushed():
            measured.append(measure(name, examples, config, wanted, registry, session.notice))
    settings = {
        "models": names,
        "dataset": data or _described(loaded),
        "rows": len(examples),
        "max_seq_length": config.training.max_seq_length,
        "metrics": list(measured[-1].figures),
        "extract": extract,
        **wanted.sampling,
    }
    results = report(measured, settings)
    if as_json:
        session.result_json(results)
    else:
        _show(session, measured)
    if output is not None:  # a disk that does not take them costs the files alone
        write_lines(output / RESULTS, [json.dumps(results, ensure_ascii=False, indent=2)], overwrite=overwrite)
        lines = [json.dumps(line, ensure_ascii=False) for line in answer_lines(measured)]
        write_lines(output / ANSWERS, lines, overwrite=overwrite)
        session.say(f"saved {output / RESULTS} and {ANSWERS}")
    gate(measured[-1], *limits)


def _named(argument: str | None, model: str | None, adapter: str | None, baseline: str) -> tuple[str | None, str]:
    """The model that is asked about, and what to compare it with.

    Raises:
        UsageError: If two are named.
        ModelError: If the adapter was made for another base.
    """
    from llamafarm.evaluation.models import base_of

    if argument is not None and model is not None:
        raise UsageError.of("LF-USAGE-004", f"{argument} and --model {model} are one option", hint="keep one")
    base = argument or model
    if adapter is None:
        return base, baseline
    own = base_of(adapter)
    if own is None:
        message = f"--adapter-path {adapter} is a whole model, not an adapter"
        raise ModelError.of("LF-MODEL-151", message, hint=f"give it by --model {adapter}")
    if base is not None and base != own:
        message = f"the adapter in {adapter} was made for {own}, not for {base}"
        raise ModelError.of("LF-MODEL-151", message, hint="leave --model out, or --baseline it to compare with")
    return adapter, baseline


def _examples(
    session: Session, loaded: Loaded, registry: Registry, data: str | None, *, told: bool
) -> Sequence[Example]:
    """The rows of `--data`, or those that the strategy holds out."""
    from llamafarm.core.plan import splitter_of
    from llamafarm.data.prepare import prepare

    dataset = loaded.tuner_config.dataset
    if data is not None:
        own = {"path": data, "eval_path": None, "generate": None, "sources": None}
        return prepare(dataset.model_copy(update=own), None, notice=session.notice).train
    if not told:
        hint = "add --data FILE, or --strategy NAME to take the rows that it holds out"
        raise UsageError.of("LF-USAGE-006", "no rows to measure on are named", hint=hint)
    held_out = prepare(dataset, splitter_of(loaded, registry), notice=session.notice).eval
    if not held_out:
        hint = "add --data FILE with rows that it was not trained on"
        raise UsageError.of("LF-USAGE-006", f"strategy {loaded.strategy.name!r} holds no rows out", hint=hint)
    return held_out


def _dtype(device: str, model: str) -> str | None:
    """On the CPU the base as in training, so that figures are those of the run; elsewhere what suits the device."""
    from llamafarm.core.trained import base_dtype_of

    return base_dtype_of(model) or "float32" if device == "cpu" else None


def _described(loaded: Loaded) -> str:
    dataset = loaded.tuner_config.dataset
    return f"held-out rows of {dataset.eval_path or dataset.path or loaded.strategy.name}"


def _one_of(flag: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        message = f"{flag} {value!r}: expected {', '.join(choices)}"
        raise UsageError.of("LF-USAGE-003", message, hint=nearest(value, choices))


def _with_demanded(metrics: list[str], limits: Sequence[Mapping[str, float]], usual: Sequence[str]) -> list[str]:
    """What is demanded is measured too, when it was not listed; nothing demanded and nothing listed: what suits."""
    demanded = [name for limit in limits for name in limit]
    return list(dict.fromkeys([*(metrics or usual), *demanded])) if metrics or demanded else []


def _show(session: Session, measured: Sequence[Measured]) -> None:
    from llamafarm.evaluation.report import better

    session.result("EVALUATION SUMMARY")
    final, first = measured[-1], measured[0]
    compared = final.minus(first) if len(measured) > 1 else {}
    header = ["metric", *(one.model for one in measured), *(["difference"] if len(measured) > 1 else [])]
    rows = []
    for metric in final.figures:
        row = [metric, *(_figure(one.figures[metric]) for one in measured)]
        if len(measured) > 1:
            difference = compared.get(metric)
            row.append(f"{_figure(difference)} {better(metric, difference)}" if difference else "-")
        rows.append(row)
    show_table(session, header, rows)
    for prompt, text in final.continuations.items():
        session.result(f"\n{prompt}\n{printable(text) if sys.stdout.isatty() else text}")


def _figure(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"
