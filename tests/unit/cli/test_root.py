from __future__ import annotations

import pytest

from llamafarm import __version__
from llamafarm.cli.table import COMMANDS, Branch
from llamafarm.errors import EXIT_CODE_MEANINGS

LEAVES = [
    (name, sub) if sub else (name,)
    for name, entry in COMMANDS.items()
    for sub in (entry.commands if isinstance(entry, Branch) else [""])
]


def test_a_bare_call_shows_where_to_start(cli):
    ended = cli()
    assert (ended.code, ended.err) == (0, "")
    assert (
        ended.out
        == f"""\
LlamaFarm {__version__}   fine-tune a language model from one YAML file

  llamafarm train -s quickstart    train a small model now: offline, on any CPU
  llamafarm strategies             ready-made strategies
  llamafarm train -s NAME|FILE     train one of them, or your own
  llamafarm doctor                 what this machine can do, and what is missing
  llamafarm --help                 everything else
"""
    )
    assert max(map(len, ended.out.splitlines())) <= 80


def test_help_lists_every_command_and_every_exit_code(cli):
    ended = cli("--help")
    assert ended.code == 0
    for name, entry in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, entry.help] for line in ended.out.splitlines())
    for code, meaning in EXIT_CODE_MEANINGS.items():
        line = next(line for line in ended.out.splitlines() if line.split()[:1] == [str(int(code))])
        assert line.endswith(meaning)
    assert cli("-h").out == ended.out


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_explains_itself(cli, command):
    ended = cli(*command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: llamafarm {' '.join(command)}")
    assert "--debug" in ended.out
    assert "--no-color" in ended.out


def test_version(cli):
    ended = cli("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"llamafarm {__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "llamafarm: there is no command 'trian'; did you mean 'train'? [LF-USAGE-002]"),
        (["--verson"], "llamafarm: there is no option '--verson'; did you mean '--version'? [LF-USAGE-001]"),
        (["strategies", "lst"], "llamafarm strategies: there is no command 'lst'; did you mean 'list'? [LF-USAGE-002]"),
        (
            ["finetune"],
            "llamafarm finetune: a command is missing; give 'evaluate', 'export', 'resume' or 'start' [LF-USAGE-002]",
        ),
        (["train", "--epoch", "3"], "llamafarm train: there is no option '--epoch'; did you mean '--epochs'?"),
        (
            ["train", "--epochs"],
            "llamafarm train: option '--epochs' requires an argument; see 'llamafarm train --help'",
        ),
        (
            ["finetune", "start", "--eposch", "1"],
            "llamafarm finetune start: there is no option '--eposch'; did you mean",
        ),
        (["train", "--epochs", "three"], "got 'three'; see 'llamafarm train --help' [LF-USAGE-003]"),
        (["strategies", "show"], "llamafarm strategies show: missing argument 'NAME'"),
        (["strategies", "list", "more"], "llamafarm strategies list: "),
        (["qqqqq"], "'datagen', 'datasplit', 'doctor'"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_and_exit_2(cli, argv, message):
    ended = cli(*argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_a_group_alone_runs_its_default_command(cli):
    assert cli("plugins").out == cli("plugins", "list").out
    assert cli("plugins", "--json").out == cli("plugins", "list", "--json").out


@pytest.mark.parametrize("argv", [["--no-color", "strategies", "lst"], ["strategies", "--no-color", "lst"]])
def test_no_color_may_stand_anywhere(cli, monkeypatch, argv):
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m" in cli("strategies", "lst").err
    assert "\x1b" not in cli(*argv).err


@pytest.mark.parametrize("argv", [["--debug", "strategies", "show", "nope"], ["strategies", "show", "nope", "--debug"]])
def test_debug_may_stand_anywhere(cli, argv):
    ended = cli(*argv)
    assert "Traceback" in ended.err
    assert ended.code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [("llamafarm tra", "train"), ("llamafarm strategies ", "list"), ("llamafarm train --epo", "--epochs")],
)
def test_shells_complete_commands_and_options(cli, monkeypatch, words, expected):
    monkeypatch.setenv("_LLAMAFARM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    ended = cli()
    assert expected in ended.out.split()


def test_a_completion_script_is_printed(cli):
    ended = cli("--show-completion", "bash")
    assert "_LLAMAFARM_COMPLETE=complete_bash" in ended.out
