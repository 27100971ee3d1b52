"""Frozen values that cross the boundary between the host and plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A probed device.

    Attributes:
        type: torch's device type: `cuda`, `mps`, `cpu`, or a third party's.
        name: The product's name as the driver or kernel reports it.
        count: Devices of this type that are visible.
        memory_bytes: Memory of one device (for `cpu`: what the process may use); 0 when unknown.
        details: What the profile found besides (cores, compute capability, `bf16`, driver …); plain JSON values.
    """

    type: str
    name: str
    count: int = 1
    memory_bytes: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer of a hardware profile: a device, or the reason there is none."""

    device: DeviceSpec | None
    reason: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A weak default: `path` is relative to the fine-tuner's config, e.g. `training.bf16`."""

    path: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What a method adds to a model, declared before any model is loaded.

    Attributes:
        kind: `lora`, `full`, …: a fine-tuner lists the kinds it can run.
        options: The method's parameters in the field's names (`r`, `alpha`, `target_modules` …), for back ends that
            run in a process of their own.
        quantization: How the frozen base is loaded (`load_in_4bit`, `bnb_4bit_quant_type` …); empty: as it is.
        changes_base: True when the base's own weights are trained, so that a whole model is saved, not an adapter.
        bits: Widths of a quantized base that it can stand on; empty: only on a base that is as it is.
        virtual_tokens: Positions that it puts before each row (prompt learning).
        unmergeable: Why it cannot be merged into the base; empty when it can.
        refuses: Settings that it cannot be trained with, as dotted paths (`training.packing`) → the reason.
        grows: Its parameters change their shapes while they are trained.
        kept: Values that it keeps in training for each trained one, beside the gradient and the optimizer's state.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    changes_base: bool = False
    bits: frozenset[int] = frozenset({4, 8})
    virtual_tokens: int = 0
    unmergeable: str = ""
    refuses: Mapping[str, str] = field(default_factory=dict)
    grows: bool = False
    kept: int = 0


NO_EFFECT: Final = "no effect"
"""The value of a decision about a setting that changes nothing here."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A setting that was decided rather than given, with its reason; printed by `--dry-run`.

    One about a setting that somebody wrote down is printed by every run, and so is one whose value is `NO_EFFECT`.
    """

    subject: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where a row stands: `file:line` (line is 1-based; for generated rows the index)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks.
        content: What is said; may be empty when an assistant only calls tools.
        train: Overrides the default (assistant turns are trained, others not).
        tool_calls: What the assistant calls: `{"type": "function", "function": {"name": …, "arguments": {…}}}`.
        name: The tool that answers, where it is told.
        tool_call_id: The call that a tool answers, where it is told.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    train: bool | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The turn as chat templates expect it; what it does not have is absent."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            turn["tool_calls"] = [dict(call) for call in self.tool_calls]
        return turn | {
            key: value for key, value in (("name", self.name), ("tool_call_id", self.tool_call_id)) if value is not None
        }


@dataclass(frozen=True, slots=True)
class Example:
    """One training example in the one internal form: either `messages`, or raw `text`.

    Attributes:
        ref: Where its row stands.
        messages: The turns; for a preference or an unpaired row those of the prompt.
        text: Raw text.
        prompt: The text before the answer for a tokenizer without chat template; `None`: written from the messages.
        difficulty: What the column that a curriculum goes by says.
        tools: JSON schemas of the tools that the assistant may call.
        task: The name of its task, where a dataset has several.
        chosen: The preferred answer of a preference row, or the only one of an unpaired row.
        rejected: The other answer of a preference row.
        label: Whether the answer of an unpaired row is a good one.
    """

    ref: RowRef
    messages: tuple[Message, ...] = ()
    text: str | None = None
    prompt: str | None = None
    difficulty: float | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    task: str | None = None
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What a splitter sees of a row.

    Attributes:
        index: 0-based position in the dataset.
        digest: 16 bytes of BLAKE2b over the row's canonical JSON (sorted keys, no spaces): equal content, equal digest.
        fields: The parsed row.
    """

    index: int
    digest: bytes
    fields: Mapping[str, Any]


class Examples(Protocol):
    """A sequence of examples with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def __iter__(self) -> Iterator[Example]: ...


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Validated examples, split.

    Attributes:
        train: What is trained on.
        eval: What is held out; may be empty.
        counts: Row ledger: rows read, trained, held out, dropped by reason.
        digest: Hex digest over the content and order of both parts: the identity of the data in the manifest.
    """

    train: Sequence[Example]
    eval: Sequence[Example]
    counts: Mapping[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a fine-tuner returns.

    Attributes:
        metrics: Final figures in the field's names (`train_loss`, `eval_loss`, `train_tokens_per_second` …).
        model_dir: The folder that holds the trained adapter or model.
        best_step: The step of `checkpoint-best`, when there is one.
        trainable_parameters: Number of parameters that were trained.
        total_parameters: Number of all parameters, adapter included.
    """

    metrics: Mapping[str, float | int | str | None]
    model_dir: Path
    best_step: int | None = None
    trainable_parameters: int = 0
    total_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run: one line of `llamafarm/events.jsonl`.

    Attributes:
        type: `log`, `eval`, `checkpoint`, `notice`, `warning`, `phase` …
        fields: Plain JSON values.
    """

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where an interrupted run goes on.

    Attributes:
        checkpoint: A particular checkpoint of the run directory; None: the newest that is whole.
        allow_changes: Accept changes that make the result another than without interruption.
        changes: Such changes that were accepted already, in words.
    """

    checkpoint: Path | None = None
    allow_changes: bool = False
    changes: tuple[str, ...] = ()


class RunContext(Protocol):
    """What a fine-tuner may use of the run: where to write, and how to say what happens."""

    @property
    def run_id(self) -> str: ...

    @property
    def output_dir(self) -> Path: ...

    @property
    def seed(self) -> int: ...

    @property
    def stop_requested(self) -> bool:
        """Somebody asked to stop: a fine-tuner ends its step, writes a checkpoint, and raises `KeyboardInterrupt`."""
        ...

    def take_checkpoint_request(self) -> bool:
        """Whether somebody asked for a checkpoint since this was called last; training goes on after it."""
        ...

    def emit(self, type: str, /, **fields: Any) -> None:  # noqa: A002  # the event's own word
        """Record an event: appended to the event file, shown by the command line, sent to observers."""
        ...
