"""An export from the trained model to a folder that has been read back and compared."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from llamafarm.core.registry import Registry
from llamafarm.core.trained import load_trained, methods_of
from llamafarm.errors import LlamaFarmError, Problem, error_for
from llamafarm.export import _merge, _probe, _reload
from llamafarm.export._compare import adapter_matters, equal_logits, same_tokens, tokenizer_checks
from llamafarm.export._formats import Format, format_for, format_of
from llamafarm.export.adapter import write_adapter
from llamafarm.export.beginning import beginning_check, beginning_with, require_nowhere_else
from llamafarm.export.card import card
from llamafarm.export.place import check_place, staged
from llamafarm.export.prompts import Prompts, encode, prompts_for
from llamafarm.export.report import REPORT_FILE, Check, Report
from llamafarm.export.request import ExportRequest
from llamafarm.export.targets import commands, notes, write_for_server
from llamafarm.models._tokenizer import quiet
from llamafarm.models.adapter_config import base_named_by, read_adapter_config
from llamafarm.models.first_token import begun, described_token, first_token
from llamafarm.models.locate import Located, locate
from llamafarm.models.serving import described, obstacles

Say = Callable[[str], None]


@dataclass(slots=True)
class _Reference:
    """What the trained model says, and what its base does.

    `first` is what every row begins with in training, if a method says so; `begins` says it in words.
    """

    prompts: Prompts
    first: int | None
    begins: str
    probe: _probe.Probe
    logits: Sequence[torch.Tensor]
    base: Sequence[torch.Tensor] | None


@dataclass(slots=True)
class _Work:
    request: ExportRequest
    registry: Registry
    located: Located
    say: Say
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def export(request: ExportRequest, registry: Registry, say: Say = lambda _: None) -> Report:
    """Write and check an export.

    Args:
        request: What, where to, and how.
        registry: Where the methods that made the model are found.
        say: Takes a sentence about what is going on.

    Raises:
        LlamaFarmError: `QualityError` if what was written is not what was trained; nothing is left then.
    """
    quiet()
    located = locate(request.model)
    check_place(request.output, located.folder, overwrite=request.overwrite)
    work = _Work(request, registry, located, say)
    _refuse(work)
    if request.to == "adapter" or (request.to == "vllm" and request.keep_adapter):
        return _export_adapter(work)
    return _export_merged(work)


def check(request: ExportRequest, registry: Registry, folder: Path, say: Say = lambda _: None) -> Report:
    """Compare a folder that was exported before with the model; writes nothing.

    Raises:
        LlamaFarmError: `QualityError` if it is not what was trained.
    """
    quiet()
    work = _Work(request, registry, locate(request.model), say)
    model, tokenizer, methods, reference = _reference(work)
    if (folder / "adapter_config.json").is_file():
        _check_adapter(work, folder, model, tokenizer, reference)
        dtype = "float32"
    else:
        format_ = format_of(folder, _dtype_in(folder))
        tokenizer = _served(work, tokenizer, reference)
        merged = _merged(work, model, methods, reference)
        expected = _rounded(merged, format_, reference)
        del model, merged
        _check_folder(work, folder, format_, tokenizer, reference, expected)
        dtype = format_.name
    return _report(work, reference, dtype)


def _refuse(work: _Work) -> None:
    """What the target cannot take."""
    request, folder = work.request, work.located.folder
    options = None
    if work.located.is_adapter:
        assert folder is not None
        options = read_adapter_config(folder)
    base = (options or {}).get("base_model_name_or_path") or request.model
    names = [method.name for method in methods_of(request.model, work.registry)]
    found = obstacles(
        described(base, options, names),
        request.to,
        keep_adapter=request.keep_adapter,
        converter=request.llama_cpp is not None,
    )
    if found:
        raise error_for([Problem(item.id, item.message, hint=item.hint) for item in found])


def _reference(work: _Work) -> tuple[Any, Any, Sequence[Any], _Reference]:
    """Load the trained model, and ask it."""
    folder = work.located.folder
    work.say("loading the trained model")
    loaded = load_trained(
        work.request.model, work.registry, device=work.request.device, dtype=torch.float32, unpacked=True
    )
    prompts = prompts_for(folder, work.registry)
    ids = [encode(example, loaded.tokenizer) for example in prompts.examples]
    limit, first = _longest(loaded.model), first_token(loaded.model)
    ids = [begun(prompt[-limit:], first) for prompt in ids]
    # a row that quotes the token has it in a place where weights cannot do as training did
    ids = [prompt for prompt in ids if first not in prompt[1:]] or ids
    probe = _probe.Probe(ids, _probe.answer(loaded.model, ids, first))
    logits = _probe.logits(loaded.model, probe)
    if first is not None:
        taken = sum(int((said.argmax(-1) == first).sum()) for said in logits)
        work.figures |= {"first_token_taken_inside": taken, "tokens_compared": sum(map(len, logits))}
    base = None
    if _merge.is_adapter(loaded.model):
        with _merge.without_adapter(loaded.model):
            base = _probe.logits(loaded.model, probe)
        work.checks.append(adapter_matters(_probe.gap(logits, base), "the trained model and its base"))
    begins = "" if first is None else described_token(loaded.tokenizer, first)
    reference = _Reference(prompts, first, begins, probe, logits, base)
    return loaded.model, loaded.tokenizer, loaded.methods, reference


def _longest(model: Any) -> int:
    """Tokens of a prompt that leave room for the answer."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 2048) - _probe.NEW_TOKENS - 2


