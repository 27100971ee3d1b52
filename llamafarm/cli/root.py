"""The program itself: options that hold everywhere, the start screen, and the help with its table of exit codes."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from llamafarm import __version__
from llamafarm.cli.lazy import LazyGroup, grow
from llamafarm.cli.session import session_of
from llamafarm.cli.table import COMMANDS, PROGRAM
from llamafarm.errors import EXIT_CODE_MEANINGS

START_SCREEN: Final = f"""\
LlamaFarm {__version__}   fine-tune a language model from one YAML file

  llamafarm train -s quickstart    train a small model now: offline, on any CPU
  llamafarm strategies             ready-made strategies
  llamafarm train -s NAME|FILE     train one of them, or your own
  llamafarm doctor                 what this machine can do, and what is missing
  llamafarm --help                 everything else"""


def _debug(context: typer.Context, value: bool) -> bool:
    if value and not context.resilient_parsing:
        session_of(context).debug = True
    return value


def _no_color(context: typer.Context, value: bool) -> bool:
    if value and not context.resilient_parsing:
        session_of(context).no_color = True
    return value


def _version(context: typer.Context, value: bool) -> bool:
    if value and not context.resilient_parsing:
        session_of(context).result(f"{PROGRAM} {__version__}")
        raise typer.Exit
    return value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, expose_value=False, help="Show tracebacks (or LLAMAFARM_DEBUG=1).")
]
NoColor = Annotated[
    bool, typer.Option("--no-color", callback=_no_color, expose_value=False, help="No colour (or NO_COLOR=1).")
]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_version, expose_value=False, is_eager=True, help="Show the version and exit."),
]


def everywhere(debug: Debug = False, no_color: NoColor = False) -> None:
    """Hold the options that may stand before and after any command."""


def _start(context: typer.Context, version: Version = False, debug: Debug = False, no_color: NoColor = False) -> None:
    if context.invoked_subcommand is None:
        session_of(context).result(START_SCREEN)


class RootGroup(LazyGroup):
    """The program's group: its help ends with the table of exit codes."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in EXIT_CODE_MEANINGS.items()])


def program() -> Any:
    """The whole command tree; builds names and one-line helps only."""
    app = typer.Typer(
        cls=RootGroup,
        help="Fine-tune language models from one YAML file.",
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "color": None},
    )
    app.callback()(_start)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    grow(group, COMMANDS)
    return group


def complete_shell() -> None:
    """Answer a request of a completion script, if this is one; typer leaves the process then."""
    if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:
        program().main(args=[], prog_name=PROGRAM)
