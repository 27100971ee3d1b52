from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llamafarm.api.values import Event
from llamafarm.cli.live import LiveProgress
from llamafarm.cli.progress import PlainProgress, parameter_lines, show_progress
from llamafarm.cli.session import Session

LOG = Event(
    "log",
    {
        "step": 420,
        "total_steps": 705,
        "epoch": 1.787,
        "loss": 0.84123,
        "learning_rate": 3.5e-05,
        "grad_norm": 0.7101,
        "tokens_per_second": 6630.4,
        "peak_memory_bytes": int(6.7 * 1024**3),
        "elapsed_s": 300.0,
        "remaining_s": 165.0,
    },
)
MODEL = Event(
    "model", {"trainable_parameters": 2_097_152, "total_parameters": 1_300_000_000, "base": "a", "method": "lora"}
)
EVENTS = [
    Event("phase", {"name": "loading model"}),
    MODEL,
    LOG,
    Event("eval", {"step": 420, "total_steps": 705, "epoch": 1.787, "eval_loss": 0.9513}),
    Event("checkpoint", {"step": 420, "path": "output/checkpoint-420", "best": True}),
    Event("notice", {"message": "something to know"}),
    Event("warning", {"message": "something to look at"}),
    Event("exact_match", {"model": "tuned", "exact_match": 0.975, "samples": 200}),
    Event("result", {"train_loss": 0.5}),
]


def test_parameters_are_three_lines_with_thousands_separators():
    # 2,097,152 / 1,300,000,000 = 0.1613 %
    assert parameter_lines(MODEL.fields) == [
        "Trainable params: 2,097,152",
        "All params: 1,300,000,000",
        "Trainable %: 0.16",
    ]


@pytest.fixture
def plain(capsys):
    def lines(*events):
        listener = PlainProgress(Session((), {}))
        for event in events:
            listener(event)
        captured = capsys.readouterr()
        assert captured.out == ""
        return [re.sub(r"^ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", "", line) for line in captured.err.splitlines()]

    return lines


def test_a_pipe_gets_one_line_of_words_an_event(plain):
    assert plain(*EVENTS) == [
        'phase="loading model"',
        "Trainable params: 2,097,152",
        "All params: 1,300,000,000",
        "Trainable %: 0.16",
        "event=model trainable_parameters=2097152 total_parameters=1300000000 base=a method=lora",
        "step=420/705 epoch=1.787 loss=0.8412 lr=3.5e-05 grad_norm=0.7101 tok_s=6630 mem_gib=6.7 eta_s=165",
        "step=420/705 epoch=1.787 eval_loss=0.9513",
        "step=420 checkpoint=output/checkpoint-420 best=true",
        'event=notice message="something to know"',
        'event=warning message="something to look at"',
        "event=exact_match model=tuned exact_match=0.975 samples=200",
    ]


def test_each_line_has_the_time_and_no_line_is_broken_by_its_values(capsys):
    PlainProgress(Session((), {}))(Event("notice", {"message": "two\nlines and \x1b[2J"}))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 event=notice ", line)
    assert "\x1b" not in line


def test_quiet_shows_warnings_alone(capsys):
    with show_progress(Session((), {}), quiet=True) as listener:
        for event in EVENTS:
            listener(event)
    assert capsys.readouterr().err == "warning: something to look at\n"


def test_a_pipe_gets_the_plain_form(capsys):
    with show_progress(Session((), {})) as listener:
        assert isinstance(listener, PlainProgress)


@pytest.fixture
def live():
    """Draw events on a terminal of 80 columns; returns everything written, escape codes included."""

    def draw(*events):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True, width=80, no_color=True, legacy_windows=False)
        with LiveProgress(Session((), {}), console) as progress:
            for event in events:
                progress(event)
            progress.live.refresh()
        return screen.getvalue()

    return draw


def test_a_terminal_sees_where_the_run_stands(live):
    shown = live(Event("phase", {"name": "training"}), LOG)
    for part in ("training", "step 420/705", "epoch 1.79", "loss 0.8412", "lr 3.5e-05", "grad 0.7101", "6,630 tok/s"):
        assert part in shown
    assert "6.7 GiB" in shown
    assert "eta 2m45s" in shown


def test_a_terminal_keeps_what_matters(live):
    kept = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", live(*EVENTS)).splitlines()]
    for line in (
        "Trainable params: 2,097,152",
        "step 420  eval_loss 0.9513",
        "step 420  saved output/checkpoint-420  best so far",
        "note: something to know",
        "warning: something to look at",
        "tuned  exact match 97.5 % of 200 held-out rows",
    ):
        assert any(line in one for one in kept), line


def test_a_terminal_is_not_driven_by_messages(live):
    assert "\x1b]0;" not in live(Event("notice", {"message": "\x1b]0;title\x07 [bold]literal[/bold]"}))
    assert "[bold]literal[/bold]" in live(Event("notice", {"message": "[bold]literal[/bold]"}))


def test_events_of_other_kinds_are_ignored(live, plain):
    assert "unheard" not in live(Event("unheard-of", {"a": 1}))
    assert plain(Event("unheard-of", {"a": 1})) == ["event=unheard-of a=1"]