def _merged(work: _Work, model: Any, methods: Sequence[Any], reference: _Reference) -> Any:
    work.say("merging")
    merged: Any = _merge.merge(model, methods)
    now = _probe.logits(merged, reference.probe)
    work.checks.append(equal_logits("the merged model and the trained one", _probe.gap(reference.logits, now)))
    if reference.base is not None:
        work.checks.append(adapter_matters(_probe.gap(now, reference.base), "the merged model and the base"))
    return merged


def _served(work: _Work, tokenizer: Any, reference: _Reference) -> Any:
    """The tokenizer that a server needs to begin rows as training did."""
    if reference.first is None:
        return tokenizer
    require_nowhere_else(tokenizer, reference.first)
    served = beginning_with(tokenizer, reference.first)
    work.checks.append(beginning_check(tokenizer, served, reference.first, reference.prompts.examples))
    return served


def _rounded(merged: Any, format_: Format, reference: _Reference) -> Sequence[torch.Tensor]:
    """What the model says with weights of the precision that is written, in float32 arithmetic."""
    format_.round_off(merged)
    said: Sequence[torch.Tensor] = _probe.logits(merged, reference.probe)
    return said


def _export_merged(work: _Work) -> Report:
    request = work.request
    model, tokenizer, methods, reference = _reference(work)
    tokenizer = _served(work, tokenizer, reference)
    merged = _merged(work, model, methods, reference)
    del model
    format_ = format_for(request, _dtype_of(work.located), merged.config.model_type)
    _report(work, reference, format_.name)  # refuse before anything is written
    with staged(request.output) as folder:
        work.say(f"writing {format_.name}")
        format_.write(merged, tokenizer, folder)
        expected = _rounded(merged, format_, reference)
        ends = _merge.end_tokens(merged, tokenizer)
        config = merged.config
        del merged
        gc.collect()
        _check_folder(work, folder, format_, tokenizer, reference, expected)
        report = _report(work, reference, format_.name)
        told = write_for_server(request, folder, format_.file, tokenizer, config, ends)
        report = replace(report, notes=(*report.notes, *told))
        _describe(folder, report)
    return report


