"""The mask audit: are the stop tokens learned, and nothing but answers? It decodes labels instead of trusting them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unicodedata import normalize

from llamafarm.api import Example, MaskAuditConfig, Message
from llamafarm.data.fit import IGNORED
from llamafarm.data.plain import plain_prompt
from llamafarm.data.problems import ProblemLog
from llamafarm.errors import Problem

_NAMED = 3


@dataclass(slots=True)
class Audit:
    """What the audit has found so far.

    Attributes:
        rows: Conversations that were looked at.
        answers: Their learned answers.
        unstopped: Answers whose stop token is not learned.
        foreign: Runs of learned tokens that are not the assistant's.
        unlabelled: Names of the first examples without a learned token.
    """

    rows: int = 0
    answers: int = 0
    unstopped: int = 0
    foreign: int = 0
    unlabelled: list[str] = field(default_factory=list)


class Auditor:
    """Audits the labels of one dataset.

    What is learned is decoded and compared with the conversation; what stands before it, with the prompt that the
    template writes for generation. How the labels were made plays no part.
    """

    def __init__(self, tokenizer: Any, config: MaskAuditConfig) -> None:
        self.found = Audit()
        self.log = ProblemLog()
        self._config = config
        self._tokenizer = tokenizer
        self._turn_ends, self.stops = stop_tokens(tokenizer)
        self._leads: dict[str, bool] = {}

    @property
    def stop(self) -> int:
        """The token by which an answer is meant to end: that of the chat template, else the end of text."""
        return next(iter(self._turn_ends), self._tokenizer.eos_token_id)

    def look(self, example: Example, ids: Sequence[int], labels: Sequence[int]) -> None:
        """Audit a conversation.

        Args:
            example: What was meant.
            ids: All its tokens.
            labels: The label of each, -100 where it is not learned; what follows the last learned one may be missing.
        """
        answers = [
            (turn, message)
            for turn, message in enumerate(example.messages)
            if message.role == "assistant" and message.train is not False
        ]
        runs = list(_runs(labels))
        self.found.rows += 1
        self.found.answers += len(answers)
        if len(runs) != len(answers):
            self._unmatched(example, ids, runs, answers)
            return
        for (turn, message), (start, end) in zip(answers, runs, strict=True):
            body = self._stopped(example, ids, (start, end), turn)
            self._led(example, ids, (start, start + len(body)), (turn, message))

    def without_label(self, example: Example) -> None:
        """Record an example of which nothing is learned."""
        if len(self.found.unlabelled) < _NAMED:
            self.found.unlabelled.append(str(example.ref))

    def check(self, examples: int, dropped: int) -> None:
        """Refuse what was found.

        Args:
            examples: How many were tokenized.
            dropped: How many of them have no learned token.

        Raises:
            DataError: For stop tokens that are not learned, other tokens that are, or too many rows without label.
        """
        limit = self._config.max_unlabelled
        if dropped > limit * examples:
            named = ", ".join(self.found.unlabelled)
            more = ", …" if dropped > _NAMED else ""
            message = f"{dropped} of {examples} rows have no token to learn ({named}{more})"
            hint = f"raise training.max_seq_length, or dataset.mask_audit.max_unlabelled (now {limit:g})"
            self.log.add(Problem("LF-DATA-092", message, hint=hint))
        self.log.check()

    def summary(self) -> str:
        """The result in one sentence, when nothing is wrong."""
        found = self.found
        problems = [f"{found.unstopped} stop tokens not trained"] if found.unstopped else []
        problems += [f"{found.foreign} stretches trained that are no answer"] if found.foreign else []
        stops = " or ".join(repr(self.name(token)) for token in sorted(self.stops))
        verdict = ", ".join(problems) or f"every answer is trained with its end ({stops}), and nothing else is"
        return f"mask audit: {found.answers:,} answers in {found.rows:,} rows: {verdict}"

    def _stopped(self, example: Example, ids: Sequence[int], run: tuple[int, int], turn: int) -> Sequence[int]:
        """The learned tokens before the one that stops; reports a stop that is missing, and what is learned after."""
        start, end = run
        learned = ids[start:end]
        last = max((at for at, token in enumerate(learned) if token in self.stops), default=None)
        following = next((token for token in ids[end:] if self._decode([token]).strip()), None)
        if following is not None and following in (self._turn_ends if last is not None else self.stops):
            self._no_stop(example, turn, following)
        elif last is None and turn == len(example.messages) - 1:
            self._no_stop(example, turn, self._tokenizer.eos_token_id)
        if last is None:
            return learned
        if foreign := next((token for token in learned[last + 1 :] if self._decode([token]).strip()), None):
            self._foreign(example, foreign, f"after the end of turn {turn + 1}")
        return learned[:last]

    def _led(self, example: Example, ids: Sequence[int], run: tuple[int, int], answer: tuple[int, Message]) -> None:
        """Check what is learned before the answer's text: the template's own words may be, the prompt may not."""
        turn, message = answer
        text = self._same(self._decode(ids[run[0] : run[1]]))
        content = self._same(message.content.strip())
        at = text.rfind(content)
        lead = text[:at] if at >= 0 else text
        if not lead:
            return
        if at < 0 or lead not in self._leads:
            self._leads[lead] = self._in_prompt(example, ids, run[0], turn)
        if self._leads[lead]:
            self._foreign(example, ids[run[0]], f"before turn {turn + 1}, in its prompt")

    def _in_prompt(self, example: Example, ids: Sequence[int], start: int, turn: int) -> bool:
        """Whether position `start` lies in what a model is given to answer from."""
        prompt = self._prompt(example, turn)
        whole = self._decode(ids)
        if prompt is None or not self._same(whole).startswith(self._same(prompt)):
            return False
        return not self._same(self._decode(ids[:start])).startswith(self._same(prompt))

    def _prompt(self, example: Example, turn: int) -> str | None:
        before = example.messages[:turn]
        if self._tokenizer.chat_template is None:
            last = turn == len(example.messages) - 1
            return plain_prompt(before, example.prompt if last else None, end=self._tokenizer.eos_token)
        chat, tools = [message.as_dict() for message in before], [dict(tool) for tool in example.tools] or None
        try:
            text: str = self._tokenizer.apply_chat_template(
                chat, tools=tools, tokenize=False, add_generation_prompt=True
            )
        except MemoryError:  # says nothing of the template
            raise
        except Exception:  # noqa: BLE001  # a template that refuses a beginning says nothing about it
            return None
        return text

    def _unmatched(
        self, example: Example, ids: Sequence[int], runs: list[tuple[int, int]], answers: list[tuple[int, Message]]
    ) -> None:
        """More or fewer runs than answers: name the run that is no answer, or the answer that is no run."""
        texts = [self._same(self._decode(ids[start:end])) for start, end in runs]
        contents = [self._same(message.content.strip()) for _, message in answers]
        if len(runs) > len(answers):
            whole = [content + self._same(self.name(stop)) for content in contents for stop in self.stops]
            none = [
                start
                for (start, _), text in zip(runs, texts, strict=True)
                if not text.startswith(tuple(contents)) and not any(one in text for one in whole)
            ]
            for start in none or [runs[0][0]]:
                self._foreign(example, ids[start], "in no answer")
        for (turn, _), content in zip(answers, contents, strict=True):
            if not any(content in text for text in texts):
                self._no_stop(example, turn, None)

    def _no_stop(self, example: Example, turn: int, token: int | None) -> None:
        self.found.unstopped += 1
        if self._config.enabled and self._config.stop_token:
            what = "" if token is None else f"the stop token {self.name(token)!r} of "
            message = f"{what}turn {turn + 1}, an answer, is not trained"
            self.log.add(Problem("LF-DATA-090", message, str(example.ref), _HINT))

    def _foreign(self, example: Example, token: int, place: str) -> None:
        self.found.foreign += 1
        if self._config.enabled and self._config.prompt_tokens:
            message = f"the token {self.name(token)!r} {place}, is trained though it is no part of an answer"
            self.log.add(Problem("LF-DATA-091", message, str(example.ref), _HINT))

    def name(self, token: int) -> str:
        """The text of a token."""
        return self._decode([token]) or str(token)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _same(self, text: str) -> str:
        """A form to compare in: sentencepiece adds and drops spaces, and a tokenizer may begin a text with BOS."""
        compared = normalize("NFC", text).replace(" ", "")
        return compared.removeprefix(self._tokenizer.bos_token or "")


_HINT = "look at the row with `llamafarm inspect`; mend the chat template, or see dataset.mask_audit"


def stop_tokens(tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """The ids by which the chat template ends a turn, and these with the end of text: all that end an answer."""
    from llamafarm.models._turns import end_of_turn

    end = end_of_turn(tokenizer) if tokenizer.chat_template else None
    turn_ends = frozenset() if end is None else frozenset([end])
    return turn_ends, turn_ends | {tokenizer.eos_token_id}


def _runs(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where learned tokens begin and end."""
    start = None
    for at, label in enumerate([*labels, IGNORED]):
        if label != IGNORED and start is None:
            start = at
        elif label == IGNORED and start is not None:
            yield start, at
            start = None
