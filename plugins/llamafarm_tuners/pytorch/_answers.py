"""Answer held-out conversations and compare whole answers with what they should be."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llamafarm.api import EvaluationConfig
from llamafarm.data.questions import Questions
from llamafarm.models._generate import Sampling, generate
from llamafarm_tuners.pytorch._memory import free, is_out_of_memory
from llamafarm_tuners.pytorch._model import moved

_SAMPLES = 5


def exact_match(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Questions,
    config: EvaluationConfig,
    device: torch.device,
) -> tuple[float, list[dict[str, Any]]]:
    """Share of greedy answers equal to the expected ones (surrounding blanks aside), and a few samples."""
    was_training = model.training
    moved(model, device).eval()
    sampling = Sampling(max_new_tokens=config.max_new_tokens)
    answers = _answered(model, tokenizer, asked, sampling, config.batch_size)
    model.train(was_training)
    right = [answer.strip() == wanted.strip() for answer, wanted in zip(answers, asked.expected, strict=True)]
    samples = [
        {"prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"], "expected": wanted, "answer": answer}
        for prompt, wanted, answer in list(zip(asked.prompts, asked.expected, answers, strict=True))[:_SAMPLES]
    ]
    return sum(right) / len(right), samples


def _answered(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Questions, sampling: Sampling, batch_size: int
) -> list[str]:
    """Greedy answers, with fewer prompts at a time if the memory does not suffice: each is answered by itself."""
    while True:
        try:
            return generate(model, tokenizer, asked.prompts, sampling, batch_size=batch_size)
        except (RuntimeError, MemoryError) as error:
            if batch_size <= 1 or not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        batch_size //= 2
        free(next(model.parameters()).device)
