from __future__ import annotations

import inspect

import pytest

from llamafarm import errors
from llamafarm.errors import (
    EXIT_CODE_MEANINGS,
    DataError,
    ExitCode,
    LlamaFarmError,
    Problem,
    error_for,
    nearest,
    one_of,
)

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, LlamaFarmError)]


def test_exit_codes_are_the_documented_ones() -> None:
    expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 75, 130]
    assert [code.value for code in ExitCode] == expected
    assert list(EXIT_CODE_MEANINGS) == list(ExitCode)


def test_each_failure_code_has_an_error_class() -> None:
    codes = {cls.exit_code for cls in CLASSES}
    assert codes == set(ExitCode) - {ExitCode.OK, ExitCode.REQUEUE, ExitCode.INTERRUPTED}


def test_a_problem_reads_where_what_hint_id() -> None:
    problem = Problem("LF-X-001", "unknown key 'rnak'", "a.yaml:3:5", "did you mean 'rank'?")
    assert str(problem) == "a.yaml:3:5: unknown key 'rnak'; did you mean 'rank'? [LF-X-001]"
    assert str(Problem("LF-X-001", "nothing to do")) == "nothing to do [LF-X-001]"


def test_an_error_shows_all_its_problems() -> None:
    error = DataError([Problem("LF-X-001", "one"), Problem("LF-X-002", "two")])
    assert str(error) == "one [LF-X-001]\ntwo [LF-X-002]"
    assert error.exit_code is ExitCode.DATA


def test_an_error_needs_a_problem() -> None:
    with pytest.raises(AssertionError, match="says nothing"):
        LlamaFarmError([])


@pytest.mark.parametrize(
    ("given", "valid", "expected"),
    [
        ("qlroa", ["lora", "qlora"], "did you mean 'qlora'?"),
        ("BATCH-SIZE", ["batch_size"], "did you mean 'batch_size'?"),
        ("bos-scaling", ["bos_scaling"], "did you mean 'bos_scaling'?"),
        ("zebra", ["lora"], ""),
        ("x", [], ""),
    ],
)
def test_nearest(given: str, valid: list[str], expected: str) -> None:
    assert nearest(given, valid) == expected


@pytest.mark.parametrize(
    ("valid", "expected"), [([], ""), (["a"], "'a'"), (["b", "a"], "'a' or 'b'"), (["c", "a", "b"], "'a', 'b' or 'c'")]
)
def test_one_of(valid: list[str], expected: str) -> None:
    assert one_of(valid) == expected


@pytest.mark.parametrize(
    ("id_", "code"),
    [
        ("LF-DATA-003", ExitCode.DATA),
        ("LF-TRAIN-005", ExitCode.USAGE),
        ("LF-TEMPLATE-001", ExitCode.MODEL),
        ("LF-PLUGIN-021", ExitCode.PLUGIN),
        ("LF-NET-003", ExitCode.NETWORK),
        ("EXAMPLE-001", ExitCode.USAGE),
        ("mine", ExitCode.USAGE),
        ("OTHER-DATA-1", ExitCode.USAGE),
    ],
)
def test_the_area_of_the_first_id_decides(id_: str, code: ExitCode) -> None:
    problems = [Problem(id_, "one"), Problem("LF-DATA-001", "two")]
    error = error_for(problems)
    assert error.exit_code is code
    assert list(error.problems) == problems
