"""The method `bos-scaling`: what the first token of each row adds to the model, made smaller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from llamafarm import __version__
from llamafarm.api import AdapterSpec, Config, Method, RunContext
from llamafarm.errors import ModelError, nearest
from llamafarm.models.side_file import read_side_file

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE = "bos_zero_config.json"
"""The name that the documented trainer gives it."""

DEFAULT_FACTOR = 0.1
_VERSION = 1
_RULE = "segment_start"
_SMALL = 0.01


class BosScalingConfig(Config):
    """How much of the first token's embedding is left."""

    aliases = MappingProxyType({"factor": "bos_scaling_factor"})

    use_bos_zero_training: bool = Field(True, description="false switches the method off where it is listed.")
    bos_scaling_factor: float = Field(
        DEFAULT_FACTOR,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="The embedding of the first token of a row is multiplied by it; 1 changes nothing, 0 removes it.",
    )
    bos_token: str | None = Field(None, description="The token that rows begin with; the tokenizer's BOS if absent.")
    bos_token_id: int | None = Field(None, ge=0, description="The same by its id.")

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.bos_token is not None and self.bos_token_id is not None:
            raise ValueError("bos_token and bos_token_id name the same thing: keep one")
        return self


class BosScaling(Method[BosScalingConfig]):
    """Every row begins with BOS, and the embedding of that token is multiplied by a factor, in training and after it.

    Only a row's own beginning is scaled, never the same token elsewhere: behind padding on the left, at the beginning
    of each document of a pack, and not on the steps of a generation that continue from a cache.
    """

    name = "bos-scaling"
    stacks = True
    loose_keys = frozenset({"use_bos_zero_training", "bos_scaling_factor"})
    excludes = MappingProxyType(
        {"virtual-tokens": "the vectors it learns stand before the row, so that no row begins with its BOS any more"}
    )

    def adapter(self) -> AdapterSpec:
        """Nothing is added to the weights."""
        return AdapterSpec("bos-scaling", self.config.model_dump(exclude={"type"}))

    def first_token(self, tokenizer: Any) -> int | None:
        """The configured token; else the tokenizer's BOS.

        Raises:
            ModelError: If the tokenizer has no BOS of its own, or does not know the configured token.
        """
        if not self.config.use_bos_zero_training:
            return None
        if self.config.bos_token is not None:
            return _id_of(self.config.bos_token, tokenizer)
        given = self.config.bos_token_id
        if given is not None:
            if given >= len(tokenizer):
                message = f"bos_token_id {given}: the tokenizer has {len(tokenizer)} tokens"
                raise ModelError.of("LF-MODEL-090", message, hint="give the id of one of them, or bos_token")
            return given
        return _own_bos(tokenizer)

    def apply(self, model: nn.Module, run: RunContext) -> nn.Module:
        """Scale from now on, and check it on the first batch that is trained on.

        Raises:
            ModelError: If it is not known which token, or the model does not look tokens up where it says.
        """
        if not self.config.use_bos_zero_training:
            run.emit("notice", message="bos-scaling is switched off: use_bos_zero_training is false")
            return model
        from llamafarm.models.first_token import first_token, set_first_token
        from llamafarm_methods._bos import Scaler, base_of, embedding_name, unbakeable

        token = first_token(model)
        if token is None:
            token = self.config.bos_token_id
        if token is None:
            token = _first_of(model.config)
        set_first_token(model, token)
        factor = self.config.bos_scaling_factor
        for warning in _warnings(factor):
            run.emit("warning", message=warning)
        if reason := unbakeable(model, token):
            message = (
                f"only llamafarm will run the result, because the BOS factor does not go into the weights: {reason}"
            )
            run.emit("notice", message=f"{message}. No merged, GGUF, Ollama or vLLM export")
        run.emit("notice", message=f"Found embedding layer: {embedding_name(model)}")
        Scaler.attach(base_of(model), token, factor, report=lambda message: run.emit("notice", message=message))
        run.emit("notice", message=f"BOS scaling hook registered on embedding layer: token {token} times {factor:g}")
        return model

    def finish(self, model: nn.Module, run: RunContext) -> None:
        """Take the hooks away."""
        from llamafarm_methods._bos import Scaler, base_of

        if Scaler.detach(base_of(model)) is not None:
            run.emit("notice", message="BOS scaling hook removed")

    def files(self, model: nn.Module) -> Mapping[str, str]:
        """The configuration in the documented file, with what is needed to behave the same."""
        from llamafarm_methods._bos import scaler_of

        scaler = scaler_of(model)
        if scaler is None:
            return {}
        content = {
            "version": _VERSION,
            "add_bos_token": True,
            "zero_bos_embedding": scaler.factor == 0.0,
            "bos_scaling_factor": scaler.factor,
            "bos_token_id": scaler.token,
            "position_rule": _RULE,
            "description": f"rows begin with token {scaler.token}; its embedding there is scaled by {scaler.factor:g}",
            "trainer_class": f"llamafarm {__version__} bos-scaling",
        }
        return {CONFIG_FILE: json.dumps(content, indent=2) + "\n"}

    def restore(self, model: nn.Module, folder: Path) -> nn.Module:
        """Scale as in training, by the file beside the weights.

        Raises:
            ModelError: If the file is missing, cannot be understood, or does not fit the model.
        """
        if not self.config.use_bos_zero_training:
            return model
        from llamafarm.models.first_token import set_first_token
        from llamafarm_methods._bos import Scaler, base_of, rows_of

        token, factor = _read(folder / CONFIG_FILE)
        if factor != self.config.bos_scaling_factor or token >= rows_of(model):
            given = f"factor {factor:g} for token {token}"
            has = f"factor {self.config.bos_scaling_factor:g} and {rows_of(model)} tokens"
            message = f"{CONFIG_FILE} says {given}, the model was trained with {has}"
            raise ModelError.of("LF-MODEL-094", message, where=str(folder), hint="take the file from the run")
        set_first_token(model, token)
        Scaler.attach(base_of(model), token, factor)
        return model

    def bake(self, model: nn.Module) -> nn.Module:
        """Multiply the token's row of the embedding instead, and take the hooks away.

        Raises:
            ModelError: If the row is needed unscaled: as the output's, or where the token ends a text.
        """
        if not self.config.use_bos_zero_training:
            return model
        from llamafarm_methods._bos import bake

        return bake(model)


