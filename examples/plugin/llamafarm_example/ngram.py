"""A fine-tuner that counts: a back-off n-gram model over the base model's tokens.

Its held-out loss is in the same unit, over the same tokens, as that of a trained model (nats per answer token), so
that it is a floor: a language model that does not beat it has learned less than a table of token counts.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field

from llamafarm.api import Example, FineTuner, FineTunerConfig, PreparedData, RunContext, RunPlan, TrainingResult

if TYPE_CHECKING:
    from llamafarm.data.tokens import TokenizedRow

IGNORED = -100


class NGramConfig(FineTunerConfig):
    """Configuration of `ngram`: of the shared blocks it uses `base_model` (its tokenizer) and `dataset`."""

    order: int = Field(3, ge=1, le=8, description="Tokens looked at: 1 counts single tokens, 3 those after two others.")
    discount: float = Field(0.75, gt=0.0, lt=1.0, description="Taken from each count and given to shorter contexts.")


@dataclass
class Counts:
    """Token counts by context, and the probability they give.

    Absolute discounting, interpolated with the next shorter context; the shortest is the uniform distribution over
    `vocabulary` tokens, so that the probabilities of all tokens sum to one in every context.
    """

    order: int
    discount: float
    vocabulary: int
    table: dict[tuple[int, ...], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, tokens: Sequence[int], position: int) -> None:
        """Count the token at `position` after each of its contexts."""
        for context in self._contexts(tokens, position):
            self.table[context][tokens[position]] += 1

    def probability(self, tokens: Sequence[int], position: int) -> float:
        """Probability of the token at `position`, given those before it."""
        probability = 1.0 / self.vocabulary
        for context in self._contexts(tokens, position):
            seen = self.table.get(context)
            if not seen:
                break
            total = seen.total()
            kept = max(seen[tokens[position]] - self.discount, 0.0) / total
            probability = kept + self.discount * len(seen) / total * probability
        return probability

    def _contexts(self, tokens: Sequence[int], position: int) -> Iterator[tuple[int, ...]]:
        """From the empty context to the longest."""
        for length in range(min(self.order, position + 1)):
            yield tuple(tokens[position - length : position])


class NGram(FineTuner[NGramConfig]):
    """Counts token sequences of the answers and measures their held-out loss; trains no weights."""

    name = "ngram"

    def fit(self, plan: RunPlan, data: PreparedData, run: RunContext) -> TrainingResult:
        """Count, measure, and write `ngram.json` (context → token → count)."""
        from llamafarm.data.tokens import tokenize
        from llamafarm.models._load import load_tokenizer

        started = time.monotonic()
        run.emit("phase", name="loading model")
        tokenizer = load_tokenizer(self.config.base_model)
        training = self.config.training

        def rows(examples: Sequence[Example]) -> Sequence[TokenizedRow]:
            if not examples:
                return []
            return tokenize(
                examples,
                tokenizer,
                stage=training.stage,
                max_seq_length=training.max_seq_length,
                train_on_inputs=self.config.dataset.train_on_inputs,
            ).rows

        trained, held_out = rows(data.train), rows(data.eval)
        run.emit("phase", name="training")
        counts = Counts(self.config.order, self.config.discount, len(tokenizer))
        for row in trained:
            for position in _positions(row.labels):
                counts.add(row.input_ids, position)
        run.emit("phase", name="evaluating")
        metrics: dict[str, float | int | str | None] = {"train_loss": _loss(counts, trained)}
        if held_out:
            loss = _loss(counts, held_out)
            metrics |= {"eval_loss": loss, "eval_perplexity": math.exp(loss)}
        metrics["train_runtime"] = time.monotonic() - started
        run.emit("phase", name="saving")
        model_dir = plan.output_dir
        table = {" ".join(map(str, context)): seen for context, seen in sorted(counts.table.items())}
        content = {"order": counts.order, "discount": counts.discount, "vocabulary": counts.vocabulary, "counts": table}
        (model_dir / "ngram.json").write_text(json.dumps(content), encoding="utf-8")
        entries = sum(map(len, counts.table.values()))
        return TrainingResult(metrics, model_dir, trainable_parameters=entries, total_parameters=entries)


def _positions(labels: Sequence[int]) -> Iterator[int]:
    return (position for position, label in enumerate(labels) if label != IGNORED)


def _loss(counts: Counts, rows: Sequence[TokenizedRow]) -> float:
    """Mean negative log-probability of the answers' tokens, in nats."""
    losses = [
        -math.log(counts.probability(row.input_ids, position)) for row in rows for position in _positions(row.labels)
    ]
    return math.fsum(losses) / len(losses) if losses else math.nan
