from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamafarm.api import DeviceSpec, Example, Message, PreparedData, ResumePoint, RowRef, RunPlan, TrainingResult
from llamafarm.testing.run_context import RecordingRun
from llamafarm_methods.hooks import llamafarm_methods
from llamafarm_tuners.pytorch.tuner import PytorchTuner

METHODS = {method.name: method for method in llamafarm_methods()}

sys.path.append(str(Path(__file__).parent))  # for forked, which not every test here needs


def conversation(index: int) -> Example:
    room = ("kitchen", "bedroom", "living room", "front door")[index % 4]
    state = ("on", "off", "locked please and set the alarm")[index // 4 % 3]
    messages = (
        Message("user", f"Turn the light in the {room} {state}."),
        Message("assistant", f"The {room} is {state}."),
    )
    return Example(RowRef("rows.jsonl", index + 1), messages)


@dataclass
class Fitted:
    """A training that ended, and what it left."""

    result: TrainingResult
    folder: Path
    run: RecordingRun
    model: Path

    def events(self, type_: str) -> list[Mapping[str, Any]]:
        return [event.fields for event in self.run.events if event.type == type_]

    @property
    def losses(self) -> list[float]:
        return [event["loss"] for event in self.events("log")]


@dataclass
class Fit:
    """Train a tiny model without going through a strategy."""

    models: Any
    root: Path
    device: DeviceSpec = field(default_factory=lambda: DeviceSpec("cpu", "a CPU"))
    count: int = 0
    last: RecordingRun | None = None
    given: dict[str, str] = field(default_factory=lambda: {"training.load_best_model_at_end": "strategy.yaml:1"})
    rows: Sequence[Example] = field(default_factory=lambda: [conversation(index) for index in range(24)])

    def __call__(
        self,
        method: str = "lora",
        options: Mapping[str, Any] | None = None,
        *,
        architecture: str = "llama",
        held_out: int = 0,
        evaluation: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
        rows: Sequence[Example] | None = None,
        folder: Path | None = None,
        resume: ResumePoint | None = None,
        run: type[RecordingRun] = RecordingRun,
        digest: str = "",
        **training: Any,
    ) -> Fitted:
        self.count += 1
        folder = folder or self.root / f"output-{self.count}"
        folder.mkdir(exist_ok=True)
        model = self.models(architecture)
        defaults = {"learning_rate": 1e-2, "batch_size": 4, "logging_steps": 1, "max_steps": 10, "save_strategy": "no"}
        tuner = PytorchTuner(
            PytorchTuner.Config.model_validate(
                {
                    "base_model": {"huggingface_id": str(model)} if base is None else base,
                    "training": defaults | training,
                    "evaluation": evaluation or {},
                    "output_dir": str(folder),
                }
            )
        )
        chosen = METHODS[method](METHODS[method].Config.model_validate(options or {}))
        plan = RunPlan("test", (chosen,), self.device, folder, (), dict(self.given), resume)
        learned = rows or self.rows
        counts = {"read": len(learned) + held_out, "trained": len(learned), "held_out": held_out}
        data = PreparedData(learned, [conversation(100 + index) for index in range(held_out)], counts, digest)
        context = run(folder)
        self.last = context
        return Fitted(tuner.fit(plan, data, context), folder, context, model)


@pytest.fixture
def fit(tiny_model_dir, tmp_path: Path) -> Fit:
    return Fit(tiny_model_dir, tmp_path)


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|eos|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def scratch() -> Callable[..., dict[str, Any]]:
    """A function: what is unusual of the architecture → a `base_model` from random weights, of one narrow layer."""

    def describe(*, chat: bool = True, **unusual: Any) -> dict[str, Any]:
        architecture = {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
        } | unusual
        talks = {"extra_tokens": ["<|user|>", "<|assistant|>"], "chat_template": CHAT} if chat else {}
        return {"from_scratch": {"architecture": architecture, "vocab_size": 300} | talks}

    return describe