def _id_of(token: str, tokenizer: Any) -> int:
    known: dict[str, int] = tokenizer.get_vocab()
    if token not in known:
        hint = nearest(token, map(str, tokenizer.all_special_tokens)) or "give bos_token_id"
        raise ModelError.of("LF-MODEL-090", f"bos_token {token!r}: the tokenizer does not have it", hint=hint)
    return known[token]


def _own_bos(tokenizer: Any) -> int:
    """The tokenizer's BOS, if it begins texts and does nothing else."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and bos != eos:
        return int(bos)
    other = tokenizer.eos_token if eos is not None else tokenizer.pad_token
    what = "has no BOS" if bos is None else f"has no BOS of its own: {other!r} ends texts too"
    message = f"bos-scaling: the tokenizer {what}"
    if eos is not None:
        message += (
            "; with a token that ends texts, only llamafarm could run the result: no merged, GGUF or Ollama export"
        )
    hint = "name the token that rows begin with: method {type: bos-scaling, bos_token: …}"
    if other is not None:
        hint += f"; bos_token: {other!r} goes on with that one"
    raise ModelError.of("LF-MODEL-221", message, hint=hint)


def _first_of(named: Any) -> int:
    """BOS, EOS or PAD of a configuration, the first that there is; 0 is an id like others."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(named, name, None)
        if isinstance(token, list):
            token = next(iter(token), None)
        if token is not None:
            return int(token)
    raise ModelError.of(
        "LF-MODEL-091",
        "the model's configuration names neither BOS nor EOS nor PAD",
        hint="set bos_token or bos_token_id",
    )


def _warnings(factor: float) -> list[str]:
    if factor == 0.0:
        message = (
            "BOS SCALING FACTOR 0: nothing is left of the first token; streams that are exactly zero pass no gradient, "
            "because that of their normalization is not finite"
        )
        return [message]
    if factor < _SMALL:
        return [f"bos_scaling_factor {factor:g} is below {_SMALL:g}: next to nothing is left of the first token"]
    return []


def _read(path: Path) -> tuple[int, float]:
    """Token and factor."""
    hint = "it says what was done to the first token, which the model cannot do without: take it from the run"
    return read_side_file(path, _VERSION, _understood, problem="LF-MODEL-092", hint=hint)


def _understood(content: Mapping[str, Any]) -> tuple[int, float]:
    if content["position_rule"] != _RULE:
        raise ValueError(f"the rule {content['position_rule']!r} is not known")
    token, factor = int(content["bos_token_id"]), float(content["bos_scaling_factor"])
    if not (token >= 0 and 0.0 <= factor <= 1.0):
        raise ValueError(f"token {token}, factor {factor:g}")
    return token, factor
