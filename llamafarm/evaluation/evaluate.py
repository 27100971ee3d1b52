"""Measure models on the same rows: likelihood of the expected text, and answers that are generated and scored."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamafarm.api import Example, FineTunerConfig
from llamafarm.core.plan import methods_of
from llamafarm.core.registry import Registry
from llamafarm.core.trained import load_trained
from llamafarm.data.explicit import explicit_mask
from llamafarm.data.fit import TokenizedRow
from llamafarm.data.questions import Questions, questions
from llamafarm.data.tokens import tokenize
from llamafarm.errors import DataError
from llamafarm.evaluation.intervals import Figure, Sample
from llamafarm.evaluation.scorers import ANSWERS, CORPUS, LIKELIHOOD, corpus, scorer
from llamafarm.evaluation.windows import windows
from llamafarm.models.first_token import asked_first_token, first_token

Say = Callable[[str], None]
_UNLIMITED = 2**62


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is measured, and how.

    Attributes:
        metrics: Names of `scorers.METRICS`; empty: what suits the rows.
        extract: Regular expression of `extracted_match`.
        max_answers: The most conversations that are answered.
        batch_size: Rows at a time.
        sampling: Arguments of `models._generate.Sampling`.
        prompts: Further prompts that are continued, to be read by a person.
        stride: Tokens between windows of raw text; None: half of max_seq_length.
        device: torch's device type; None: what training would use.
        dtype: Name of a torch dtype; None: what suits the device.
    """

    metrics: Sequence[str] = ()
    extract: str | None = None
    max_answers: int = 200
    batch_size: int = 8
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    stride: int | None = None
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer with its scores."""

    where: str
    prompt: str
    expected: str
    answer: str
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of one model.

    Attributes:
        model: As it was named.
        figures: Metric → value with its interval.
        samples: Metric → what each row adds to it, for comparisons row by row; not for corpus metrics.
        tokens: Targets whose likelihood was measured.
        answers: What was generated.
        continuations: Prompt → what the model made of it.
        rows: Identity of what was measured: equal for models that saw the same tokens.
    """

    model: str
    figures: Mapping[str, Figure]
    samples: Mapping[str, Sample]
    tokens: int
    answers: Sequence[Answer]
    continuations: Mapping[str, str]
    rows: int

    def minus(self, other: Measured) -> dict[str, Figure]:
        """Each metric's difference to another model's; likelihoods only where both saw the same tokens."""
        same = self.rows == other.rows
        return {
            name: sample.minus(other.samples[name])
            for name, sample in self.samples.items()
            if name in other.samples and (same or name not in LIKELIHOOD)
        }


def measure(
    model: str, examples: Sequence[Example], config: FineTunerConfig, wanted: Wanted, registry: Registry, say: Say
) -> Measured:
    """Load a model and measure it.

    Args:
        model: A folder, a hub id or `builtin:NAME`.
        examples: Rows it was not trained on.
        config: How rows become tokens: lengths, masks, stage; and whether models may run code of their own.
        wanted: What is measured.
        registry: Where the methods that made the model are found.
        say: Takes a sentence about anything that is left out.

    Raises:
        ModelError: If the model cannot be loaded.
        DataError: If the rows cannot be used for what is asked.
        NumericError: If the model computes what is not finite.
    """
    import torch

    dtype = getattr(torch, wanted.dtype) if wanted.dtype else None
    trust = config.base_model.trust_remote_code
    loaded, tokenizer, _ = load_trained(model, registry, device=wanted.device, dtype=dtype, trust_remote_code=trust)
    asked = questions(examples, wanted.max_answers, tokenizer)
    metrics = wanted.metrics or (*LIKELIHOOD, *(("exact_match",) if asked.prompts else ()))
    samples: dict[str, Sample] = {}
    rows: list[TokenizedRow] = []
    if any(name in LIKELIHOOD for name in metrics):
        # the base gets the rows that its tuned model was trained on, so that both see the same tokens
        first = first_token(loaded)
        if first is None:
            first = asked_first_token(methods_of(config, registry), tokenizer)
        rows = _rows(examples, tokenizer, config, wanted.stride, first)
        samples |= _likelihood(loaded, rows, wanted.batch_size)
    figures = {name: samples[name].figure() for name in metrics if name in samples}
    scored, texts = _answers(loaded, tokenizer, asked, metrics, wanted, say)
    for name in metrics:
        if name in ANSWERS:
            samples[name] = Sample([one.scores[name] for one in scored], [1.0] * len(scored))
            figures[name] = samples[name].figure()
        elif name in CORPUS:
            figures[name] = corpus(name, texts, asked.expected)
    continuations = _continuations(loaded, tokenizer, wanted)
    tokens = int(sum(samples["loss"].weights)) if "loss" in samples else 0
    identity = hash(tuple(tuple(row.input_ids) for row in rows))
    kept = {name: sample for name, sample in samples.items() if name in metrics}
    del loaded
    gc.collect()  # models hold reference cycles, and the next one needs the room
    return Measured(model, {n: figures[n] for n in metrics}, kept, tokens, scored, continuations, identity)


