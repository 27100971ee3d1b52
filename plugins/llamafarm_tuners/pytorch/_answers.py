"""Answer held-out conversations and compare whole answers with what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from llamafarm.api import EvaluationConfig, Example
from llamafarm.data.plain import plain_prompt
from llamafarm.models._generate import Chat, Sampling, generate
from llamafarm_tuners.pytorch._model import moved

_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Questions:
    """Conversations without their last answer, in the form that training gave them, and that answer."""

    prompts: list[str | Chat]
    expected: list[str]


def questions(examples: Sequence[Example], limit: int, tokenizer: PreTrainedTokenizerBase) -> Questions:
    """Take up to `limit` conversations that end with the assistant, of those without tools."""
    chosen = [item for item in examples if _answered(item)][:limit]
    prompts = [_prompt(example, tokenizer) for example in chosen]
    return Questions(prompts, [example.messages[-1].content for example in chosen])


def _answered(example: Example) -> bool:
    turns = example.messages
    return bool(turns) and turns[-1].role == "assistant" and not example.tools and not any(t.tool_calls for t in turns)


def _prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> str | Chat:
    if tokenizer.chat_template:
        return [{"role": message.role, "content": message.content} for message in example.messages[:-1]]
    return plain_prompt(example.messages[:-1], example.prompt, end=tokenizer.eos_token)


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
