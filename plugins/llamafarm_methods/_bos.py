"""Scales the embedding of the first token of each segment, wherever that is looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from llamafarm.errors import ModelError
from llamafarm.models.inner import transformers_model

_ATTRIBUTE = "llamafarm_bos_scaler"


def base_of(model: Any) -> Any:
    """The module that looks tokens up and runs the layers: what every call goes through, however it is wrapped."""
    model = getattr(model, "module", model)  # DDP, FSDP
    return transformers_model(model).base_model


def scaler_of(model: Any) -> Scaler | None:
    """What scales in this model, if anything does."""
    return getattr(base_of(model), _ATTRIBUTE, None)


def embedding_name(model: nn.Module) -> str:
    """The path of the embedding, wrappers included."""
    wanted = base_of(model).get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def rows_of(model: nn.Module) -> int:
    """How many tokens the embedding has."""
    return int(base_of(model).get_input_embeddings().weight.shape[0])


class Scaler:
    """Multiplies the embedding of a token by a factor where it begins a segment.

    A hook before the base model's forward sees the mask, the positions and the cache, and works out which places begin
    a segment; a hook on the embedding's output, which PEFT's wrappers are part of, scales there. The embedding is asked
    for at every call: it may have been resized or wrapped since.

    Attributes:
        token: The token's id.
        factor: 0 to 1.
    """

    def __init__(self, base: Any, token: int, factor: float, report: Callable[[str], None] | None) -> None:
        self.token, self.factor = token, factor
        self._base, self._report = base, report
        self._embedding: nn.Module | None = None
        self._hook: Any = None
        self._starts: torch.Tensor | None = None
        self._looked_up = self._checked = False
        self._hits: torch.Tensor | int = 0
        self._handles = [
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after, always_call=True),
        ]
        if factor == 0.0:
            layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
            self._handles += [layer.register_forward_pre_hook(_stop_at_zero, with_kwargs=True) for layer in layers]

    @property
    def hits(self) -> int:
        """Places scaled so far."""
        return int(self._hits)

    @classmethod
    def attach(cls, base: Any, token: int, factor: float, report: Callable[[str], None] | None = None) -> Scaler:
        """Scale in a base model from now on, in place of what scaled there before."""
        cls.detach(base)
        scaler = cls(base, token, factor, report)
        object.__setattr__(base, _ATTRIBUTE, scaler)  # not a module, and no part of the state
        return scaler

    @staticmethod
    def detach(base: Any) -> Scaler | None:
        """Take the hooks of a base model away; returns what scaled there."""
        scaler: Scaler | None = getattr(base, _ATTRIBUTE, None)
        if scaler is not None:
            for handle in [*scaler._handles, *filter(None, [scaler._hook])]:  # noqa: SLF001  # its own class
                handle.remove()
            object.__delattr__(base, _ATTRIBUTE)
        return scaler

    def _before(self, base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError.of(
                "LF-MODEL-093",
                "bos-scaling: the model is called with embeddings instead of tokens, so that no token can be seen",
                hint="leave out bos-scaling, or the method that makes its own embeddings (prompt tuning)",
            )
        self._starts = segment_starts(ids, kwargs)
        self._looked_up = False
        embedding = base.get_input_embeddings()
        if embedding is not self._embedding:
            if self._hook is not None:
                self._hook.remove()
            self._embedding, self._hook = embedding, embedding.register_forward_hook(self._scale)

    def _scale(self, embedding: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        if self._starts is None:  # somebody looks a token up outside of the model
            return output
        places = self._starts & (args[0] == self.token)
        # out of place: the embedding's own output may be a leaf, or be kept for its gradient
        scaled = torch.where(places.unsqueeze(-1), output * self.factor, output)
        self._looked_up = True
        self._hits = self._hits + places.detach().sum()
        if self._report and self._base.training and not self._checked:
            self._check(places, output.detach(), scaled.detach())
        return scaled

    def _after(self, base: Any, args: tuple[Any, ...], output: Any) -> None:
        looked_up, self._starts = self._looked_up, None
        if not looked_up and output is not None:
            raise ModelError.of(
                "LF-MODEL-095", "bos-scaling: the model does not look its tokens up in its own input embedding"
            )

    def _check(self, places: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
        """Look once at what really happens, on the first batch that is trained on."""
        assert self._report
        self._checked = True
        assert self._starts is not None
        hits, segments = int(places.sum()), int(self._starts.sum())
        norms = [side[places].float().norm(dim=-1).mean().item() for side in (before, after)]
        rest = torch.equal(before[~places], after[~places])
        # bfloat16 rounds each product: 2^-8 relative
        if not hits or not rest or abs(norms[1] - self.factor * norms[0]) > 2**-7 * norms[0]:
            raise ModelError.of(
                "LF-MODEL-096",
                f"bos-scaling does not work on the first batch: {hits} of {segments} segments begin with token "
                f"{self.token}, its norm goes from {norms[0]:.4g} to {norms[1]:.4g}, the rest "
                f"{'stays' if rest else 'changes'}",
                hint="set bos_token or bos_token_id to the token that rows begin with",
            )
        self._report(
            f"first batch: {hits} of {segments} segments begin with token {self.token}; "
            f"the norm of its embedding goes from {norms[0]:.4g} to {norms[1]:.4g}"
        )


def segment_starts(ids: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    """Where a segment begins: the first token of a row that is no padding, and position 0 of every document of a pack.

    Args:
        ids: Token ids, (rows, length).
        given: The other arguments of the call: `attention_mask`, `position_ids`, `past_key_values`. What continues from
            a cache begins nothing.

    Returns:
        Booleans, (rows, length).
    """
    length = ids.shape[1]
    cache = given.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    columns = torch.arange(length, device=ids.device) + past
    starts = torch.zeros_like(ids, dtype=torch.bool)
    real = torch.ones_like(starts)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        own = mask.bool()
        if own.shape[1] >= past + length:  # else it is that of the new tokens alone: the row began before them
            starts = columns == own.int().argmax(dim=1, keepdim=True)
            real = own[:, past : past + length]
    elif positions is None:
        starts = (columns == 0).expand_as(ids)
    if positions is not None:
        starts = starts | ((positions[0] if positions.dim() == 3 else positions) == 0)
    return starts & real


def bake(model: Any) -> Any:
    """The model without hooks, the factor in the token's row of its embedding.

    Raises:
        ModelError: If the row is also the output's, is also read where the token ends a text, or is adapted.
    """
    base = base_of(model)
    scaler = scaler_of(model)
    if scaler is None:
        raise ModelError.of("LF-MODEL-097", "bos-scaling: nothing scales in this model", hint="restore it first")
    embedding = base.get_input_embeddings()
    if reason := unbakeable(model, scaler.token):
        raise _unbakeable(reason)
    if not isinstance(embedding, nn.Embedding):
        raise _unbakeable("the embedding has an adapter: merge it first")
    with torch.no_grad():
        embedding.weight[scaler.token] *= scaler.factor
    Scaler.detach(base)
    return model


def unbakeable(model: Any, token: int) -> str | None:
    """Why no weights can behave as the hooks do, whatever becomes of the adapters; None if they can."""
    embedding, head = base_of(model).get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        return "its row is the output's too (tied embeddings)"
    ends = {
        _ids(getattr(part, "eos_token_id", None)) for part in (model.config, getattr(model, "generation_config", None))
    }
    if token in frozenset().union(*ends):
        return "the token also ends texts, inside of which it is not scaled"
    return None


def _ids(value: Any) -> frozenset[int]:
    return frozenset(value if isinstance(value, list | tuple) else [] if value is None else [value])


def _unbakeable(reason: str) -> ModelError:
    return ModelError.of(
        "LF-MODEL-098",
        f"the BOS factor cannot be put into the weights: {reason}",
        hint="use the adapter with llamafarm, which puts the factor back when it is loaded",
    )


def _stop_at_zero(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass no gradient through a stream that is exactly zero.

    With a factor of 0, the first token's stream stays zero through all layers of a model without biases, and every
    normalization multiplies its gradient by 1/sqrt(eps), until it overflows. Weights that are applied to zeros have no
    gradient from there, so that nothing is lost. The test is on values, not on places, because checkpointing runs
    this again in the backward pass.
    """
    if args:
        return (_without_zeros(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _without_zeros(kwargs["hidden_states"])}


def _without_zeros(hidden: torch.Tensor) -> torch.Tensor:
    return torch.where((hidden == 0).all(dim=-1, keepdim=True), hidden.detach(), hidden)
