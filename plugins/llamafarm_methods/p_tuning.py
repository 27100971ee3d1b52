"""The method `p-tuning`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm_methods.bridge import ROWS_ALONE, Bridge, PeftMethod

if TYPE_CHECKING:
    from torch import nn


def _layers_of_an_lstm(config: Any) -> str:
    if config.encoder_reparameterization_type == "MLP" and config.encoder_num_layers != 2:
        return "encoder_num_layers has no effect on an MLP; take encoder_reparameterization_type: LSTM"
    return ""


class PTuning(
    PeftMethod,
    bridge=Bridge(
        "p-tuning",
        "PromptEncoderConfig",
        {
            "num_virtual_tokens": 20,
            "encoder_reparameterization_type": "MLP",
            "encoder_hidden_size": None,
            "encoder_num_layers": 2,
        },
        {"encoder_dropout": 0.0},
        layers="none",
        bits=frozenset({4, 8}),
        virtual_tokens=True,
        identity=False,
        refuses=ROWS_ALONE,
        check=_layers_of_an_lstm,
    ),
):
    """Learns a network that makes the vectors before each row's tokens (https://arxiv.org/abs/2103.10385)."""

    def written(self, model: nn.Module, folder: Path) -> None:
        """Save the network too: PEFT saves what it makes, which answers but cannot be trained on."""
        from llamafarm_methods import _p_tuning

        _p_tuning.written(model, folder)

    def put_back(self, model: nn.Module, folder: Path) -> bool:
        """Put the network back."""
        from llamafarm_methods import _p_tuning

        _p_tuning.put_back(model, folder)
        return True
