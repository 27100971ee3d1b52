"""`train`, also spelt `finetune start`: parse, load, plan, run, and say what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from llamafarm.cli.export import export_all
from llamafarm.cli.options import BaseModel, Dataset, PrefixIds, Sets, SuffixIds, Template, TrustRemoteCode, flags_from
from llamafarm.cli.outcome import Story, say_plan, show_outcome, show_plan
from llamafarm.cli.progress import show_progress
from llamafarm.cli.session import session_of
from llamafarm.errors import LlamaFarmError, UsageError

if TYPE_CHECKING:
    from llamafarm.core.load import Loaded
    from llamafarm.core.plan import Planned
    from llamafarm.core.registry import Registry
    from llamafarm.core.request import Flag, Request

FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "model": "base_model.huggingface_id",
        "dataset": "dataset.path",
        "eval_dataset": "dataset.eval_path",
        "template": "template",
        "prefix_ids": "dataset.prefix_ids",
        "suffix_ids": "dataset.suffix_ids",
        "method": "method",
        "bos_zero": "use_bos_zero_training",
        "bos_factor": "bos_scaling_factor",
        "epochs": "training.num_epochs",
        "max_steps": "training.max_steps",
        "batch_size": "training.batch_size",
        "learning_rate": "training.learning_rate",
        "seed": "training.seed",
        "output": "output_dir",
        "overwrite": "overwrite_output_dir",
        "job_name": "name",
        "trust_remote_code": "base_model.trust_remote_code",
        "push_to_hub": "training.push_to_hub",
    }
)


def train(
    context: typer.Context,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", "-s", "--strategy-file", "--config", "-c", help="Name, FILE, or FILE:NAME."),
    ] = None,
    model: BaseModel = None,
    dataset: Dataset = None,
    eval_dataset: Annotated[Path | None, typer.Option("--eval-dataset", help="Held-out rows.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="lora, full, or another installed method.")] = None,
    bos_zero: Annotated[
        bool | None,
        typer.Option("--use-bos-zero-training", "--use_bos_zero_training", help="Stack bos-scaling on the method."),
    ] = None,
    bos_factor: Annotated[
        float | None, typer.Option("--bos-scaling-factor", "--bos_scaling_factor", help="The same, with this factor.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", "--num-epochs", help="Passes over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Rows per device and step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same losses.")] = None,
    template: Template = None,
    prefix_ids: PrefixIds = None,
    suffix_ids: SuffixIds = None,
    sets: Sets = None,
    trust_remote_code: TrustRemoteCode = False,
    push_to_hub: Annotated[
        bool, typer.Option("--push-to-hub", help="Upload the result, as the strategy says.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", "--output-dir", help="Where the run writes; ./output by default.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--overwrite-output-dir", help="Replace an earlier run there.")
    ] = False,
    export_to: Annotated[
        list[str] | None, typer.Option("--export", help="Export after training: merged, adapter, gguf, ollama, vllm.")
    ] = None,
    export_ollama: Annotated[bool, typer.Option("--export-ollama", help="The same as --export ollama.")] = False,
    export_gguf: Annotated[bool, typer.Option("--export-gguf", help="The same as --export gguf.")] = False,
    job_name: Annotated[str | None, typer.Option("--job-name", help="Name of the run.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN|last", help="Go on with a run: its folder or a checkpoint.")
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with settings that make the end another.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done and why; write nothing.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show every decision before training.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only warnings, errors and where the result is.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train what a strategy describes. Options win over the strategy's file, and --set over both.

    Without a strategy, --model and --dataset make one: LoRA with the defaults.
    """
    from llamafarm.api.launch import is_follower
    from llamafarm.core.estimate import quietly
    from llamafarm.core.fixes import fixes_told
    from llamafarm.core.follow import follow
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request
    from llamafarm.core.run import train as run_training

    session = session_of(context)
    registry = load_registry()
    if strategy is None and resume is None and (model is None or dataset is None):
        raise _no_strategy(registry, context)
    flags = (*flags_from(context, FLAGS), *_export_flags(export_to, ollama=export_ollama, gguf=export_gguf))
    request = Request(strategy, flags, tuple(sets or ()))
    loaded, planned = prepared(request, registry, resume, allow_changes=allow_changes)
    if is_follower():
        if not dry_run:
            follow(loaded, planned)
        return
    if dry_run:
        for notice in loaded.notices:
            session.notice(notice)
        show_plan(session, planned, quietly(loaded.tuner_config, planned), as_json=as_json)
        return
    if verbose:
        say_plan(session, planned)
    with show_progress(session, quiet=quiet) as listener:
        story = Story(listener)
        with fixes_told(request, registry) if resume is None else nullcontext():
            outcome = run_training(loaded, planned, registry, story)
    exports = export_all(session, loaded, quiet=quiet or as_json)
    show_outcome(session, outcome, story, exports, quiet=quiet, as_json=as_json)


def _export_flags(targets: list[str] | None, *, ollama: bool, gguf: bool) -> tuple[Flag, ...]:
    """The targets that flags name, which take the place of the strategy's."""
    from llamafarm.core.request import Flag

    named = {"ollama": "--export-ollama" if ollama else "", "gguf": "--export-gguf" if gguf else ""}
    spelt = dict.fromkeys(targets or (), "--export") | {name: flag for name, flag in named.items() if flag}
    return (Flag("export.to", list(spelt), " ".join(dict.fromkeys(spelt.values()))),) if spelt else ()


def resume(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN|last", help="The run's folder, or one of its checkpoints.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: a.b=c; may be repeated.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume with settings that make the end another.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors and the result's place.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with a run that was interrupted, as `train --resume` does."""
    from llamafarm.api.launch import is_follower
    from llamafarm.core.follow import follow
    from llamafarm.core.registry import load_registry
    from llamafarm.core.request import Request
    from llamafarm.core.run import train as run_training

    session, registry = session_of(context), load_registry()
    loaded, planned = prepared(Request(None, sets=tuple(sets or ())), registry, run, allow_changes=allow_changes)
    if is_follower():
        follow(loaded, planned)
        return
    with show_progress(session, quiet=quiet) as listener:
        story = Story(listener)
        outcome = run_training(loaded, planned, registry, story)
    show_outcome(session, outcome, story, quiet=quiet, as_json=as_json)


def prepared(
    request: Request, registry: Registry, resume: str | None, *, allow_changes: bool
) -> tuple[Loaded, Planned]:
    """Load and plan what is asked for: a new run, or one that goes on.

    Raises:
        LlamaFarmError: If it cannot be done.
    """
    from llamafarm.core.load import load
    from llamafarm.core.plan import make_plan
    from llamafarm.core.request import Flag
    from llamafarm.core.resume import asked_for, checked, find_run

    found = find_run(resume, allow_changes=allow_changes) if resume is not None else None
    if found is not None:
        there = Flag("output_dir", str(found.folder), "--resume")
        request = replace(request, strategy=request.strategy or found.strategy, flags=(*request.flags, there))
    loaded = load(request, registry)
    found = found or asked_for(loaded, allow_changes=allow_changes)
    point = checked(found, loaded, registry).point if found else None
    return loaded, make_plan(loaded, registry, point)


def _no_strategy(registry: Registry, context: typer.Context) -> LlamaFarmError:
    from llamafarm.core.resources import list_strategies

    names = ", ".join(list_strategies(registry)) or "none"
    hint = f"give --strategy NAME or FILE (known: {names}), or --model and --dataset"
    return UsageError.of("LF-USAGE-006", "no strategy is named", where=context.command_path, hint=hint)
