"""The only part of LlamaFarm that a plugin imports (besides the public functions of `llamafarm.data` and `.models`)."""

from __future__ import annotations

from llamafarm.api.components import (
    Component,
    ContractError,
    DataSplitter,
    FineTuner,
    HardwareProfile,
    Method,
    RunPlan,
)
from llamafarm.api.config import (
    BaseModelConfig,
    Config,
    CurriculumConfig,
    DatasetConfig,
    EvaluationConfig,
    FineTunerConfig,
    GenerateDataConfig,
    NoConfig,
    TrainingConfig,
)
from llamafarm.api.hooks import hookimpl
from llamafarm.api.values import (
    AdapterSpec,
    Decision,
    DeviceSpec,
    Event,
    Example,
    Message,
    PreparedData,
    Probe,
    Row,
    RowRef,
    RunContext,
    Suggestion,
    TrainingResult,
)

__all__ = [
    "AdapterSpec",
    "BaseModelConfig",
    "Component",
    "Config",
    "ContractError",
    "CurriculumConfig",
    "DataSplitter",
    "DatasetConfig",
    "Decision",
    "DeviceSpec",
    "EvaluationConfig",
    "Event",
    "Example",
    "FineTuner",
    "FineTunerConfig",
    "GenerateDataConfig",
    "HardwareProfile",
    "Message",
    "Method",
    "NoConfig",
    "PreparedData",
    "Probe",
    "Row",
    "RowRef",
    "RunContext",
    "RunPlan",
    "Suggestion",
    "TrainingConfig",
    "TrainingResult",
    "hookimpl",
]
