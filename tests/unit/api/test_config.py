from __future__ import annotations

import functools
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from llamafarm.api import BaseModelConfig, Config, DatasetConfig, EvaluationConfig, FineTunerConfig, TrainingConfig
from llamafarm.api.config import GenerateDataConfig, ScratchConfig

MODELS = [
    BaseModelConfig,
    DatasetConfig,
    EvaluationConfig,
    FineTunerConfig,
    GenerateDataConfig,
    ScratchConfig,
    TrainingConfig,
]


@pytest.mark.parametrize("model", MODELS)
def test_every_option_is_described_in_a_sentence(model: type[Config]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize("model", MODELS)
def test_aliases_lead_to_options_and_hide_none(model: type[Config]) -> None:
    for alias, target in model.aliases.items():
        assert alias not in model.model_fields
        steps = target.split(".")
        found = functools.reduce(
            lambda fields, step: fields[step].annotation.model_fields, steps[:-1], model.model_fields
        )
        assert steps[-1] in found, f"{alias} → {target}"


@pytest.mark.parametrize("model", MODELS)
def test_a_shorthand_names_an_option(model: type[Config]) -> None:
    assert model.shorthand == "" or model.shorthand in model.model_fields


@pytest.mark.parametrize("model", [model for model in MODELS if model not in {ScratchConfig, GenerateDataConfig}])
def test_defaults_are_valid(model: type[Config]) -> None:
    made = model()
    assert model.model_validate(made.model_dump()) == made


def test_unknown_options_are_errors() -> None:
    with pytest.raises(ValidationError, match="learning_rte"):
        TrainingConfig.model_validate({"learning_rte": 1})


def test_a_configuration_cannot_change() -> None:
    config = TrainingConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.batch_size = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "option", "value"),
    [
        (TrainingConfig, "batch_size", 0),
        (TrainingConfig, "learning_rate", -1e-4),
        (TrainingConfig, "learning_rate", float("nan")),
        (TrainingConfig, "learning_rate", float("inf")),
        (TrainingConfig, "num_epochs", 0),
        (TrainingConfig, "warmup_ratio", 1.5),
        (TrainingConfig, "max_seq_length", 0),
        (TrainingConfig, "optim", "adamw_troch"),
        (TrainingConfig, "stage", "dpo"),
        (TrainingConfig, "seed", -1),
        (DatasetConfig, "max_samples", 0),
        (BaseModelConfig, "torch_dtype", "int4"),
        (EvaluationConfig, "max_new_tokens", 0),
    ],
)
def test_values_outside_their_range_are_errors(model: type[Config], option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        model.model_validate({option: value})


def test_one_text_needs_no_list() -> None:
    assert TrainingConfig.model_validate({"report_to": "tensorboard"}).report_to == ("tensorboard",)
    assert TrainingConfig.model_validate({"report_to": ["tensorboard"]}).report_to == ("tensorboard",)
    with pytest.raises(ValidationError, match="report_to"):
        TrainingConfig.model_validate({"report_to": "wand"})


def test_a_zero_learning_rate_is_allowed() -> None:
    assert TrainingConfig(learning_rate=0).learning_rate == 0


@pytest.mark.parametrize(("model", "option"), [(BaseModelConfig, "token"), (TrainingConfig, "hub_token")])
def test_secrets_are_hidden(model: type[Config], option: str) -> None:
    config = model.model_validate({option: "hf_verysecret"})
    assert isinstance(getattr(config, option), SecretStr)
    assert "verysecret" not in f"{config!r} {config} {config.model_dump_json()}"
    with pytest.raises(ValidationError) as caught:
        model.model_validate({option: ["hf_verysecret"]})
    assert "verysecret" not in str(caught.value)
