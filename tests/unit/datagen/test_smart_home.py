from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.datagen import FORMATS, LANGUAGES, MAX_ROWS_PER_LANGUAGE, SIZES, generate
from llamafarm.datagen.commands import all_devices
from llamafarm.datagen.home import KINDS
from llamafarm.errors import UsageError

SERVICES = {service.name: service for kind in KINDS for service in kind.services}
DEVICES = set(all_devices())

seeds = st.integers(min_value=0, max_value=2**32)
some_languages = st.lists(st.sampled_from(LANGUAGES), min_size=1, unique=True)
sizes = st.integers(min_value=1, max_value=80)
quick = settings(max_examples=40, deadline=None)


def check_answer(answer):
    report, call_line = answer.split("\n")
    call = json.loads(call_line)
    service = SERVICES[call.pop("service")]
    assert call.pop("device") in DEVICES
    assert list(call) == ([service.parameter] if service.parameter else [])
    assert all(value in service.values for value in call.values())
    assert report.endswith(".")


def turns(row, format_):
    if format_ == "messages":
        return [(turn["role"], turn["content"]) for turn in row["messages"]]
    if format_ == "sharegpt":
        roles = {"system": "system", "human": "user", "gpt": "assistant"}
        return [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
    if format_ == "alpaca":
        system = [("system", row["input"])] if row["input"] else []
        return [*system, ("user", row["instruction"]), ("assistant", row["output"])]
    return [*((turn["role"], turn["content"]) for turn in row["prompt"]), ("assistant", row["chosen"])]


@quick
@given(size=sizes, languages=some_languages, seed=seeds, system=st.booleans(), format_=st.sampled_from(FORMATS))
def test_the_same_arguments_give_the_same_rows(size, languages, seed, system, format_):
    def rows(n):
        return list(generate(size=n, languages=languages, format=format_, seed=seed, system=system))

    whole = rows(size)
    assert whole == rows(size)
    assert len(whole) == size
    assert rows(max(1, size // 2)) == whole[: max(1, size // 2)]
    assert len({json.dumps(row) for row in whole}) == size


@quick
@given(size=sizes, languages=some_languages, seed=seeds, system=st.booleans())
def test_every_format_holds_the_same_exchanges(size, languages, seed, system):
    chats = [
        [
            turns(row, format_)
            for row in generate(size=size, languages=languages, format=format_, seed=seed, system=system)
        ]
        for format_ in FORMATS
        if format_ != "text"
    ]
    assert all(chat == chats[0] for chat in chats)
    assert all((chat[0][0] == "system") is system for chat in chats[0])
    commands = [chat[-2][1] for chat in chats[0]]
    assert len(set(commands)) == size


@quick
@given(size=sizes, languages=some_languages, seed=seeds)
def test_answers_name_what_exists_and_rejected_ones_differ(size, languages, seed):
    for row in generate(size=size, languages=languages, format="preference", seed=seed):
        check_answer(row["chosen"])
        assert row["rejected"] != row["chosen"]
        assert "{}" not in row["rejected"]
        if "\n" in row["rejected"]:
            check_answer(row["rejected"])
        device = json.loads(row["chosen"].split("\n")[1])["device"]
        assert device in row["prompt"][0]["content"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_command_has_one_answer_whatever_the_seed(language):
    answers = {}
    for seed in range(3):
        for row in generate(size=2_000, languages=[language], seed=seed, system=False):
            user, assistant = (turn["content"] for turn in row["messages"])
            assert answers.setdefault(user, assistant) == assistant
            assert "{" not in user
            assert "  " not in user
            assert user[-2:] != " ."


@pytest.mark.parametrize("language", LANGUAGES)
def test_as_many_commands_as_promised(language):
    rows = generate(size=MAX_ROWS_PER_LANGUAGE, languages=[language], format="alpaca", system=False)
    assert sum(1 for _ in rows) == MAX_ROWS_PER_LANGUAGE


def test_languages_take_turns():
    rows = list(generate(size=10, languages=LANGUAGES, format="alpaca", system=False))
    single = {
        language: generate(size=50, languages=[language], format="alpaca", system=False) for language in LANGUAGES
    }
    reports = {language: {row["output"].split("\n")[0] for row in rows} for language, rows in single.items()}
    assert len({frozenset(group) for group in reports.values()}) == len(LANGUAGES)
    assert len({row["instruction"] for row in rows}) == 10


def test_named_sizes():
    counts = {name: sum(1 for _ in generate(size=name, format="text")) for name in SIZES}
    assert counts == SIZES == {"small": 1_000, "medium": 10_000, "large": 50_000}


def test_other_seeds_give_other_rows():
    assert list(generate(size=50, seed=1)) != list(generate(size=50, seed=2))


@pytest.mark.parametrize("language", LANGUAGES)
def test_raw_text_never_answers_a_command_with_a_call(language):
    documents = [row["text"] for row in generate(size=3_000, languages=[language], format="text")]
    chats = [text for text in documents if "<|im_start|>" in text]
    assert len(chats) > 300
    assert not any('"service"' in text for text in chats)
    assert any('"service"' in text for text in documents)
    asked = {turn.split("<|im_end|>")[0] for text in chats for turn in text.split("<|im_start|>user\n")[1:]}
    rows = generate(size=5_000, languages=[language], format="alpaca", system=False)
    assert asked.isdisjoint(row["instruction"] for row in rows)
    assert not any(" ." in text or " ," in text or "{in}" in text for text in documents)


@pytest.mark.parametrize(
    ("wrong", "id_", "hint"),
    [
        ({"languages": ["germn"]}, "LF-DATAGEN-001", "german"),
        ({"format": "sharegtp"}, "LF-DATAGEN-001", "sharegpt"),
        ({"size": "larg"}, "LF-DATAGEN-001", "large"),
        ({"languages": []}, "LF-DATAGEN-002", "english"),
        ({"size": 0}, "LF-DATAGEN-003", str(MAX_ROWS_PER_LANGUAGE)),
        ({"size": MAX_ROWS_PER_LANGUAGE + 1}, "LF-DATAGEN-003", "more languages"),
    ],
)
def test_wrong_values_are_refused_by_the_call(wrong, id_, hint):
    with pytest.raises(UsageError) as caught:
        generate(**{"size": 1, **wrong})
    (problem,) = caught.value.problems
    assert problem.id == id_
    assert hint in problem.hint


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        generate(size=-1, format="json", languages=["latin", "english"])
    assert len(caught.value.problems) == 3


def test_the_generator_needs_only_the_standard_library():
    code = "import sys, llamafarm.datagen as d; list(d.generate(size=3)); print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in loaded for name in ("torch", "transformers", "numpy", "pydantic"))