def _check_folder(
    work: _Work, folder: Path, format_: Format, tokenizer: Any, reference: _Reference, expected: Sequence[torch.Tensor]
) -> None:
    """Load the folder afresh and compare."""
    work.checks += format_.tokenizer_checks(folder, tokenizer, reference.prompts.examples)
    if not format_.readable:
        return
    work.say("reading it back")
    try:
        found = _reload.reload_model(folder, device=work.request.device, gguf=format_.file)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        work.checks.append(Check("loading it with transformers", False, reason))
        return
    now = _probe.logits(found, reference.probe)
    drift = _probe.gap(reference.logits, now)
    work.checks.append(equal_logits("what is on disk and what was written", _probe.gap(expected, now)))
    if reference.base is not None:
        work.checks.append(adapter_matters(_probe.gap(now, reference.base), "what is on disk and the base"))
        effect = _probe.gap(reference.logits, reference.base).rms
        work.figures["rounding_of_effect"] = drift.rms / effect if effect else float("inf")
    work.figures |= {"largest_difference": drift.largest, "relative_difference": drift.relative}
    answers = _probe.answer(found, reference.probe.prompts, reference.first)
    rounded = format_.name not in ("float32", "f32")
    work.checks.append(same_tokens("greedy answers", reference.probe, answers, rounded=rounded))


def _export_adapter(work: _Work) -> Report:
    model, tokenizer, _, reference = _reference(work)
    _report(work, reference, "float32")
    with staged(work.request.output) as folder:
        work.say("writing the adapter")
        assert work.located.folder is not None
        write_adapter(work.located.folder, folder)
        tokenizer.save_pretrained(folder)
        _check_adapter(work, folder, model, tokenizer, reference)
        report = _report(work, reference, "float32")
        _describe(folder, report)
    return report


def _check_adapter(work: _Work, folder: Path, model: Any, tokenizer: Any, reference: _Reference) -> None:
    """Put the adapter on its base by peft alone, then what the methods do beyond it, and compare."""
    work.say("reading it back")
    found = _reload.reload_adapter(folder, model.unload())
    now = _probe.logits(found, reference.probe)
    work.checks.append(equal_logits("the adapter on disk and the trained one", _probe.gap(reference.logits, now)))
    answers = _probe.answer(found, reference.probe.prompts, reference.first)
    work.checks.append(same_tokens("greedy answers", reference.probe, answers, rounded=False))
    work.checks += tokenizer_checks(folder, tokenizer, reference.prompts.examples)


def _report(work: _Work, reference: _Reference, dtype: str) -> Report:
    """The report of what was checked so far.

    Raises:
        QualityError: If a check failed.
    """
    request, folder = work.request, work.located.folder
    base = work.located.public_name
    if work.located.is_adapter and folder:
        base = _public(base_named_by(folder) or "")
    report = Report(
        work.located.public_name,
        request.to,
        dtype,
        base,
        [method.name for method in methods_of(request.model, work.registry)],
        reference.prompts.source,
        tuple(work.checks),
        tuple(notes(request, work.located, work.figures, dtype, reference.begins)),
        tuple(commands(request, work.located, base)),
        dict(work.figures),
    )
    report.require()
    return report


def _public(base: str) -> str:
    try:
        return locate(base).public_name
    except LlamaFarmError:
        return Path(base).name


def _describe(folder: Path, report: Report) -> None:
    (folder / "README.md").write_text(card(report), encoding="utf-8")
    text = json.dumps(_finite(report.as_dict()), indent=2, ensure_ascii=False)
    (folder / REPORT_FILE).write_text(f"{text}\n", encoding="utf-8")


def _finite(value: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: figure if figure == figure else None for name, figure in value["figures"].items()}  # noqa: PLR0124
    return {**value, "figures": figures}


def _dtype_of(located: Located) -> str:
    """The precision of the base's files, as its configuration says it."""
    source = located.source
    if located.is_adapter and located.folder:
        source = locate(base_named_by(located.folder) or "").source
    return _dtype_in(source)


def _dtype_in(source: str | Path) -> str:
    if not isinstance(source, str) and not (source / "config.json").is_file():
        return "float32"
    dtype = getattr(AutoConfig.from_pretrained(str(source), trust_remote_code=False), "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype is not None else "float32"
