"""Answer prompts with a loaded model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchEncoding, GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from llamafarm.errors import ModelError
from llamafarm.models._finite import Finite
from llamafarm.models._turns import end_of_turn
from llamafarm.models.first_token import begun, first_token
from llamafarm.models.literal import literals_of
from llamafarm.models.positions import positions_of, require_positions, virtual_tokens
from llamafarm.models.templates import TooCostly, check_output, limited, too_costly

Chat = Sequence[dict[str, str]]
"""Messages as `{"role": …, "content": …}`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. A temperature of 0 takes the likeliest one.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: Above 0 draws at random; higher is more varied.
        top_p: Draw from the likeliest tokens that together have this probability.
        top_k: Draw from this many of the likeliest tokens; 0: from all.
        seed: Same seed, same answers; None: torch's current state.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Chat],
    sampling: Sampling = Sampling(),  # frozen
    *,
    batch_size: int = 16,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """Answer each prompt: raw text is continued, a chat gets the assistant's next turn.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        prompts: Texts or chats, in any mixture.
        sampling: How tokens are chosen.
        batch_size: Prompts answered at a time.
        stream: Called with each piece of text as it comes; needs a single prompt.

    Returns:
        What was generated after each prompt, special tokens removed; where the model's table of positions ends, no
        more than there is room for.

    Raises:
        ModelError: If a chat is given and the tokenizer has no chat template, or it refuses the chat; or if a prompt
            leaves no position for an answer.
        NumericError: If the model computes what is not finite.
    """
    assert stream is None or len(prompts) == 1, "only one prompt can be streamed"
    encoded = [begun(_encode(prompt, tokenizer), first_token(model)) for prompt in prompts]
    positions = positions_of(model)
    before = virtual_tokens(model)
    if positions.table:
        longest = max(map(len, encoded)) + before + 1  # one is for the answer
        require_positions(model, longest, "the prompt with the first token of its answer", "give a shorter one")
    config = _generation_config(sampling, _end_tokens(model, tokenizer, prompts), tokenizer)
    streamer = _Stream(tokenizer, stream) if stream else None
    # Prompts of similar length waste least; answers go back to their places.
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    answers, finite = [""] * len(encoded), LogitsProcessorList([Finite(model)])
    # PEFT would count the padding into the distance between a learned prompt and the row behind it.
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        batch_size = 1
    with warnings.catch_warnings(), torch.inference_mode(), torch.random.fork_rng(enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = _pad_left([encoded[index] for index in chosen], config.pad_token_id, model.device)
            if positions.table and positions.longest is not None:
                room = positions.longest - batch["input_ids"].shape[1] - before
                config.max_new_tokens = min(sampling.max_new_tokens, room)
            output = model.generate(**batch, generation_config=config, streamer=streamer, logits_processor=finite)
            for index, ids in zip(chosen, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                answers[index] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers


def _encode(prompt: str | Chat, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        return ids or [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    if not tokenizer.chat_template:
        raise ModelError.of(
            "LF-MODEL-030", "the tokenizer has no chat template", hint="give a raw prompt, or another base model"
        )
    literals = literals_of(tokenizer)
    try:
        with limited():
            text = tokenizer.apply_chat_template(literals.hidden(prompt), add_generation_prompt=True, tokenize=False)
    except TooCostly as error:
        raise too_costly("the tokenizer", f"{error} for one conversation") from None
    except Exception as error:  # templates raise whatever they like
        raise ModelError.of("LF-MODEL-031", f"the chat template refuses these messages: {error}") from error
    check_output(text, len(str(tokenizer.chat_template)) + len(str(prompt)), "the tokenizer")
    text, literal = literals.shown(text)  # what the messages bring is text, as in training
    return (
        literals.encode(text, literal)[0] if literal else list(tokenizer(text, add_special_tokens=False)["input_ids"])
    )


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Chat]) -> list[int]:
    """The model's own end tokens, the tokenizer's, and what its template puts after an answer."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = set(own if isinstance(own, list) else [own])
    ends.add(tokenizer.eos_token_id)
    if any(not isinstance(prompt, str) for prompt in prompts):
        ends.add(end_of_turn(tokenizer))
    return sorted(token for token in ends if token is not None)


def _generation_config(sampling: Sampling, ends: list[int], tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, eos_token_id=ends or None, pad_token_id=pad, use_cache=True, **choice
    )


def _pad_left(rows: Sequence[list[int]], pad: int, device: torch.device) -> BatchEncoding:
    """Batch rows of unequal length so that all end together; the mask hides the padding and sets the positions."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}).to(device)


class _Stream(TextStreamer):  # type: ignore[misc]  # transformers is not type-checked here
    """Hands text to a function as soon as it is sure."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # transformers' signature
        """Receive the next piece."""
        if text:
            self._write(text)
