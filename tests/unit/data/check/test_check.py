"""Each rule finds its bad row, at its line, and nothing else does."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.api import Example, Message, RowRef
from llamafarm.data.check import texts, turns
from llamafarm.data.check.check import Checker, Options
from llamafarm.data.check.copies import THRESHOLD, NearCopies
from llamafarm.data.check.findings import RULES, Findings, Level
from llamafarm.data.check.lengths import heavy_share, percentiles
from llamafarm.data.strict import Fault
from llamafarm.errors import DataError
from llamafarm.testing.rows import make_fields

Row = dict[str, Any]
LONG = "The blinds of the southern rooms go down by themselves when the sun has shone on them for twenty minutes. "


def chat(*turns_: tuple[str, str]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in turns_]}


def pair(prompt: str = "Is the door shut?", completion: str = "Yes, since nine.") -> Row:
    return {"prompt": prompt, "completion": completion}


def line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def found(tmp_path: Path, rows: list[str], *, held_out: list[Row] | None = None, **options: Any) -> Findings:
    """The findings of 60 good rows with `rows` after them, the first of these in line 61."""
    path = tmp_path / "rows.jsonl"
    good = [line(pair(row["instruction"], row["output"])) for row in make_fields(60)]
    if rows and "messages" in rows[0]:
        good = [line(chat(("user", row["instruction"]), ("assistant", row["output"]))) for row in make_fields(60)]
    path.write_text("\n".join([*good, *rows]) + "\n", encoding="utf-8")
    findings = Findings(None)
    checker = Checker(findings, Options(**options))
    if held_out is not None:
        other = tmp_path / "eval.jsonl"
        other.write_text("".join(line(row) + "\n" for row in held_out), encoding="utf-8")
        checker.hold_out(str(other))
    kept = list(checker.lines(str(path)))
    checker.finish([str(path)])
    assert checker.totals.kept == len(kept)
    return findings


def test_rows_with_a_choice_of_answers_are_sound(tmp_path: Path) -> None:
    better = [{"prompt": LONG * 3, "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in range(60)]
    alone = [{"prompt": "Shut?", "completion": f"Yes {n // 2}.", "label": n % 2 == 0} for n in range(60)]
    for number, rows in enumerate((better, alone)):
        path, findings = tmp_path / f"{number}.jsonl", Findings(None)
        path.write_text("\n".join(map(line, rows)), encoding="utf-8")
        checker = Checker(findings, Options(near_rows=0))
        assert len(list(checker.lines(str(path)))) == 60
        checker.finish([str(path)])
        assert findings.shown == []
        assert min(checker.totals.lengths) == len(rows[0]["prompt"]) + len(rows[0].get("chosen", "Yes 0."))
    better[7]["chosen"] = "First the lamp,"
    path.write_text("\n".join(map(line, better)), encoding="utf-8")
    findings = Findings(None)
    list(Checker(findings, Options(near_rows=0)).lines(str(path)))
    assert places(findings) == [("truncated", 8)]


def places(findings: Findings) -> list[tuple[str, int]]:
    return [(item.rule, int(item.where.split(":")[1])) for item in findings.shown]


# rule → the bad rows, and the lines at which it is said; the rule must be the only one
BAD: dict[str, tuple[list[str], list[int]]] = {
    "unreadable": (['{"prompt": ', "[1]"], [61, 62]),
    "unusable": ([line({"prompt": "a"}), line({"prompt": 7, "completion": "b"})], [61, 62]),
    "empty-field": ([line(pair(completion=" "))], [61]),
    "duplicate": ([line(pair()), '{"completion":"Yes, since nine.","prompt":"Is the door shut?"}'], [62]),
    "near-duplicate": (
        [
            line(pair(completion=LONG * 3 + "Good.")),
            line(pair(completion=LONG * 3 + "Fine.")),
            *map(
                line,
                [
                    pair(),
                    pair("is the  door shut?"),
                ],
            ),
        ],
        [62, 64],
    ),
    "control-character": (
        [line(pair("bell\x07")), line(pair("escape\x1b[31m")), line(pair("mark\ufeff"))],
        [61, 62, 63],
    ),
    "encoding": (
        [
            line(pair("dans la piÃ¨ce")),
            line(pair("Itâ€™s on")),
            line(pair("lost: \ufffd")),
            line(pair("zamknij mÄ…kÄ™")),
        ],
        [61, 62, 63, 64],
    ),
    "truncated": (
        [
            line(chat(("user", "a"), ("assistant", "```python\nlight()"))),
            line(chat(("user", "b"), ("assistant", '{"service": "light.on"'))),
            line(chat(("user", "c"), ("assistant", "First the lamp,"))),
            line(chat(("user", "d"), ("assistant", "Done."), ("user", "e"))),
        ],
        [61, 62, 63, 64],
    ),
    "role-order": (
        [
            line(chat(("user", "a"), ("system", "b"), ("assistant", "c"))),
            line(chat(("assistant", "d"), ("user", "e"), ("assistant", "f"))),
            line(chat(("user", "g"), ("user", "h"), ("assistant", "i"))),
        ],
        [61, 62, 63],
    ),
    "too-long": ([line(pair("x" * 250))], [61]),
    "overlap": ([line(pair("held out"))], [61]),
    "near-overlap": ([line(pair("HELD out")), line(pair("far", LONG * 3 + "Good."))], [61, 62]),
}
HELD_OUT = [pair("held out"), pair("far", LONG * 3 + "Fine.")]


@pytest.mark.parametrize("rule", BAD)
def test_each_rule_finds_its_bad_rows_and_no_other_speaks(rule: str, tmp_path: Path) -> None:
    rows, lines = BAD[rule]
    limit = 200 if rule == "too-long" else None
    findings = found(tmp_path, rows, held_out=HELD_OUT if "overlap" in rule else None, max_length=limit)
    assert places(findings) == [(rule, number) for number in lines]
    assert findings.counts[rule] == len(lines)


def test_every_rule_has_a_bad_row_here() -> None:
    elsewhere = {"template", "too-few", "balance", "not-checked"}
    assert set(BAD) | elsewhere == set(RULES)
    assert not set(BAD) & elsewhere


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    def measure(example: Example) -> int:
        if example.messages[0].content == "odd":
            raise Fault("LF-TEMPLATE-003", "no odd prompts")
        return 1

    assert places(found(tmp_path, [line(pair("odd"))], measure=measure)) == [("template", 61)]


def check(tmp_path: Path, rows: list[Row], **options: Any) -> tuple[Findings, list[str]]:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(line(row) + "\n" for row in rows), encoding="utf-8")
    findings = Findings(None)
    checker = Checker(findings, Options(**options))
    kept = list(checker.lines(str(path)))
    checker.finish([str(path)])
    return findings, kept


def test_too_few_rows_are_said(tmp_path: Path) -> None:
    findings, _ = check(tmp_path, make_fields(49))
    assert dict(findings.counts) == {"too-few": 1}
    assert "49 usable rows" in findings.shown[0].message
    assert not check(tmp_path, make_fields(50))[0].counts


def test_a_few_rows_that_hold_most_of_the_text_are_noted(tmp_path: Path) -> None:
    findings, _ = check(tmp_path, [*make_fields(99), {"instruction": "tell", "output": "x" * 20_000}])
    assert dict(findings.counts) == {"balance": 1}
    assert findings.shown[0].level is Level.NOTE


def test_what_is_not_looked_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dict(check(tmp_path, make_fields(60), near_rows=10)[0].counts) == {"not-checked": 1}
    assert not check(tmp_path, make_fields(60), near_rows=0)[0].counts
    monkeypatch.setitem(sys.modules, "datasketch", None)
    findings, _ = check(tmp_path, make_fields(60))
    assert dict(findings.counts) == {"not-checked": 1}
    assert "pip install 'llamafarm[data]'" in findings.shown[0].message


@pytest.mark.parametrize("language", ["english", "french", "german", "polish", "spanish"])
@pytest.mark.parametrize("form", ["messages", "sharegpt", "alpaca"])
def test_good_data_is_left_in_peace(language: str, form: Any, tmp_path: Path) -> None:
    from llamafarm.datagen import generate

    rows = list(generate(size=700, languages=[language], format=form, seed=3, system=form != "alpaca"))
    findings, kept = check(tmp_path, rows)
    assert [(item.rule, item.message) for item in findings.shown] == []
    assert kept == [line(row) for row in rows]


def test_a_cleaned_copy_has_nothing_left_to_mend(tmp_path: Path) -> None:
    good = [{"prompt": row["instruction"], "completion": row["output"]} for row in make_fields(60)]
    bad = [good[0], pair("bell\x07"), pair(completion=""), pair("piÃ¨ce"), pair("piÃ¨ce et pièce"), {"a": 1}]
    findings, kept = check(tmp_path, [*good, *bad])
    rows = [json.loads(text) for text in kept]
    assert rows == [*good, pair("bell"), pair("pièce"), pair("piÃ¨ce et pièce")]
    assert findings.left(Level.ERROR, cleaned=False) == 2
    assert findings.left(Level.ERROR, cleaned=True) == 0
    again, kept_again = check(tmp_path, rows)
    assert kept_again == kept
    assert dict(again.counts) == {"encoding": 1}, "mixed damage is left to a person"


def test_untouched_rows_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    odd = ['{"prompt" : "\\u00e9", "completion":"b",  "n": 1.50}', '{"completion":"c","prompt":"d\u2028"}']
    path.write_text("\n".join(odd), encoding="utf-8")
    assert list(Checker(Findings(None), Options()).lines(str(path))) == odd
    path.write_text('[{"prompt": "a",\n "completion": "b"}]', encoding="utf-8")
    assert list(Checker(Findings(None), Options()).lines(str(path))) == ['{"prompt": "a", "completion": "b"}']


def test_a_shared_system_turn_makes_no_near_duplicates(tmp_path: Path) -> None:
    commands = [row["instruction"] for row in make_fields(60)]
    rows = [chat(("system", LONG * 9), ("user", command), ("assistant", "Done.")) for command in commands]
    assert not check(tmp_path, rows)[0].counts


def test_several_files_are_one_set(write: Callable[..., str]) -> None:
    first, second = write([pair()], "a.jsonl"), write([pair("new"), pair()], "b.jsonl")
    findings = Findings(None)
    checker = Checker(findings, Options())
    assert sum(len(list(checker.lines(path))) for path in (first, second)) == 2
    assert [(item.where, item.message) for item in findings.shown] == [(f"{second}:2", f"says the same as {first}:1")]


def test_held_out_rows_must_be_good(write: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="LF-DATA-013"):
        Checker(Findings(None), Options()).hold_out(write([pair(completion="")]))


def test_only_the_first_findings_of_a_rule_are_kept() -> None:
    findings = Findings(2)
    for number in range(5):
        findings.add("duplicate", f"a:{number}", "again", fixed=number > 0)
    assert (len(findings.shown), findings.counts["duplicate"]) == (2, 5)
    assert findings.left(Level.WARNING, cleaned=True) == 1


@given(st.text())
def test_sound_text_is_never_rewritten_but_for_control_characters(text: str) -> None:
    if texts.misread(text) is None:
        assert texts.clean(text) == texts.CONTROL.sub("", text)
        assert texts.clean(texts.clean(text)) == texts.clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "CAFÉ»",
        "NÃO…",
        "AMANHÃ…",
        "IRMû",
        "à la carte",
        "Ångström",
        "Äpfel…",
        "Łódź",
        "¿Qué?",
        "São “Paulo”",
        "10 £",
        "日本語",
        "é",
    ],
)
def test_letters_of_real_languages_are_no_damage(text: str) -> None:
    assert texts.misread(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "pièce chauffée",
        "Größe der Tür",
        "ça s\u2019allume",
        "zażółć gęślą jaźń",
        "mañana",
        "“quoted” \u2013 dash",
        "включи свет",
        "日本語のテスト",
        "ok 😀",
    ],
)
def test_damage_is_found_and_undone(text: str) -> None:
    damaged = b"".join(bytes([byte]) for byte in text.encode()).decode("latin-1")
    assert texts.misread(damaged)
    assert texts.repaired(damaged) == text


def test_texts_are_found_wherever_they_stand() -> None:
    row = {"a": "1", "messages": [{"content": "2"}, {"content": ["3", 4, None]}]}
    assert list(texts.texts(row)) == [("a", "1"), ("messages.1.content", "2"), ("messages.2.content.1", "3")]
    assert texts.with_texts(row, lambda text: text * 2)["messages"][1] == {"content": ["33", 4, None]}


@pytest.mark.parametrize("answer", ["Done.", "```\na\n```", '{"a": 1}\n', "[1, 2] and more", "a (b)", "no end"])
def test_whole_answers_are_not_cut(answer: str) -> None:
    assert list(turns.breaks_off([Message("user", "a"), Message("assistant", answer)])) == []


def test_tools_may_answer_one_after_the_other() -> None:
    roles: list[Any] = ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert list(turns.out_of_order([Message(role, "a") for role in roles])) == []


def test_nearness_is_a_share_of_pieces() -> None:
    near = NearCopies()
    near.add(LONG * 3, "a:1")
    assert near.find(LONG * 3) == "a:1"
    assert near.find(LONG * 2 + LONG[::-1]) is None
    assert 0.5 < THRESHOLD < 1


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_percentiles_are_lengths_of_rows_and_in_order(lengths: list[int]) -> None:
    figures = percentiles(array("Q", lengths))
    marks = [figures[name] for name in ("min", "p5", "p50", "p95", "p99", "max")]
    assert marks == sorted(marks)
    assert set(marks) <= set(lengths)
    assert (marks[0], marks[-1]) == (min(lengths), max(lengths))
    assert 0 < heavy_share(array("Q", lengths)) <= 1


def test_a_row_is_measured_with_its_template(lab: Any) -> None:
    from llamafarm.data.check.lengths import tokens

    tokenizer = lab.byte_level(lab.marked(lab.families["chatml"].template, "no-marks"), "<|im_end|>")
    example = Example(RowRef("a", 1), (Message("user", "abc"), Message("assistant", "de")))
    text = "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\nde<|im_end|>"
    assert tokens(tokenizer)(example) == len(tokenizer(text)["input_ids"])
