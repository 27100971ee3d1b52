"""Tokenizer and model of a run, loaded or made, with the methods applied."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llamafarm.api import BaseModelConfig, Example, RunContext, RunPlan, TrainingConfig
from llamafarm.errors import ModelError
from llamafarm.models._load import load_model, load_vocabulary
from llamafarm.models._scratch import new_model, train_tokenizer
from llamafarm.models._vocabulary import fit_vocabulary, learn_every_token
from llamafarm.models.inner import transformers_model
from llamafarm.models.special import Vocabulary, extended
from llamafarm.models.vocabulary import additions_of
from llamafarm_tuners.pytorch.config import PytorchConfig
from llamafarm_tuners.pytorch.kernels import attention, attention_asked, in_words, unusable_kernel
from llamafarm_tuners.pytorch.precision import autocast, base_format, quantization, trained_format


def seed_everything(seed: int) -> None:
    """Seed all generators that training draws from: weights, dropout, and what plugins may use."""
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy as np
    except ImportError:
        return
    np.random.seed(seed % 2**32)  # noqa: NPY002  # libraries below still draw from the global one


def vocabulary_for(base: BaseModelConfig, examples: Sequence[Example], run: RunContext) -> Vocabulary:
    """The base's tokenizer, or one trained on the examples, with the special tokens that are asked for."""
    if base.from_scratch is None:
        vocabulary = load_vocabulary(base)
    else:
        vocabulary = extended(train_tokenizer(_texts(examples), base.from_scratch), base)
    for notice in vocabulary.notices:
        run.emit("notice", message=notice)
    return vocabulary


def model_for(config: PytorchConfig, *, plan: RunPlan, vocabulary: Vocabulary, run: RunContext) -> PreTrainedModel:
    """The base model, in the precision that the run and its methods need, with a row for every token."""
    base = config.base_model
    dtype: torch.dtype = getattr(torch, base_format(config, plan))
    if base.from_scratch is not None:
        model = new_model(base.from_scratch, vocabulary.tokenizer).to(dtype)
    else:
        model = _loaded(config, plan, dtype, run)
        for notice in fit_vocabulary(model, vocabulary, base.resize_to_multiple_of):
            run.emit("notice", message=notice)
    learn_every_token(model)
    return model


def warn_of_unlearned_tokens(model: nn.Module, run: RunContext) -> None:
    """Say so when new tokens take part in training, and no method lets their rows learn."""
    additions = additions_of(model)
    if additions is None or not additions.learned:
        return
    embedding = transformers_model(model).get_input_embeddings()
    if not any(parameter.requires_grad for parameter in embedding.parameters()):
        tokens = ", ".join(additions.learned)
        message = f"the rows of the new tokens {tokens} are not trained by this method: all of them stay the mean row"
        run.emit("warning", message=message)


def _loaded(config: PytorchConfig, plan: RunPlan, dtype: torch.dtype, run: RunContext) -> PreTrainedModel:
    base = config.base_model
    specs = [method.adapter() for method in plan.methods]
    asked = next((spec.quantization for spec in specs if spec.quantization), {})
    arguments: dict[str, Any] = {"quantization": quantization(asked, base, plan.device), "device": _device(plan)}
    kernel = attention(config, plan)
    try:
        model = load_model(base, dtype=dtype, attention=kernel, **arguments)
    except ModelError:
        if kernel is None or "base_model.attn_implementation" in plan.given:
            raise
        model = load_model(base, dtype=dtype, **arguments)  # if it was not the kernel, this says what it was
        run.emit("notice", message=f"this architecture does not support {kernel} attention: its own choice is used")
    return model


def keep_trained_format(model: nn.Module, training: TrainingConfig) -> None:
    """Bring all weights that are trained into one format: fp32 unless the user asked otherwise.

    PEFT does so for its adapters, but not for the parts of a 16-bit base that are trained whole.
    """
    wanted: torch.dtype = getattr(torch, trained_format(training))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point() and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def say_precision(model: PreTrainedModel, config: PytorchConfig, plan: RunPlan, run: RunContext, why: str = "") -> None:
    """Say what the run computes with, as it is and not as it was asked for; and why the base has its format."""
    asked = attention_asked(config, plan)
    if refused := unusable_kernel(asked, config, plan):
        run.emit("notice", message=f"{asked} is not used: {refused.reason}; {refused.hint}")
    kernel = str(getattr(model.config, "_attn_implementation", None) or "the architecture's own")
    run.emit("notice", message=in_words(config, plan, kernel, str(model.dtype)))
    if why:
        run.emit("notice", message=f"base_model.torch_dtype: {why}")
    loaded, autocasting = str(model.dtype).removeprefix("torch."), autocast(config.training, plan)
    run.emit("precision", base=loaded, trained=trained_format(config.training), autocast=autocasting, reason=why)


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device; a quantized one was loaded where it belongs, and may refuse to move."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters; packed weights count as what they stand for."""
    sizes = [(parameter.requires_grad, _size(parameter)) for parameter in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else int(parameter.numel())


def _device(plan: RunPlan) -> str:
    return f"cuda:{torch.cuda.current_device()}" if plan.device.type == "cuda" else plan.device.type


def _texts(examples: Sequence[Example]) -> list[str]:
    return [text for e in examples for text in ([e.text] if e.text is not None else [m.content for m in e.messages])]
