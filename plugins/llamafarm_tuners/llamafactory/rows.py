"""Examples → the files that LLaMA-Factory reads: the same rows on the same sides, nothing dropped by it on the way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamafarm.api import Example, Message
from llamafarm.errors import DiskError, Problem, StrategyError

TRAIN, EVAL = "llamafarm_train", "llamafarm_eval"
"""Names of the two sides in `dataset_info.json`."""

JUDGED = frozenset({"dpo", "rm"})
"""Stages that learn from pairs."""

_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Form:
    """What LLaMA-Factory has to know of the rows.

    Attributes:
        mask_history: Of each conversation the last answer alone is learned.
    """

    mask_history: bool = False


def form_of(examples: Iterable[Example], stage: str) -> Form:
    """Check that LLaMA-Factory can carry every row as it is meant.

    Raises:
        StrategyError: With the rows that it would drop or learn otherwise.
    """
    problems: list[Problem] = []
    masked, plain = False, False
    for example in examples:
        if reason := _unfit(example, stage):
            problems.append(Problem("LF-STRATEGY-085", reason[0], str(example.ref), reason[1]))
            continue
        answers = [turn.train is not False for turn in example.messages if turn.role == "assistant"]
        if stage == "sft" and len(answers) > 1:
            masked, plain = masked or not all(answers), plain or all(answers)
            if not all(answers) and (any(answers[:-1]) or not answers[-1]):
                message = "LLaMA-Factory learns all answers of a conversation, or the last alone"
                problems.append(Problem("LF-STRATEGY-085", message, str(example.ref), "use type: pytorch"))
    if masked and plain:
        message = "some conversations are learned whole and others by their last answer: LLaMA-Factory knows one way"
        problems.append(Problem("LF-STRATEGY-085", message, "", "use type: pytorch"))
    if problems:
        more = len(problems) - _SHOWN
        shown = problems[:_SHOWN]
        if more > 0:
            shown.append(Problem("LF-STRATEGY-085", f"and {more} more rows", "", "use type: pytorch"))
        raise StrategyError(shown)
    return Form(mask_history=masked)


def write_rows(folder: Path, train: Sequence[Example], held_out: Sequence[Example], stage: str) -> None:
    """Write both sides and `dataset_info.json`.

    Raises:
        DiskError: If they cannot be written.
    """
    info = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, examples in ((TRAIN, train), (EVAL, held_out)):
            if examples:
                with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                    file.writelines(f"{json.dumps(row(one, stage))}\n" for one in examples)
                info[name] = entry(f"{name}.jsonl", stage)
        (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError.of("LF-DISK-010", f"cannot write rows: {error.strerror}", where=str(folder)) from None


def entry(file: str, stage: str) -> dict[str, Any]:
    """The entry of a side in `dataset_info.json`."""
    if stage == "pt":
        return {"file_name": file, "columns": {"prompt": "text"}}
    columns = {"messages": "messages"}
    found: dict[str, Any] = {"file_name": file, "formatting": "sharegpt", "columns": columns, "tags": dict(_TAGS)}
    if stage in JUDGED:
        columns |= {"chosen": "chosen", "rejected": "rejected"}
        found["ranking"] = True
    elif stage == "kto":
        columns["kto_tag"] = "label"
    return found


def row(example: Example, stage: str) -> dict[str, Any]:
    """An example as a row of the file."""
    if stage == "pt":
        return {"text": example.text}
    turns = [_turn(message) for message in example.messages]
    if stage in JUDGED:
        return {"messages": turns, "chosen": _turn(example.chosen[0]), "rejected": _turn(example.rejected[0])}
    if stage == "kto":
        return {"messages": [*turns, _turn(example.chosen[0])], "label": example.label}
    return {"messages": turns}


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _unfit(example: Example, stage: str) -> tuple[str, str] | None:
    """Why LLaMA-Factory cannot carry a row, and what to do instead."""
    if stage == "pt":
        return (
            None if example.text is not None else ("stage pt learns raw text, and this row is none", "use stage: sft")
        )
    if example.text is not None:
        return (f"raw text, which LLaMA-Factory's stage {stage} cannot learn", "use stage: pt")
    if reason := _unjudged(example, stage):
        return reason
    if example.tools or any(turn.tool_calls or turn.role == "tool" for turn in (*example.messages, *example.chosen)):
        return ("tools, which LLaMA-Factory writes in its own form, not in the model's template", "use type: pytorch")
    return _out_of_turn(example, judged=bool(example.chosen))


def _unjudged(example: Example, stage: str) -> tuple[str, str] | None:
    """Why a row's answers do not suit the stage."""
    judged = bool(example.chosen)
    if judged is not (stage in JUDGED or stage == "kto"):
        form = "a preference" if judged else "a conversation"
        return (f"{form}, which stage {stage} does not learn from", "choose the stage that fits the rows")
    if stage in JUDGED and (len(example.chosen) != 1 or len(example.rejected) != 1):
        return (f"stage {stage} compares two single answers", "leave the row out")
    if stage == "kto" and (len(example.chosen) != 1 or example.label is None):
        return ("stage kto learns from one answer and its label", "use stage: dpo for pairs")
    return None


def _out_of_turn(example: Example, *, judged: bool) -> tuple[str, str] | None:
    """LLaMA-Factory drops conversations where user and assistant do not take turns."""
    roles = [message.role for message in example.messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    wanted = [("user", "assistant")[index % 2] for index in range(len(roles))]
    complete = bool(roles) and len(roles) % 2 == (1 if judged else 0)
    if roles == wanted and complete:
        return None
    return ("LLaMA-Factory needs user and assistant to take turns, the user first", "use type: pytorch, which does not")
