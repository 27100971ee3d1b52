"""The fast reader: what it answers is what the strict reader answers, and rows are copies for both or for none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamafarm.data import strict
from llamafarm.data.digests import row_digest
from llamafarm.data.quick import canonical, form_digest, quick_rows
from llamafarm.data.strict import Fault

numbers = st.one_of(
    st.integers(),
    st.integers(2**63 - 2, 2**64 + 2),
    st.integers(10**17, 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
)
spelt = st.one_of(
    numbers.map(json.dumps),
    st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?", fullmatch=True),
)
# quotes, backslashes and their escapes, digits, half surrogates and control characters come often
texts = st.one_of(
    st.text().map(json.dumps),
    st.text().map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.lists(
        st.sampled_from(
            ["\\u0022", '\\"', "\\\\", "\\/", "\\n", "\\u00e9", "\\ud83d", "\\ude00", "\\x", "\t", "1" * 19, "é", "a"]
        )
    ).map(lambda parts: '"' + "".join(parts) + '"'),
)
keys = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"\\""', '"é"'])
space = st.sampled_from(["", "", " ", "\t"])


def _object(parts: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in parts) + "}"


values = st.recursive(
    st.one_of(spelt, texts, st.sampled_from(["true", "false", "null", "NaN", "nul"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(keys, inner), max_size=3).map(_object),
    ),
    max_leaves=8,
)
rows = st.lists(st.tuples(keys, values), max_size=4).map(_object)
raws = st.one_of(rows, values, st.tuples(space, rows, space).map("".join)).map(lambda text: text.encode("utf-8"))
damaged = st.tuples(raws, st.integers(0, 200), st.binary(max_size=2)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
)


def slow(raw: bytes) -> dict[str, Any] | str:
    try:
        return strict._judge(raw)  # the reference that the fast reader must equal
    except Fault as fault:
        return fault.id


def same(one: Any, other: Any) -> bool:
    """Equal to the last digit and kind: 1, 1.0 and true are three values."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(raw=raws | damaged)
@example(raw=b'{"a":1,"a":1}')
@example(raw=b'{"a":"\\u0022","b":1,"b":2}')
@example(raw=b'{"a":123456789012345678901}')
@example(raw=b'{"a":0.012345678901234567,"b":123456789012345678}')
@example(raw=b'{"a":"123456789012345678901"}')
@example(raw=b'{"a":-0}')
@example(raw=b'{"a":1e999}')
@example(raw=b"{}")
@example(raw=b'{"a":' + b"[" * 300 + b"]" * 300 + b"}")
@example(raw=b"[" * 5000)
def test_the_fast_reader_says_what_the_strict_one_says_or_nothing(raw: bytes) -> None:
    if b"\n" in raw or b"\r" in raw:
        return
    found = quick_rows(raw, [raw])
    if found is None:
        return
    reference = slow(raw)
    assert not isinstance(reference, str), reference
    assert same(found[0][0], reference)
    assert form_digest(found[1][0]) == row_digest(reference)


@given(lines=st.lists(raws | damaged, min_size=1, max_size=12))
def test_a_block_is_read_as_its_lines_are(lines: list[bytes]) -> None:
    lines = [line for line in lines if b"\n" not in line and b"\r" not in line]
    found = quick_rows(b"\n".join(lines), lines)
    if found is not None:
        assert all(same(row, slow(line)) for row, line in zip(found[0], lines, strict=True))


@given(one=raws, other=raws)
def test_rows_are_copies_however_they_are_read(one: bytes, other: bytes) -> None:
    read = [slow(raw) for raw in (one, other)]
    if any(isinstance(row, str) for row in read):
        return
    digests = [row_digest(strict.decode_row(raw)) for raw in (one, other)]
    assert (digests[0] == digests[1]) == same(*read)


@given(row=st.dictionaries(st.text(), st.one_of(st.text(), st.integers(-(2**63), 2**64 - 1), st.none(), st.booleans())))
def test_the_canonical_form_is_sorted_json_without_spaces(row: dict[str, Any]) -> None:
    reference = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(row) == reference.encode()


def test_most_rows_are_read_fast() -> None:
    lines = [
        json.dumps({"text": f'Zeile {n} “ä” \\ "q"\n', "id": "9" * 20, "score": n / 7}).encode() for n in range(50)
    ]
    assert quick_rows(b"\n".join(lines), lines) is not None


@pytest.mark.parametrize("text", [b'{"a":1e400}', b'{"a":-1e999}', b'{"a":[1,{"b":2e308}]}'])
def test_a_number_that_would_become_infinite_is_refused(text: bytes) -> None:
    with pytest.raises(Fault, match="it would become infinite") as refused:
        strict.decode_row(text)
    assert refused.value.id == "LF-DATA-100"
