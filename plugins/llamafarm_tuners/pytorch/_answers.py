"""Answer held-out conversations and compare whole answers with what they should be."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llamafarm.api import EvaluationConfig
from llamafarm.data.questions import Questions
from llamafarm.models._generate import Sampling, generate
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
    answers = generate(model, tokenizer, asked.prompts, sampling, batch_size=config.batch_size)
    model.train(was_training)
    right = [answer.strip() == wanted.strip() for answer, wanted in zip(answers, asked.expected, strict=True)]
    samples = [
        {"prompt": prompt if isinstance(prompt, str) else prompt[-1]["content"], "expected": wanted, "answer": answer}
        for prompt, wanted, answer in list(zip(asked.prompts, asked.expected, answers, strict=True))[:_SAMPLES]
    ]
    return sum(right) / len(right), samples
