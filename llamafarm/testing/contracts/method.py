"""What holds for every method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from llamafarm.api import BaseModelConfig, Method, TrainingConfig
from llamafarm.testing.contracts.component import ComponentContract
from llamafarm.testing.run_context import RecordingRun

if TYPE_CHECKING:
    from llamafarm.testing.plugin import RunStrategy

ARCHITECTURES = ("llama", "gpt_neox")


class MethodContract(ComponentContract):
    """Inherit and set `component`.

    Attributes:
        architectures: Tiny models (names of the `tiny_model_dir` fixture) that the method must work on.
        training: Settings of the short training run.
    """

    component: ClassVar[type[Method[Any]]]
    architectures: ClassVar[Sequence[str]] = ARCHITECTURES
    training: ClassVar[dict[str, Any]] = {"max_steps": 20, "batch_size": 8, "learning_rate": 5e-3}
    light_use = "adapter"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run the tests that take an architecture once for each."""
        if "architecture" in metafunc.fixturenames:
            metafunc.parametrize("architecture", self.architectures)

    def load(self, folder: Path) -> Any:
        """A base model, quantized if the method asks for it."""
        import torch

        from llamafarm.models._load import load_model

        asked = self.build().adapter().quantization
        quantization = {option: "float32" if value == "auto" else value for option, value in asked.items()}
        config = BaseModelConfig(huggingface_id=str(folder))
        return load_model(config, dtype=torch.float32, quantization=quantization)

    def apply(self, model: Any, output_dir: Path) -> Any:
        """The model with the method applied."""
        return self.build().apply(model, RecordingRun(output_dir))

    def test_declares_its_adapter(self) -> None:
        spec = self.build().adapter()
        assert spec.kind
        assert spec == self.build().adapter()
        json.dumps({"options": dict(spec.options), "quantization": dict(spec.quantization)})

    def test_training_defaults_are_valid(self) -> None:
        TrainingConfig.model_validate(dict(self.component.training_defaults))

    def test_trains_what_it_says(
        self, architecture: str, tiny_model_dir: Callable[[str], Path], tmp_path: Path
    ) -> None:
        model = self.load(tiny_model_dir(architecture))
        base = {id(parameter) for parameter in model.parameters()}
        before = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        applied = self.apply(model, tmp_path)
        trained = [parameter for parameter in applied.parameters() if parameter.requires_grad]
        if self.component.stacks:
            assert {id(parameter) for parameter in trained} == before, "a method that stacks changes what is trained"
            return
        assert trained, "nothing to train"
        if not self.build().adapter().changes_base:
            assert not base.intersection(map(id, trained)), "weights of the base are trained"

    def test_gradients_reach_what_is_trained(
        self, architecture: str, tiny_model_dir: Callable[[str], Path], tmp_path: Path
    ) -> None:
        import torch

        model = self.apply(self.load(tiny_model_dir(architecture)), tmp_path)
        tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
        loss = model(input_ids=tokens, labels=tokens).loss
        assert torch.isfinite(loss)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            pytest.skip("trains nothing by itself")
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} gets no gradient"
                assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"

    def test_learns(
        self,
        architecture: str,
        tiny_model_dir: Callable[[str], Path],
        tiny_dataset: Path,
        run_strategy: RunStrategy,
    ) -> None:
        method = {"type": self.component.name, **self.config}
        methods = [{"type": "lora"}, method] if self.component.stacks else method
        finished = run_strategy(
            {
                "type": "pytorch",
                "config": {
                    "base_model": str(tiny_model_dir(architecture)),
                    "dataset": str(tiny_dataset),
                    "method": methods,
                    "training": {"logging_steps": 1, "warmup_ratio": 0.0, **self.training},
                },
            }
        )
        losses = [event.fields["loss"] for event in finished.events if event.type == "log" and "loss" in event.fields]
        assert min(losses[len(losses) // 2 :]) < losses[0], "the loss did not fall"
