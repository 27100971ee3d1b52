"""Tools and their calls: shown to the model by its template; calls are learned, what tools answer is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafarm.api import MaskAuditConfig, RowRef
from llamafarm.data.audit import Auditor
from llamafarm.data.formats import to_example
from llamafarm.data.tokens import IGNORED, tokenize
from llamafarm.errors import DataError, ModelError

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>' + m.content + '</tool_response><|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}[G]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}"
    "{% endfor %}"
    "[H]{{ '<|im_end|>' }}[E]{{ '\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "light", "description": "d", "parameters": {"type": "object"}}}


def call(arguments: Any = None, name: str = "light") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments or {"room": "Küche"}}}


def chat(**second: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "on"},
        {"role": "assistant", "content": "", "tool_calls": [call()]} | second,
        {"role": "tool", "content": "room Küche ok", "name": "light"},
        {"role": "assistant", "content": "It is on."},
        {"role": "user", "content": "both"},
        {"role": "assistant", "content": "Sure.", "tool_calls": [call(), call({"room": "Bad"})]},
        {"role": "tool", "content": "ok"},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "Done."},
    ]
    return {"messages": turns, "tools": [TOOL]}


@pytest.fixture(params=["no-marks", "marks", "marks-without-end"])
def tokenizer(request: pytest.FixtureRequest, chat_tokenizer: Any) -> Any:
    return chat_tokenizer(TEMPLATE, request.param)


def learned(row: dict[str, Any], tokenizer: Any, form: str = "messages") -> tuple[str, list[str]]:
    example = to_example(row, RowRef("rows.jsonl", 1), form)
    (out,) = tokenize([example], tokenizer, stage="sft", max_seq_length=2000, train_on_inputs=False).rows
    parts: list[list[int]] = [[]]
    for token, label in zip(out.input_ids, out.labels, strict=True):
        if label == IGNORED:
            parts.append([])
        else:
            assert label == token
            parts[-1].append(token)
    return tokenizer.decode(out.input_ids), [tokenizer.decode(part) for part in parts if part]


def shown(*calls: dict[str, Any]) -> str:
    texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
    return "".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)


ANSWERS = [
    shown(call()) + "<|im_end|>",
    "It is on.<|im_end|>",
    "Sure." + shown(call(), call({"room": "Bad"})) + "<|im_end|>",
    "Done.<|im_end|>",
]


def test_calls_are_learned_and_answers_of_tools_are_not(tokenizer: Any) -> None:
    text, parts = learned(chat(), tokenizer)
    assert parts == ANSWERS
    assert text.startswith("<|im_start|>system\n" + json.dumps(TOOL) + "\n<|im_end|>\n<|im_start|>user\non<|im_end|>")
    assert "<tool_response>room Küche ok</tool_response>" in text


def test_a_call_that_is_the_last_turn_is_learned(tokenizer: Any) -> None:
    row = chat()
    row["messages"] = row["messages"][:2]
    assert learned(row, tokenizer)[1] == ANSWERS[:1]


@pytest.mark.parametrize("sign", [{"train": False}, {"weight": 0}])
def test_a_call_can_be_left_out(sign: dict[str, Any], tokenizer: Any) -> None:
    assert learned(chat(**sign), tokenizer)[1] == ANSWERS[1:]


def test_every_spelling_of_a_call_gives_equal_ids(tokenizer: Any) -> None:
    whole = learned(chat(), tokenizer)
    arguments = json.dumps(call()["function"]["arguments"])
    assert learned(chat(tool_calls=[call(arguments)]), tokenizer) == whole
    assert learned(chat(tool_calls=[call()["function"]], content=None), tokenizer) == whole
    row = chat()
    assert learned({key: json.dumps(value) for key, value in row.items()}, tokenizer) == whole
    assert learned({"conversations": row["messages"], "tools": row["tools"]}, tokenizer, "sharegpt") == whole
    split = {"prompt": row["messages"][:1], "completion": row["messages"][1:], "tools": row["tools"]}
    assert learned(split, tokenizer, "prompt-completion") == whole


@pytest.mark.parametrize(
    ("row", "id_", "part"),
    [
        (chat(tool_calls=[call(name="lihgt")]), "LF-DATA-047", "turn 2 calls 'lihgt'"),
        (chat(tool_calls=[call("{1}")]), "LF-DATA-004", "arguments of tool call 1 of turn 2"),
        (chat(tool_calls=[call([1])]), "LF-DATA-014", "'arguments' of tool call 1 of turn 2 of 'messages' are a list"),
        (chat(tool_calls=["light"]), "LF-DATA-014", "tool call 1 of turn 2 of 'messages' is text"),
        (chat(tool_calls={"name": "light"}), "LF-DATA-014", "'tool_calls' is an object, expected a list"),
        (chat(content="", tool_calls=[]), "LF-DATA-013", "'content' of turn 2"),
        (chat() | {"tools": [{"type": "function"}]}, "LF-DATA-012", "'name' of tool 1 is missing"),
        (chat() | {"tools": {"name": "light"}}, "LF-DATA-014", "'tools' is an object"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [call()]}]}, "LF-DATA-017", "has 'tool_calls'"),
    ],
)
def test_what_is_wrong_with_tools_is_said(row: dict[str, Any], id_: str, part: str) -> None:
    with pytest.raises(DataError) as error:
        to_example(row, RowRef("rows.jsonl", 3), "messages")
    (problem,) = error.value.problems
    assert problem.id == id_
    assert part in problem.message
    assert problem.where.startswith("rows.jsonl:3")


@pytest.mark.parametrize("template", [None, TEMPLATE.replace("{% if tools %}", "{% if false %}")])
def test_a_template_that_hides_tools_is_refused(template: str | None, chat_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="LF-TEMPLATE-010"):
        learned(chat(), chat_tokenizer(template, "no-marks"))


def test_a_template_that_drops_calls_is_refused(chat_tokenizer: Any) -> None:
    deaf = TEMPLATE.replace("m.tool_calls or []", "[]")
    with pytest.raises(ModelError, match="turn 2, an answer, cannot be found"):
        learned(chat(), chat_tokenizer(deaf, "no-marks"))


told = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
argument = st.recursive(
    st.one_of(told, st.integers(), st.booleans()), lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
calls = st.lists(st.dictionaries(told, argument, min_size=1, max_size=2).map(call), min_size=1, max_size=2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(st.tuples(told, calls, told, told), min_size=1, max_size=2), silent=st.booleans())
def test_the_audit_agrees_with_the_labels_of_any_calls(tokenizer: Any, made: list[Any], silent: bool) -> None:
    turns: list[dict[str, Any]] = []
    for asked, some, result, said in made:
        turns += [{"role": "user", "content": asked}]
        turns += [{"role": "assistant", "content": "" if silent else said, "tool_calls": some}]
        turns += [{"role": "tool", "content": result, "name": "light"} for _ in some]
        turns += [{"role": "assistant", "content": said}]
    example = to_example({"messages": turns, "tools": [TOOL]}, RowRef("rows.jsonl", 1), "messages")
    seen: list[Any] = []
    tokenize([example], tokenizer, stage="sft", max_seq_length=100_000, train_on_inputs=False, watch=seen.append)
    (fitted,) = seen
    sound = Auditor(tokenizer, MaskAuditConfig())
    sound.look(fitted.example, fitted.encoded.ids, fitted.row.labels)
    assert (sound.found.answers, sound.found.unstopped, sound.found.foreign) == (2 * len(made), 0, 0)
    sound.check(1, 0)
    spans = fitted.encoded.learned
    labels = list(fitted.row.labels)
    labels[spans[0][1] - 1] = IGNORED  # the call is learned without its end: a model would call on and on
    damaged = Auditor(tokenizer, MaskAuditConfig())
    damaged.look(fitted.example, fitted.encoded.ids, labels)
    with pytest.raises(DataError, match="LF-DATA-090"):
        damaged.check(1, 0)
    tool_turn = spans[0][1] + 1
    labels = list(fitted.row.labels)
    labels[tool_turn : spans[1][0]] = fitted.encoded.ids[tool_turn : spans[1][0]]  # what the tool said is learned too
    damaged = Auditor(tokenizer, MaskAuditConfig())
    damaged.look(fitted.example, fitted.encoded.ids, labels)
    with pytest.raises(DataError, match="LF-DATA-09"):
        damaged.check(1, 0)
