"""Progress on a terminal: two lines that are redrawn, and a line that stays for each evaluation and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from llamafarm.api.values import Event
from llamafarm.cli.figures import duration, gib, number, share
from llamafarm.cli.problems import printable
from llamafarm.cli.progress import parameter_lines
from llamafarm.cli.session import Session


class LiveProgress:
    """Redraws the state of a run; a context manager, because the terminal must be left clean."""

    def __init__(self, session: Session, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, no_color=session.no_color, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            console=self.console,
        )
        self.task = self.bar.add_task("starting", total=None, count="")
        self.figures = Text(no_wrap=True, overflow="ellipsis", style="dim")
        self.live = Live(Group(self.bar, self.figures), console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: Event, /) -> None:
        handler = getattr(self, f"on_{event.type}", None)
        if handler is not None:
            handler(event.fields)

    def stay(self, text: str, style: str = "") -> None:
        """Write a line above the redrawn ones."""
        self.console.print(Text(printable(text), style=style))

    def on_phase(self, fields: Mapping[str, Any]) -> None:
        """Name what is being done."""
        self.bar.update(self.task, description=str(fields["name"]))

    def on_model(self, fields: Mapping[str, Any]) -> None:
        """Say what is trained."""
        for line in parameter_lines(fields):
            self.stay(line)

    def on_log(self, fields: Mapping[str, Any]) -> None:
        """Move the bar and the figures."""
        step, total = fields["step"], fields.get("total_steps")
        count = f"step {step}/{total}  epoch {float(fields.get('epoch', 0)):.2f}"
        self.bar.update(self.task, completed=step, total=total, count=count)
        self.figures.plain = "  ".join(_figures(fields))

    def on_eval(self, fields: Mapping[str, Any]) -> None:
        """Keep an evaluation."""
        figures = "  ".join(f"{key} {number(value)}" for key, value in fields.items() if key.startswith("eval_"))
        self.stay(f"step {fields['step']}  {figures}")

    def on_checkpoint(self, fields: Mapping[str, Any]) -> None:
        """Keep a checkpoint."""
        best = "  best so far" if fields.get("best") else ""
        self.stay(f"step {fields['step']}  saved {fields['path']}{best}")

    def on_exact_match(self, fields: Mapping[str, Any]) -> None:
        """Keep a measure of whole answers."""
        self.stay(f"{fields['model']}  exact match {share(fields['exact_match'])} of {fields['samples']} held-out rows")

    def on_notice(self, fields: Mapping[str, Any]) -> None:
        """Keep a notice."""
        self.stay(f"note: {fields['message']}", "cyan")

    def on_warning(self, fields: Mapping[str, Any]) -> None:
        """Keep a warning."""
        self.stay(f"warning: {fields['message']}", "yellow")


def _figures(fields: Mapping[str, Any]) -> list[str]:
    """What of the figures there is, in the order in which people look at them."""
    shown: dict[str, Callable[[float], str]] = {
        "loss": lambda value: f"loss {number(value)}",
        "learning_rate": lambda value: f"lr {number(value)}",
        "grad_norm": lambda value: f"grad {number(value)}",
        "tokens_per_second": lambda value: f"{value:,.0f} tok/s",
        "peak_memory_bytes": gib,
        "remaining_s": lambda value: f"eta {duration(value)}",
    }
    return [form(fields[key]) for key, form in shown.items() if fields.get(key) is not None]