def _rows(
    examples: Sequence[Example], tokenizer: Any, config: FineTunerConfig, stride: int | None, first: int | None
) -> list[TokenizedRow]:
    """Conversations labelled as in training; raw text in windows that lose no token."""
    length = config.training.max_seq_length
    texts = [example for example in examples if example.text is not None]
    rows: list[TokenizedRow] = []
    if chats := [example for example in examples if example.text is None]:
        rows += tokenize(
            chats,
            tokenizer,
            stage="sft",
            max_seq_length=length,
            train_on_inputs=config.dataset.train_on_inputs,
            explicit=explicit_mask(config.dataset, tokenizer),
            first_token=first,
            split_special_tokens=config.dataset.split_special_tokens,
        ).rows
    if texts:
        options: dict[str, Any] = {"stage": "pt", "max_seq_length": _UNLIMITED, "train_on_inputs": True}
        options["split_special_tokens"] = config.dataset.split_special_tokens
        step = min(stride or length // 2, length - 1 - (first is not None))
        for row in tokenize(texts, tokenizer, **options, first_token=first).rows:
            rows += windows(row.input_ids, length, step, example=row.example, first=first)
    return rows


def _likelihood(model: Any, rows: Sequence[TokenizedRow], batch_size: int) -> dict[str, Sample]:
    from llamafarm.evaluation._likelihood import likelihoods
    from llamafarm.models._finite import not_finite

    found = likelihoods(model, rows, batch_size=batch_size)
    targets = [float(one.targets) for one in found]
    losses = [one.loss for one in found]
    if not all(map(math.isfinite, losses)):
        raise not_finite(model, f"the loss of {sum(not math.isfinite(one) for one in losses)} rows is not finite")
    return {
        "loss": Sample(losses, targets),
        "perplexity": Sample(losses, targets, exponential=True),
        "token_accuracy": Sample([float(one.right) for one in found], targets),
    }


def _answers(
    model: Any, tokenizer: Any, asked: Questions, metrics: Sequence[str], wanted: Wanted, say: Say
) -> tuple[list[Answer], list[str]]:
    from llamafarm.models._generate import Sampling, generate

    if not any(name in (*ANSWERS, *CORPUS) for name in metrics):
        return [], []
    if not asked.prompts:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in asked.left_out.items())
        message = f"no conversation to answer ({reasons})"
        hint = f"measure {', '.join(LIKELIHOOD)} on them: --metrics {','.join(LIKELIHOOD)}"
        raise DataError.of("LF-DATA-230", message, hint=hint)
    if asked.left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in asked.left_out.items())
        say(f"{len(asked.prompts):,} conversations are answered; not: {reasons}")
    scorers = {name: scorer(name, wanted.extract) for name in metrics if name in ANSWERS}
    texts = generate(model, tokenizer, asked.prompts, Sampling(**wanted.sampling), batch_size=wanted.batch_size)
    answers = [
        Answer(
            where,
            prompt if isinstance(prompt, str) else prompt[-1]["content"],
            expected,
            text,
            {name: score(text, expected) for name, score in scorers.items()},
        )
        for where, prompt, expected, text in zip(asked.refs, asked.prompts, asked.expected, texts, strict=True)
    ]
    return answers, texts


def _continuations(model: Any, tokenizer: Any, wanted: Wanted) -> dict[str, str]:
    from llamafarm.models._generate import Sampling, generate

    if not wanted.prompts:
        return {}
    prompts: list[Any] = list(wanted.prompts)
    if tokenizer.chat_template:
        prompts = [[{"role": "user", "content": prompt}] for prompt in wanted.prompts]
    free = Sampling(100, temperature=0.7, top_p=0.9, seed=wanted.sampling.get("seed") or 0)
    texts = generate(model, tokenizer, prompts, free, batch_size=wanted.batch_size)
    return dict(zip(wanted.prompts, texts, strict=True))
