"""What a command imports: looking around must not wait for torch, nor `--help` for anything."""

from __future__ import annotations

import pytest

from llamafarm.testing.fresh import fresh, heavy_after

RUN = """
import contextlib, io, sys
from llamafarm.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    try:
        main(arguments[0])
    except SystemExit as ended:
        code = ended.code
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMAFARM_HOME", str(tmp_path / ".home"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "mine.yaml").write_text(
        "fine_tuner: {type: pytorch, config: {base_model: model, dataset: rows.jsonl}}\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


WEIGHTY = {"torch", "transformers", "omegaconf", "rich", "ruamel", "pluggy", "numpy"}


@pytest.mark.parametrize(
    ("argv", "allowed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["strategies", "--help"], {"pydantic"}),  # typer's own, once it reads options
        ([], {"pydantic"}),
        (["trian"], {"pydantic"}),
    ],
)
def test_the_frame_imports_nothing_of_weight(argv, allowed):
    answer = "answer = [code, sorted({name.partition('.')[0] for name in sys.modules})]"
    code, loaded = fresh(f"{RUN}\n{answer}", argv)
    assert code in (0, 2)
    assert set(loaded) & (WEIGHTY | {"pydantic"}) <= allowed


@pytest.mark.parametrize("name", ["train", "generate", "datasplit", "explain", "validate", "doctor", "schema"])
def test_the_help_of_a_command_imports_no_torch(name):
    assert heavy_after(RUN, [name, "--help"]) == set()


@pytest.mark.parametrize(
    "argv",
    [
        ["validate", "mine.yaml"],
        ["explain", "mine.yaml"],
        ["strategies", "list"],
        ["plugins", "list"],
        ["schema"],
        ["doctor"],
        ["train", "-s", "mine.yaml", "--dry-run"],
        ["train", "-s", "nope"],
        ["datasplit", "rows.jsonl"],
        ["datagen", "smart-home", "-n", "2"],
        ["generate", "hello", "-m", "./modle"],
    ],
    ids=" ".join,
)
def test_looking_around_imports_no_torch(folder, argv):
    loaded, code = heavy_after(f"{RUN}\nassert code in (0, 2, 4), code", argv), RUN
    assert loaded == set(), code


def test_a_command_imports_only_its_own_module():
    answer = "answer = sorted(name for name in sys.modules if name.startswith('llamafarm.cli.'))"
    loaded = set(fresh(f"{RUN}\n{answer}", ["plugins", "--help"]))
    assert "llamafarm.cli.plugins" not in loaded
    assert {"llamafarm.cli.train", "llamafarm.cli.doctor"}.isdisjoint(loaded)
