"""The documents are executed: commands run, YAML validates, code is quoted from files, error ids match the source.

Each document is a story told in one folder: its blocks are taken in order. An HTML comment before a block says
what it is: `save as: NAME` (a file of the story), `file: PATH` or `part of: PATH` (a quotation), or
`not run: REASON` (what it would install or how long it would take, and what covers it instead).
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamafarm import errors
from llamafarm.errors import Problem, error_for

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<comment>.+?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
ERROR_ID = re.compile(r"LF-[A-Z]+-\d{3}")
ROWS = 40


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    order: str  # "save as", "file", "part of", "not run", or empty
    argument: str
    line: int


def blocks(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        order, _, argument = (match["comment"] or "").partition(": ")
        yield Block(match["kind"], match["text"], order, argument, text[: match.start()].count("\n") + 1)


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def test_every_block_says_what_it_is() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found = list(blocks(document))
        assert len(found) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), f"{name(document)}: open block"
        for block in found:
            assert block.order in {"", "save as", "file", "part of", "not run"}, f"{name(document)}:{block.line}"
            if block.order == "not run":
                assert len(block.argument.split()) > 3, f"{name(document)}:{block.line}: give the reason"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_quoted_code_is_that_of_the_file(document: Path) -> None:
    for block in blocks(document):
        if block.order == "file":
            assert (ROOT / block.argument).read_text(encoding="utf-8") == block.text, f"{name(document)}:{block.line}"
        elif block.order == "part of":
            assert block.text in (ROOT / block.argument).read_text(encoding="utf-8"), f"{name(document)}:{block.line}"
        else:
            assert block.kind not in {"python", "toml"}, f"{name(document)}:{block.line}: quote a file"


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to tell a document in; `data.jsonl` is there, and `llamafarm` is on the path."""
    import json

    from llamafarm.testing.rows import make_fields

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_fields(ROWS)), encoding="utf-8")
    return tmp_path


def save(block: Block) -> None:
    """A file of the story; rows that a document shows are too few to train on, so they join those that are there."""
    path = Path(block.argument)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.suffix == ".jsonl" and path.exists() else ""
    path.write_text(before + block.text, encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_yaml_validates(document: Path, story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llamafarm.cli.guard import run

    for block in blocks(document):
        if block.order == "save as":
            save(block)
        if block.kind == "yaml":
            path = Path(block.argument if block.order == "save as" else "block.yaml")
            path.write_text(block.text, encoding="utf-8")
            code = run(["validate", str(path)])
            assert code == 0, f"{name(document)}:{block.line}: {capsys.readouterr().err}"


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if "```bash" in path.read_text("utf-8")], ids=name)
def test_commands_run(document: Path, story: Path) -> None:
    for block in blocks(document):
        if block.order == "save as":
            save(block)
        elif block.kind == "bash" and block.order != "not run":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            finished = subprocess.run(command, cwd=story, capture_output=True, text=True, check=False)
            assert finished.returncode == 0, f"{name(document)}:{block.line}\n{finished.stdout}{finished.stderr}"
            assert "Traceback" not in finished.stderr


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{name(document)}: {target}"


def ids_in(folder: Path, pattern: str = "*.py") -> dict[str, set[str]]:
    """Error id → the files that name it."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob(pattern):
        for id_ in ERROR_ID.findall(path.read_text(encoding="utf-8")):
            found.setdefault(id_, set()).add(name(path))
    return found


def documented() -> list[str]:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return re.findall(r"^### (LF-[A-Z]+-\d{3})$", text, re.MULTILINE)


def test_every_error_has_its_section() -> None:
    used = ids_in(ROOT / "llamafarm") | ids_in(ROOT / "plugins")
    sections = documented()
    assert len(sections) == len(set(sections)), "one section each"
    for area in {id_.split("-")[1] for id_ in sections}:
        numbers = [id_ for id_ in sections if id_.split("-")[1] == area]
        assert numbers == sorted(numbers)
    assert set(used) - set(sections) == set(), "errors without a section"
    assert set(sections) - set(used) == set(), "sections without an error"


def test_commands_of_the_readme_are_those_of_the_program() -> None:
    from llamafarm.cli.table import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)
    assert {command.partition(" ")[0] for command in map(str, COMMANDS)} - {"finetune"} == set(listed)


def test_every_error_has_a_test() -> None:
    tested = ids_in(ROOT / "tests")
    assert set(documented()) - set(tested) == set()


def test_every_area_has_its_exit_code() -> None:
    used = ids_in(ROOT / "llamafarm") | ids_in(ROOT / "plugins")
    areas = {id_.split("-")[1] for id_ in used} - {"INTERNAL"}  # a defect: no error of ours is raised
    assert areas <= set(errors._CLASSES)
    table = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for area in areas:
        code = errors._CLASSES[area].exit_code
        assert re.search(rf"^\| {int(code)} \|.*`LF-{area}`", table, re.MULTILINE), area


def raised_with() -> Iterator[tuple[str, str, str]]:
    """(id, class, place) wherever an error is raised by `SomeError.of("LF-…", …)`."""
    for folder in (ROOT / "llamafarm", ROOT / "plugins"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "of"
                    and isinstance(node.func.value, ast.Name)
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                ):
                    yield str(node.args[0].value), node.func.value.id, f"{name(path)}:{node.lineno}"


def test_an_error_id_means_one_exit_code() -> None:
    wrong = []
    for id_, kind, place in raised_with():
        expected = type(error_for([Problem(id_, "")])).__name__
        if kind not in {expected, "LlamaFarmError", "cls"}:
            wrong.append(f"{place}: {id_} is raised as {kind}, its area means {expected}")
    assert wrong == []
