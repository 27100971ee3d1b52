"""Groups and commands that import their module when they are called, not when they are listed or completed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from llamafarm.cli.table import Branch, Leaf
from llamafarm.errors import UsageError, nearest, one_of


class LazyCommand(TyperCommand):
    """Stands for a command: knows its name and its line of help, and becomes the real one when it is called."""

    def __init__(self, name: str, leaf: Leaf) -> None:
        super().__init__(name, help=leaf.help, rich_markup_mode=None)
        self.target = leaf.target

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Build the real command's context; its `command` is the real command."""
        assert self.name is not None
        return build(self.name, self.target).make_context(*args, **kwargs)


class LazyGroup(TyperGroup):
    """A group whose unknown commands are answered with the nearest known one."""

    default = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in, when the group alone was named (options may follow).

        Raises:
            UsageError: If a command is missing and there is no default.
        """
        if ctx.resilient_parsing:  # a shell asks for completions
            return super().parse_args(ctx, args)
        options_only = not any(arg in self.commands for arg in args) and (not args or args[0].startswith("-"))
        if self.default and options_only and not {"-h", "--help"} & set(args):
            args = [self.default, *args]
        elif not args and not self.invoke_without_command:
            where, hint = ctx.command_path, f"give {one_of(self.commands)}"
            raise UsageError.of("LF-USAGE-002", "a command is missing", where=where, hint=hint)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command.

        Raises:
            UsageError: If there is none of that name.
        """
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            hint = nearest(name, self.commands) or f"give {one_of(self.commands)}"
            raise UsageError.of("LF-USAGE-002", f"there is no command {name!r}", where=ctx.command_path, hint=hint)
        return super().resolve_command(ctx, args)


def grow(group: TyperGroup, commands: Mapping[str, Leaf | Branch]) -> None:
    """Hang the commands of the table below `group`."""
    for name, entry in commands.items():
        if isinstance(entry, Leaf):
            group.add_command(LazyCommand(name, entry))
            continue
        branch = LazyGroup(name=name, help=entry.help, rich_markup_mode=None, params=shared_options())
        branch.default = entry.default
        grow(branch, entry.commands)
        group.add_command(branch)


def build(name: str, target: str) -> Any:
    """The real command: the typed function at `module:function`, with the options that every command has."""
    module, _, function = target.partition(":")
    command = _command(name, getattr(import_module(module), function))
    command.params.extend(shared_options())
    return command


def shared_options() -> list[Any]:
    """The options that may stand before and after any command."""
    from llamafarm.cli.root import everywhere

    return list(_command("everywhere", everywhere).params)


def _command(name: str, function: Any) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name)(function)
    return typer.main.get_command(app)
